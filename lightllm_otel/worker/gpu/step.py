"""One forward on its way through the GPU: what was recorded, and what is known of it on the CPU."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Optional

from lightllm_otel.records.vocabulary import IdleReason, Mode, Phase
from lightllm_otel.worker.gpu.boundary_recorder import EagerRecorder
from lightllm_otel.worker.gpu.clock import Handle


class Work(NamedTuple):
    """What a forward is asked to do; plain integers that the host has on the CPU, never read from the GPU.

    ``batch`` requests, ``tokens`` new tokens, ``context`` tokens attended to over all requests. ``pairs``: the host
    synchronises between its operators, so each is timed from its own start and what lies between is gap.
    """

    phase: Phase
    batch: int
    tokens: int
    context: int
    pairs: bool = False


@dataclasses.dataclass(frozen=True)
class GraphLayout:
    """An instrumented graph beside the host's own one for ``batch`` requests.

    ``codes``: the boundaries of its timestamps, in order. ``payloads``: (position, bytes) of its collectives. ``chained_from``:
    the first timestamp that the host's kernels wait for, -1 where they wait for none. ``programmatic``: how many programmatic
    dependencies lie in each interval; empty where that is not known.
    """

    batch: int
    codes: tuple[int, ...]
    payloads: tuple[tuple[int, int], ...] = ()
    chained_from: int = -1
    programmatic: tuple[int, ...] = ()

    @property
    def chained(self) -> bool:
        """Whether most of its timestamps are waited for."""
        return 0 <= self.chained_from < len(self.codes) / 2


class Step:
    """A step in flight. ``ends`` are the events before and after it; ``marking`` has those between, if it is sampled.

    ``instrumented graph`` and ``replay``: the instrumented graph that was replayed, and the number of that replay. ``thread``:
    whose forward it is. ``scheduling``: seconds that the host's scheduler took before it. ``lost``: its end was never recorded.
    """

    # Every step makes one: what most of them leave as it is costs nothing this way.
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
