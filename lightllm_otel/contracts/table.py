"""Table of contracts: every place where the plugin hooks or reads LightLLM, and what is lost without it.

A row is data. The same table creates the hooks, is shown by ``doctor``, and is compared with LightLLM's source of any commit
(``make contract``). The module imports little, because every Python process of a server reads it at its start.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple, Optional, Union

from lightllm_otel.records.vocabulary import Feature

_MODEL = "lightllm.server.router.model_infer"
_BACKEND = f"{_MODEL}.mode_backend"
_BASEMODEL = "lightllm.common.basemodel"
_HTTP = "lightllm.server.httpserver.manager"


class Hook(NamedTuple):
    """Function of LightLLM's that the plugin wraps.

    ``place``: the wrapped attribute of ``module``. ``maker``: the function of :mod:`lightllm_otel.inject.hooks` that makes
    the wrapper. ``reads``: parameters that it reads by name, as alternatives; the row fits if all names of one alternative
    are parameters of the host's function. ``since`` and ``until``: the first and the last version in which the row was seen
    to fit. Rows of one ``group`` replace each other: ``feature`` is lost only if none of them fits. ``live``: live control
    removes the wrapper while it says ``off``. ``loses``: what is lost without it. ``expected``: a missing place counts as lost
    only if the row of this name fits; None: always; empty: never, because such a host does not have the mode.
    """

    name: str
    feature: Feature
    module: str
    place: str
    maker: str
    reads: tuple[tuple[str, ...], ...]
    since: str
    until: str
    loses: str
    group: str = ""
    live: bool = False
    expected: Optional[str] = None


ENVIRONMENT, OPTIONS = "environment", "options"


class Field(NamedTuple):
    """Attributes of one of LightLLM's objects that the plugin reads. An attribute that is None or missing is unknown.

    ``owner``: a class in ``module``, whose instances have the attributes; a function or method, whose parameters they are; empty
    for names of the module itself; ENVIRONMENT for environment variables that the module sets or reads; OPTIONS for options of
    the server's command line, which every process of a server has as ``args``.

    Rows of one ``group`` are tried in order until one is known; rows of one ``group/alternative`` are needed together. ``loses``
    is empty if nothing is lost without the attributes, because they are optional. ``expected`` has the meaning of a hook's.
    """

    name: str
    feature: Feature
    module: str
    owner: str
    attributes: tuple[str, ...]
    since: str
    until: str
    loses: str
    group: str = ""
    expected: Optional[str] = None


OLDEST, JULY_2025, V1_1, V1_2, MAIN = VERSIONS = ("0.0.1", "fc72ffab", "v1.1.0", "v1.2.0", "main")

HOOKS = (
    Hook("construction", Feature.STEPS, f"{_BASEMODEL}.basemodel", "TpPartBaseModel.__init__", "constructed", (),
         OLDEST, MAIN, "nothing is measured: the plugin does not learn when a model is complete"),
    Hook("layers_exist", Feature.DECODE_GRAPHS, f"{_BASEMODEL}.basemodel", "TpPartBaseModel._init_padded_req", "attaching", (),
         JULY_2025, MAIN,
         "operators are hooked only after CUDA graphs were captured, so none inside them is timed", expected="graph_capture"),
    Hook("memory_check", Feature.GRAPH_MEMORY, f"{_BASEMODEL}.basemodel", "TpPartBaseModel._check_max_len_infer",
         "checking_memory", (), JULY_2025, MAIN,
         "instrumented graphs are not released if the longest prefill needs their memory", expected=""),
    Hook("forward", Feature.STEPS, f"{_BASEMODEL}.basemodel", "TpPartBaseModel.forward", "entered",
         (("model_input",), ("batch_size", "total_token_num", "input_ids")), OLDEST, MAIN, "no step is timed"),
    Hook("splitfuse_forward", Feature.SPLITFUSE, f"{_BASEMODEL}.basemodel", "TpPartBaseModel.splitfuse_forward", "entered",
         (("decode_req_num", "prefill_req_num", "decode_total_token_num", "input_ids"),), OLDEST, OLDEST,
         "steps of splitfuse mode are not timed", expected=""),
    Hook("overlap_prefill", Feature.MICROBATCHES, f"{_BASEMODEL}.basemodel", "TpPartBaseModel.microbatch_overlap_prefill",
         "entered", (("model_input0", "model_input1"),), JULY_2025, MAIN,
         "prefill steps of two microbatches are not timed", expected=""),
    Hook("overlap_decode", Feature.MICROBATCHES, f"{_BASEMODEL}.basemodel", "TpPartBaseModel.microbatch_overlap_decode",
         "entered", (("model_input0", "model_input1"),), JULY_2025, MAIN,
         "decode steps of two microbatches are not timed", expected=""),
    Hook("graph_warmup", Feature.DECODE_GRAPHS, f"{_BASEMODEL}.cuda_graph", "CudaGraph.warmup", "warming_up", (("model",),),
         JULY_2025, MAIN, "operators inside decode graphs are not timed"),
    Hook("graph_capture", Feature.DECODE_GRAPHS, f"{_BASEMODEL}.cuda_graph", "CudaGraph._capture_decode", "capturing",
         (("decode_func", "infer_state"),), JULY_2025, MAIN, "operators inside decode graphs are not timed"),
    Hook("graph_replay", Feature.DECODE_GRAPHS, f"{_BASEMODEL}.cuda_graph", "CudaGraph._replay", "replaying",
         (("infer_state",),), JULY_2025, MAIN, "operators inside decode graphs are not timed", live=True),
    Hook("overlap_capture", Feature.MICROBATCHES, f"{_BASEMODEL}.cuda_graph", "CudaGraph._capture_decode_overlap",
         "capturing_step_only", (), JULY_2025, MAIN,
         "capturing a graph of two microbatches late may fail because of the plugin's events", expected=""),
    Hook("overlap_replay", Feature.MICROBATCHES, f"{_BASEMODEL}.cuda_graph", "CudaGraph._replay_overlap", "replaying_step_only",
         (("infer_state",),), JULY_2025, MAIN, "decode steps of two microbatches are reported as eager", live=True, expected=""),
    Hook("prefill_graph_capture", Feature.PREFILL_GRAPHS, f"{_BASEMODEL}.prefill_cuda_graph", "PrefillCudaGraph._capture_prefill",
         "capturing_step_only", (), V1_2, MAIN, "capturing a prefill graph late may fail because of the plugin's events"),
    Hook("prefill_graph_replay", Feature.PREFILL_GRAPHS, f"{_BASEMODEL}.prefill_cuda_graph", "PrefillCudaGraph._replay",
         "replaying_prefill", (), V1_2, MAIN,
         "prefill graphs are reported as eager, with most of their time as attention", live=True),
    Hook("groups", Feature.COLLECTIVES, "lightllm.distributed.communication_op", "CustomProcessGroup", "grouped", (),
         JULY_2025, MAIN, "collectives by LightLLM's own kernels count as part of the operator that calls them"),
    Hook("sample", Feature.SAMPLING, f"{_BACKEND}.generic_post_process", "sample", "sampled", (("reqs",),),
         JULY_2025, MAIN, "sampling is not timed separately after the forward, and steps have no requests", "sample", True),
    Hook("sample_continues_batch", Feature.SAMPLING, f"{_BACKEND}.continues_batch.post_process", "sample", "sampled",
         (("reqs",),), OLDEST, OLDEST, "sampling is not timed", "sample", True),
    Hook("sample_beamsearch", Feature.SAMPLING, f"{_BACKEND}.beamsearch.post_process", "sample", "sampled",
         (("req_groups",),), OLDEST, OLDEST, "sampling of beam search is not timed", "sample", True),
    Hook("sample_diverse", Feature.SAMPLING, f"{_BACKEND}.diverse_backend.post_process", "sample", "sampled",
         (("req_groups",),), OLDEST, OLDEST, "sampling of the diverse mode is not timed", "sample", True),
    Hook("end_of_step", Feature.STEP_END, f"{_BACKEND}.overlap_events",
         "OverlapEventPack.notify_post_handle_and_wait_pre_post_handle", "ending", (), V1_1, MAIN,
         "a step ends with sampling; what follows on the GPU counts as idle", "end", True, expected="idle_loop"),
    Hook("end_of_step_late", Feature.STEP_END, f"{_BACKEND}.base_backend", "ModeBackend._pre_post_handle", "ending", (),
         V1_1, MAIN,
         "if the host does not overlap steps, what follows sampling counts as idle", "end", True, expected="idle_loop"),
    Hook("idle_loop", Feature.IDLE, f"{_BACKEND}.base_backend", "ModeBackend._try_read_new_reqs", "asking", (), V1_1, MAIN,
         "idle time without requests is reported as a late host", "idle", True),
    Hook("idle_batch", Feature.IDLE, f"{_BACKEND}.base_backend", "ModeBackend.remove_batch", "emptied", (), OLDEST, OLDEST,
         "idle time without requests is reported as a late host", "idle", True),
    Hook("idle_rpc", Feature.IDLE, f"{_MODEL}.model_rpc", "ModelRpcServer.decode", "ticking", (), JULY_2025, JULY_2025,
         "idle time without requests is reported as a late host", "idle", True),
    Hook("health_monitor", Feature.HEALTH_MONITOR, "lightllm.server.health_monitor.manager", "get_all_cared_pids",
         "watching_health", (), JULY_2025, MAIN,
         "with --health_monitor, an exporter that ends is taken for a dead server process", expected=""),
    Hook("requests", Feature.REQUEST_SPANS, _HTTP, "HttpServerManager.generate", "generating", (("sampling_params",),),
         OLDEST, MAIN, "requests have no spans"),
    Hook("tokenised", Feature.REQUEST_SPANS, _HTTP, "HttpServerManager._encode", "encoding", (("sampling_params",),),
         JULY_2025, MAIN, "requests have no spans, because it is unknown when they are tokenised", "tokenised"),
    Hook("tokenised_status", Feature.REQUEST_SPANS, _HTTP, "ReqStatus.__init__", "tokenised_by_status",
         (("req_id",), ("group_request_id",)), OLDEST, MAIN,
         "requests have no spans, because it is unknown when they are tokenised", "tokenised"),
)  # fmt: skip

_INPUT = f"{_BASEMODEL}.batch_objs"
_STATE = f"{_BASEMODEL}.infer_struct"
_MODEL_CLASS = f"{_BASEMODEL}.basemodel"
_GRAPHS = f"{_BASEMODEL}.cuda_graph"
_GROUPS = "lightllm.distributed.communication_op"
_REQUESTS = f"{_MODEL}.infer_batch"
_CORE = "lightllm.server.core.objs"
_CLI, _OLD_CLI = "lightllm.server.api_cli", "lightllm.server.api_server"
_UTILS = "lightllm.utils"
_NO_GRAPHS = "operators inside decode graphs are not timed"
_RANKS_MIXED = "the ranks of a server cannot be told apart"

_ASKED = (
    "max_new_tokens", "temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty", "best_of",
)  # fmt: skip
_NO_STATIC = "bench --static cannot run the model without a server"

FIELDS = (
    # Size of a forward.
    Field("phase", Feature.STEPS, _INPUT, "ModelInput", ("is_prefill",), JULY_2025, MAIN, "no step is timed", "phase"),
    Field("phase_0_0_1", Feature.STEPS, _MODEL_CLASS, "TpPartBaseModel.forward", ("is_prefill",), OLDEST, OLDEST,
          "no step is timed", "phase"),
    Field("batch", Feature.STEP_SIZES, _INPUT, "ModelInput", ("batch_size",), JULY_2025, MAIN, "steps have no batch", "batch"),
    Field("batch_0_0_1", Feature.STEP_SIZES, _MODEL_CLASS, "TpPartBaseModel.forward", ("batch_size",), OLDEST, OLDEST,
          "steps have no batch", "batch"),
    Field("context", Feature.STEP_SIZES, _INPUT, "ModelInput", ("total_token_num",), JULY_2025, MAIN, "steps have no context",
          "context"),
    Field("context_0_0_1", Feature.STEP_SIZES, _MODEL_CLASS, "TpPartBaseModel.forward", ("total_token_num",), OLDEST, OLDEST,
          "steps have no context", "context"),
    Field("new_tokens", Feature.STEP_SIZES, _INPUT, "ModelInput", ("total_token_num", "prefix_total_token_num"), V1_2, MAIN,
          "prefill steps have no tokens", "prefill_tokens"),
    Field("new_token_ids", Feature.STEP_SIZES, _INPUT, "ModelInput", ("input_ids",), JULY_2025, MAIN,
          "prefill steps have no tokens", "prefill_tokens"),
    Field("new_token_ids_0_0_1", Feature.STEP_SIZES, _MODEL_CLASS, "TpPartBaseModel.forward", ("input_ids",), OLDEST, OLDEST,
          "prefill steps have no tokens", "prefill_tokens"),
    Field("splitfuse_sizes", Feature.SPLITFUSE, _MODEL_CLASS, "TpPartBaseModel.splitfuse_forward",
          ("input_ids", "decode_req_num", "prefill_req_num", "decode_total_token_num"), OLDEST, OLDEST,
          "steps of splitfuse mode have no sizes"),
    Field("mixed", Feature.MIXED_BATCHES, _INPUT, "ModelInput", ("b_is_decode_req",), V1_2, MAIN,
          "a prefill step that also decodes is called prefill", expected=""),
    # Facts about the model.
    Field("layers", Feature.OPERATORS, _MODEL_CLASS, "TpPartBaseModel", ("layers_infer", "pre_infer", "post_infer"),
          OLDEST, MAIN, "no operator is timed"),
    Field("model_facts", Feature.MODEL_FACTS, _MODEL_CLASS, "TpPartBaseModel", ("config", "weight_dir_", "data_type"),
          OLDEST, MAIN, "the model's name, shape and data type are unknown, so there are no ideal times"),
    Field("ranks", Feature.IDENTITY, f"{_UTILS}.dist_utils", ENVIRONMENT,
          ("LIGHTLLM_CURRENT_RANK_IN_DP", "LIGHTLLM_DP_WORLD_SIZE", "LIGHTLLM_GLOBAL_DP_RANK", "LIGHTLLM_DP_SIZE"),
          JULY_2025, MAIN, _RANKS_MIXED, "ranks"),
    Field("ranks_0_0_1", Feature.IDENTITY, _MODEL_CLASS, "TpPartBaseModel", ("tp_rank_", "world_size_"), OLDEST, OLDEST,
          _RANKS_MIXED, "ranks"),
    Field("start_arguments", Feature.IDENTITY, f"{_UTILS}.envs_utils", ENVIRONMENT, ("LIGHTLLM_START_ARGS",), JULY_2025, MAIN,
          "the servers of a host cannot be told apart", "arguments"),
    Field("start_arguments_0_0_1", Feature.IDENTITY, f"{_BACKEND}.base_backend", ENVIRONMENT, ("_NCCL_PORT_",), OLDEST, OLDEST,
          "the servers of a host cannot be told apart", "arguments"),
    Field("server_port", Feature.IDENTITY, _CLI, OPTIONS, ("port", "nccl_port", "nccl_host", "nnodes", "node_rank"),
          JULY_2025, MAIN, "the servers of a host cannot be told apart", "address"),
    Field("server_port_0_0_1", Feature.IDENTITY, _OLD_CLI, OPTIONS, ("port", "nccl_port"), OLDEST, OLDEST,
          "the servers of a host cannot be told apart", "address"),
    # CUDA graphs.
    Field("graphs", Feature.DECODE_GRAPHS, _GRAPHS, "CudaGraph", ("graph", "mempool", "cuda_graph_batch_sizes"),
          JULY_2025, MAIN, _NO_GRAPHS),
    Field("graph_rows", Feature.DECODE_GRAPHS, _STATE, "InferStateInfo", ("input_ids",), V1_2, MAIN, _NO_GRAPHS, "graph_rows"),
    Field("graph_rows_v1_1", Feature.DECODE_GRAPHS, _GRAPHS, "CudaGraph._replay", ("input_ids",), JULY_2025, V1_1, _NO_GRAPHS,
          "graph_rows"),
    Field("graph_context", Feature.DECODE_GRAPHS, _GRAPHS, "CudaGraph", ("torch_memory_saver",), V1_2, MAIN, ""),
    Field("graph_context_v1_1", Feature.DECODE_GRAPHS, _GRAPHS, "", ("lightllm_capture_graph",), JULY_2025, V1_1, ""),
    Field("graph_of_microbatches", Feature.MICROBATCHES, _GRAPHS, "CudaGraph", ("enable_decode_microbatch_overlap",),
          JULY_2025, MAIN, "a graph of two microbatches is treated like one of a whole batch"),
    Field("expert_parallel", Feature.DECODE_GRAPHS, _CLI, OPTIONS, ("enable_ep_moe",), V1_2, MAIN,
          "graphs with buffers that alternate from call to call are not refused", "expert_parallel"),
    Field("expert_parallel_v1_1", Feature.DECODE_GRAPHS, _GROUPS, ENVIRONMENT, ("MOE_MODE",), JULY_2025, V1_1,
          "graphs with buffers that alternate from call to call are not refused", "expert_parallel"),
    # Collectives: their data, and the library that moves it.
    Field("reduced", Feature.COLLECTIVES, _GROUPS, "CustomProcessGroup.all_reduce", ("input_",), JULY_2025, MAIN,
          "all_reduce by LightLLM's own kernels has no bytes"),
    Field("gathered", Feature.COLLECTIVES, _GROUPS, "CustomProcessGroup.all_gather_into_tensor", ("output_",), JULY_2025, MAIN,
          "all_gather by LightLLM's own kernels has no bytes"),
    Field("transports_v1_1", Feature.COLLECTIVES, _GROUPS, "CustomProcessGroup", ("custom_reduce", "custom_gather"),
          JULY_2025, V1_1, ""),
    Field("transports", Feature.COLLECTIVES, _GROUPS, "CustomProcessGroup", ("flashinfer_reduce", "symm_mem_reduce"),
          V1_2, MAIN, ""),
    Field("idle_cache", Feature.IDLE, f"{_BACKEND}.base_backend", "ModeBackend", ("cache",), OLDEST, OLDEST, ""),
    # Requests, in the model process.
    Field("request_number", Feature.REQUEST_SPANS, _REQUESTS, "InferReq", ("req_id",), JULY_2025, MAIN,
          "steps name no requests", "request_number"),
    Field("request_number_0_0_1", Feature.REQUEST_SPANS, _REQUESTS, "InferReq", ("r_id",), OLDEST, OLDEST,
          "steps name no requests", "request_number"),
    Field("request_group", Feature.REQUEST_SPANS, f"{_CORE}.req", "Req", ("group_req_id",), JULY_2025, MAIN,
          "steps name no requests", "request_group"),
    Field("request_group_0_0_1", Feature.REQUEST_SPANS, _REQUESTS, "InferReq", ("group_req_id",), OLDEST, OLDEST,
          "steps name no requests", "request_group"),
    Field("progress", Feature.REQUEST_SPANS, _REQUESTS, "InferReq", ("cur_kv_len",), OLDEST, MAIN,
          "steps do not say how far a request is"),
    Field("answer_begins", Feature.REQUEST_SPANS, _REQUESTS, "InferReq", ("cur_output_len",), JULY_2025, MAIN, ""),
    Field("prompt_chunk", Feature.REQUEST_SPANS, _REQUESTS, "InferReq", ("get_chuncked_input_token_len",), JULY_2025, MAIN,
          "steps do not say how much of a prompt they compute", "prompt_chunk"),
    Field("prompt_chunk_0_0_1", Feature.REQUEST_SPANS, _REQUESTS, "InferReq", ("input_token_ids",), OLDEST, OLDEST,
          "steps do not say how much of a prompt they compute", "prompt_chunk"),
    # Requests, in the HTTP process.
    Field("http_request", Feature.REQUEST_SPANS, _HTTP, "HttpServerManager.generate", ("request",), OLDEST, MAIN,
          "a caller's trace is not continued"),
    Field("http_arguments", Feature.REQUEST_SPANS, _HTTP, "HttpServerManager", ("args",), OLDEST, MAIN, "requests have no spans"),
    Field("http_number", Feature.REQUEST_SPANS, f"{_CORE}.sampling_params", "SamplingParams", ("group_request_id",),
          JULY_2025, MAIN, "spans cannot be assigned to their requests", "http_number"),
    Field("http_number_0_0_1", Feature.REQUEST_SPANS, _HTTP, "HttpServerManager.generate", ("group_request_id",), OLDEST, OLDEST,
          "spans cannot be assigned to their requests", "http_number"),
    Field("health_request", Feature.REQUEST_SPANS, _HTTP, "HttpServerManager.generate", ("is_health_req",), JULY_2025, V1_1, ""),
    Field("served_model", Feature.REQUEST_SPANS, _CLI, OPTIONS, ("model_name", "model_dir", "dp"), JULY_2025, MAIN,
          "spans do not name the model", "served_model"),
    Field("served_model_0_0_1", Feature.REQUEST_SPANS, _OLD_CLI, OPTIONS, ("model_dir",), OLDEST, OLDEST,
          "spans do not name the model", "served_model"),
    Field("sampling", Feature.REQUEST_SPANS, f"{_CORE}.sampling_params", "SamplingParams", _ASKED, JULY_2025, MAIN,
          "spans do not say what was asked for", "asked"),
    Field("sampling_0_0_1", Feature.REQUEST_SPANS, "lightllm.server.sampling_params", "SamplingParams", _ASKED, OLDEST, OLDEST,
          "spans do not say what was asked for", "asked"),
    Field("finish", Feature.REQUEST_SPANS, f"{_CORE}.req", "FinishStatus", ("is_finished", "get_finish_reason"),
          JULY_2025, MAIN, "spans do not say how a request ended", "finish"),
    Field("finish_0_0_1", Feature.REQUEST_SPANS, "lightllm.server.io_struct", "FinishStatus",
          ("is_finished", "get_finish_reason"), OLDEST, OLDEST, "spans do not say how a request ended", "finish"),
    # A model without a server: bench --static.
    Field("static_model", Feature.STATIC_BENCH, "lightllm.models", "", ("get_model",), JULY_2025, MAIN, _NO_STATIC,
          "static/july_2025"),
    Field("static_backend_0_0_1", Feature.STATIC_BENCH, f"{_BACKEND}.continues_batch.impl", "ContinuesBatchBackend",
          ("init_model", "add_batch", "prefill_batch", "decode_batch", "remove_batch"), OLDEST, OLDEST, _NO_STATIC,
          "static/0_0_1"),
    Field("static_group", Feature.STATIC_BENCH, _GROUPS, "DistributeGroupManager", ("create_groups",), JULY_2025, MAIN,
          _NO_STATIC, "static/july_2025"),
    Field("static_ranks", Feature.STATIC_BENCH, f"{_UTILS}.dist_utils", "", ("init_distributed_env",), JULY_2025, MAIN,
          _NO_STATIC, "static/july_2025"),
    Field("static_status_0_0_1", Feature.STATIC_BENCH, "lightllm.server.io_struct", "ReqRunStatus", ("WAIT_IN_QUEUE",),
          OLDEST, OLDEST, _NO_STATIC, "static/0_0_1"),
    Field("static_context", Feature.STATIC_BENCH, _REQUESTS, "InferenceContext.register",
          ("req_manager", "radix_cache", "shm_req_manager", "vocab_size"), JULY_2025, MAIN, _NO_STATIC, "static/july_2025"),
    Field("static_request", Feature.STATIC_BENCH, _REQUESTS, "InferReq.__init__",
          ("req_id", "req_idx", "shm_index", "vocab_size"), JULY_2025, MAIN, _NO_STATIC, "static/july_2025"),
    Field("static_inputs", Feature.STATIC_BENCH, f"{_BACKEND}.generic_pre_process", "",
          ("prepare_prefill_inputs", "prepare_decode_inputs"), JULY_2025, MAIN, _NO_STATIC, "static/july_2025"),
    Field("static_arguments", Feature.STATIC_BENCH, _CLI, "", ("make_argument_parser",), JULY_2025, MAIN, _NO_STATIC,
          "static/july_2025"),
    Field("static_config", Feature.STATIC_BENCH, f"{_UTILS}.config_utils", "", ("get_dtype", "get_eos_token_ids"),
          JULY_2025, MAIN, _NO_STATIC, "static/july_2025"),
    Field("static_server_name", Feature.STATIC_BENCH, f"{_UTILS}.envs_utils", "",
          ("set_env_start_args", "set_unique_server_name"), JULY_2025, MAIN, _NO_STATIC, "static/july_2025"),
)  # fmt: skip


def modules() -> dict[str, tuple[Hook, ...]]:
    """Return the hooks of each module of LightLLM's, in the order of the table."""
    found: dict[str, list[Hook]] = {}
    for hook in HOOKS:
        found.setdefault(hook.module, []).append(hook)
    return {module: tuple(hooks) for module, hooks in found.items()}


