"""Histograms of durations: counted on a fine exponential grid, shown as the buckets of one layout per metric.

The grid is that of OpenTelemetry's exponential histograms at scale 3: its bounds are powers of 2 ** (1 / 8) of one second. Every
layout takes its bounds from the grid, so the classic and the exponential histogram hold the same observations exactly
(docs/decisions/0085-one-layout-per-histogram.md).
"""

from __future__ import annotations

import copy
import dataclasses

import numpy as np

SCALE = 3
# Of OpenTelemetry's specification: no more buckets than this, so that receivers that have the same limit keep the scale.
MOST_BUCKETS = 160
_PER_OCTAVE = 2**SCALE
_FIRST, _LAST = -30, 10  # in octaves of one second: 0.93 ns (the clocks count whole nanoseconds) to 17 minutes
GRID = 2.0 ** (np.arange(_FIRST * _PER_OCTAVE, _LAST * _PER_OCTAVE + 1) / _PER_OCTAVE)
"""Upper bounds of the fine buckets in seconds, shape (321,)."""


def _powers(*octaves: float) -> np.ndarray:
    """Return the bounds 2 ** octave seconds for each of ``octaves``, which must be multiples of 1/8."""
    bounds: np.ndarray = GRID[[round((octave - _FIRST) * _PER_OCTAVE) for octave in octaves]]
    return bounds


# The limit of 2,000 series leaves 15 bounds for a call of an operator: factor 2 ** 0.5 from 1.9 to 7.6 µs, factor 2 to 1 ms, and
# factor 4 to 62.5 ms.
OPERATOR_BOUNDS = _powers(-19, -18.5, -18, -17.5, *range(-17, -9), -8, -6, -4)
# One transfer: factor 2 from 3.8 µs to 15.6 ms. One wait: factor 8 from 1 µs to 31 ms, since its mean matters most.
TRANSFER_BOUNDS = _powers(*range(-18, -5))
WAIT_BOUNDS = _powers(*range(-20, -4, 3))
# One step: factor 2 from 0.5 ms to 8 s.
STEP_BOUNDS = _powers(*range(-11, 4))


@dataclasses.dataclass(frozen=True)
class Exemplar:
    """One observation that belongs to a trace: ``value`` in seconds, ``wall_time`` in Unix seconds."""

    value: float
    wall_time: float
    trace_id: int
    span_id: int


@dataclasses.dataclass(frozen=True)
class Exponential:
    """The buckets of an OpenTelemetry exponential histogram.

    ``counts[i]`` counts observations in (base ** (offset + i), base ** (offset + i + 1)] seconds, where base is
    2 ** (2 ** -scale). ``zeros`` counts observations of 0 seconds.
    """

    scale: int
    offset: int
    counts: list[int]
    zeros: int


class Histogram:
    """Histogram with the bounds of one layout. ``bounds``: seconds, shape (n,), each on the ``GRID``.

    ``total`` is the sum of all observations in seconds. ``exemplars`` has the last one of each bucket that has had one.
    Raises ValueError if a bound is not on the grid.
    """

    def __init__(self, bounds: np.ndarray) -> None:
        self.bounds = bounds
        self._places = np.searchsorted(GRID, bounds)
        if not np.array_equal(GRID[np.minimum(self._places, len(GRID) - 1)], bounds):
            raise ValueError("a bound of a histogram must be a power of 2 ** (1 / 8) of a second")
        self._zeros = 0
        self._fine = np.zeros(len(GRID), np.int64)
        self.total = 0.0
        self.exemplars: dict[int, Exemplar] = {}

    def show(self, exemplar: Exemplar) -> None:
        """Attach ``exemplar`` to the bucket of its value, which has been observed."""
        self.exemplars[int(np.searchsorted(self.bounds, exemplar.value, side="left"))] = exemplar

    def observe(self, seconds: np.ndarray) -> None:
        """Count ``seconds``, shape (n,). An observation equal to a bound belongs to that bucket, as in Prometheus.

        What is longer than the grid is counted in its last bucket.
        """
        positive = seconds[seconds > 0]
        places = np.minimum(np.searchsorted(GRID, positive, side="left"), len(GRID) - 1)
        self._fine += np.bincount(places, minlength=len(GRID))
        self._zeros += len(seconds) - len(positive)
        self.total += float(seconds.sum())

    @property
    def counts(self) -> np.ndarray:
        """Observations per bucket of the layout, the last one above all bounds; shape (n + 1,)."""
        at_most = self._zeros + np.cumsum(self._fine)[self._places]
        counts: np.ndarray = np.diff(np.concatenate(([0], at_most, [self.count])))
        return counts

    @property
    def count(self) -> int:
        return self._zeros + int(self._fine.sum())

    def cumulative(self) -> list[tuple[str, int]]:
        """Return ``(le, observations at most that)`` pairs, up to ``+Inf``.

        Seven digits tell a bound from its neighbours by less than the nanosecond in which clocks count.
        """
        labels = [f"{bound:.7g}" for bound in self.bounds] + ["+Inf"]
        return list(zip(labels, np.cumsum(self.counts).tolist()))

    def exponential(self, most: int = MOST_BUCKETS) -> Exponential:
        """Return the same observations as an exponential histogram of at most ``most`` buckets (2 or more).

        The scale is 3, or the largest one at which the buckets suffice. Merging neighbours loses nothing but resolution.
        """
        scale, first, counts = SCALE, _FIRST * _PER_OCTAVE - 1, self._fine
        filled = np.flatnonzero(counts)
        if not len(filled):
            return Exponential(scale, 0, [], self._zeros)
        first, counts = first + int(filled[0]), counts[filled[0] : filled[-1] + 1]
        while len(counts) > most:
            pairs = (
                np.arange(first, first + len(counts)) // 2
            )  # floor: the rule of the specification for one scale less
            counts = np.bincount(pairs - pairs[0], counts).astype(np.int64)
            scale, first = scale - 1, int(pairs[0])
        return Exponential(scale, first, counts.tolist(), self._zeros)

    def snapshot(self) -> Histogram:
        """Return a copy that later observations do not change."""
        copied = copy.copy(self)
        copied._fine, copied.exemplars = self._fine.copy(), dict(self.exemplars)
        return copied

    def since(self, before: Histogram) -> Histogram:
        """Return what was observed after the snapshot ``before``, with all exemplars."""
        later = self.snapshot()
        later._fine -= before._fine
        later._zeros -= before._zeros
        later.total -= before.total
        return later
