"""Contract of version 1 of the plugin with LightLLM. The checker must find its faults.

It installed its hooks wherever their place existed, repeated the host's signatures, and read what July 2025 had.
"""

from __future__ import annotations

from types import MappingProxyType

import contract
from lightllm_source import attribution, wrappers
from lightllm_source.slots import Slots

from lightllm_otel.contracts.table import ENVIRONMENT, JULY_2025, MAIN, OLDEST, OPTIONS, Field, Hook
from lightllm_otel.records.vocabulary import Feature, Operator

_BASE = "lightllm.common.basemodel"
_BACKEND = "lightllm.server.router.model_infer.mode_backend"
_HTTP = "lightllm.server.httpserver.manager"


def _hook(name, feature, module, place, maker="passing", reads=(), group=""):
    return Hook(name, feature, module, place, maker, reads, JULY_2025, JULY_2025, f"{name} is lost", group)


def _field(name, feature, module, owner, *attributes, loses="something is lost", group=""):
    return Field(name, feature, module, owner, attributes, OLDEST, MAIN, loses, group)


HOOKS = (
    _hook("construction", Feature.STEPS, f"{_BASE}.basemodel", "TpPartBaseModel.__init__"),
    _hook("layers_exist", Feature.DECODE_GRAPHS, f"{_BASE}.basemodel", "TpPartBaseModel._init_padded_req"),
    _hook("memory_check", Feature.GRAPH_MEMORY, f"{_BASE}.basemodel", "TpPartBaseModel._check_max_len_infer"),
    _hook("forward", Feature.STEPS, f"{_BASE}.basemodel", "TpPartBaseModel.forward", "entered",
          (("model_input",), ("total_token_num",))),
    _hook("splitfuse_forward", Feature.SPLITFUSE, f"{_BASE}.basemodel", "TpPartBaseModel.splitfuse_forward"),
    _hook("overlap_prefill", Feature.MICROBATCHES, f"{_BASE}.basemodel", "TpPartBaseModel.microbatch_overlap_prefill"),
    _hook("overlap_decode", Feature.MICROBATCHES, f"{_BASE}.basemodel", "TpPartBaseModel.microbatch_overlap_decode"),
    _hook("graph_warmup", Feature.DECODE_GRAPHS, f"{_BASE}.cuda_graph", "CudaGraph.warmup", "warming_up"),
    _hook("graph_capture", Feature.DECODE_GRAPHS, f"{_BASE}.cuda_graph", "CudaGraph._capture_decode", "capturing",
          (("decode_func", "input_ids", "infer_state"),)),
    _hook("graph_replay", Feature.DECODE_GRAPHS, f"{_BASE}.cuda_graph", "CudaGraph._replay", "replaying",
          (("input_ids", "infer_state"),)),
    _hook("overlap_replay", Feature.MICROBATCHES, f"{_BASE}.cuda_graph", "CudaGraph._replay_overlap", "replaying_whole",
          (("input_ids",),)),
    _hook("groups", Feature.COLLECTIVES, "lightllm.distributed.communication_op", "CustomProcessGroup"),
    _hook("sample", Feature.SAMPLING, f"{_BACKEND}.generic_post_process", "sample", "sampled", (), "sample"),
    _hook("sample_old", Feature.SAMPLING, f"{_BACKEND}.continues_batch.post_process", "sample", "sampled", (), "sample"),
    _hook("idle_batch", Feature.IDLE, f"{_BACKEND}.base_backend", "ModeBackend.remove_batch", group="idle"),
    _hook("idle_loop", Feature.IDLE, f"{_BACKEND}.base_backend", "ModeBackend._try_read_new_reqs", group="idle"),
    _hook("idle_rpc", Feature.IDLE, "lightllm.server.router.model_infer.model_rpc", "ModelRpcServer.decode", group="idle"),
    _hook("health", Feature.HEALTH_MONITOR, "lightllm.server.health_monitor.manager", "get_all_cared_pids", "watching"),
    _hook("requests", Feature.REQUEST_SPANS, _HTTP, "HttpServerManager.generate"),
    _hook("tokenised", Feature.REQUEST_SPANS, _HTTP, "HttpServerManager._encode", group="tokenised"),
    _hook("tokenised_status", Feature.REQUEST_SPANS, _HTTP, "ReqStatus.__init__", group="tokenised"),
)  # fmt: skip

