"""The table of contracts: every place where the plugin touches or reads LightLLM, and what is lost without it.

A row is data, so the same table makes the hooks, is shown by ``doctor``, and is held against LightLLM's source of any
commit (``make contract``). Imports little: every Python start of a server reads it.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

from lightllm_otel.vocabulary import Feature

_MODEL = "lightllm.server.router.model_infer"
_BACKEND = f"{_MODEL}.mode_backend"
_BASEMODEL = "lightllm.common.basemodel"
_HTTP = "lightllm.server.httpserver.manager"


class Hook(NamedTuple):
    """A function of LightLLM's that the plugin wraps.

    ``place``: the wrapped attribute of ``module``. ``maker``: the function of :mod:`lightllm_otel.patch.seams` that makes
    the wrapper. ``reads``: parameters that it reads by name, as alternatives; the row fits if all names of one alternative
    are parameters of the host's function. ``since`` and ``until``: the first and the last version in which the row was seen
    to fit. Rows of one ``group`` stand in for each other: ``feature`` is lost only where none of them fits.
    ``live``: live control takes the wrapper away while it says ``off``. ``expected``: a place that is not there is missed
    only where the row of this name fits; None: always; empty: never, because the host then has no such mode.
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


class Field(NamedTuple):
    """Attributes of one of LightLLM's objects that the plugin reads, all of them; None or missing means that it is not known.

    ``owner``: the class, in ``module``. Rows of one ``group`` are asked in order until one knows.
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


OLDEST, JULY_2025, V1_1, V1_2, MAIN = "0.0.1", "fc72ffab", "v1.1.0", "v1.2.0", "main"

HOOKS = (
    Hook("construction", Feature.STEPS, f"{_BASEMODEL}.basemodel", "TpPartBaseModel.__init__", "constructed", (),
         OLDEST, MAIN, "nothing is measured: the plugin does not learn when a model is complete"),
    Hook("layers_exist", Feature.DECODE_GRAPHS, f"{_BASEMODEL}.basemodel", "TpPartBaseModel._init_padded_req", "attaching", (),
         JULY_2025, MAIN,
         "operators are hooked only after CUDA graphs were captured: none inside them is timed", expected="graph_capture"),
    Hook("memory_check", Feature.GRAPH_MEMORY, f"{_BASEMODEL}.basemodel", "TpPartBaseModel._check_max_len_infer",
         "checking_memory", (), JULY_2025, MAIN,
         "instrumented graphs are not given up where the longest prefill needs their memory", expected=""),
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
         "capturing_whole", (), JULY_2025, MAIN,
         "a graph of two microbatches that is captured late may meet our events", expected=""),
    Hook("overlap_replay", Feature.MICROBATCHES, f"{_BASEMODEL}.cuda_graph", "CudaGraph._replay_overlap", "replaying_whole",
         (("infer_state",),), JULY_2025, MAIN, "decode steps of two microbatches look eager", live=True, expected=""),
    Hook("prefill_graph_capture", Feature.PREFILL_GRAPHS, f"{_BASEMODEL}.prefill_cuda_graph", "PrefillCudaGraph._capture_prefill",
         "capturing_whole", (), V1_2, MAIN, "a prefill graph that is captured late may meet our events"),
    Hook("prefill_graph_replay", Feature.PREFILL_GRAPHS, f"{_BASEMODEL}.prefill_cuda_graph", "PrefillCudaGraph._replay",
         "replaying_prefill", (), V1_2, MAIN,
         "prefill graphs look eager, and most of their time looks like attention", live=True),
    Hook("groups", Feature.COLLECTIVES, "lightllm.distributed.communication_op", "CustomProcessGroup", "grouped", (),
         JULY_2025, MAIN, "collectives by kernels of LightLLM's own are not told from the operator that calls them"),
    Hook("sample", Feature.SAMPLING, f"{_BACKEND}.generic_post_process", "sample", "sampled", (("reqs",),),
         JULY_2025, MAIN, "sampling is not told from what follows the forward, and steps have no requests", "sample", True),
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
         "where the host does not overlap steps, what follows sampling counts as idle", "end", True, expected="idle_loop"),
    Hook("idle_loop", Feature.IDLE, f"{_BACKEND}.base_backend", "ModeBackend._try_read_new_reqs", "asking", (), V1_1, MAIN,
         "idle time without requests looks as if the host were late", "idle", True),
    Hook("idle_batch", Feature.IDLE, f"{_BACKEND}.base_backend", "ModeBackend.remove_batch", "emptied", (), OLDEST, OLDEST,
         "idle time without requests looks as if the host were late", "idle", True),
    Hook("idle_rpc", Feature.IDLE, f"{_MODEL}.model_rpc", "ModelRpcServer.decode", "ticking", (), JULY_2025, JULY_2025,
         "idle time without requests looks as if the host were late", "idle", True),
    Hook("health_monitor", Feature.HEALTH_MONITOR, "lightllm.server.health_monitor.manager", "get_all_cared_pids",
         "watching_health", (), JULY_2025, MAIN,
         "with --health_monitor an exporter that ends looks like a dead server process", expected=""),
    Hook("requests", Feature.REQUEST_SPANS, _HTTP, "HttpServerManager.generate", "generating", (("sampling_params",),),
         OLDEST, MAIN, "requests have no spans"),
    Hook("tokenised", Feature.REQUEST_SPANS, _HTTP, "HttpServerManager._encode", "encoding", (("sampling_params",),),
         JULY_2025, MAIN, "requests have no spans: when they are tokenised is not known", "tokenised"),
    Hook("tokenised_status", Feature.REQUEST_SPANS, _HTTP, "ReqStatus.__init__", "tokenised_by_status",
         (("req_id",), ("group_request_id",)), OLDEST, OLDEST,
         "requests have no spans: when they are tokenised is not known", "tokenised"),
)  # fmt: skip

_INPUT = f"{_BASEMODEL}.batch_objs"
_STATE = f"{_BASEMODEL}.infer_struct"
_REQUESTS = f"{_MODEL}.infer_batch"

FIELDS = (
    Field("phase", Feature.STEPS, _INPUT, "ModelInput", ("is_prefill",), JULY_2025, MAIN, "no step is timed"),
    Field("batch", Feature.STEP_SIZES, _INPUT, "ModelInput", ("batch_size",), JULY_2025, MAIN, "steps have no batch"),
    Field("context", Feature.STEP_SIZES, _INPUT, "ModelInput", ("total_token_num",), JULY_2025, MAIN, "steps have no context"),
    Field("new_tokens", Feature.STEP_SIZES, _INPUT, "ModelInput", ("total_token_num", "prefix_total_token_num"), V1_2, MAIN,
          "prefill steps have no tokens", "prefill_tokens"),
    Field("new_token_ids", Feature.STEP_SIZES, _INPUT, "ModelInput", ("input_ids",), JULY_2025, V1_1,
          "prefill steps have no tokens", "prefill_tokens"),
    Field("mixed", Feature.MIXED_BATCHES, _INPUT, "ModelInput", ("b_is_decode_req",), V1_2, MAIN,
          "a prefill step that also decodes is called prefill", expected=""),
    Field("graphs", Feature.DECODE_GRAPHS, f"{_BASEMODEL}.cuda_graph", "CudaGraph",
          ("graph", "mempool", "cuda_graph_batch_sizes"), JULY_2025, MAIN, "operators inside decode graphs are not timed"),
    Field("graph_rows", Feature.DECODE_GRAPHS, _STATE, "InferStateInfo", ("input_ids",), V1_2, MAIN,
          "operators inside decode graphs are not timed", "graph_rows"),
    Field("request_number", Feature.REQUEST_SPANS, _REQUESTS, "InferReq", ("req_id",), JULY_2025, MAIN,
          "steps name no requests", "request_number"),
    Field("request_number_old", Feature.REQUEST_SPANS, _REQUESTS, "InferReq", ("r_id",), OLDEST, OLDEST,
          "steps name no requests", "request_number"),
)  # fmt: skip


def modules() -> dict[str, tuple[Hook, ...]]:
    """Return the hooks of each module of LightLLM's, in the order of the table."""
    found: dict[str, list[Hook]] = {}
    for hook in HOOKS:
        found.setdefault(hook.module, []).append(hook)
    return {module: tuple(hooks) for module, hooks in found.items()}
