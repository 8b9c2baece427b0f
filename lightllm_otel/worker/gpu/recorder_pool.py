"""Pool of the boundary recorders of sampled eager steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

from lightllm_otel.worker.gpu.boundaries import BoundaryCodes
from lightllm_otel.worker.gpu.boundary_recorder import EagerRecorder
from lightllm_otel.worker.gpu.clock import Clock
from lightllm_otel.worker.gpu.handles import Pool
from lightllm_otel.worker.gpu.sink import Sink
from lightllm_otel.worker.gpu.step import Step

SAMPLED_STEPS = 6


class RecorderPool:
    """Source of recorders, each with a block of events; at most :data:`SAMPLED_STEPS` blocks are ever created.

    ``boundaries``: the most boundaries of one step. ``ready``: blocks that are created at once.
    """

    def __init__(
        self, clock: Clock, sink: Sink, codes: BoundaryCodes, gap: int, boundaries: int, ready: int,
        cpu_clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._clock = clock
        self._sink = sink
        self._codes = codes
        self._gap = gap
        self._cpu = cpu_clock
        self._blocks = Pool(clock, boundaries, SAMPLED_STEPS, ready)

    def take(self, step: Step) -> Optional[EagerRecorder]:
        """Return a recorder that begins with the step's first event, or None if all blocks are in use."""
        block = self._blocks.take()
        if block is None:
            return None
        return EagerRecorder(
            self._clock, step.ends[0], self._gap, block, step.stream, step.work.pairs, self._cpu,
            self._sink.progress, self._codes.reaches, step.number,
        )  # fmt: skip

    def give_back(self, step: Step) -> None:
        """Take the step's recorder away and reuse its events, if it has one."""
        if step.recorder is not None:
            self._blocks.give(step.recorder.block)
            step.recorder = None
