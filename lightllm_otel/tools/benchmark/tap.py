"""Tap: a second reader of a running group's rings, which writes all steps to a recording of its own.

The exporter continues as before: a ring can have any number of readers, and the server sees none of them.
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
QUIET_SECONDS = 1.5  # the model process writes finished steps at least once a second
MOST_BYTES = 1 << 30


class NoRing(LookupError):
    """Raised if there is no ring to read; the message says what to do."""


class Tap:
    """Recorder of a running group, from its creation on.

    ``steps`` and ``sampled``: steps and sampled steps of the lowest rank so far. ``lost``: overwrites, after :meth:`close`.
    """

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
            reader.read()  # skip the steps from before
            self.lost -= reader.overwrites
        self._writer.describe({rank: reader.facts() for rank, reader in self._readers.items()})

    @property
    def header(self) -> np.void:
        """Current ring header of the lowest rank."""
        return next(iter(self._readers.values())).header  # type: ignore[no-any-return]

    def poll(self) -> int:
        """Record the new steps, and return the number of their cells."""
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
        """Poll until ``done()``, for at most ``seconds``. Return whether it was done."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.poll()
            if done():
                return True
            time.sleep(POLL_SECONDS)
        return done()

    def until_quiet(self, seconds: float = 10.0) -> None:
        """Poll until no new steps have come for :data:`QUIET_SECONDS`, for at most ``seconds``."""
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
        """Seconds that the lowest rank's model thread has spent in the plugin since the tap was created."""
        return self._hooks + float(self.header["hook_seconds"])

    def close(self) -> None:
        """Record the last steps and close the recording."""
        self.poll()
        self.lost += sum(reader.overwrites for reader in self._readers.values())
        self._writer.close()