Row = Union[Hook, Field]


def lost(fitting: Collection[str], rows: Sequence[Row] = HOOKS + FIELDS) -> dict[Feature, list[Row]]:
    """Return the features that are lost if only the rows named in ``fitting`` fit, each with the rows that say what is lost.

    A feature is lost if one of its groups has no alternative whose rows all fit. Such a group is represented by its first row.
    """
    groups: dict[tuple[Feature, str], dict[str, list[Row]]] = {}
    for row in rows:
        if row.loses:
            group, _, alternative = row.group.partition("/")
            alternatives = groups.setdefault((row.feature, group or row.name), {})
            alternatives.setdefault(alternative or row.name, []).append(row)
    found: dict[Feature, list[Row]] = {}
    for (feature, _), alternatives in groups.items():
        if not any(all(row.name in fitting for row in wanted) for wanted in alternatives.values()):
            found.setdefault(feature, []).append(next(iter(alternatives.values()))[0])
    return found


def seen(rows: Iterable[Row]) -> str:
    """Return the versions of LightLLM in which any of these rows was seen to fit: ``0.0.1``, or ``fc72ffab to main``."""
    places = [VERSIONS.index(version) for row in rows for version in (row.since, row.until)]
    if not places:
        return "no version"
    first, last = VERSIONS[min(places)], VERSIONS[max(places)]
    return first if first == last else f"{first} to {last}"
