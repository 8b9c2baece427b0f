"""What the clocks themselves cost, found out once at start-up, before the first request."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from lightllm_otel.worker.gpu.clock import Clock
from lightllm_otel.worker.gpu.graphs import Graphs
from lightllm_otel.worker.gpu.timestamp_kernels import Timestamps

BOUNDARIES = 65
STAMP_REPLAYS = 5
PAIRS = 20
MOST_COST = 5e-6
MOST_SPREAD = 1e-6
SMALL_SPREAD = 0.3e-6  # good enough for a cost of any size
BRANCH_SPREAD = 0.1e-6  # more for each programmatic dependency: a graph has some three timestamp kernels for one
SURE = 1.5  # times the cost: half of its pairs closer together than that, it is known to about half of itself
CHAINED_COST = 1.1e-6  # seconds, on H100s (benchmarks/results/links.json): where it cannot be found out, closer than 0
_BUSY_SECONDS = 2e-3
LATENCY_TRIES = 17
_PATIENCE_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Seconds. ``quantum``: the clock's step. ``boundary_cost``: an interval in which nothing happens, on the GPU.

    ``record_cost``: the CPU's time to record one boundary. ``start_latency``: the longest that a GPU with nothing to do took
    to pass a boundary, as the host saw it: so far a step's start on the wall may be wrong. ``chained_cost``: what a timestamp
    costs that the host's kernels wait for; None while it is not known. ``edge_saving``: by how much sooner a kernel starts
    behind a programmatic dependency where timestamps lie on branches than in the host's own graph.
    """

    quantum: float = 0.0
    boundary_cost: float = 0.0
    record_cost: float = 0.0
    start_latency: float = 0.0
    chained_cost: float | None = None
    edge_saving: float = 0.0

    def learned(self, cost: float | None, chained: bool, edge_saving: float = 0.0) -> Calibration:
        """With the seconds that a timestamp costs, one that is waited for or one on a branch; None: it could not be found out."""
        if chained:
            return dataclasses.replace(self, chained_cost=CHAINED_COST if cost is None else cost)
        return dataclasses.replace(self, boundary_cost=cost or 0.0, edge_saving=edge_saving)

    @property
    def most_cost(self) -> float:
        """Of the dearer kind."""
        return max(self.boundary_cost, self.chained_cost or 0.0)

    def costs(self, intervals: int, chained_from: int, programmatic: Sequence[int] = ()) -> np.ndarray:
        """Of the timestamp that begins each interval, seconds, shape (intervals,).

        Less what its kernels save there; so it can be below 0. ``programmatic``: dependencies in each interval, or empty.
        """
        costs = np.full(intervals, self.boundary_cost)
        if len(programmatic) == intervals:
            costs -= self.edge_saving * np.asarray(programmatic)
        if chained_from >= 0:
            costs[chained_from:] = CHAINED_COST if self.chained_cost is None else self.chained_cost
            costs[0] = costs[-1]  # nothing of the graph may run before its first timestamp
        return costs


def calibrate(clock: Clock) -> Calibration:
    """Record boundaries back to back behind a busy GPU, so that the host's own pace does not show in them.

    Waits for the GPU by asking, for half a second at most, because it runs while the server is still starting.
    """
    handles = clock.handles(BOUNDARIES)
    stream = clock.stream()
    clock.occupy(_BUSY_SECONDS)
    began = time.perf_counter()
    for handle in handles:
        clock.record(handle, stream)
    record_cost = (time.perf_counter() - began) / BOUNDARIES
    deadline = time.perf_counter() + _PATIENCE_SECONDS
    while not clock.done(handles[-1]):
        if time.perf_counter() > deadline:
            return Calibration(record_cost=record_cost)
    intervals = clock.intervals(handles)
    return Calibration(quantum_of(intervals), float(np.median(intervals)), record_cost, latency_of(clock, deadline))


def latency_of(clock: Clock, deadline: float) -> float:
    """The longest time from the host's return from a recording until it sees the idle GPU past it, over some tries."""
    (handle,) = clock.handles(1)
    stream = clock.stream()
    longest = 0.0
    for attempt in range(LATENCY_TRIES):
        clock.record(handle, stream)
        began = time.perf_counter()
        while not clock.done(handle) and time.perf_counter() < deadline:
            pass
        if attempt:  # the first one warms up
            longest = max(longest, time.perf_counter() - began)
    return longest


