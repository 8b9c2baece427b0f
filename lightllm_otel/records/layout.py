"""Bytes of a ring and of a recording.

A ring file is a header page, a page range of JSON (what is known about the rank: model, GPU, slots), and cells of 16
bytes. A step is four cells (:data:`STEP`) followed by one cell per interval (:data:`INTERVAL`). A recording is a
manifest and, per rank, the same cells one after the other. All little-endian.
"""

from __future__ import annotations

import struct

import numpy as np

VERSION = 1
STEP_MAGIC = 0x4F4C4C53  # "SLLO": a step header begins here
CELL_BYTES = 16
STEP_CELLS = 4
JSON_OFFSET = 4096
JSON_BYTES = 28 * 1024
CELLS_OFFSET = JSON_OFFSET + JSON_BYTES

INTERVAL = np.dtype(
    [
        ("operator", "u1"),  # Operator.code
        ("site", "u1"),  # Site.code, for collectives
        ("flags", "u1"),  # STARVED, and launching_bits above it
        ("implementation", "u1"),  # Implementation.code, of a collective
        ("layer", "<i2"),  # -1: not in a layer
        ("occurrence", "<u2"),  # how often this operator was called before in this layer and step
        ("payload_bytes", "<u4"),  # of a collective
        ("seconds", "<f4"),
    ]
)
STARVED = 1  # the previous boundary was already complete when this one was recorded: the GPU waited for the host
# What launching may have taken, in 7 bits: eight steps to a factor of two, 1 microsecond to 50.5 milliseconds; 127 is more.
_LAUNCHING_LEVELS = 1e-6 * 2 ** (np.arange(126) / 8)

STEP = np.dtype(
    [
        ("magic", "<u4"),
        ("intervals", "<u2"),
        ("phase", "u1"),  # Phase.code
        ("mode", "u1"),  # Mode.code
        ("number", "<u4"),  # completed forwards of this model before this one
        ("flags", "u1"),  # SAMPLED
        ("idle_reason", "u1"),  # IdleReason.code
        ("reserved", "<u2"),
        ("wall_time", "<f8"),  # Unix time when the step was entered
        ("seconds", "<f8"),  # first to last event of the step
        ("closure_seconds", "<f4"),  # what boundaries cover, before subtraction; inside a graph by its own timestamps
        ("overhead_seconds", "<f4"),  # what was subtracted from the intervals for the boundaries themselves
        ("idle_seconds", "<f4"),  # from the end of the previous step to the start of this one
        ("batch", "<u4"),  # requests in the step
        ("requests", "<u4"),  # of them, not health checks
        ("tokens", "<u4"),  # new tokens of those requests
        ("context", "<u4"),  # tokens attended to, over all requests
        ("padded", "<u4"),  # batch size that the GPU computed (graphs round up)
    ]
)
SAMPLED = 1
STEP_BYTES = STEP_CELLS * CELL_BYTES
PACKED_STEP = struct.Struct("<IHBBIBBHddfffIIIII")  # the same fields, without numpy: every step takes this way

HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u4"),
        ("pid", "<u4"),
        ("cells", "<u8"),  # capacity
        ("written", "<u8"),  # cells written since the start; stored last, after the cells
        ("steps", "<u8"),  # steps written
        ("json_bytes", "<u4"),
        ("json_version", "<u4"),  # grows with every change of the JSON
        ("in_flight", "u1"),  # 1 from the entry of a step until its end event was seen
        ("in_flight_phase", "u1"),
        ("reserved", "<u2"),
        ("in_flight_number", "<u4"),
        ("in_flight_since", "<f8"),  # Unix time
        ("heartbeat", "<f8"),  # Unix time of the last sign of life of the model thread
        ("oldest_unread", "<f8"),  # Unix time of the oldest step that ended but is not in the ring yet; 0: none
        ("sampled_steps", "<u8"),
        ("hook_seconds", "<f8"),  # time spent in our code on sampled steps and reads
        ("clock_quantum", "<f8"),  # seconds
        ("boundary_cost", "<f8"),  # seconds
        ("errors", "<u4", (8,)),  # by Stage
        ("dropped", "<u4", (8,)),  # by DropReason
        ("whole", "<u4", (4,)),  # by Whole: steps that were due but have their whole time only
        ("stamp_quantum", "<f8"),  # seconds; of the clock inside graphs
        ("stamp_cost", "<f8"),  # seconds; of a boundary inside graphs
        ("level", "u1"),  # Level.code, as it is now
        ("listening", "u1"),  # 1: follows live control
        ("reserved2", "u1", (2,)),
        ("sample_every", "<u4"),
        ("control_seq", "<u4"),  # the last order of live control that this rank follows
        ("control_at", "<u4"),  # since which forward
        ("reached", "<u4", (3,)),  # how far the host is in a step with marks: lightllm_otel.records.progress
        ("reserved3", "<u4"),
        ("begun", "<u8"),  # cells written or being written: stored before the cells
    ]
)
RING_MAGIC = b"LLMOTEL\x00"

