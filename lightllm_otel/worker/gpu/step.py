"""Step: one forward on the GPU, with its events and what the CPU knows about it."""

from __future__ import annotations

from typing import Any, NamedTuple, Optional

from lightllm_otel.records.vocabulary import IdleReason, Mode, Phase
from lightllm_otel.worker.gpu.boundary_recorder import EagerRecorder
from lightllm_otel.worker.gpu.clock import Handle
from lightllm_otel.worker.gpu.graph_layout import GraphLayout


class Work(NamedTuple):
    """Size of a forward: plain integers that the host has on the CPU, never read from the GPU.

    ``batch``: requests. ``tokens``: new tokens. ``context``: tokens attended to, over all requests. ``pairs``: the host
    synchronises between its operators, so each is timed from its own start, and the time between them is gap.
    """

    phase: Phase
    batch: int
    tokens: int
    context: int
    pairs: bool = False


class Step:
    """One forward. ``ends``: the events before and after it. ``recorder``: the boundaries between them, if it is sampled.

    ``graph_layout`` and ``replay``: contents of the instrumented graph that was replayed, and the number of that replay.
    ``thread``: the thread that launched it. ``wall_time``: its start, in seconds of Unix time. ``scheduling``: seconds of the
    host's scheduler before it. ``closed``: nothing more is launched for it. ``lost``: its end was never recorded. ``sampled``:
    its sampling of tokens has begun.
    """

    # Class attributes, because every step creates an object, and most steps keep these defaults.
    mode = Mode.EAGER
    idle_reason = IdleReason.NONE
    closed = False
    lost = False
    sampled = False
    scheduling = 0.0
    recorder: Optional[EagerRecorder] = None
    graph_layout: Optional[GraphLayout] = None
    replay = -1

    def __init__(
        self, number: int, work: Work, ends: list[Handle], stream: Any, wall_time: float, thread: int = 0
    ) -> None:
        self.number = number
        self.work = work
        self.ends = ends
        self.stream = stream
        self.wall_time = wall_time
        self.thread = thread
        self.padded = self.requests = work.batch
        self.tokens = work.tokens
