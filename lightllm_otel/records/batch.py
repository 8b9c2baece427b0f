"""The records of one rank as columns: what one poll reads, and what a recording holds."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from lightllm_otel.records import layout


@dataclasses.dataclass(frozen=True, eq=False)
class RecordBatch:
    """Whole steps of one rank, in the order in which they ran, with their intervals.

    ``steps``: ``STEP``, shape (steps,). ``intervals``: ``INTERVAL``, shape (intervals,), step by step. ``step_of_interval``: the
    index of each interval's step, int64, shape (intervals,).
    """

    steps: np.ndarray
    intervals: np.ndarray
    step_of_interval: np.ndarray

    @classmethod
    def of_cells(cls, cells: np.ndarray) -> RecordBatch:
        """Parse cells (uint8, shape (n, 16)); ends with the last whole step."""
        return cls(*layout.columns(cells))

    @classmethod
    def joined(cls, batches: Sequence[RecordBatch]) -> RecordBatch:
        """Put several batches one after the other; at least one."""
        before = np.cumsum([0, *map(len, batches)])
        return cls(
            np.concatenate([each.steps for each in batches]),
            np.concatenate([each.intervals for each in batches]),
            np.concatenate([each.step_of_interval + first for each, first in zip(batches, before)]),
        )

    def __len__(self) -> int:
        return len(self.steps)

    @functools.cached_property
    def is_sampled(self) -> np.ndarray:
        """Return which steps were to be timed operator by operator (bool, shape (steps,))."""
        sampled: np.ndarray = (self.steps["flags"] & layout.SAMPLED) > 0
        return sampled

    @functools.cached_property
    def is_timed(self) -> np.ndarray:
        """Return which steps have the times of their operators (bool, shape (steps,))."""
        timed: np.ndarray = self.is_sampled & (self.steps["intervals"] > 0)
        return timed

    @functools.cached_property
    def timed(self) -> RecordBatch:
        """The steps that have the times of their operators, and these."""
        return self.only(self.is_timed)

    @functools.cached_property
    def seconds(self) -> np.ndarray:
        """Seconds of each interval, float64, shape (intervals,)."""
        return np.asarray(self.intervals["seconds"], float)

    @functools.cached_property
    def is_starved(self) -> np.ndarray:
        """Return at the start of which intervals the GPU waited for the host (bool, shape (intervals,))."""
        starved: np.ndarray = (self.intervals["flags"] & layout.STARVED) > 0
        return starved

    def only(self, chosen: np.ndarray) -> RecordBatch:
        """Return some of the steps with their intervals; ``chosen``: bool, shape (steps,)."""
        if chosen.all():
            return self
        kept = chosen[self.step_of_interval]
        place = np.cumsum(chosen) - 1
        return RecordBatch(self.steps[chosen], self.intervals[kept], place[self.step_of_interval[kept]])

    def intervals_of(self, step: int) -> np.ndarray:
        """Return the intervals of one step, given its index; ``INTERVAL``, shape (intervals of the step,)."""
        first, last = np.searchsorted(self.step_of_interval, (step, step + 1))
        return self.intervals[first:last]
