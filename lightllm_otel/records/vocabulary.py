"""The closed vocabulary: every label value that a metric can carry, and the small integers that stand for them.

Codes are positions in these enums. They are written to rings and recordings, so members are only ever appended.
"""

from __future__ import annotations

import enum


class Label(str, enum.Enum):
    """A member of a closed label set; ``code`` is its position, ``str()`` its value."""

    __str__ = str.__str__
    _value_: str
    code: int

    def __init__(self, value: str) -> None:
        self.code = len(type(self).__members__)

    @classmethod
    def of(cls, code: int) -> Label:
        return list(cls)[code]


class Operator(Label):
    """A named part of a layer or step. A kernel is what CUDA launches; we time operators.

    ``gap``: the GPU waits for the host inside a step. ``other``: work that no other name claims.
    """

    GAP = "gap"
    EMBEDDING = "embedding"
    ATTN_NORM = "attn_norm"
    QKV_PROJ = "qkv_proj"
    KV_WRITE = "kv_write"
    ATTENTION = "attention"
    O_PROJ = "o_proj"
    FFN_NORM = "ffn_norm"
    FFN = "ffn"
    MOE_GATE = "moe_gate"
    MOE_EXPERTS = "moe_experts"
    MOE_DISPATCH = "moe_dispatch"
    MOE_COMBINE = "moe_combine"
    ALL_REDUCE = "all_reduce"
    ALL_GATHER = "all_gather"
    REDUCE_SCATTER = "reduce_scatter"
    RESIDUAL = "residual"
    LM_HEAD = "lm_head"
    SAMPLING = "sampling"
    OTHER = "other"
    ALL_TO_ALL = "all_to_all"


COLLECTIVES = (Operator.ALL_REDUCE, Operator.ALL_GATHER, Operator.REDUCE_SCATTER, Operator.ALL_TO_ALL)
UNATTRIBUTED = "unattributed"
"""Value of the label ``operator`` for estimated time of steps for which no sample speaks. Not an operator: no ring has it."""


class Phase(Label):
    """What a step computes: prompts, one more token each, or both at once (OLD's splitfuse)."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"


class Mode(Label):
    """Whether Python launched the step's kernels one by one, or replayed a CUDA graph."""

    EAGER = "eager"
    GRAPH = "graph"


class Site(Label):
    """Where in the model a collective was called; ``none`` for everything else."""

    NONE = "none"
    EMBEDDING = "embedding"
    ATTENTION = "attention"
    FFN = "ffn"
    LM_HEAD = "lm_head"


class Implementation(Label):
    """The library that moved the data of a collective.

    ``custom``: a kernel that LightLLM calls itself and that has no name of its own here (vllm's or sgl_kernel's, up to v1.1.0).
    ``flashinfer`` and ``symm_mem``: FlashInfer's all_reduce and that of torch's symmetric memory, since v1.2.0.
    """

    UNKNOWN = "unknown"
    NCCL = "nccl"
    CUSTOM = "custom"
    GLOO = "gloo"
    FLASHINFER = "flashinfer"
    SYMM_MEM = "symm_mem"


class Scope(Label):
    """Whether this exporter sees every rank of the tensor-parallel group, or only those of one of its hosts."""

    GROUP = "group"
    NODE = "node"


class Throttle(Label):
    """What holds a GPU's clock down: heat, its power limit, or the board without saying why."""

    THERMAL = "thermal"
    POWER = "power"
    HARDWARE = "hardware"


class IdleReason(Label):
    """Why no step ran on the GPU: no work to do, the host had not launched it yet, or its scheduler talked to other ranks and
    loaded caches, which is work of the GPU outside of steps.
    """

    NONE = "none"
    NO_REQUESTS = "no_requests"
    HOST = "host"
    SCHEDULER = "scheduler"


class Feature(Label):
    """What the plugin can tell of a LightLLM; a row of the table of contracts says which of these is lost without it."""

    STEPS = "steps"
    STEP_SIZES = "step_sizes"
    STEP_END = "step_end"
    OPERATORS = "operators"
    SAMPLING = "sampling"
    COLLECTIVES = "collectives"
    DECODE_GRAPHS = "decode_graphs"
    GRAPH_MEMORY = "graph_memory"
    PREFILL_GRAPHS = "prefill_graphs"
    MICROBATCHES = "microbatches"
    MIXED_BATCHES = "mixed_batches"
    SPLITFUSE = "splitfuse"
    IDLE = "idle"
    REQUEST_SPANS = "request_spans"
    HEALTH_MONITOR = "health_monitor"
    IDENTITY = "identity"
    MODEL_FACTS = "model_facts"
    STATIC_BENCH = "static_bench"


class Level(Label):
    """How much is measured: nothing, whole steps, or their operators as well."""

    OFF = "off"
    STEPS = "steps"
    OPERATORS = "operators"


class Stage(Label):
    """Where one of our own errors happened."""

    ACTIVATE = "activate"
    PATCH = "patch"
    MEASURE = "measure"
    RING = "ring"


class ExporterStage(Label):
    """Where an error of the exporter happened. Values of the label ``stage``, beside those of :class:`Stage`.

    ``rings``: opening or reading a rank's ring; ``aggregate``: adding up what it holds; ``notes``: what HTTP processes say
    of requests; ``positions``: how far rings were read, for a successor; ``discovery``: the address and its file;
    ``metrics``: making a part of ``/metrics``; ``http``: answering; ``poll``: anything else.
    """

    RINGS = "rings"
    AGGREGATE = "aggregate"
    NOTES = "notes"
    NVML = "nvml"
    BASELINE = "baseline"
    POSITIONS = "positions"
    RECORDING = "recording"
    DISCOVERY = "discovery"
    OTLP = "otlp"
    LIVE = "live"
    METRICS = "metrics"
    HTTP = "http"
    CONTROL = "control"
    POLL = "poll"


class DropReason(Label):
    """Why a step, or its operators, did not reach the exporter."""

    OVERWRITTEN = "overwritten"
    PENDING_FULL = "pending_full"
    TOO_LARGE = "too_large"
    ERROR = "error"
    CONTROL = "control"


class StepOnlyReason(Label):
    """Why a step that was due has its whole time only, or (drafts) none.

    ``overlap``: two microbatches, or the forwards of two threads, interleave. ``prefill_graph``: Python does not see the
    operators in one.
    """

    NOT_INSTRUMENTED = "not_instrumented"
    OVERLAP = "overlap"
    DRAFT = "draft"
    PREFILL_GRAPH = "prefill_graph"


class Unmatched(Label):
    """Why the collectives of a sampled step were not compared over the ranks of the group.

    ``missing``: a rank has gone past the step without its operators; ``late``: a rank has not said anything for many
    steps; ``restarted``: a step from before a rank's start; ``different``: the ranks did not compute the same.
    """

    MISSING = "missing"
    LATE = "late"
    RESTARTED = "restarted"
    DIFFERENT = "different"


class Signal(Label):
    """What is handed to a receiver of OpenTelemetry's protocol."""

    METRICS = "metrics"
    TRACES = "traces"


class SpanDrop(Label):
    """Why spans did not reach the receiver: more than we make in a second, a queue that is full, a receiver that did not take
    them, or notes of requests and steps that were overwritten before they were read.
    """

    RATE = "rate"
    QUEUE = "queue"
    RECEIVER = "receiver"
    OVERWRITTEN = "overwritten"