def quantum_of_timestamps(timestamps: Timestamps, graphs: Graphs) -> float:
    """Seconds; from a graph of its own in which timestamps follow each other. The first replay uploads it and is left out."""
    count = min(BOUNDARIES, timestamps.capacity)

    def body() -> None:
        for at in range(count):
            timestamps.timestamp(at)
        timestamps.publish(count)

    graph = graphs.capture(None, body)
    readings = []
    for _ in range(STAMP_REPLAYS + 1):
        replay = timestamps.launched()
        graph.replay()
        graphs.wait()
        readings.append(timestamps.intervals(replay, count))
    return quantum_of(np.concatenate(readings[1:]))


def cost_of_timestamps(pairs: np.ndarray, count: int, tail: float = 0.0) -> float | None:
    """Seconds by which each of ``count`` timestamps makes an instrumented graph slower than its like without them.

    ``pairs``: seconds of a replay without and with timestamps, shape (:data:`PAIRS`, 2); the first pair warms up. Of the host's
    own graph: timestamps that follow each other, or small kernels of one kind, say little about timestamps between kernels that
    take turns. ``tail``: what else the instrumented graph does, behind its last timestamp. The median, at least 0; None where
    pairs differ more than that is worth (see :data:`SURE`), as when processes share a GPU, or where one is NaN.
    """
    costs = (pairs[1:, 1] - pairs[1:, 0] - tail) / count
    low, cost, high = np.quantile(costs, (0.25, 0.5, 0.75))
    most = max(SMALL_SPREAD, min(SURE * cost, MOST_SPREAD))
    return max(float(cost), 0.0) if cost < MOST_COST and high - low < most else None


def cost_on_branches(timestamps: Timestamps, graphs: Graphs, output: Any) -> float | None:
    """Return what a timestamp kernel on a branch costs between kernels without programmatic dependencies, in seconds.

    It is measured in graphs of its own. None where pairs of replays differ, as when another process uses the GPU meanwhile.
    """
    count = min(BOUNDARIES, timestamps.capacity)
    scratch = graphs.like(output)[:1]

    def body(timestamped: bool) -> None:
        try:
            for at in range(count):
                graphs.spoil(scratch)
                if timestamped:
                    timestamps.timestamp(at)
        finally:
            timestamps.join()

    without, timestamped = (
        graphs.capture(None, functools.partial(body, with_timestamps)) for with_timestamps in (False, True)
    )
    pairs = np.array([(graphs.seconds(without), graphs.seconds(timestamped)) for _ in range(PAIRS)])
    low, cost, high = np.quantile((pairs[1:, 1] - pairs[1:, 0]) / count, (0.25, 0.5, 0.75))
    return max(float(cost), 0.0) if high - low < BRANCH_SPREAD else None


def saving_of_edges(pairs: np.ndarray, count: int, tail: float, cost: float, edges: int) -> float | None:
    """Seconds that each of ``edges`` programmatic dependencies saves in an instrumented graph, where each of ``count``
    timestamps costs ``cost``.

    The rest as for :func:`cost_of_stamps`. None where it cannot be told, or where nothing is saved.
    """
    savings = (cost * count + tail - pairs[1:, 1] + pairs[1:, 0]) / edges
    low, saving, high = np.quantile(savings, (0.25, 0.5, 0.75))
    most = max(SMALL_SPREAD, min(SURE * saving, MOST_SPREAD))
    return float(saving) if 0 < saving < MOST_COST and high - low < most else None


def tail_of_graph(timestamps: Timestamps, graphs: Graphs, count: int, output: Any, delivered: bool) -> float:
    """Seconds of what an instrumented graph does behind its last timestamp: the copies of its outputs, if there are any, and of
    its timestamps."""
    made = graphs.like(output) if delivered else output

    def body(rest: bool) -> None:
        timestamps.timestamp(0)
        if rest:
            graphs.deliver(made, output)
            timestamps.publish(count)

    def launch(graph: Any) -> float:
        seconds = []
        for _ in range(PAIRS):
            timestamps.launched()
            seconds.append(graphs.seconds(graph))
        return float(np.median(seconds))

    with_tail, without = (graphs.capture(None, functools.partial(body, rest)) for rest in (True, False))
    alone = float(np.median([graphs.seconds(without) for _ in range(PAIRS)]))
    return max(launch(with_tail) - alone, 0.0)


def quantum_of(intervals: np.ndarray) -> float:
    """The smallest step between distinct measured values, in seconds; 0 when all are the same."""
    distinct = np.unique(np.round(intervals * 1e10))  # to 0.1 ns: float noise is not a step
    steps = np.diff(np.concatenate(([0.0], distinct)))
    steps = steps[steps > 0.5]
    return float(steps.min() * 1e-10) if len(steps) else 0.0
