"""Cost of the timestamp kernels in instrumented graphs, learned while the server starts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lightllm_otel.guard import Guard
from lightllm_otel.records.vocabulary import Stage
from lightllm_otel.worker.gpu.calibration import (
    PAIRS,
    cost_of_timestamps,
    cost_on_branches,
    saving_of_edges,
    tail_of_graph,
)
from lightllm_otel.worker.gpu.graphs import Graphs
from lightllm_otel.worker.gpu.step_reader import StepReader
from lightllm_otel.worker.gpu.timestamp_kernels import Timestamps
from lightllm_otel.worker.host.instrumented_graph import InstrumentedGraph


class ReplayOnce:
    """Graph wrapper that replays at most once."""

    def __init__(self, graph: Any) -> None:
        self._graph: Any = graph

    def replay(self) -> None:
        """Replay the graph at the first call; later calls do nothing."""
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.replay()


class GraphCost:
    """Comparison of replays with and without timestamps; the result goes to the step reader's calibration."""

    def __init__(self, guard: Guard, graphs: Graphs, step_reader: StepReader) -> None:
        self._guard = guard
        self._graphs = graphs
        self._step_reader = step_reader

    def learn(self, instrumented: InstrumentedGraph, output: Any, timestamps: Timestamps, first: bool) -> None:
        """Learn what a timestamp costs, and what a programmatic dependency saves, from one graph and the host's own.

        ``first``: nothing has been learned yet, so the result is kept even if it is unknown. Every rank replays both graphs
        equally often, because their collectives wait for each other.
        """
        layout, tail, alone = instrumented.graph_layout, 0.0, None
        count, edges = len(layout.codes), 0 if layout.chained else sum(layout.programmatic)
        with self._guard(Stage.PATCH):  # the host's graph is not replayed here
            tail = tail_of_graph(timestamps, self._graphs, count, output, instrumented.delivered)
            alone = cost_on_branches(timestamps, self._graphs, output) if edges else None
        pairs = [(self._seconds(instrumented.plain), self._seconds(instrumented)) for _ in range(PAIRS)]
        with self._guard(Stage.PATCH):
            saving = None if alone is None else saving_of_edges(np.array(pairs), count, tail, alone, edges)
            cost = cost_of_timestamps(np.array(pairs), count, tail) if saving is None else alone
            if first or saving is not None:
                reader = self._step_reader
                reader.timestamp_calibration = reader.timestamp_calibration.learned(cost, layout.chained, saving or 0.0)

    def _seconds(self, graph: Any) -> float:
        """Return the seconds of one replay, NaN if it could not be timed. The graph is replayed in either case."""
        once, seconds = ReplayOnce(graph), math.nan
        with self._guard(Stage.PATCH):
            seconds = self._graphs.seconds(once)
        with self._guard(Stage.PATCH):
            once.replay()
        return seconds
