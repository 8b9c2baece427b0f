"""Instrumented graphs of one model: captured while the server starts, checked against the host's own, then replayed.

The same graph must be replayed on every rank in a step, or captured collectives would read foreign buffers. So the ranks vote
before the first capture, after each capture and after each check. A single no ends it on all ranks, until the server
restarts. From then on the choice follows from the count of forwards alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import weakref
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from lightllm_otel import __version__
from lightllm_otel.contracts.fits import Fits
from lightllm_otel.guard import Guard, log
from lightllm_otel.records.vocabulary import Stage
from lightllm_otel.settings import GraphPolicy, Settings
from lightllm_otel.worker.gpu.agreement import Ballot
from lightllm_otel.worker.gpu.boundary_recorder import CaptureRecorder
from lightllm_otel.worker.gpu.calibration import Calibration, quantum_of_timestamps
from lightllm_otel.worker.gpu.graph_layout import GraphLayout
from lightllm_otel.worker.gpu.graphs import Graphs
from lightllm_otel.worker.gpu.timer import Timer
from lightllm_otel.worker.gpu.timestamp_kernels import Timestamps
from lightllm_otel.worker.host.cuda_graph_support import is_replaceable, unsupported
from lightllm_otel.worker.host.decode_call import DecodeCall
from lightllm_otel.worker.host.graph_budget import GraphBudget
from lightllm_otel.worker.host.graph_check import GraphCheck
from lightllm_otel.worker.host.graph_cost import GraphCost
from lightllm_otel.worker.host.instrumented_graph import InstrumentedGraph
from lightllm_otel.worker.host.pristine import take_over_numbers
from lightllm_otel.worker.host.warmup_inputs import WarmupInputs, other_inputs

AGREED = "yes"
GRAPH_MIXING = "NCCL_GRAPH_MIXING_SUPPORT"  # at 0 NCCL adds nothing to a graph but its kernels
READY = "armed"  # the value in the ring's page, which doctor and recorded results know


class InstrumentedGraphs:
    """The instrumented graphs by batch size. ``state``: ``off``, ``waiting``, :data:`READY` or ``refused``.

    ``reason``: a sentence that says why graphs are not in use. ``collecting``: the host warms up, so its inputs are kept.
    ``checked``: the graph that the host's own replay takes next, while it is checked.
    """

    def __init__(
        self,
        timer: Timer,
        guard: Guard,
        settings: Settings,
        graphs: Graphs,
        choose_timestamps: Callable[[int], Timestamps | None],
        ballot: Callable[[], Ballot],
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.by_size: dict[int, InstrumentedGraph] = {}
        self.state, self.reason = "waiting", "no graphs have been captured yet"
        self.timestamps: Timestamps | None = None
        self.collecting = False
        self.checked: InstrumentedGraph | None = None
        self._timer = timer
        self._guard = guard
        self._settings = settings
        self._graphs = graphs
        self._choose_timestamps = choose_timestamps
        self._make_ballot = ballot
        self._environ = os.environ if environ is None else environ
        self._ballot = Ballot(None, 0, 1)
        self._budget = GraphBudget(settings)
        self._check = GraphCheck(guard, graphs, settings.graphs is GraphPolicy.FORCE)
        self._cost = GraphCost(guard, graphs, timer.step_reader)
        self._inputs = WarmupInputs()
        self._owner: weakref.ref[Any] | None = None
        self._lost = ""
        self._module: ModuleType | None = None
        self._planned: frozenset[int] = frozenset()
        self._host_sizes = 0
        if settings.graphs is GraphPolicy.OFF:
            self.state, self.reason = "off", "LIGHTLLM_OTEL_GRAPHS=off"

    # While the server starts -----------------------------------------------------------------------------------------

    def plan(self, owner: Any, module: ModuleType | None, fits: Fits) -> None:
        """Decide with all ranks for which sizes graphs of ``owner`` (a ``CudaGraph``) are captured a second time.

        Called when the host is about to capture its own. ``module``: the one that defines the host's class.
        """
        began = time.perf_counter()
        if self.state != "waiting":
            return
        problem = "the plugin failed here; the log says how"
        sizes: frozenset[int] = frozenset()
        vote = None
        ballot = Ballot(None, 0, 2)  # stays if this rank cannot vote: two ranks without a store never agree
        with self._guard(Stage.PATCH):
            ballot = self._make_ballot()
            problem = unsupported(owner, fits, self._environ)
            if not problem:
                problem, sizes = self._prepare(owner, ballot.ranks)
            vote = None if problem else self._vote_on_plan(sizes)
        self._ballot = ballot
        if not ballot.agree("plan", vote):
            self.refuse(problem or "another rank declined (failure or different settings); see its log")
            return
        # A weak reference, because the host's graphs hold its tensors.
        self._owner, self._module, self._planned = weakref.ref(owner), module, sizes
        self.collecting = True
        self._budget.seconds += time.perf_counter() - began

    def _prepare(self, owner: Any, ranks: int) -> tuple[str, frozenset[int]]:
        """Load the timestamp kernels; return ``(problem, sizes)`` as :meth:`GraphBudget.choose` does."""
        host_sizes = list(getattr(owner, "cuda_graph_batch_sizes", ()))
        self._host_sizes = len(host_sizes)
        problem, sizes = self._budget.choose(host_sizes, ranks, self._graphs.free_bytes())
        if problem:
            return problem, sizes
        self.timestamps = self._choose_timestamps(self._timer.boundaries)
        if self.timestamps is None:
            return "no timestamp kernel can be loaded; the log says why", sizes
        self._timer.step_reader.timestamps = self.timestamps
        self._timer.step_reader.timestamp_calibration = Calibration(
            quantum_of_timestamps(self.timestamps, self._graphs)
        )
        return "", sizes

    def _vote_on_plan(self, sizes: frozenset[int]) -> str:
        """Return everything that the ranks must have in common, as one text."""
        settings = self._settings
        assert self.timestamps is not None
        return json.dumps([__version__, settings.level.value, settings.sample_every, settings.graphs.value, sorted(sizes),
                           self._timer.boundaries, self.timestamps.source, self._chains(self.timestamps)])  # fmt: skip

    def _chains(self, timestamps: Timestamps) -> bool:
        """Tell whether timestamp kernels change from a branch to the chain where a graph contains NCCL's kernels."""
        return timestamps.branches and self._environ.get(GRAPH_MIXING) != "0"

    def covers(self, owner: Any) -> bool:
        """Tell whether graphs of this ``CudaGraph`` are captured a second time. Changes nothing."""
        return self._owner is not None and self._owner() is owner

    def wants(self, owner: Any, batch: int) -> bool:
        """Decide with all ranks whether the graph that the host is about to capture is captured a second time.

        An instrumented graph that the host captures anew is forgotten. The first rank decides whether the budget suffices;
        the others can only decline.
        """
        if not self.covers(owner):
            return False
        self.by_size.pop(batch, None)
        if batch not in self._planned:
            return False
        affordable = self._ballot.follows or self._budget.affords(batch, self._planned, len(self.by_size))
        return self._ballot.agree(f"wanted {batch}", AGREED if affordable else None)

    def capture(self, owner: Any, call: DecodeCall) -> None:
        """Capture and check an instrumented graph beside the one that the host has just captured from the same call."""
        began, batch = time.perf_counter(), call.rows
        instrumented: InstrumentedGraph | None = None
        exchange = getattr(self._module, "lightllm_capture_graph", None)
        # Leaving this context exchanges buffers between the ranks (up to May 2026), so all ranks must enter it.
        exchanging = (
            exchange(getattr(call.state, "dist_group", None)) if exchange is not None else contextlib.nullcontext()
        )
        with exchanging, self._guard(Stage.PATCH):
            decode = call.decode
            if decode is not None and is_replaceable(owner, batch):
                take_over_numbers(call.pristine, call.state)
                instrumented = self._capture_again(owner, batch, lambda: decode(*call.given))
        if not self._ballot.agree(f"captured {batch}", AGREED if instrumented is not None else None):
            self.refuse(
                call.problem or f"the graph for batch size {batch} could not be captured a second time on every rank"
            )
        elif not self._ballot.agree(f"equal {batch}", AGREED if self._is_equal(owner, instrumented) else None):
            self.refuse(f"for batch size {batch} the outputs differ from those of the host's own graph")
        elif instrumented is not None:
            self._learn_cost(owner, instrumented)
            self.by_size[batch] = instrumented
        self._budget.seconds += time.perf_counter() - began

    def _capture_again(self, owner: Any, batch: int, decode: Callable[[], Any]) -> InstrumentedGraph | None:
        """Capture what ``decode`` launches, with a timestamp at every boundary; None if boundaries are missing."""
        assert self.timestamps is not None
        timer, timestamps = self._timer, self.timestamps
        entry = owner.graph[batch]
        recorder = CaptureRecorder(timestamps, self._chains(timestamps), self._graphs.programmatic_edges)
        delivered = False

        def body() -> None:
            nonlocal delivered
            try:
                timer.recorder = recorder
                try:
                    made = decode()
                finally:
                    timer.recorder = None
                delivered = self._graphs.deliver(made, entry[-1])
                timestamps.publish(len(recorder.codes))
            finally:
                timestamps.join()  # a capture that ends with an unjoined branch takes the host's memory pool with it

        before = self._graphs.free_bytes()
        graph = self._graphs.capture(owner.mempool, body)
        self._budget.bytes += max(before - self._graphs.free_bytes(), 0)
        if recorder.full or timer.failed or len(recorder.codes) < 2:
            return None
        graph_layout = GraphLayout(
            batch, tuple(recorder.codes), tuple(recorder.payloads), recorder.chained_from, recorder.programmatic()
        )
        instrumented = InstrumentedGraph(graph_layout, graph, entry[0], timer, self._guard, timestamps)
        instrumented.delivered = delivered
        return instrumented

    def _is_equal(self, owner: Any, instrumented: InstrumentedGraph | None) -> bool:
        if instrumented is None:
            return False
        assert self.timestamps is not None
        return self._check.equal(instrumented, owner.graph[instrumented.graph_layout.batch][-1], self.timestamps)

    def _learn_cost(self, owner: Any, instrumented: InstrumentedGraph) -> None:
        """Learn costs from the first graph, which is the largest, and savings also from the smallest.

        The smallest graph has the most programmatic dependencies, because cuBLAS splits products of few rows.
        """
        layout, first = instrumented.graph_layout, not self.by_size
        if first or (not layout.chained and layout.batch == min(self._planned)):
            assert self.timestamps is not None
            self._cost.learn(instrumented, owner.graph[layout.batch][-1], self.timestamps, first)

    def collect(self, given: Any) -> None:
        """Keep an input of the host's warm-up, for :meth:`captured_all`."""
        self._inputs.keep(given)

    def captured_all(self, owner: Any, model: Any) -> None:
        """Check all graphs on other inputs: the host has captured all of its own. Later captures get no instrumented graph."""
        inputs = self._inputs.take_all()
        if not self.covers(owner):
            return
        began = time.perf_counter()
        self._planned = frozenset()
        for batch in sorted(self.by_size):
            if not self._check_on_other_inputs(owner, model, batch, inputs.get(batch)):
                break
        self._budget.seconds += time.perf_counter() - began

    def _check_on_other_inputs(self, owner: Any, model: Any, batch: int, given: Any) -> bool:
        """Check one graph on other inputs; return False if instrumented graphs have been refused."""
        instrumented, others = self.by_size[batch], None
        if self._settings.graphs is GraphPolicy.FORCE:  # outputs may differ by themselves; all ranks have this setting
            return True
        with self._guard(Stage.PATCH):
            others = other_inputs(given, owner, model)
        if not self._ballot.agree(f"others {batch}", AGREED if others is not None else None):
            log.warning(
                "the graph for batch size %d cannot be checked on other inputs, so its steps are timed without operators",
                batch,
            )
            self._lost = "the host's graphs could not be checked on other inputs"
            self.by_size.pop(batch)
            return True
        same = self._check.equal_on_others(instrumented, owner, model, given, others, self._use)
        if not self._ballot.agree(f"equal on others {batch}", AGREED if same else None):
            self.refuse(
                f"for batch size {batch} the outputs for other inputs differ from those of the host's own graph"
            )
            return False
        return True

    def _use(self, graph: InstrumentedGraph | None) -> None:
        self.checked = graph

    def activate(self) -> None:
        """Allow replays of instrumented graphs, after a last vote on the sizes that every rank has. The model is complete."""
        self._planned = frozenset()
        if self.state != "waiting" or self._owner is None:
            return
        have = json.dumps(sorted(self.by_size))
        if self._ballot.agree("ready", have if self.by_size else None):
            self.state, self.reason = READY, ""
        else:
            self.refuse(self._lost or "another rank has lost its instrumented graphs; its log says how")

    def give_up(self, reason: str) -> None:
        """Release the instrumented graphs and their memory before :meth:`activate`, where the other ranks learn of it."""
        self.by_size.clear()
        self._lost = reason
        self._graphs.release()

    def refuse(self, reason: str) -> None:
        """Use no instrumented graphs on this rank until the server restarts. All ranks come to the same decision."""
        self.state, self.reason = "refused", reason
        self._planned = frozenset()
        self._owner = None
        self.by_size.clear()
        log.warning("operators inside CUDA graphs are not timed, their steps are: %s", reason)

    # In a step -------------------------------------------------------------------------------------------------------

    def replacement(self, owner: Any, batch: int) -> InstrumentedGraph | None:
        """Return the instrumented graph for the host's graph of this batch size, or None.

        It is None as well if the host has captured its graph anew since.
        """
        instrumented = self.by_size.get(batch)
        if instrumented is None or self.state != READY or not self.covers(owner):
            return None
        entry = owner.graph.get(batch)
        return instrumented if entry is not None and entry[0] is instrumented.plain else None

    def operators(self) -> list[list[str]]:
        """Return the operators of each graph's intervals in order; graphs with the same operators are listed once."""
        name = self._timer.boundary_codes.name
        return [
            list(names) for names in {tuple(map(name, each.graph_layout.codes[1:])) for each in self.by_size.values()}
        ]

    def facts(self) -> dict[str, Any]:
        """Return what ``doctor`` shows, for the ring's page. Costs and ``seconds`` are in seconds."""
        where = (
            ", on the chain because of NCCL" if any(each.graph_layout.chained for each in self.by_size.values()) else ""
        )
        calibration = self._timer.step_reader.timestamp_calibration
        return {
            "state": self.state, "reason": self.reason, "sizes": sorted(self.by_size), "bytes": self._budget.bytes,
            "seconds": round(self._budget.seconds, 3), "host_sizes": self._host_sizes,
            "timestamps": f"{self.timestamps.source}, {self.timestamps.detail}{where}" if self.timestamps is not None else "",
            "programmatic": max((sum(each.graph_layout.programmatic) for each in self.by_size.values()), default=0),
            "boundary_cost": calibration.boundary_cost, "edge_saving": calibration.edge_saving,
        }  # fmt: skip
