"""Closed vocabulary: every label value that a metric can have, and its integer code.

A code is the position in the enum. Rings and recordings store codes, so members are only ever appended.
"""

from __future__ import annotations

import enum


class Label(str, enum.Enum):
    """Member of a closed label set; ``code`` is its position, ``str()`` its value."""

    __str__ = str.__str__
    _value_: str
    code: int

    def __init__(self, value: str) -> None:
        self.code = len(type(self).__members__)

    @classmethod
    def of(cls, code: int) -> Label:
        """Return the member with this code. Raises IndexError."""
        return list(cls)[code]


class Operator(Label):
    """Named part of a layer or step, which consists of one or more CUDA kernels.

    ``gap``: the GPU waits for the host inside a step. ``other``: work that belongs to no other operator.
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
"""Value of the label ``operator`` for the time of steps without comparable samples. It is not an operator: no ring has it."""


class Phase(Label):
    """Kind of step: it computes prompts, one more token per request, or both at once (splitfuse of LightLLM 0.0.1)."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"


class Mode(Label):
    """Launch mode of a step: Python launched its kernels one by one, or replayed a CUDA graph."""

    EAGER = "eager"
    GRAPH = "graph"


class Site(Label):
    """Part of the model that called a collective; ``none`` for all other operators."""

    NONE = "none"
    EMBEDDING = "embedding"
    ATTENTION = "attention"
    FFN = "ffn"
    LM_HEAD = "lm_head"


class Implementation(Label):
    """Library that executed a collective.

    ``custom``: a custom all_reduce kernel that LightLLM calls itself (of vllm or sgl_kernel, up to v1.1.0). ``flashinfer``:
    FlashInfer's all_reduce; ``symm_mem``: the one of torch's symmetric memory, both since v1.2.0.
    """

    UNKNOWN = "unknown"
    NCCL = "nccl"
    CUSTOM = "custom"
    GLOO = "gloo"
    FLASHINFER = "flashinfer"
    SYMM_MEM = "symm_mem"


class Scope(Label):
    """View of the exporter: every rank of the tensor-parallel group, or only the ranks of one of its hosts."""

    GROUP = "group"
    NODE = "node"


class Throttle(Label):
    """Reason for a reduced GPU clock: heat, the power limit, or a hardware slowdown without a further reason."""

    THERMAL = "thermal"
    POWER = "power"
    HARDWARE = "hardware"


class IdleReason(Label):
    """Reason why no step ran on the GPU.

    ``no_requests``: there was no work. ``host``: the host had not launched the next step yet. ``scheduler``: the scheduler
    communicated with other ranks or loaded caches, which is GPU work outside of steps.
    """

    NONE = "none"
    NO_REQUESTS = "no_requests"
    HOST = "host"
    SCHEDULER = "scheduler"


class Feature(Label):
    """Feature of the plugin. Each row of the contract table names the feature that is lost without it."""

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
    """Level of measurement: nothing, steps, or steps and their operators."""

    OFF = "off"
    STEPS = "steps"
    OPERATORS = "operators"


class Stage(Label):
    """Part of the plugin in the model process where an error happened."""

    ACTIVATE = "activate"
    PATCH = "patch"
    MEASURE = "measure"
    RING = "ring"


class ExporterStage(Label):
    """Part of the exporter where an error happened. The label ``stage`` has these values and those of :class:`Stage`.

    ``rings``: opening or reading a rank's ring. ``aggregate``: aggregating its steps. ``notes``: reading the notes of server
    processes. ``positions``: storing the read positions for a successor. ``discovery``: the discovery file. ``metrics``:
    rendering a part of ``/metrics``. ``http``: answering a request. ``poll``: anything else.
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
    """Reason why a step, or its operators, did not reach the exporter."""

    OVERWRITTEN = "overwritten"
    PENDING_FULL = "pending_full"
    TOO_LARGE = "too_large"
    ERROR = "error"
    CONTROL = "control"


class StepOnlyReason(Label):
    """Reason why only the total time of a sampled step was measured (or, for drafts, no time).

    ``not_instrumented``: its batch size has no instrumented graph. ``overlap``: two microbatches, or the forwards of two threads,
    interleave. ``draft``: a forward of a draft model. ``prefill_graph``: Python does not see the operators in a prefill graph.
    """

    NOT_INSTRUMENTED = "not_instrumented"
    OVERLAP = "overlap"
    DRAFT = "draft"
    PREFILL_GRAPH = "prefill_graph"


class Unmatched(Label):
    """Reason why the collectives of a sampled step were not compared over the ranks of the group.

    ``missing``: a rank has passed the step without its operators. ``late``: a rank has reported nothing for many steps.
    ``restarted``: the step is from before a rank's restart. ``different``: the ranks did not compute the same step.
    """

    MISSING = "missing"
    LATE = "late"
    RESTARTED = "restarted"
    DIFFERENT = "different"


class Signal(Label):
    """OpenTelemetry signal that is sent to an OTLP receiver."""

    METRICS = "metrics"
    TRACES = "traces"


class SpanDrop(Label):
    """Reason why spans did not reach the OTLP receiver.

    ``rate``: the limit of spans per second. ``queue``: the queue was full. ``receiver``: the receiver did not accept them.
    ``overwritten``: notes or steps were overwritten before they were read.
    """

    RATE = "rate"
    QUEUE = "queue"
    RECEIVER = "receiver"
    OVERWRITTEN = "overwritten"
