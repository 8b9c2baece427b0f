"""Operator seconds of all steps, from the shares that recent samples of the same kind had.

A kind is a phase, a mode and a size: the batch that the GPU computes in decode, the new tokens in prefill, in powers of two.
Every second of every step is given out when it comes, once: a sampled step's to its own operators, another's by the shares
of samples of its kind, and to ``unattributed`` where no sample speaks for it. So the sums over operators, with
``unattributed``, are the seconds of the steps at any time, and what was given out never moves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Optional

import numpy as np

from lightllm_otel.records.batch import RecordBatch
from lightllm_otel.records.vocabulary import Operator, Phase
from lightllm_otel.reduce.distinct import distinct

HALF_LIFE_SECONDS = 10.0
"""The weight of a sample halves in this time. So ``rate()`` over five minutes shows a change within five minutes."""
FRESH_SECONDS = 300.0
"""A sample speaks for its kind for this long."""
NEAR_OCTAVES = 2
"""A kind without fresh samples takes those of the nearest size, at most four times as large or as small."""
Kind = tuple[int, int, int]
"""Phase code, mode code, octave of the size."""


def size_octave(steps: np.ndarray) -> np.ndarray:
    """Return the exponent of the largest power of two that is at most the size, for each of ``steps`` (``STEP``, (n,))."""
    size = np.where(steps["phase"] == Phase.DECODE.code, steps["padded"], steps["tokens"])
    exponents: np.ndarray = np.log2(np.maximum(size, 1)).astype(int)
    return exponents


class Estimate:
    """``seconds``: phase code → estimated seconds by operator code, shape (operators,). ``unattributed``: phase code →
    seconds of steps for which no sample speaks. ``now``: seconds of a monotonic clock.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.seconds: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(len(Operator)))
        self.unattributed: dict[int, float] = defaultdict(float)
        self._samples: dict[Kind, tuple[float, np.ndarray]] = {}

    def add(self, rank: int, batch: RecordBatch) -> None:
        """Add the steps of one rank; the sampled ones first, so that the others take their shares."""
        now, timed = self._now(), batch.timed
        octaves = size_octave(timed.steps)
        for kind in distinct(timed.steps["phase"], timed.steps["mode"], octaves):
            own = timed.only(_is_of(timed.steps, octaves, kind))
            seconds = np.bincount(own.intervals["operator"], own.seconds, len(Operator))
            self._add_sampled(kind, float(own.steps["seconds"].sum()), seconds, now)
        others = batch.steps[~batch.is_timed]
        octaves = size_octave(others)
        for kind in distinct(others["phase"], others["mode"], octaves):
            self._add_unsampled(kind, float(others["seconds"][_is_of(others, octaves, kind)].sum()), now)

    def _add_sampled(self, kind: Kind, seconds: float, by_operator: np.ndarray, now: float) -> None:
        """Add whole-step ``seconds`` of sampled steps of one kind. ``by_operator``: what their operators took, (operators,)."""
        measured = float(by_operator.sum())
        if not measured > 0:
            self._add_unsampled(kind, seconds, now)
            return
        self.seconds[kind[0]] += seconds * (by_operator / measured)
        if kind in self._samples:
            before, sums = self._samples[kind]
            by_operator = by_operator + sums * 0.5 ** (max(now - before, 0.0) / HALF_LIFE_SECONDS)
        self._samples[kind] = now, by_operator

    def _add_unsampled(self, kind: Kind, seconds: float, now: float) -> None:
        """Add whole-step ``seconds`` of steps of one kind that were not sampled."""
        like = self._like(kind, now)
        if like is None:
            self.unattributed[kind[0]] += seconds
        else:
            self.seconds[kind[0]] += seconds * (like / like.sum())

    def _like(self, kind: Kind, now: float) -> Optional[np.ndarray]:
        """Return fresh samples of this kind, else of the nearest size of the same phase and mode."""
        near = [
            (abs(other[2] - kind[2]), -other[2], sums)
            for other, (at, sums) in self._samples.items()
            if other[:2] == kind[:2] and abs(other[2] - kind[2]) <= NEAR_OCTAVES and now - at <= FRESH_SECONDS
        ]
        return min(near, key=lambda each: each[:2])[2] if near else None


def _is_of(steps: np.ndarray, octaves: np.ndarray, kind: Kind) -> np.ndarray:
    """Return which steps are of a kind (bool, shape (steps,))."""
    found: np.ndarray = (steps["phase"] == kind[0]) & (steps["mode"] == kind[1]) & (octaves == kind[2])
    return found
