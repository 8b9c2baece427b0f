"""Operator seconds of all steps, from the shares that the sampled ones had.

Shares are kept per phase, mode and batch bucket (powers of two of the computed batch). Every second of every step is
attributed once, so the estimates sum to the seconds of the steps.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

Key = tuple[int, int, int]
"""Phase code, mode code, batch bucket."""


def batch_bucket(padded: np.ndarray) -> np.ndarray:
    """The exponent of the largest power of two that is at most the batch size."""
    exponents: np.ndarray = np.log2(np.maximum(padded, 1)).astype(int)
    return exponents


class Estimate:
    """``operators``: how many operators there are; ``seconds``: phase code → estimated seconds by operator code."""

    def __init__(self, operators: int) -> None:
        self.seconds: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(operators))
        self._sampled: dict[Key, np.ndarray] = defaultdict(lambda: np.zeros(operators))
        self._waiting: dict[Key, float] = defaultdict(float)

    def learn(self, key: Key, seconds: np.ndarray) -> None:
        """Operator seconds (shape (operators,)) of sampled steps of this kind."""
        self._sampled[key] += seconds

    def add(self, key: Key, seconds: float) -> None:
        """Whole-step seconds of steps of this kind, sampled or not."""
        self._waiting[key] += seconds

    def attribute(self) -> None:
        """Give out what has been added. What has no like among the sampled steps yet waits for one."""
        for key in list(self._waiting):
            like = self._like(key)
            if like is not None and like.sum() > 0:
                self.seconds[key[0]] += self._waiting.pop(key) * like / like.sum()

    def _like(self, key: Key) -> np.ndarray | None:
        """Samples of the same bucket, else of the nearest one of the same phase and mode."""
        if key in self._sampled:
            return self._sampled[key]
        kin = [other for other in self._sampled if other[:2] == key[:2]]
        return self._sampled[min(kin, key=lambda other: abs(other[2] - key[2]))] if kin else None
