"""Histograms over fixed bounds, observed a whole array at a time."""

from __future__ import annotations

import dataclasses

import numpy as np

from lightllm_otel.records.vocabulary import Phase


def _bounds(first: int, factor_two: int, factor_four: int) -> np.ndarray:
    """From 2^``first`` µs on: so many doublings, then so many steps of factor 4."""
    exponents = [*range(first, first + factor_two + 1)]
    exponents += [exponents[-1] + 2 * step for step in range(1, factor_four + 1)]
    bounds: np.ndarray = 1e-6 * 2.0 ** np.array(exponents)
    return bounds


# One operator call in decode: 1 µs … 512 µs by factor 2, on to 8.2 ms; in all other phases 16 µs … 4.1 ms, on to 66 ms.
# One collective: from 8 µs or 32 µs on. One step: 128 µs … 8.4 s (docs/decisions/0003 and 0009).
DECODE_BOUNDS = _bounds(0, 9, 2)
PREFILL_BOUNDS = _bounds(4, 8, 2)
COLLECTIVE_DECODE_BOUNDS = _bounds(3, 7, 2)
COLLECTIVE_PREFILL_BOUNDS = _bounds(5, 8, 2)
STEP_BOUNDS = 1e-6 * 2.0 ** np.arange(7, 24)


def operator_bounds(phase: int) -> np.ndarray:
    """By the phase's code: the same in every server, so that their histograms can be added up."""
    return DECODE_BOUNDS if phase == Phase.DECODE.code else PREFILL_BOUNDS


def collective_bounds(phase: int) -> np.ndarray:
    return COLLECTIVE_DECODE_BOUNDS if phase == Phase.DECODE.code else COLLECTIVE_PREFILL_BOUNDS


@dataclasses.dataclass(frozen=True)
class Exemplar:
    """One observation that a trace has more to say of. ``wall_time``: Unix seconds."""

    value: float
    wall_time: float
    trace_id: int
    span_id: int


class Histogram:
    """``counts``: observations per bucket, the last one above all bounds, shape (bounds + 1,); ``total``: their sum.

    ``exemplars``: the last one of each bucket that has had one.
    """

    def __init__(self, bounds: np.ndarray) -> None:
        self.bounds = bounds
        self.counts = np.zeros(len(bounds) + 1, np.int64)
        self.total = 0.0
        self.exemplars: dict[int, Exemplar] = {}

    def show(self, exemplar: Exemplar) -> None:
        """An observation that was counted has a trace."""
        self.exemplars[int(np.searchsorted(self.bounds, exemplar.value, side="left"))] = exemplar

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
