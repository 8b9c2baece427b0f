"""Ring reader of the exporter. It never stops the writer, and counts what it missed."""

from __future__ import annotations

import json
import mmap
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np

from lightllm_otel.records import layout, private
from lightllm_otel.records.folder import RING_PATTERN, rank_of

_LOOK_CELLS = 2 * layout.MAX_INTERVALS  # no step is larger than half of it
_TRIES = 100  # for two words of one moment, beside a writer that does nothing but write
_IN_FLIGHT = ("in_flight", "in_flight_number", "in_flight_since")


def rings_in(folder: Path) -> tuple[list[tuple[int, Path]], list[Path]]:
    """Return ``(rings, strays)``: (rank, path) of each ring, sorted by rank, and files that only look like a ring.

    A file like ``rank-0.bak.ring`` is a stray. Raises OSError if the folder cannot be read.
    """
    rings, strays = [], []
    for path in sorted(folder.iterdir()):
        rank = rank_of(path)
        if rank is not None:
            rings.append((rank, path))
        elif path.match(RING_PATTERN):
            strays.append(path)
    return sorted(rings), strays


class RingReader:
    """Reader that follows one rank's ring from cell ``position`` on.

    Never use it in the rank's own process: it would free the rank's lock (:class:`.folder.FileLock`). Raises ValueError if the
    file is not a ring, NotOurs and OSError.
    """

    def __init__(self, path: Path, position: int = 0) -> None:
        self.path = path
        descriptor = private.open_file(path)
        try:
            self.inode = os.fstat(descriptor).st_ino
            size = os.fstat(descriptor).st_size
            if not stat.S_ISREG(os.fstat(descriptor).st_mode) or size <= layout.CELLS_OFFSET:
                raise ValueError(f"{path} is not a ring of lightllm-otel: it has {size} bytes; remove it")
            self._map = mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        self._header = np.frombuffer(self._map, layout.HEADER, 1)
        if self._header["magic"][0] != layout.RING_MAGIC.rstrip(b"\0") or self._header["version"][0] != layout.VERSION:
            raise ValueError(
                f"{path} is not a ring that this version can read (format {layout.VERSION}); "
                "restart the server so that both sides have the same version"
            )
        self._capacity = int(self._header["cells"][0])
        if not 0 < self._capacity <= (size - layout.CELLS_OFFSET) // layout.CELL_BYTES:
            raise ValueError(
                f"{path} is damaged: its header says {self._capacity} cells, which do not fit into {size} bytes; "
                "restart the server, which creates a new ring"
            )
        cells = np.frombuffer(self._map, np.uint8, self._capacity * layout.CELL_BYTES, layout.CELLS_OFFSET)
        self._cells = cells.reshape(self._capacity, layout.CELL_BYTES)
        written, steps = self._end()
        self._read = max(0, min(position, written))
        self._steps = (
            steps if self._read == written else None
        )  # up to ``position``; not known where it lies further back
        self.overwrites = 0
        """Steps that were overwritten before they were read. Those before the first read are one, however many they were."""

    @property
    def position(self) -> int:
        """Number of cells read so far, where a successor of this reader continues."""
        return self._read

    @property
    def header(self) -> Any:
        """Copy of the current header (:data:`layout.HEADER`)."""
        header = self._header.copy()[0]
        for _ in range(3):  # a step may begin while we copy, and mix its number with the time of the step before
            again = self._header.copy()[0]
            if all(header[name] == again[name] for name in _IN_FLIGHT):
                break
            header = again
        return header

    def unread_since(self) -> float:
        """Return the Unix time, in seconds, at which the oldest unread step in the ring ended; 0 if there is none.

        It may be called while another thread reads.
        """
        written = int(self._header["written"][0])
        at = max(self._read, written - self._capacity)
        places = np.arange(at, min(written, at + _LOOK_CELLS)) % self._capacity
        begins = np.flatnonzero(layout.steps_begin(self._cells[places]))  # the first cells may be partly overwritten
        if not len(begins) or len(places) - begins[0] < layout.STEP_CELLS:
            return 0.0
        step = self._cells[places[begins[0] :][: layout.STEP_CELLS]].reshape(-1).view(layout.STEP)[0]
        return float(step["wall_time"]) + float(step["seconds"])

    def facts(self) -> dict[str, Any]:
        """Return the facts of the rank, from its JSON area; empty while it is being written, or if it holds no JSON object."""
        for _ in range(3):
            version, count = int(self._header["json_version"][0]), int(self._header["json_bytes"][0])
            text = self._map[layout.JSON_OFFSET : layout.JSON_OFFSET + count]
            if count and version == int(self._header["json_version"][0]):
                try:
                    facts: Any = json.loads(text)
                except (ValueError, RecursionError):
                    continue
                return facts if isinstance(facts, dict) else {}
        return {}

    def read(self) -> np.ndarray:
        """Return the cells written since the last call, uint8, shape (n, 16); they begin and end with complete steps."""
        written, steps = self._end()
        lost = written - self._read > self._capacity
        if lost:
            self._read = written - self._capacity
        count = written - self._read
        start = self._read % self._capacity
        first = min(count, self._capacity - start)
        cells = np.concatenate((self._cells[start : start + first], self._cells[: count - first]))
        self._read = written
        # The writer may have come round while we copied, or be on its way: the oldest of these cells are then torn.
        torn = self._begun() - (written - count) - self._capacity
        if torn > 0:
            lost = count > 0
            cells = cells[min(torn, count) :]
        if lost:
            cells = _from_next_step(cells)
            self.overwrites += 1 if self._steps is None else steps - self._steps - len(layout.steps_in(cells))
        self._steps = steps
        return cells

    def _end(self) -> tuple[int, int]:
        """Return how many cells and how many steps had been written at one moment."""
        for _ in range(_TRIES):
            written, steps = (int(self._header[name][0]) for name in ("written", "steps"))
            if self._begun() == written:  # no step was begun since, so both are of the same one
                break
        return written, steps

    def _begun(self) -> int:
        """Return the number of cells that are written or being written. Writers of earlier versions leave ``begun`` at 0."""
        return int(max(self._header["begun"][0], self._header["written"][0]))


def _from_next_step(cells: np.ndarray) -> np.ndarray:
    """Drop cells up to the next step header. Its magic number alone could be data, so the chain behind it must hold."""
    heads = np.flatnonzero(np.ascontiguousarray(cells[:, :4]).view("<u4")[:, 0] == layout.STEP_MAGIC)
    for head in heads:
        rest = cells[head:]
        steps = layout.steps_in(rest)
        if sum(layout.STEP_CELLS + len(intervals) for _, intervals in steps) == len(rest):
            return rest
    return cells[:0]
