"""Sink of finished steps: the ring, or a list in tests."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from lightllm_otel.records import progress


class Sink(Protocol):
    """Writer of one rank's records. Its calls come from the model's threads, so none of them may wait."""

    @property
    def fits(self) -> int:
        """Return the most intervals that one step may have."""

    @property
    def progress(self) -> progress.Words:
        """Return the progress words that boundaries update; see :mod:`lightllm_otel.records.progress`."""

    def write(self, step: bytes, intervals: np.ndarray) -> None:
        """Append one record: the bytes of a ``STEP`` and its ``INTERVAL`` rows, shape (n,)."""

    def enter(self, number: int, phase: int, wall_time: float) -> None:
        """Show step ``number`` as the oldest one in flight. ``wall_time``: its start, in seconds of Unix time."""

    def leave(self) -> None:
        """Show that no step is in flight."""

    def count(
        self, dropped: list[int], step_only: list[int], sampled: int, hook_seconds: float, oldest_unread: float
    ) -> None:
        """Publish the counters. ``oldest_unread``: Unix time at which the oldest unread step began, or 0."""
