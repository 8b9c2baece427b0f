"""A second reader of a running group's rings, which writes what passes into a recording of its own.

The exporter goes on beside it: a ring can have any number of readers, and none of them is seen by the server.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lightllm_otel.records import layout
from lightllm_otel.records.folder import is_locked
from lightllm_otel.records.reader import RingReader, rings_in
from lightllm_otel.records.recording import RecordingWriter

POLL_SECONDS = 0.1
QUIET_SECONDS = 1.5  # the model process hands over what it has at least once a second
MOST_BYTES = 1 << 30


class NoRing(LookupError):
    """There is nothing to read; the message says what to do."""


class Tap:
    """From its making on. ``sampled``: sampled steps of the lowest rank so far."""

    def __init__(self, folder: Path, out: Path) -> None:
        rings = [(rank, path) for rank, path in rings_in(folder)[0] if is_locked(path)]
        if not rings:
            raise NoRing(f"no rank of {folder.name} is running here; start the server and send it a request")
        self._readers = {rank: RingReader(path) for rank, path in rings}
        self._writer = RecordingWriter(out, folder.name, MOST_BYTES)
        self.path = self._writer.path
        self.steps = self.sampled = self.lost = 0
        self._hooks = -float(self.header["hook_seconds"])
        for reader in self._readers.values():
            reader.read()  # what was there before is not ours
            self.lost -= reader.overwrites
        self._writer.describe({rank: reader.facts() for rank, reader in self._readers.items()})

    @property
    def header(self) -> np.void:
        """Of the lowest rank, as it is now."""
        return next(iter(self._readers.values())).header  # type: ignore[no-any-return]

    def poll(self) -> int:
        """Take over what has come. Returns how many cells."""
        taken = 0
        for place, (rank, reader) in enumerate(self._readers.items()):
            cells = reader.read()
            self._writer.append(rank, cells)
            taken += len(cells)
            if place == 0 and len(cells):
                steps, _, _ = layout.columns(cells)
                self.steps += len(steps)
                self.sampled += int(((steps["flags"] & layout.SAMPLED) > 0).sum())
        return taken

    def until(self, done: Callable[[], bool], seconds: float) -> bool:
        """Poll until it is done (True) or the time is over (False)."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.poll()
            if done():
                return True
            time.sleep(POLL_SECONDS)
        return done()

    def until_quiet(self, seconds: float = 10.0) -> None:
        """Until nothing has come for a while."""
        last = time.monotonic()

        def quiet() -> bool:
            return time.monotonic() - last > QUIET_SECONDS

        end = last + seconds
        while not quiet() and time.monotonic() < end:
            if self.poll():
                last = time.monotonic()
            time.sleep(POLL_SECONDS)

    @property
    def hook_seconds(self) -> float:
        """Spent in the plugin by the lowest rank's model thread since the tap was made."""
        return self._hooks + float(self.header["hook_seconds"])

    def close(self) -> None:
        self.poll()
        self.lost += sum(reader.overwrites for reader in self._readers.values())
        self._writer.close()
