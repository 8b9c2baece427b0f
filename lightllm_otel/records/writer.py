"""Ring writer of the model process: one vectorised copy per step."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np

from lightllm_otel.records import layout, private
from lightllm_otel.records.progress import WORDS


def _offset(field: str) -> int:
    """Return where a field of the header begins, in bytes."""
    return int(layout.HEADER.fields[field][1]) if layout.HEADER.fields else 0


# Places of fields among words of 8 bytes. Every step sets them, and a reader may come at any moment: a store into a memoryview
# changes the word at once, while ``struct.pack_into`` sets its bytes to 0 first, which looks like a counter that began anew.
_WRITTEN, _STEPS, _BEGUN = (_offset(field) // 8 for field in ("written", "steps", "begun"))
_IN_FLIGHT, _IN_FLIGHT_SINCE, _HEARTBEAT = (
    _offset(field) // 8 for field in ("in_flight", "in_flight_since", "heartbeat")
)
_OLDEST_UNREAD, _SAMPLED, _HOOK_SECONDS = (_offset(f) // 8 for f in ("oldest_unread", "sampled_steps", "hook_seconds"))
_IN_FLIGHT_OFFSET, _PROGRESS_OFFSET = _offset("in_flight"), _offset("progress")


class RingWriter:
    """Writer of one rank's ring; ``mebibytes``: its size.

    The space is reserved before it is mapped, because writing to a sparse mapping on a full file system would kill the server
    with SIGBUS. Raises OSError if the file system is full. A file that another user truncates would kill it as well, so NotOurs
    is raised if the folder is not private.
    """

    def __init__(self, path: Path, mebibytes: int) -> None:
        size = mebibytes << 20
        capacity = (size - layout.CELLS_OFFSET) // layout.CELL_BYTES
        new = private.NewFile(path)
        self._descriptor = new.descriptor
        try:
            os.posix_fallocate(self._descriptor, 0, size)
            self._map = mmap.mmap(self._descriptor, size)
            # The descriptor stays open until the process ends: its lock shows that this rank is alive.
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.header = np.frombuffer(self._map, layout.HEADER, 1)
            self._cells = np.frombuffer(self._map, np.uint8, capacity * layout.CELL_BYTES, layout.CELLS_OFFSET)
            self._cells = self._cells.reshape(capacity, layout.CELL_BYTES)
            self.header[0] = np.zeros(1, layout.HEADER)[0]
            self.header["version"], self.header["pid"] = layout.VERSION, os.getpid()
            self.header["cells"] = capacity
            self.header["magic"] = layout.RING_MAGIC
            new.name()  # a reader sees a complete header or the previous server's ring, never half a header
        except BaseException:
            new.discard()
            raise
        self._capacity = capacity
        self._written = self._steps = 0
        self._words = memoryview(self._map)[: layout.JSON_OFFSET].cast("Q")
        self._floats = memoryview(self._map)[: layout.JSON_OFFSET].cast("d")
        self.progress = memoryview(self._map)[_PROGRESS_OFFSET : _PROGRESS_OFFSET + 4 * WORDS].cast("I")
        """Progress words of a step: :mod:`lightllm_otel.records.progress`."""
        self._dropped: list[int] = []
        self._step_only: list[int] = []

    def describe(self, facts: dict[str, Any]) -> None:
        """Replace the facts about this rank in the JSON area. Raises ValueError if they do not fit."""
        text = json.dumps(facts, separators=(",", ":"), default=str).encode()
        if len(text) > layout.JSON_BYTES:
            raise ValueError(f"the facts of this rank have {len(text)} bytes, at most {layout.JSON_BYTES} fit")
        self.header["json_bytes"] = 0
        self._map[layout.JSON_OFFSET : layout.JSON_OFFSET + len(text)] = text
        self.header["json_bytes"] = len(text)
        self.header["json_version"] += 1

    def write(self, step: bytes, intervals: np.ndarray) -> None:
        """Append one step (the bytes of a ``STEP``) and its intervals (``INTERVAL``, shape (n,), seconds)."""
        count = layout.STEP_CELLS + len(intervals)
        start = self._written % self._capacity
        # First: a reader that comes meanwhile knows that the oldest cells are no longer what they were.
        self._words[_BEGUN] = self._written + count
        if start + count <= self._capacity:
            at = layout.CELLS_OFFSET + start * layout.CELL_BYTES
            self._map[at : at + layout.STEP_BYTES] = step
            if len(intervals):
                cells = intervals.view(np.uint8).reshape(-1, layout.CELL_BYTES)
                self._cells[start + layout.STEP_CELLS : start + count] = cells
        else:
            self._write_around(start, step, intervals)
        self._written += count
        self._steps += 1
        self._words[_STEPS] = self._steps
        # Last: a reader that sees it finds the cells in place.
        self._words[_WRITTEN] = self._written

    def _write_around(self, start: int, step: bytes, intervals: np.ndarray) -> None:
        """Write a step that crosses the end of the ring and continues at its beginning."""
        cells = np.frombuffer(step + intervals.tobytes(), np.uint8).reshape(-1, layout.CELL_BYTES)
        first = self._capacity - start
        self._cells[start:] = cells[:first]
        self._cells[: len(cells) - first] = cells[first:]

    def enter(self, number: int, phase: int, wall_time: float) -> None:
        """A step is in flight from here until :meth:`leave`, also if the process never gets that far."""
        # The time first: a step must not look as old as the one before it.
        self._floats[_IN_FLIGHT_SINCE] = self._floats[_HEARTBEAT] = wall_time
        self._words[_IN_FLIGHT] = 1 | phase << 8 | (number & 0xFFFFFFFF) << 32

    def leave(self) -> None:
        """Record that the GPU has finished the step."""
        self._map[_IN_FLIGHT_OFFSET] = 0

    def count(
        self, dropped: list[int], step_only: list[int], sampled: int, hook_seconds: float, oldest_unread: float
    ) -> None:
        """Update the counters of the model process.

        ``dropped``: steps by :class:`DropReason`. ``step_only``: step-level only steps by :class:`StepOnlyReason`. ``sampled``:
        steps. ``hook_seconds``: host seconds spent in the plugin. ``oldest_unread``: Unix time, seconds; 0 for none.
        """
        self._floats[_OLDEST_UNREAD], self._floats[_HOOK_SECONDS] = oldest_unread, hook_seconds
        self._words[_SAMPLED] = sampled
        if dropped != self._dropped:
            self._dropped = list(dropped)
            self.header["dropped"][0, : len(dropped)] = dropped
        if step_only != self._step_only:
            self._step_only = list(step_only)
            self.header["step_only"][0, : len(step_only)] = step_only

    @property
    def fits(self) -> int:
        """Largest number of intervals that one step can have in this ring."""
        return min(layout.MAX_INTERVALS, self._capacity // 4)

    def close(self) -> None:
        """Close the ring. Only tests and replays do so: a model process keeps its ring open until it ends."""
        del self.header, self._cells
        for view in (self.progress, self._words, self._floats):
            view.release()
        self._map.close()
        os.close(self._descriptor)
