"""Instrumented graph: a copy of one decode graph of the host's, with a timestamp kernel at every boundary."""

from __future__ import annotations

from typing import Any

from lightllm_otel.guard import Guard
from lightllm_otel.records.vocabulary import Stage
from lightllm_otel.worker.gpu.graph_layout import GraphLayout
from lightllm_otel.worker.gpu.step import Step
from lightllm_otel.worker.gpu.timer import Timer
from lightllm_otel.worker.gpu.timestamp_kernels import Timestamps


class InstrumentedGraph:
    """Replacement for the host's graph ``plain``. For one call it takes that graph's place, so the host's own code replays it.

    ``step`` is set before the call if the step is to be read. ``delivered``: the graph copies its outputs to where the host's
    graph has them. ``last_replay``: the number of the latest replay, or -1.
    """

    def __init__(
        self, graph_layout: GraphLayout, graph: Any, plain: Any, timer: Timer, guard: Guard, timestamps: Timestamps
    ) -> None:
        self.graph_layout = graph_layout
        self.plain = plain
        self.step: Step | None = None
        self.delivered = False
        self.last_replay = -1
        self._graph = graph
        self._timer = timer
        self._measure = guard(Stage.MEASURE)
        self._timestamps = timestamps

    def replay(self) -> None:
        """Replay the graph, and hand the replay to the timer if a step is to be read."""
        step, self.step = self.step, None
        if step is not None:
            with self._measure:
                self._timer.before_replay(step)
        self.last_replay = self._timestamps.launched()
        self._graph.replay()
        if step is not None:
            with self._measure:
                self._timer.after_replay(step, self.graph_layout, self.last_replay)
