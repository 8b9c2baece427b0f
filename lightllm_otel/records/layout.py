"""Binary layout of rings and recordings, all little-endian.

A ring file has a header page, a JSON area (facts about the rank: model, GPU, slots), and cells of 16 bytes. A step is four
cells (:data:`STEP`), followed by one cell per interval (:data:`INTERVAL`). A recording is a manifest and, for each rank, the
same cells one after the other.
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
        ("flags", "u1"),  # bit 0: STARVED; bits 1 to 7: launching_bits
        ("implementation", "u1"),  # Implementation.code, of a collective
        ("layer", "<i2"),  # -1: not in a layer
        ("occurrence", "<u2"),  # earlier calls of this operator in this layer and step
        ("payload_bytes", "<u4"),  # of a collective
        ("seconds", "<f4"),
    ]
)
STARVED = 1  # the previous boundary was already complete when this one was recorded: the GPU waited for the host
# Launch time of the host in 7 bits: eight levels per factor of two, from 1 microsecond to 50.5 milliseconds; 127 means longer.
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
        (
            "closure_seconds",
            "<f4",
        ),  # from the first to the last boundary, before overhead is subtracted; in a graph, by its timestamp kernels
        ("overhead_seconds", "<f4"),  # subtracted from the intervals for the cost of the boundaries
        ("idle_seconds", "<f4"),  # from the end of the previous step to the start of this one
        ("batch", "<u4"),  # requests in the step
        ("requests", "<u4"),  # of these, requests that are not health checks
        ("tokens", "<u4"),  # new tokens of those requests
        ("context", "<u4"),  # tokens attended to, over all requests
        ("padded", "<u4"),  # batch size that the GPU computed (graphs round up)
    ]
)
SAMPLED = 1
STEP_BYTES = STEP_CELLS * CELL_BYTES
PACKED_STEP = struct.Struct(
    "<IHBBIBBHddfffIIIII"
)  # the same fields; faster than numpy, and every step is packed with it

HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u4"),
        ("pid", "<u4"),
        ("cells", "<u8"),  # capacity
        ("written", "<u8"),  # cells written since the start; stored last, after the cells
        ("steps", "<u8"),  # steps written
        ("json_bytes", "<u4"),
        ("json_version", "<u4"),  # incremented at every change of the JSON
        ("in_flight", "u1"),  # 1 from the entry of a step until its end event has completed
        ("in_flight_phase", "u1"),
        ("reserved", "<u2"),
        ("in_flight_number", "<u4"),
        ("in_flight_since", "<f8"),  # Unix time
        ("heartbeat", "<f8"),  # Unix time of the last sign of life of the model thread
        ("oldest_unread", "<f8"),  # Unix time of the oldest step that ended but is not in the ring yet; 0: none
        ("sampled_steps", "<u8"),
        ("hook_seconds", "<f8"),  # host time spent in the plugin on sampled steps and on reading steps
        ("clock_quantum", "<f8"),  # seconds
        ("boundary_cost", "<f8"),  # seconds
        ("errors", "<u4", (8,)),  # by Stage
        ("dropped", "<u4", (8,)),  # by DropReason
        ("step_only", "<u4", (4,)),  # by StepOnlyReason: sampled steps of which only the total time could be measured
        ("timestamp_quantum", "<f8"),  # seconds; resolution of timestamp kernels in graphs
        ("timestamp_cost", "<f8"),  # seconds; cost of a timestamp kernel in a graph
        ("level", "u1"),  # current Level.code
        ("listening", "u1"),  # 1: this rank follows live control
        ("reserved2", "u1", (2,)),
        ("sample_every", "<u4"),
        ("control_seq", "<u4"),  # sequence number of the live control order that this rank follows
        ("control_at", "<u4"),  # the forward from which that order holds
        ("progress", "<u4", (3,)),  # progress words of a step with boundaries: lightllm_otel.records.progress
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
    """Encode the seconds that the host took to launch an interval, rounded up, as bits of ``flags`` (uint8, same shape)."""
    return np.asarray((np.searchsorted(_LAUNCHING_LEVELS, seconds) + 1).astype(np.uint8) << 1)


def launching_seconds(flags: np.ndarray, unknown: float) -> np.ndarray:
    """Decode the launch time of each interval from its ``flags``, in seconds, same shape.

    The result is 0 if the GPU did not wait for its host, infinite above the last level, and ``unknown`` if it was not recorded.
    """
    levels = np.concatenate(([unknown], _LAUNCHING_LEVELS, [np.inf]))
    return np.asarray(np.where(flags & STARVED, levels[flags >> 1], 0.0))


def steps_in(cells: np.ndarray) -> list[tuple[np.void, np.ndarray]]:
    """Split cells (uint8, shape (n, 16)) into ``(step, intervals)`` pairs, of dtypes ``STEP`` and ``INTERVAL``.

    Stops at the first incomplete step, which is where a torn recording ends.
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
    """Return the index of the first cell of each complete step (int64), and the number of cells that these steps take.

    It ends where :func:`steps_in` ends, but needs no array per step: a recording of a million steps takes a fraction of a second.
    """
    words = np.ascontiguousarray(cells[:, :8]).view("<u4")
    begins = np.flatnonzero(steps_begin(cells))
    ends = begins + STEP_CELLS + (words[begins, 1] & 0xFFFF).astype(np.int64)
    # The usual case: no interval looks like the first cell of a step.
    if len(begins) and begins[0] == 0 and (begins[1:] == ends[:-1]).all():
        complete = int(ends[-1]) <= len(cells)
        return (begins, int(ends[-1])) if complete else (begins[:-1], int(begins[-1]))
    follows = dict(zip(begins.tolist(), ends.tolist()))
    starts, at = [], 0
    while (end := follows.get(at, len(cells) + 1)) <= len(cells):
        starts.append(at)
        at = end
    return np.array(starts, np.int64), at


def steps_begin(cells: np.ndarray) -> np.ndarray:
    """Return which cells look like the first cell of a step (bool, shape (n,)). In rare cases an interval does, too."""
    begins: np.ndarray = np.ascontiguousarray(cells[:, :4]).view("<u4")[:, 0] == STEP_MAGIC
    return begins


def columns(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return cells (uint8, shape (n, 16)) as ``(steps, intervals, step_of_interval)``.

    ``steps``: ``STEP``, shape (steps,). ``intervals``: ``INTERVAL``, shape (intervals,). ``step_of_interval``: the index of each
    interval's step, shape (intervals,).
    """
    starts, used = starts_in(cells)
    heads = (starts[:, None] + np.arange(STEP_CELLS)).reshape(-1)
    steps = np.ascontiguousarray(cells[heads]).reshape(-1).view(STEP)
    is_interval = np.ones(used, bool)
    is_interval[heads] = False
    intervals = np.ascontiguousarray(cells[:used][is_interval]).reshape(-1).view(INTERVAL)
    return steps, intervals, np.repeat(np.arange(len(steps)), steps["intervals"])
