"""One forward on its way through the GPU: what was recorded, and what is known of it on the CPU."""

from __future__ import annotations

import dataclasses
from typing import Any

from lightllm_otel.measure.clock import Handle
from lightllm_otel.vocabulary import IdleReason, Mode, Phase


@dataclasses.dataclass(frozen=True)
class Work:
    """What a forward is asked to do; plain integers that the host has on the CPU, never read from the GPU.

    ``batch`` requests, ``tokens`` new tokens, ``context`` tokens attended to over all requests. ``pairs``: the host
    synchronises between its operators, so each is timed from its own start and what lies between is gap.
    """

    phase: Phase
    batch: int
    tokens: int
    context: int
    pairs: bool = False


class Step:
    """A step in flight. ``ends`` are the events before and after it, ``boundaries`` those between its operators."""

    __slots__ = (
        "boundaries",
        "capacity",
        "closed",
        "codes",
        "context",
        "ends",
        "idle_reason",
        "in_collective",
        "mode",
        "number",
        "padded",
        "payloads",
        "requests",
        "sampled",
        "starved",
        "stream",
        "tokens",
        "wall_time",
        "work",
    )

    def __init__(self, number: int, work: Work, ends: list[Handle], stream: Any, wall_time: float) -> None:
        self.number = number
        self.work = work
        self.ends = ends
        self.stream = stream
        self.wall_time = wall_time
        self.mode = Mode.EAGER
        self.padded = work.batch
        self.tokens = work.tokens
        self.requests = work.batch
        self.idle_reason = IdleReason.NONE
        self.closed = False
        self.sampled = False
        self.boundaries: list[Handle] = []
        self.capacity = 0
        self.codes: list[int] = []
        self.starved: list[bool] = []
        self.payloads: list[tuple[int, int]] = []
        # The operator that is running now, or -1; collectives inside it are cut out of it.
        self.context = -1
        self.in_collective = False
