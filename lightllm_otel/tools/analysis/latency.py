"""Latency and bandwidth of a collective from its times over payloads: seconds = α + bytes / β."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Fit:
    """Latency and bandwidth. ``alpha``: seconds of a call that moves nothing; ``beta``: bytes per second on the link, one way.

    ``worst``: the largest relative error over the measured payloads.
    """

    alpha: float
    beta: float
    worst: float

    @property
    def takeover_bytes(self) -> float:
        """Return the bytes on the link at which moving takes as long as the latency."""
        return self.alpha * self.beta


def fit(moved: Sequence[float], seconds: Sequence[float]) -> Fit:
    """Fit latency and bandwidth. ``moved``: bytes that each rank sends. Least squares of the relative error, so that 1 KiB
    counts as much as 1 GiB; neither part is negative. At least two different payloads.
    """
    sizes, times = np.array(moved, float), np.array(seconds, float)
    rows = np.stack([1 / times, sizes / times], axis=1)
    alpha, per_byte = np.linalg.lstsq(rows, np.ones(len(times)), rcond=None)[0]
    if alpha < 0:
        alpha, per_byte = 0.0, float((sizes / times).sum() / ((sizes / times) ** 2).sum())
    if per_byte <= 0:
        alpha, per_byte = float((1 / times).sum() / (1 / times**2).sum()), 0.0
    found = alpha + per_byte * sizes
    return Fit(float(alpha), float(1 / per_byte) if per_byte else float("inf"), float(np.abs(found / times - 1).max()))
