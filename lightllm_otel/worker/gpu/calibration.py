"""Calibration: what recording a boundary costs on CPU and GPU, measured while the server starts."""

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
QUANTUM_REPLAYS = 5
PAIRS = 20
MOST_COST = 5e-6  # seconds of one timestamp; a larger estimate is not believed
MOST_SPREAD = 1e-6  # seconds: the largest interquartile range that is accepted
SMALL_SPREAD = 0.3e-6  # seconds: an interquartile range that is accepted for an estimate of any size
BRANCH_SPREAD = 0.1e-6  # seconds; smaller, because a graph has about three timestamps for each programmatic dependency
RELATIVE_SPREAD = 1.5  # accept an estimate if its interquartile range is below 1.5 times the estimate
CHAINED_COST = 1.1e-6  # seconds, measured on H100s (benchmarks/results/links.json); used where it cannot be measured
_BUSY_SECONDS = 2e-3
LATENCY_TRIES = 17
_PATIENCE_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Costs and steps of one kind of boundary, all in seconds.

    ``quantum``: the clock's step. ``boundary_cost``: GPU time of an interval in which nothing happens. ``record_cost``: CPU
    time to record one boundary. ``start_latency``: the longest time in which an idle GPU passed a boundary, as seen by the
    host; the wall time of a step's start is uncertain by it. ``chained_cost``: cost of a timestamp kernel on the chain, or
    None while it is unknown. ``edge_saving``: how much earlier a kernel starts behind a programmatic dependency if timestamps
    lie on branches, compared with the host's own graph.
    """

    quantum: float = 0.0
    boundary_cost: float = 0.0
    record_cost: float = 0.0
    start_latency: float = 0.0
    chained_cost: float | None = None
    edge_saving: float = 0.0

    def learned(self, cost: float | None, chained: bool, edge_saving: float = 0.0) -> Calibration:
        """Return a copy with the measured cost of a timestamp kernel in seconds, or None if it could not be measured.

        ``chained``: the timestamp lies on the chain, otherwise on a branch. ``edge_saving``: in seconds; used for branches.
        """
        if chained:
            return dataclasses.replace(self, chained_cost=CHAINED_COST if cost is None else cost)
        return dataclasses.replace(self, boundary_cost=cost or 0.0, edge_saving=edge_saving)

    @property
    def most_cost(self) -> float:
        """Return the cost of the more expensive kind of timestamp, in seconds."""
        return max(self.boundary_cost, self.chained_cost or 0.0)

    def costs(self, intervals: int, chained_from: int, programmatic: Sequence[int] = ()) -> np.ndarray:
        """Return the cost of the timestamp that begins each interval, in seconds, shape (intervals,).

        ``chained_from``: the first timestamp on the chain, or -1. ``programmatic``: dependencies in each interval, or empty;
        what they save is subtracted, so a cost can be below 0.
        """
        costs = np.full(intervals, self.boundary_cost)
        if len(programmatic) == intervals:
            costs -= self.edge_saving * np.asarray(programmatic)
        if chained_from >= 0:
            costs[chained_from:] = CHAINED_COST if self.chained_cost is None else self.chained_cost
            costs[0] = costs[-1]  # the graph's kernels wait for its first timestamp as well
        return costs


def calibrate(clock: Clock) -> Calibration:
    """Measure the clock on boundaries that queue up behind a busy GPU, so that they do not show the host's own pace.

    It polls the GPU for at most half a second. It runs while the server is still starting.
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
    """Return the longest time in seconds from recording a boundary until the host sees that the idle GPU has passed it.

    ``deadline``: a time of ``time.perf_counter`` at which it gives up.
    """
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
    """Return the step of the timestamps in seconds, from a graph in which timestamps follow each other.

    The first replay uploads the graph and is left out.
    """
    count = min(BOUNDARIES, timestamps.capacity)

    def body() -> None:
        for at in range(count):
            timestamps.timestamp(at)
        timestamps.publish(count)

    graph = graphs.capture(None, body)
    readings = []
    for _ in range(QUANTUM_REPLAYS + 1):
        replay = timestamps.launched()
        graph.replay()
        graphs.wait()
        readings.append(timestamps.intervals(replay, count))
    return quantum_of(np.concatenate(readings[1:]))


def cost_of_timestamps(pairs: np.ndarray, count: int, tail: float = 0.0) -> float | None:
    """Return the seconds by which each of ``count`` timestamps slows an instrumented graph down.

    ``pairs``: seconds of a replay without and with timestamps, shape (:data:`PAIRS`, 2); the first pair warms up. They are
    replays of the host's own graph, because timestamps between equal kernels say little about a real sequence. ``tail``:
    seconds of what the instrumented graph does after its last timestamp. The result is the median, at least 0. It is None
    where the pairs differ too much (see :data:`RELATIVE_SPREAD`), for instance on a shared GPU, or where one is NaN.
    """
    costs = (pairs[1:, 1] - pairs[1:, 0] - tail) / count
    low, cost, high = np.quantile(costs, (0.25, 0.5, 0.75))
    most = max(SMALL_SPREAD, min(RELATIVE_SPREAD * cost, MOST_SPREAD))
    return max(float(cost), 0.0) if cost < MOST_COST and high - low < most else None


def cost_on_branches(timestamps: Timestamps, graphs: Graphs, output: Any) -> float | None:
    """Return the cost in seconds of a timestamp kernel on a branch between kernels without programmatic dependencies.

    It is measured in separate graphs. The result is None where pairs of replays differ, for instance on a shared GPU.
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
    """Return the seconds that each of ``edges`` programmatic dependencies saves in an instrumented graph.

    ``cost``: seconds of each of its ``count`` timestamps. ``pairs`` and ``tail`` are those of :func:`cost_of_timestamps`. The
    result is None where it is uncertain, or where nothing is saved.
    """
    savings = (cost * count + tail - pairs[1:, 1] + pairs[1:, 0]) / edges
    low, saving, high = np.quantile(savings, (0.25, 0.5, 0.75))
    most = max(SMALL_SPREAD, min(RELATIVE_SPREAD * saving, MOST_SPREAD))
    return float(saving) if 0 < saving < MOST_COST and high - low < most else None


def tail_of_graph(timestamps: Timestamps, graphs: Graphs, count: int, output: Any, delivered: bool) -> float:
    """Return the seconds that an instrumented graph takes after its last timestamp, to copy outputs and timestamps.

    ``delivered``: the graph copies its outputs.
    """
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
    """Return the smallest difference between distinct values, in seconds; 0 if all are equal.

    ``intervals``: seconds, float64, shape (n,).
    """
    distinct = np.unique(np.round(intervals * 1e10))  # to 0.1 ns: rounding errors of floats are not steps
    steps = np.diff(np.concatenate(([0.0], distinct)))
    steps = steps[steps > 0.5]
    return float(steps.min() * 1e-10) if len(steps) else 0.0