assert STEP.itemsize == STEP_CELLS * CELL_BYTES == PACKED_STEP.size
assert INTERVAL.itemsize == CELL_BYTES
assert HEADER.itemsize <= JSON_OFFSET
MAX_INTERVALS = 2**16 - 1


def launching_bits(seconds: np.ndarray) -> np.ndarray:
    """For ``flags``: how long the host was on its way between two boundaries, rounded up."""
    return np.asarray((np.searchsorted(_LAUNCHING_LEVELS, seconds) + 1).astype(np.uint8) << 1)


def launching_seconds(flags: np.ndarray, unknown: float) -> np.ndarray:
    """Of intervals: 0 where the GPU did not wait for its host, infinite above the last level; ``unknown`` where not said."""
    levels = np.concatenate(([unknown], _LAUNCHING_LEVELS, [np.inf]))
    return np.asarray(np.where(flags & STARVED, levels[flags >> 1], 0.0))


def steps_in(cells: np.ndarray) -> list[tuple[np.void, np.ndarray]]:
    """Split whole cells (uint8, shape (n, 16)) into ``(step, intervals)`` pairs.

    Stops at the first step that is not whole, which is where a torn recording ends.
    """
    steps = []
    at = 0
    while at + STEP_CELLS <= len(cells):
        step = cells[at : at + STEP_CELLS].reshape(-1).view(STEP)[0]
        end = at + STEP_CELLS + int(step["intervals"])
        if step["magic"] != STEP_MAGIC or end > len(cells):
            break
        steps.append((step, cells[at + STEP_CELLS : end].reshape(-1).view(INTERVAL)))
        at = end
    return steps


def starts_in(cells: np.ndarray) -> tuple[np.ndarray, int]:
    """``(index of the first cell of each whole step, cells that they take)``; ends where :func:`steps_in` does.

    Without an array per step: a recording of a million steps takes a fraction of a second.
    """
    words = np.ascontiguousarray(cells[:, :8]).view("<u4")
    heads = np.flatnonzero(steps_begin(cells))
    ends = heads + STEP_CELLS + (words[heads, 1] & 0xFFFF).astype(np.int64)
    if len(heads) and heads[0] == 0 and (heads[1:] == ends[:-1]).all():  # no interval looks like a step: the rule
        whole = int(ends[-1]) <= len(cells)
        return (heads, int(ends[-1])) if whole else (heads[:-1], int(heads[-1]))
    follows = dict(zip(heads.tolist(), ends.tolist()))
    starts, at = [], 0
    while (end := follows.get(at, len(cells) + 1)) <= len(cells):
        starts.append(at)
        at = end
    return np.array(starts, np.int64), at


def steps_begin(cells: np.ndarray) -> np.ndarray:
    """Which cells look like the first of a step (bool, one per cell). An interval seldom does, too."""
    begins: np.ndarray = np.ascontiguousarray(cells[:, :4]).view("<u4")[:, 0] == STEP_MAGIC
    return begins


def columns(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whole cells as ``(steps, intervals, of)``: arrays of STEP and INTERVAL, and the step of each interval."""
    starts, used = starts_in(cells)
    heads = (starts[:, None] + np.arange(STEP_CELLS)).reshape(-1)
    steps = np.ascontiguousarray(cells[heads]).reshape(-1).view(STEP)
    is_interval = np.ones(used, bool)
    is_interval[heads] = False
    intervals = np.ascontiguousarray(cells[:used][is_interval]).reshape(-1).view(INTERVAL)
    return steps, intervals, np.repeat(np.arange(len(steps)), steps["intervals"])
