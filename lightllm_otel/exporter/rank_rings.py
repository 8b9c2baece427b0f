"""Rings of a group's ranks: found in its folder, read from where the last exporter stopped, replaced when a rank restarts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lightllm_otel.parts import Parts
from lightllm_otel.records import private
from lightllm_otel.records.folder import NO_DESCRIPTOR, is_locked, remove_if_dead
from lightllm_otel.records.reader import RingReader, rings_in
from lightllm_otel.records.vocabulary import ExporterStage

POSITIONS = "positions.json"
MOST_POSITIONS = 1 << 20  # bytes


class RankRings:
    """Readers of all rings in ``folder``.

    ``look``: called with rank and reader at each poll, before its cells. ``take``: called with rank and new cells (uint8, shape
    (n, 16)). ``restarted``: called with a rank whose process is a new one.
    """

    def __init__(
        self,
        folder: Path,
        parts: Parts,
        look: Callable[[int, RingReader], None],
        take: Callable[[int, np.ndarray], None],
        restarted: Callable[[int], None],
    ) -> None:
        self.is_successor = (folder / POSITIONS).exists()
        self._folder, self._parts = folder, parts
        self._look, self._take, self._restarted = look, take, restarted
        self._readers: dict[int, RingReader] = {}
        self._refused: dict[int, int] = {}
        self._strays: set[str] = set()

    def read(self) -> bool:
        """Read what is new. Return whether any rank wrote something."""
        rings, strays = rings_in(self._folder)
        for stray in strays:
            if stray.name not in self._strays:
                self._strays.add(stray.name)
                self._parts.failed(
                    ExporterStage.RINGS, "stray",
                    f"{stray} is no ring of a rank, whose name is rank-N.ring; it is left alone. Remove it",
                )  # fmt: skip
        before = sum(reader.position for reader in self._readers.values())
        for rank, path in rings:  # the lowest first: it is the one that counts the group's tokens
            with self._parts(ExporterStage.RINGS, path.name):
                self._read(rank, path)
        return sum(reader.position for reader in self._readers.values()) != before

    def _read(self, rank: int, path: Path) -> None:
        reader = self._reader(rank, path)
        if reader is None:
            return
        cells = reader.read()
        self._look(rank, reader)
        if len(cells):
            self._take(rank, cells)

    def _reader(self, rank: int, path: Path) -> RingReader | None:
        """Return the rank's reader; a new one when its process is a new one."""
        reader = self._readers.get(rank)
        try:
            inode = path.stat().st_ino
        except FileNotFoundError:
            return reader
        if reader is not None and reader.inode == inode:
            return reader
        if self._refused.get(rank) == inode:
            return None
        try:
            successor = RingReader(path, self._position(rank, inode) if reader is None else 0)
        except (ValueError, private.NotOurs) as error:  # it stays what it is; what cannot be opened now is tried again
            self._refused[rank] = inode
            self._parts.failed(ExporterStage.RINGS, f"{path.name} {inode}", str(error))
            return None
        if reader is not None:
            if len(left := reader.read()):  # what the old process wrote last
                self._take(rank, left)
            self._look(rank, reader)  # its last counters
            self._restarted(rank)
        self._readers[rank] = successor
        return successor

    def _position(self, rank: int, inode: int) -> int:
        """Return where an exporter that died had read to; counting from the start again would show as a burst."""
        path = self._folder / POSITIONS
        try:
            kept = json.loads(private.read(path, MOST_POSITIONS))[str(rank)]
            return int(kept["position"]) if kept["inode"] == inode else 0
        except (FileNotFoundError, KeyError):
            return 0
        except (OSError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
            self._parts.failed(
                ExporterStage.POSITIONS, "reading",
                f"{path} cannot be used ({error!r}): what is still in the rings is counted once more",
            )  # fmt: skip
            return 0

    def keep_positions(self) -> None:
        """Write down how far each ring is read, for the exporter that follows this one."""
        kept = {str(rank): {"inode": each.inode, "position": each.position} for rank, each in self._readers.items()}
        private.write(self._folder / POSITIONS, json.dumps(kept).encode())

    def any_alive(self) -> bool:
        """Return whether a process holds any of the rings. True, too, while no descriptor is free to look with."""
        try:
            return any(is_locked(path) for _, path in rings_in(self._folder)[0])
        except OSError as error:
            return error.errno in NO_DESCRIPTOR  # else the folder is gone, and its rings with it

    def tidy(self) -> None:
        """Remove the rings that nobody holds any more, and the positions in them."""
        for _, path in rings_in(self._folder)[0] if self._folder.exists() else []:
            remove_if_dead(path)
        (self._folder / POSITIONS).unlink(missing_ok=True)
