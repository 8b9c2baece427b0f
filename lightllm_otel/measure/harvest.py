"""A finished step into the records that the ring carries: one vectorised pass."""

from __future__ import annotations

import numpy as np

from lightllm_otel.measure.calibration import Calibration
from lightllm_otel.measure.clock import Clock, Handle
from lightllm_otel.measure.marks import Marks
from lightllm_otel.measure.step import Step
from lightllm_otel.ring import layout

_NO_INTERVALS = np.zeros(0, layout.INTERVAL)
_MOST_PAYLOAD = 2**32 - 1


def harvest(
    step: Step, previous_end: list[Handle] | None, clock: Clock, marks: Marks, calibration: Calibration
) -> tuple[np.ndarray, np.ndarray]:
    """``(step, intervals)`` as ``STEP`` of shape (1,) and ``INTERVAL`` of shape (n,). All its events must be done."""
    record = np.zeros(1, layout.STEP)
    ends = [previous_end[1], *step.ends] if previous_end is not None else step.ends
    seconds = clock.intervals(ends)
    record["seconds"] = seconds[-1]
    if previous_end is not None:
        # On two infer threads one step may start before the other has ended; then nothing was idle.
        record["idle_seconds"] = max(seconds[0], 0.0)
        record["idle_reason"] = step.idle_reason.code
    record["magic"] = layout.STEP_MAGIC
    record["number"] = step.number & 0xFFFFFFFF
    record["phase"], record["mode"] = step.work.phase.code, step.mode.code
    record["wall_time"] = step.wall_time
    record["batch"], record["padded"] = step.work.batch, step.padded
    record["requests"], record["tokens"], record["context"] = step.requests, step.tokens, step.work.context
    if not step.sampled or len(step.codes) < 2:
        return record, _NO_INTERVALS
    raw = clock.intervals(step.boundaries[: len(step.codes)])
    shape = marks.shape(step.codes[1:])  # the first boundary only begins
    starved = np.array(step.starved[1:], dtype=bool)
    # Where the GPU waited for the host, the boundary was over before the next kernel came: nothing to subtract.
    overhead = np.where(starved, 0.0, np.minimum(calibration.boundary_cost, raw))
    rows = len(shape.template)
    intervals = shape.template.copy()
    intervals["seconds"] = np.bincount(shape.row, raw - overhead, rows)
    intervals["flags"][shape.row[starved]] = layout.STARVED
    for at, payload in step.payloads:
        intervals["payload_bytes"][shape.row[at - 1]] = min(payload, _MOST_PAYLOAD)
    record["flags"] = layout.SAMPLED
    record["intervals"] = rows
    record["closure_seconds"] = raw.sum()
    record["overhead_seconds"] = overhead.sum()
    return record, intervals
