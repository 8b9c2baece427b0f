"""Histograms over fixed bounds, observed a whole array at a time."""

from __future__ import annotations

import numpy as np

# Factor 2. One operator call: 1 µs … 1.05 s; one step: 128 µs … 8.4 s (docs/decisions/0003).
OPERATOR_BOUNDS = 1e-6 * 2.0 ** np.arange(21)
STEP_BOUNDS = 1e-6 * 2.0 ** np.arange(7, 24)


class Histogram:
    """``counts``: observations per bucket, the last one above all bounds, shape (bounds + 1,); ``total``: their sum."""

    def __init__(self, bounds: np.ndarray) -> None:
        self.bounds = bounds
        self.counts = np.zeros(len(bounds) + 1, np.int64)
        self.total = 0.0

    def observe(self, seconds: np.ndarray) -> None:
        """An observation equal to a bound belongs to its bucket, as Prometheus has it."""
        self.counts += np.bincount(np.searchsorted(self.bounds, seconds, side="left"), minlength=len(self.counts))
        self.total += float(seconds.sum())

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    def cumulative(self) -> list[tuple[str, int]]:
        """``(le, observations at most that)`` pairs, up to ``+Inf``."""
        labels = [f"{bound:.7g}" for bound in self.bounds] + ["+Inf"]
        return list(zip(labels, np.cumsum(self.counts).tolist()))
