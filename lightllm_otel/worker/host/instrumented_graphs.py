"""Instrumented instrumented graphs of LightLLM's decode graphs: captured while it starts, checked against the host's own, then
armed.

What is replayed in a step must be the same on every rank, or captured collectives would read foreign buffers. So the
ranks vote before the first capture, after each one and after each check; a no anywhere ends it everywhere, once and
for all. After that the choice follows from the count of forwards alone.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import os
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from lightllm_otel import __version__
from lightllm_otel.contracts.fits import Fits
from lightllm_otel.guard import Guard, log
from lightllm_otel.records.vocabulary import Stage
from lightllm_otel.settings import GraphPolicy, Settings
from lightllm_otel.worker.gpu.agreement import Ballot
from lightllm_otel.worker.gpu.boundary_recorder import CaptureRecorder
from lightllm_otel.worker.gpu.calibration import (
    PAIRS,
    Calibration,
    cost_of_timestamps,
    cost_on_branches,
    quantum_of_timestamps,
    saving_of_edges,
    tail_of_graph,
)
from lightllm_otel.worker.gpu.graphs import Graphs
from lightllm_otel.worker.gpu.step import GraphLayout, Step
from lightllm_otel.worker.gpu.timer import Timer
from lightllm_otel.worker.gpu.timestamp_kernels import Timestamps
from lightllm_otel.worker.host.pristine import RefersBack, pristine_of, take_over_numbers
from lightllm_otel.worker.host.sizes import spread

RESERVE_BYTES = 256 << 20  # stay this far from the end of the GPU's memory
# Of one instrumented graph, before there is one to go by: alone, and with NCCL's kernels inside (the mean of eight).
GRAPH_BYTES, GRAPH_BYTES_NCCL = 5 << 20, 12 << 20
GRAPH_SECONDS = 0.15
# The inputs on which graphs are checked once more: LightLLM warms up with token 1 and a context of 2.
OTHER_TOKEN, OTHER_TOKENS = 2, 1 << 16
AGREED = "yes"
GRAPH_MIXING = "NCCL_GRAPH_MIXING_SUPPORT"  # at 0 NCCL adds nothing to a graph but its kernels


class InstrumentedGraph:
    """An instrumented graph with its graph, and the host's own graph beside which it was captured.

    For one call it lies where the host's graph lies, so that the host's own code replays it. ``step`` is set before,
    if the step is read.
    """

    def __init__(
        self, graph_layout: GraphLayout, graph: Any, plain: Any, timer: Timer, guard: Guard, timestamps: Timestamps
    ) -> None:
        self.graph_layout = graph_layout
        self.plain = plain
        self.step: Step | None = None
        self.delivered = False  # its outputs are copied to where the host's own graph has them
        self.last_replay = -1
        self._graph = graph
        self._timer = timer
        self._measure = guard(Stage.MEASURE)
        self._timestamps = timestamps

    def replay(self) -> None:
        step, self.step = self.step, None
        if step is not None:
            with self._measure:
                self._timer.before_replay(step)
        self.last_replay = self._timestamps.launched()
        self._graph.replay()
        if step is not None:
            with self._measure:
                self._timer.after_replay(step, self.graph_layout, self.last_replay)


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What a graph is captured from a second time: ``decode(*given)``, with ``pristine`` in the place of ``state``.

    ``decode`` is None where it cannot be done on this rank, and ``problem`` says why.
    """

    rows: int
    decode: Callable[..., Any] | None
    given: tuple[Any, ...]
    pristine: Any
    state: Any
    problem: str = ""


