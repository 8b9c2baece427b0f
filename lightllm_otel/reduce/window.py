"""Variation and tail over the last samples, which the buckets of a histogram cannot give."""

from __future__ import annotations

import dataclasses

import numpy as np

SAMPLES = 4096
LEAST_ALIKE = 16  # samples of one kind; fewer have no middle


@dataclasses.dataclass(frozen=True)
class Stability:
    """``variation``: standard deviation divided by mean. ``tail``: 99th percentile divided by median. ``count``: of samples."""

    variation: float
    tail: float
    count: int


def stability(kinds: np.ndarray, values: np.ndarray) -> Stability | None:
    """Return the spread of values (shape (n,)), each against the median of its kind (shape (n,)).

    So a change of load does not count as variation.

    None where no kind has :data:`LEAST_ALIKE` values above zero.
    """
    kinds, values = kinds[values > 0], values[values > 0]
    _, kind, count = np.unique(kinds, return_inverse=True, return_counts=True)
    ratios = [
        alike / np.median(alike)
        for number in np.flatnonzero(count >= LEAST_ALIKE)
        for alike in (values[kind.reshape(-1) == number],)
    ]
    if not ratios:
        return None
    pooled = np.concatenate(ratios)
    return Stability(
        float(pooled.std() / pooled.mean()), float(np.quantile(pooled, 0.99) / np.quantile(pooled, 0.5)), len(pooled)
    )


class Window:
    """The last :data:`SAMPLES` values and what kind of work each was."""

    def __init__(self) -> None:
        self._kinds = np.zeros(SAMPLES, np.int64)
        self._values = np.zeros(SAMPLES)
        self._next = 0
        self._full = False

    def add(self, kinds: np.ndarray, values: np.ndarray) -> None:
        kinds, values = kinds[-SAMPLES:], values[-SAMPLES:]
        places = (self._next + np.arange(len(values))) % SAMPLES
        self._kinds[places], self._values[places] = kinds, values
        self._full |= self._next + len(values) >= SAMPLES
        self._next = (self._next + len(values)) % SAMPLES

    @property
    def stability(self) -> Stability | None:
        end = SAMPLES if self._full else self._next
        return stability(self._kinds[:end], self._values[:end])
