"""What the clock itself costs, found out once at start-up, before the first request."""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from lightllm_otel.measure.clock import Clock

BOUNDARIES = 65
_BUSY_SECONDS = 2e-3
_PATIENCE_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Seconds. ``quantum``: the clock's step. ``boundary_cost``: an interval in which nothing happens, on the GPU.

    ``record_cost``: the CPU's time to record one boundary.
    """

    quantum: float = 0.0
    boundary_cost: float = 0.0
    record_cost: float = 0.0


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
    return Calibration(quantum_of(intervals), float(np.median(intervals)), record_cost)


def quantum_of(intervals: np.ndarray) -> float:
    """The smallest step between distinct measured values, in seconds; 0 when all are the same."""
    distinct = np.unique(np.round(intervals * 1e10))  # to 0.1 ns: float noise is not a step
    steps = np.diff(np.concatenate(([0.0], distinct)))
    steps = steps[steps > 0.5]
    return float(steps.min() * 1e-10) if len(steps) else 0.0