class Once:
    """A graph that is replayed by the first who asks, and by nobody after."""

    def __init__(self, graph: Any) -> None:
        self._graph: Any = graph

    def replay(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.replay()


class InstrumentedGraphs:
    """Of one model. ``state``: ``off``, ``waiting``, ``armed`` or ``refused``; ``reason`` says why, in a sentence."""

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
        self.state, self.reason = "waiting", "no graphs were captured yet"
        self.bytes = 0
        self.seconds = 0.0
        self.timestamps: Timestamps | None = None
        self._timer = timer
        self._guard = guard
        self._settings = settings
        self._graphs = graphs
        self._choose_timestamps = choose_timestamps
        self._make_ballot = ballot
        self._environ = os.environ if environ is None else environ
        self._ballot = Ballot(None, 0, 1)
        self._owner: weakref.ref[Any] | None = None
        self._lost = ""
        self._module: ModuleType | None = None
        self._planned: frozenset[int] = frozenset()
        self._host_sizes = 0
        self.collecting = False
        """The host warms up: its inputs are kept, one for each batch size, until graphs were checked on others."""
        self.trying: InstrumentedGraph | None = None
        """The graph that the host's own replay shall take, while it is checked."""
        self._inputs: dict[int, Any] = {}
        if settings.graphs is GraphPolicy.OFF:
            self.state, self.reason = "off", "LIGHTLLM_OTEL_GRAPHS=off"

    # While the server starts -----------------------------------------------------------------------------------------

    def plan(self, owner: Any, module: ModuleType | None, fits: Fits) -> None:
        """The host is about to capture the graphs of ``owner`` (``CudaGraph``): decide, with all ranks, for which sizes."""
        began = time.perf_counter()
        if self.state != "waiting":
            return
        problem = "our own part failed; the log says how"
        sizes: frozenset[int] = frozenset()
        vote = None
        ballot = Ballot(None, 0, 2)  # of somebody who cannot vote
        with self._guard(Stage.PATCH):
            ballot = self._make_ballot()
            problem = probe(owner, fits, self._environ)
            if not problem:
                problem, sizes = self._prepare(owner, ballot.ranks)
            vote = None if problem else self._plan_of(sizes)
        self._ballot = ballot
        if not ballot.agree("plan", vote):
            self.refuse(problem or "another rank cannot, or has other settings; its log says which")
            return
        # Weakly: the host's graphs hold its tensors.
        self._owner, self._module, self._planned = weakref.ref(owner), module, sizes
        self.collecting = True
        self.seconds += time.perf_counter() - began

    def _prepare(self, owner: Any, ranks: int) -> tuple[str, frozenset[int]]:
        """A sentence when it cannot be done here, else the sizes."""
        host_sizes = list(getattr(owner, "cuda_graph_batch_sizes", ()))
        self._host_sizes = len(host_sizes)
        wanted = self._settings.graph_batch_sizes
        sizes = frozenset(size for size in host_sizes if not wanted or size in wanted)
        if not sizes:
            return (
                f"LIGHTLLM_OTEL_GRAPH_BATCH_SIZES names none of the sizes that the server captures: {host_sizes}",
                sizes,
            )
        each = GRAPH_BYTES if ranks == 1 else GRAPH_BYTES_NCCL
        if not wanted:  # sizes that are asked for by name are outside of the budget
            budget = min((self._settings.graph_mib << 20) / each, self._settings.graph_seconds / GRAPH_SECONDS)
            sizes = spread(sizes, max(int(budget), 1))
        free, needed = self._graphs.free_bytes(), RESERVE_BYTES + each * len(sizes)
        if free < needed:
            return (f"{free >> 20} MiB of GPU memory are free, {needed >> 20} are wanted; a smaller --mem_fraction, "
                    "LIGHTLLM_OTEL_GRAPH_MIB or LIGHTLLM_OTEL_GRAPH_BATCH_SIZES makes it fit"), sizes  # fmt: skip
        self.timestamps = self._choose_timestamps(self._timer.boundaries)
        if self.timestamps is None:
            return "no timestamp kernel can be loaded; the log says why", sizes
        self._timer.step_reader.timestamps = self.timestamps
        self._timer.step_reader.timestamp_calibration = Calibration(
            quantum_of_timestamps(self.timestamps, self._graphs)
        )
        return "", sizes

    def _plan_of(self, sizes: frozenset[int]) -> str:
        """Everything that the ranks must have in common."""
        settings = self._settings
        assert self.timestamps is not None
        return json.dumps([__version__, settings.level.value, settings.sample_every, settings.graphs.value, sorted(sizes),
                           self._timer.boundaries, self.timestamps.source, self._chains(self.timestamps)])  # fmt: skip

    def _chains(self, timestamps: Timestamps) -> bool:
        """Tell whether timestamp kernels go over to the chain where NCCL's kernels are in a graph."""
        return timestamps.branches and self._environ.get(GRAPH_MIXING) != "0"

    def captures(self, owner: Any) -> bool:
        """Tell whether graphs of this ``CudaGraph`` are captured a second time. Forgets nothing, decides nothing."""
        return self._owns(owner)

    def wants(self, owner: Any, batch: int) -> bool:
        """Decide with all ranks about the graph that the host is about to capture. Forgets one that it captures anew.

        The first rank says when the budget is used up; another one can only say that it cannot.
        """
        if not self._owns(owner):
            return False
        self.by_size.pop(batch, None)
        if batch not in self._planned:
            return False
        affordable = self._ballot.follows or self._is_affordable(batch)
        return self._ballot.agree(f"wanted {batch}", AGREED if affordable else None)

    def _is_affordable(self, batch: int) -> bool:
        """By what the graphs so far took. The host captures the largest first, and the small ones matter as much."""
        settings, made = self._settings, len(self.by_size)
        if not made or settings.graph_batch_sizes:
            return True
        left = [size for size in self._planned if size <= batch]
        # Each is captured now, and checked once more on other inputs when the host has captured all.
        budget = min(((settings.graph_mib << 20) - self.bytes) / max(self.bytes / made, 1.0),
                     (settings.graph_seconds - self.seconds) / max(self.seconds / made, 1e-3))  # fmt: skip
        return budget >= 1 and batch in spread(left, int(budget))

    def drawing(self, rows: int, decode: Callable[..., Any], given: Sequence[Any], state: Any) -> Drawing:
        """Keep what the host is about to capture, as it is before: kernels will leave tensors on ``state``."""
        try:
            pristine = pristine_of(state)
        except (RefersBack, AttributeError, TypeError) as error:
            return Drawing(rows, None, (), None, state, f"the host's infer_state cannot be copied: {error}")
        return Drawing(rows, decode, tuple(pristine if each is state else each for each in given), pristine, state)

    def capture(self, owner: Any, drawing: Drawing) -> None:
        """Beside the graph that the host has just captured for this batch size, from the same inputs."""
        began, batch = time.perf_counter(), drawing.rows
        instrumented: InstrumentedGraph | None = None
        exchange = getattr(self._module, "lightllm_capture_graph", None)
        # Leaving this context exchanges buffers between the ranks (up to May 2026): all of them must.
        exchanging = (
            exchange(getattr(drawing.state, "dist_group", None)) if exchange is not None else contextlib.nullcontext()
        )
        with exchanging, self._guard(Stage.PATCH):
            decode = drawing.decode
            if decode is not None and self._is_plain(owner, batch):
                take_over_numbers(drawing.pristine, drawing.state)
                instrumented = self._draw(owner, batch, lambda: decode(*drawing.given))
        if not self._ballot.agree(f"captured {batch}", AGREED if instrumented is not None else None):
            self.refuse(
                drawing.problem or f"the graph for batch size {batch} could not be captured a second time on every rank"
            )
        elif not self._ballot.agree(
            f"equal {batch}", AGREED if self._is_equal(instrumented, owner.graph[batch][-1]) else None
        ):
            self.refuse(f"for batch size {batch} the outputs are not those of the host's own graph")
        elif instrumented is not None:
            self._learn_cost(instrumented, owner.graph[batch][-1])
            self.by_size[batch] = instrumented
        self.seconds += time.perf_counter() - began

    @staticmethod
    def _is_plain(owner: Any, batch: int) -> bool:
        """Tell whether the host keeps what it has captured in the form that is known: ``(graph, …, output)``."""
        entry = owner.graph.get(batch)
        return isinstance(entry, tuple) and len(entry) > 1 and hasattr(entry[0], "replay")

    def _draw(self, owner: Any, batch: int, decode: Callable[[], Any]) -> InstrumentedGraph | None:
        """Capture the graph of what ``decode`` does, with a timestamp at every boundary. None when marks are missing."""
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
                timestamps.join()  # a capture that ends with a loose branch takes the host's memory pool with it

        before = self._graphs.free_bytes()
        graph = self._graphs.capture(owner.mempool, body)
        self.bytes += max(before - self._graphs.free_bytes(), 0)
        if recorder.full or timer.failed or len(recorder.codes) < 2:
            return None
        programmatic = recorder.programmatic()
        graph_layout = GraphLayout(
            batch, tuple(recorder.codes), tuple(recorder.payloads), recorder.chained_from, programmatic
        )
        instrumented = InstrumentedGraph(graph_layout, graph, entry[0], timer, self._guard, timestamps)
        instrumented.delivered = delivered
        return instrumented

    def _is_equal(self, instrumented: InstrumentedGraph | None, output: Any) -> bool:
        """Plain, plain again, instrumented graph, on the batch that was captured: the outputs must be the same, bit by bit.

        The outputs are spoilt in between, so that an instrumented graph that writes them elsewhere is found out. Every rank
        replays all three, whatever becomes of our part: the collectives in them wait for each other.
        """
        if instrumented is None:
            return False
        spoilt, seen = 0, []
        for graph in (instrumented.plain, instrumented.plain, instrumented):
            with self._guard(Stage.PATCH):
                self._graphs.spoil(output)
                spoilt += 1
            with self._guard(Stage.PATCH):
                graph.replay()
            with self._guard(Stage.PATCH):
                seen.append(self._graphs.copy_of(output))
        with self._guard(Stage.PATCH):
            if min(spoilt, len(seen)) < 3:
                return False
            if not self._graphs.same(seen[0], seen[1]):
                log.warning(
                    "the host's own graph for batch size %d gives other outputs each time",
                    instrumented.graph_layout.batch,
                )
                return self._settings.graphs is GraphPolicy.FORCE
            assert self.timestamps is not None
            self.timestamps.intervals(
                instrumented.last_replay, len(instrumented.graph_layout.codes)
            )  # raises where it left none
            return self._graphs.same(seen[0], seen[2])
        return False

    def _learn_cost(self, instrumented: InstrumentedGraph, output: Any) -> None:
        """Learn from the largest graph, and what programmatic dependencies save from the smallest, which has most of them.

        cuBLAS splits products of few rows. Every rank replays both graphs as often, because its collectives are in them.
        """
        first = not self.by_size
        if not first and (instrumented.graph_layout.chained or instrumented.graph_layout.batch != min(self._planned)):
            return
        graph_layout, tail, alone, step_reader = instrumented.graph_layout, 0.0, None, self._timer.step_reader
        timestamps, edges = len(graph_layout.codes), 0 if graph_layout.chained else sum(graph_layout.programmatic)
        with self._guard(Stage.PATCH):  # no replay of the host's graph is in here
            assert self.timestamps is not None
            tail = tail_of_graph(self.timestamps, self._graphs, timestamps, output, instrumented.delivered)
            alone = cost_on_branches(self.timestamps, self._graphs, output) if edges else None
        pairs = [(self._seconds(instrumented.plain), self._seconds(instrumented)) for _ in range(PAIRS)]
        with self._guard(Stage.PATCH):
            saving = None if alone is None else saving_of_edges(np.array(pairs), timestamps, tail, alone, edges)
            cost = cost_of_timestamps(np.array(pairs), timestamps, tail) if saving is None else alone
            if first or saving is not None:
                step_reader.timestamp_calibration = step_reader.timestamp_calibration.learned(
                    cost, graph_layout.chained, saving or 0.0
                )

    def _seconds(self, graph: Any) -> float:
        """Of one replay, which there is in any case; NaN where it could not be timed."""
        once, seconds = Once(graph), math.nan
        with self._guard(Stage.PATCH):
            seconds = self._graphs.seconds(once)
        with self._guard(Stage.PATCH):
            once.replay()
        return seconds

    def collect(self, given: Any) -> None:
        """Keep an input of the host's warm-up, as it came: its tensors become those of the graph, which replays write into."""
        if given is not None and not getattr(given, "is_prefill", True):
            kept = self._inputs[int(given.batch_size)] = copy.copy(given)
            for name, value in list(vars(given).items()):
                if hasattr(value, "clone"):
                    setattr(kept, name, value.clone())

    def seal(self, owner: Any, model: Any) -> None:
        """The host has captured all of its graphs. What it captures from here on is not captured a second time."""
        inputs, self._inputs = self._inputs, {}
        if not self._owns(owner):
            return
        began = time.perf_counter()
        self._planned = frozenset()
        for batch in sorted(self.by_size):
            if not self._check_on_other_inputs(owner, model, batch, inputs.get(batch)):
                break
        self.seconds += time.perf_counter() - began

    def _check_on_other_inputs(self, owner: Any, model: Any, batch: int, given: Any) -> bool:
        """Plain on others, plain on the first, ours on others, each through the host's own forward and replay.

        What kernels compute from lengths must be computed by our graph as well. Between the two that are compared the host's
        graph has left in memory what belongs to the first lengths, so that a graph without those kernels is found out.
        """
        instrumented, others = self.by_size[batch], None
        if self._settings.graphs is GraphPolicy.FORCE:  # outputs may differ by themselves; all ranks have this setting
            return True
        with self._guard(Stage.PATCH):
            others = other_inputs(given, owner, model)
        if not self._ballot.agree(f"others {batch}", AGREED if others is not None else None):
            log.warning("for batch size %d the host's graph cannot be tried on other inputs: whole steps only", batch)
            self._lost = "the host's graphs could not be tried on other inputs"
            self.by_size.pop(batch)
            return True
        seen = []
        for tried, asked in ((None, others), (None, given), (instrumented, others)):
            with self._guard(Stage.PATCH):
                output = owner.graph[batch][-1]
                self._graphs.spoil(output)
                self.trying = tried
                model.forward(copy.copy(asked))
                seen.append(self._graphs.copy_of(output))
            self.trying = None
        same = len(seen) == 3 and self._graphs.same(seen[0], seen[2])
        if same and self._graphs.same(seen[0], seen[1]):
            log.warning(
                "for batch size %d the host's graph gives the same outputs for other inputs: nothing is proved", batch
            )
            same = False
        if not self._ballot.agree(f"equal on others {batch}", AGREED if same else None):
            self.refuse(f"for batch size {batch} the outputs for other inputs are not those of the host's own graph")
            return False
        return True

    def arm(self) -> None:
        """The model is complete. One more vote, on what every rank has now: then instrumented graphs may be replayed."""
        self._planned = frozenset()
        if self.state != "waiting" or self._owner is None:
            return
        have = json.dumps(sorted(self.by_size))
        if self._ballot.agree("armed", have if self.by_size else None):
            self.state, self.reason = "armed", ""
        else:
            self.refuse(self._lost or "another rank has lost its instrumented graphs; its log says how")

    def give_up(self, reason: str) -> None:
        """Before :meth:`arm`: let the instrumented graphs go, and their memory. The others hear of it there."""
        self.by_size.clear()
        self._lost = reason
        self._graphs.release()

    def _owns(self, owner: Any) -> bool:
        return self._owner is not None and self._owner() is owner

    def refuse(self, reason: str) -> None:
        """No instrumented graphs, on this rank for good; the others have the same verdict."""
        self.state, self.reason = "refused", reason
        self._planned = frozenset()
        self._owner = None
        self.by_size.clear()
        log.warning("operators inside CUDA graphs are not timed: %s. Whole steps are.", reason)

    # In a step -------------------------------------------------------------------------------------------------------

    def beside(self, owner: Any, batch: int) -> InstrumentedGraph | None:
        """The instrumented graph of the graph that the host has for this batch size now; None when it has captured another
        since."""
        instrumented = self.by_size.get(batch)
        if instrumented is None or self.state != "armed" or not self._owns(owner):
            return None
        entry = owner.graph.get(batch)
        return instrumented if entry is not None and entry[0] is instrumented.plain else None

    def operators(self) -> list[list[str]]:
        """Of each instrumented graph, once for those that are alike, what its intervals belong to, in order."""
        name = self._timer.boundary_codes.name
        return [
            list(names) for names in {tuple(map(name, each.graph_layout.codes[1:])) for each in self.by_size.values()}
        ]

    def facts(self) -> dict[str, Any]:
        """For the ring's page: what doctor shows."""
        where = (
            ", on the chain because of NCCL" if any(each.graph_layout.chained for each in self.by_size.values()) else ""
        )
        return {
            "state": self.state, "reason": self.reason, "sizes": sorted(self.by_size), "bytes": self.bytes,
            "seconds": round(self.seconds, 3), "host_sizes": self._host_sizes,
            "timestamps": f"{self.timestamps.source}, {self.timestamps.detail}{where}" if self.timestamps is not None else "",
            "programmatic": max((sum(each.graph_layout.programmatic) for each in self.by_size.values()), default=0),
            "boundary_cost": self._timer.step_reader.timestamp_calibration.boundary_cost,
            "edge_saving": self._timer.step_reader.timestamp_calibration.edge_saving,
        }  # fmt: skip


def other_inputs(given: Any, owner: Any, model: Any) -> Any:
    """Return the host's own input of a warm-up with other lengths and another token, or None where it cannot be made.

    No length is more than the graph, the model or the host's table of tokens is made for. LightLLM warms up with one row of that
    table for the whole batch, where whoever writes last wins; here each request has a row of its own. While the server starts
    none is in use, and what is left there is overwritten before it is read.
    """
    lengths, ids = getattr(given, "b_seq_len", None), getattr(given, "input_ids", None)
    rows = getattr(given, "b_req_idx", None)
    table = getattr(getattr(getattr(model, "req_manager", None), "req_to_token_indexs", None), "shape", None)
    if lengths is None or ids is None or rows is None or table is None or len(table) != 2:
        return None
    known = (getattr(owner, "graph_max_len_in_batch", None), getattr(model, "max_seq_length", None), table[1])
    bounds = [each for each in known if isinstance(each, int)]
    batch = int(given.batch_size)
    if len(bounds) < len(known) or not isinstance(given.total_token_num, int) or batch >= table[0]:
        return None
    longest = min(*bounds, max(OTHER_TOKENS // batch, 64)) - 1
    if longest < 4:
        return None
    wanted = [max(longest - (longest // (2 * batch)) * row, 3) for row in range(batch)]
    others = copy.copy(given)
    others.b_seq_len = lengths.new_tensor(wanted)
    others.b_req_idx = rows.new_tensor(list(range(batch)))
    others.input_ids = ids.new_full(tuple(ids.shape), OTHER_TOKEN)
    others.total_token_num = sum(wanted)
    return others


def module_of(function: Any) -> ModuleType | None:
    """Return the module that a function of the host's was defined in."""
    return sys.modules.get(str(getattr(function, "__module__", "")))


def probe(owner: Any, fits: Fits, environ: Mapping[str, str]) -> str:
    """Say why graphs of this host are not captured a second time; empty when nothing speaks against it."""
    args = getattr(owner, "args", None)
    if not fits.fits("graph_capture") or not fits.fits("graph_replay"):
        return "CudaGraph captures or replays in a way that is not known"
    if getattr(owner, "enable_decode_microbatch_overlap", False):
        return "two microbatches overlap in one graph"
    if getattr(args, "enable_ep_moe", False) or environ.get("MOE_MODE", "TP") == "EP":
        return "expert parallelism keeps communication buffers that alternate from call to call"
    if getattr(args, "enable_torch_memory_saver", False):
        return "torch_memory_saver may take a graph's memory away (--enable_rl)"
    if not hasattr(owner, "mempool") or not isinstance(getattr(owner, "graph", None), dict):
        return "CudaGraph keeps its graphs in a way that is not known"
    return ""