FIELDS = (
    _field("decode_tokens", Feature.STEP_SIZES, f"{_BASE}.batch_objs", "ModelInput", "input_ids", group="tokens"),
    _field("decode_tokens_old", Feature.STEP_SIZES, f"{_BASE}.basemodel", "TpPartBaseModel.forward", "input_ids", group="tokens"),
    _field("graphs", Feature.DECODE_GRAPHS, f"{_BASE}.cuda_graph", "CudaGraph", "graph", "mempool"),
    _field("exchange", Feature.DECODE_GRAPHS, f"{_BASE}.cuda_graph", "", "lightllm_capture_graph"),
    _field("expert_parallel", Feature.DECODE_GRAPHS, "lightllm.distributed.communication_op", ENVIRONMENT, "MOE_MODE"),
    _field("transports", Feature.COLLECTIVES, "lightllm.distributed.communication_op", "CustomProcessGroup", "custom_reduce",
           "custom_gather", loses=""),
    _field("nccl_port", Feature.IDENTITY, "lightllm.server.api_cli", OPTIONS, "nccl_port", loses=""),
)  # fmt: skip

# Signatures of its wrappers, as they stood in its patch folder.
WRAPPERS = """
def passing(host):
    @functools.wraps(host)
    def method(self, *args, **kwargs): ...

def entered(host):
    measured = passing(host)
    if list(inspect.signature(host).parameters) == ["self", "model_input"]:
        return lean(host, measured)

def lean(host, measured):
    @functools.wraps(host)
    def forward(self, model_input): ...

def watching(host):
    @functools.wraps(host)
    def get_all_cared_pids(*args, **kwargs): ...

def warming_up(host):
    @functools.wraps(host)
    def warmup(self, model): ...

def capturing(host):
    @functools.wraps(host)
    def _capture_decode(self, decode_func, input_ids, infer_state): ...

def replaying(host):
    @functools.wraps(host)
    def _replay(self, input_ids, infer_state): ...

def replaying_whole(host):
    @functools.wraps(host)
    def _replay_overlap(self, input_ids, *args, **kwargs): ...

def sampled(host):
    @functools.wraps(host)
    def sample(logits, reqs, *args, **kwargs): ...
"""

_ENTRIES = ("context_forward", "token_forward", "splitfuse_forward", "tpsp_context_forward", "tpsp_token_forward")
_KERNELS = ("_context_attention_kernel", "_token_attention_kernel", "_splitfuse_attention_kernel")
_NORMS = ("_ffn_norm", "_pre_feedforward_layernorm", "_post_feedforward_layernorm")
# Operator, the functions of a layer that were wrapped as it, and what work directly before one of these counted as.
LAYER_SLOTS = (
    (Operator.ATTN_NORM, ("_att_norm",), Operator.RESIDUAL),
    (Operator.QKV_PROJ, ("_get_qkv", "_tpsp_get_qkv"), Operator.QKV_PROJ),
    (Operator.KV_WRITE, ("_copy_kv_to_mem_cache",), Operator.KV_WRITE),
    (Operator.ATTENTION, _KERNELS, Operator.ATTENTION),
    (Operator.O_PROJ, ("_get_o", "_tpsp_get_o"), Operator.O_PROJ),
    (Operator.FFN_NORM, _NORMS, Operator.RESIDUAL),
    (Operator.FFN, ("_ffn", "_tpsp_ffn"), Operator.FFN),
)
PRE_SLOTS = ((Operator.EMBEDDING, _ENTRIES, Operator.GAP),)
POST_SLOTS = ((Operator.LM_HEAD, _ENTRIES, Operator.RESIDUAL),)
LEAVES = frozenset(("all_reduce", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor"))
_ROLES = {attribution.LAYER: LAYER_SLOTS, attribution.PRE: PRE_SLOTS, attribution.POST: POST_SLOTS}


def _slots(rows):
    return Slots.of((name, operator, "", False) for operator, names, _ in rows for name in names)


class Fixed:
    """Table that was the same for every model, whatever its layers did. A collective began at the last boundary."""

    unclaimed = unread = ()
    variants = (attribution.Variant({}, _slots(LAYER_SLOTS)),)
    ends = MappingProxyType({role: _slots(_ROLES[role]) for role in (attribution.PRE, attribution.POST)})
    _before = MappingProxyType({
        (role, name): lead.value for role, rows in _ROLES.items() for _, names, lead in rows for name in names
    })  # fmt: skip

    def __init__(self, tree, roles):
        """Nothing depends on either of them."""

    def counted(self, before, at):
        if at.role == attribution.COLLECTIVE:
            return "all_reduce"
        return self._before.get((at.role, at.name), "gap")

    def lacking(self, progress):
        return [operator for operator, _, _ in LAYER_SLOTS if operator not in progress]


VERSION1 = contract.Contract(
    HOOKS,
    FIELDS,
    LEAVES,
    Fixed,
    wrappers.of_sources({"seams.py": WRAPPERS}),
    careful=False,
)
