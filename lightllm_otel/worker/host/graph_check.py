"""Check of an instrumented graph: its outputs must equal those of the host's own graph bit by bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from lightllm_otel.guard import Guard, log
from lightllm_otel.records.vocabulary import Stage
from lightllm_otel.worker.gpu.graphs import Graphs
from lightllm_otel.worker.gpu.timestamp_kernels import Timestamps
from lightllm_otel.worker.host.instrumented_graph import InstrumentedGraph

Use = Callable[[Any], None]
"""Choose the graph that the host's own replay takes next: an instrumented graph, or None for the host's."""


class GraphCheck:
    """Comparison of outputs. ``force``: accept a graph where the host's own outputs differ from replay to replay."""

    def __init__(self, guard: Guard, graphs: Graphs, force: bool) -> None:
        self._guard = guard
        self._graphs = graphs
        self._force = force

    def equal(self, instrumented: InstrumentedGraph, output: Any, timestamps: Timestamps) -> bool:
        """Replay plain, plain again, and instrumented on the captured batch; tell whether all outputs are the same.

        The outputs are overwritten in between, so that a graph that writes them elsewhere is detected. Every rank replays all
        three graphs even after an error, because their collectives wait for each other.
        """
        spoilt, seen = 0, []
        for graph in (instrumented.plain, instrumented.plain, instrumented):
            with self._guard(Stage.PATCH):
                self._graphs.spoil(output)
                spoilt += 1
            with self._guard(Stage.PATCH):
                graph.replay()
            with self._guard(Stage.PATCH):
                seen.append(self._graphs.copy_of(output))
        layout = instrumented.graph_layout
        with self._guard(Stage.PATCH):
            if min(spoilt, len(seen)) < 3:
                return False
            if not self._graphs.same(seen[0], seen[1]):
                log.warning(
                    "the host's own graph for batch size %d has different outputs in each replay, so an instrumented graph "
                    "cannot be checked; LIGHTLLM_OTEL_GRAPHS=force uses it nevertheless", layout.batch,
                )  # fmt: skip
                return self._force
            timestamps.intervals(instrumented.last_replay, len(layout.codes))  # raises if the replay left none
            return self._graphs.same(seen[0], seen[2])
        return False

    def equal_on_others(
        self, instrumented: InstrumentedGraph, owner: Any, model: Any, given: Any, others: Any, use: Use
    ) -> bool:
        """Compare on other inputs, each through the host's own forward and replay: plain, plain on ``given``, instrumented.

        Some kernels compute values from the lengths, and an instrumented graph may lack them by mistake. The run in the middle
        leaves values of other lengths in memory, so that such a graph has wrong outputs.
        """
        seen = []
        for graph, inputs in ((None, others), (None, given), (instrumented, others)):
            with self._guard(Stage.PATCH):
                output = owner.graph[instrumented.graph_layout.batch][-1]
                self._graphs.spoil(output)
                use(graph)
                model.forward(copy.copy(inputs))
                seen.append(self._graphs.copy_of(output))
            use(None)
        same = len(seen) == 3 and self._graphs.same(seen[0], seen[2])
        if same and self._graphs.same(seen[0], seen[1]):
            log.warning(
                "the host's graph for batch size %d has the same outputs for different inputs, so the check proves nothing "
                "and no graph is instrumented", instrumented.graph_layout.batch,
            )  # fmt: skip
            return False
        return same
