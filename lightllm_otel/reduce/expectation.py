"""Learned baseline: the seconds of each operator at the load that it has now, learned once and then frozen.

Steps are kept apart by phase, mode, size (the batch that the GPU computes, or a prefill's tokens; four buckets to an octave)
and context per request (one bucket to an octave). Inside a bucket an operator's seconds are taken as linear in size and in
what is attended to, which is what makes attention comparable at 2,100 and at 3,900 tokens. The plane is fitted to the
first :data:`SAMPLES` steps, and holds only for loads between those that it has seen; others learn one of their own.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from lightllm_otel.records.batch import RecordBatch
from lightllm_otel.records.vocabulary import Mode, Operator, Phase

SAMPLES = 64
MOST_PLANES = 8  # of one bucket
MOST_BUCKETS = 2048
_SLACK = 0.02  # beyond the loads seen
_STARVED_SHARE = 0.01
_ROUNDS = 6  # of reweighting
_MOST = 1e18  # of a factor or a load in a file: products of it stay numbers
_OPERATORS = len(Operator)
Bucket = tuple[int, int, int, int]
"""Phase code, mode code, bucket of the size, bucket of the context."""


@dataclasses.dataclass(frozen=True)
class StepLoad:
    """StepLoad of steps of one phase.

    ``terms``: what an operator's seconds are linear in, shape (steps, 3). ``size`` and ``context`` (tokens per request), shape
    (steps,), say how far a plane reaches.
    """

    terms: np.ndarray
    size: np.ndarray
    context: np.ndarray

    @classmethod
    def of(cls, steps: np.ndarray, phase: int) -> StepLoad:
        """Return the load of ``steps`` (``STEP``, shape (n,)), all of this phase code."""
        each = np.maximum(steps["context"] / np.maximum(steps["batch"], 1), 1.0)
        if phase == Phase.DECODE.code:
            size, attended = steps["padded"].astype(float), steps["context"].astype(float)
        else:
            size = steps["tokens"].astype(float)
            attended = size * each
        return cls(np.stack([np.ones(len(steps)), size, attended], axis=1), np.maximum(size, 1.0), each)

    def buckets(self) -> np.ndarray:
        """Return the bucket of the size and of the context, int, shape (steps, 2)."""
        found: np.ndarray = np.stack([4 * np.log2(self.size), np.log2(self.context)], axis=1)
        return np.floor(found + 1e-9).astype(int)

    def __getitem__(self, chosen: np.ndarray) -> StepLoad:
        return StepLoad(self.terms[chosen], self.size[chosen], self.context[chosen])


@dataclasses.dataclass(frozen=True)
class Plane:
    """``reach``: least and most of size and context that it was fitted to, shape (2, 2). ``factors`` of the terms by operator,
    shape (3, operators), NaN for what was not seen.
    """

    reach: np.ndarray
    factors: np.ndarray

    @classmethod
    def fit(cls, load: StepLoad, seconds: np.ndarray) -> Plane:
        """``seconds``: shape (steps, operators), NaN where an operator says nothing."""
        factors = np.full((load.terms.shape[1], _OPERATORS), np.nan)
        for operator in range(_OPERATORS):
            there = np.isfinite(seconds[:, operator])
            if there.sum() >= len(seconds) / 2:
                factors[:, operator] = robust_fit(load.terms[there], seconds[there, operator])
        reach = np.array([[axis.min(), axis.max()] for axis in (load.size, load.context)])
        return cls(reach, factors)

    def covers(self, load: StepLoad) -> np.ndarray:
        """Return a mask of the steps within its reach, shape (steps,)."""
        inside = np.ones(len(load.size), bool)
        for axis, (least, most) in zip((load.size, load.context), self.reach):
            inside &= (axis >= least * (1 - _SLACK)) & (axis <= most * (1 + _SLACK))
        return inside

    def seconds(self, load: StepLoad) -> np.ndarray:
        """Return the expected seconds, shape (steps, operators)."""
        expected: np.ndarray = load.terms @ self.factors
        return expected


def robust_fit(terms: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Return the factors of a least-squares fit with Huber's weights, shape (terms,): interrupted steps count little.

    ``terms``: shape (steps, terms); ``seconds``: shape (steps,). Huber, Robust Estimation of a Location Parameter, 1964.
    """
    scale = np.abs(terms).max(axis=0)
    scaled = terms / np.where(scale > 0, scale, 1.0)
    weights = np.ones(len(seconds))
    factors = np.zeros(terms.shape[1])
    for _ in range(_ROUNDS):
        root = np.sqrt(weights)
        factors = np.linalg.lstsq(scaled * root[:, None], seconds * root, rcond=1e-6)[0]
        left = np.abs(seconds - scaled @ factors)
        limit = 1.345 * 1.4826 * np.median(left)
        if limit <= 0:
            break
        weights = np.minimum(1.0, limit / np.maximum(left, 1e-30))
    fitted: np.ndarray = factors / np.where(scale > 0, scale, 1.0)
    return fitted


class Expectation:
    """``compared`` and ``expected``: (operator, phase) → seconds of the same sampled steps, measured and expected.

    Begins with :meth:`begin`. ``learns``: what has no plane yet is learned; with a pinned baseline nothing is.
    """

    def __init__(self) -> None:
        self.compared: dict[tuple[int, int], float] = defaultdict(float)
        self.expected: dict[tuple[int, int], float] = defaultdict(float)
        self.planes: dict[Bucket, list[Plane]] = {}
        self.changed = False
        self._begun = self._learns = False
        self._ranks = 1
        self._learning: dict[Bucket, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)

    def begin(self, planes: dict[Bucket, list[Plane]], learns: bool, ranks: int) -> None:
        """Begin with ``planes`` from an earlier life or a baseline. The ``ranks`` of the group take turns in teaching."""
        self.planes, self._learns, self._ranks, self._begun = planes, learns, ranks, True

    @property
    def begun(self) -> bool:
        return self._begun

    def add(self, rank: int, batch: RecordBatch) -> None:
        """Add the steps of one rank; those without the times of their operators say nothing here."""
        if not self._begun or not batch.is_timed.any():
            return
        timed = batch.timed
        steps, measured = timed.steps, _by_operator(timed)
        for phase, mode in {(int(step["phase"]), int(step["mode"])) for step in steps}:
            rows = np.flatnonzero((steps["phase"] == phase) & (steps["mode"] == mode))
            load = StepLoad.of(steps[rows], phase)
            found, which = np.unique(load.buckets(), axis=0, return_inverse=True)
            for number, (size, context) in enumerate(found.tolist()):
                inside = np.flatnonzero(which.reshape(-1) == number)
                teaches = steps["number"][rows[inside]] % self._ranks == rank
                self._add((phase, mode, size, context), load[inside], measured[rows[inside]], teaches)

    def _add(self, bucket: Bucket, load: StepLoad, measured: np.ndarray, teaches: np.ndarray) -> None:
        left = np.ones(len(measured), bool)
        for plane in self.planes.get(bucket, ()):
            covered = plane.covers(load) & left
            left &= ~covered
            if covered.any():
                self._compare(bucket[0], measured[covered], plane.seconds(load[covered]))
        if self._learns and (left & teaches).any():
            self._learn(bucket, load[left & teaches], measured[left & teaches])

    def _compare(self, phase: int, measured: np.ndarray, expected: np.ndarray) -> None:
        both = np.isfinite(measured) & np.isfinite(expected) & (np.nan_to_num(expected) > 0)
        for operator in np.flatnonzero(both.any(axis=0)).tolist():
            rows = both[:, operator]
            self.compared[operator, phase] += float(measured[rows, operator].sum())
            self.expected[operator, phase] += float(expected[rows, operator].sum())

    def _learn(self, bucket: Bucket, load: StepLoad, measured: np.ndarray) -> None:
        if bucket not in self._learning and len(self._learning) + len(self.planes) >= MOST_BUCKETS:
            return
        if len(self.planes.get(bucket, ())) >= MOST_PLANES:
            return
        learning = self._learning[bucket]
        learning += zip(np.column_stack([load.terms, load.size, load.context]), measured)
        if len(learning) < SAMPLES:
            return
        loads, seconds = (np.stack(part) for part in zip(*self._learning.pop(bucket)))
        seen = StepLoad(loads[:, :3], loads[:, 3], loads[:, 4])
        self.planes.setdefault(bucket, []).append(Plane.fit(seen, seconds))
        self.changed = True


def _by_operator(batch: RecordBatch) -> np.ndarray:
    """Return the seconds of each operator in each step, shape (steps, operators).

    NaN where it did not run, or where the GPU waited for the host in it: that is no slowness of the GPU. Gap is none.
    """
    cell = batch.step_of_interval * _OPERATORS + batch.intervals["operator"]
    many = len(batch) * _OPERATORS
    seconds = np.bincount(cell, batch.seconds, many)
    starved = np.bincount(cell, batch.seconds * batch.is_starved, many)
    seconds[(seconds <= 0) | (starved > _STARVED_SHARE * seconds)] = np.nan
    by_operator: np.ndarray = seconds.reshape(len(batch), _OPERATORS)
    by_operator[:, Operator.GAP.code] = np.nan
    return by_operator


# As plain values, for a file --------------------------------------------------------------------------------------------


def described(planes: Mapping[Bucket, list[Plane]]) -> list[dict[str, Any]]:
    """Return buckets and planes as plain values with names."""
    return [
        {
            "phase": Phase.of(phase).value, "mode": Mode.of(mode).value, "size": size, "context": context,
            "planes": [
                {
                    "reach": plane.reach.tolist(),
                    "operators": {
                        operator.value: plane.factors[:, operator.code].tolist()
                        for operator in Operator if np.isfinite(plane.factors[:, operator.code]).all()
                    },
                }
                for plane in of_bucket
            ],
        }
        for (phase, mode, size, context), of_bucket in sorted(planes.items())
    ]  # fmt: skip


def understood(buckets: list[dict[str, Any]]) -> dict[Bucket, list[Plane]]:
    """Return planes from what :func:`described` made. Raises KeyError, TypeError, ValueError or OverflowError for anything
    else."""
    return {
        (Phase(each["phase"]).code, Mode(each["mode"]).code, int(each["size"]), int(each["context"])): [
            Plane(_shaped(plane["reach"], (2, 2)), _factors(plane["operators"])) for plane in each["planes"]
        ]
        for each in buckets
    }


def _factors(operators: Mapping[str, list[float]]) -> np.ndarray:
    factors = np.full((3, _OPERATORS), np.nan)
    for name, three in operators.items():
        factors[:, Operator(name).code] = _shaped(three, (3,))
    return factors


def _shaped(values: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.array(values, float)
    if array.shape != shape:
        raise ValueError(f"shape {array.shape}, not {shape}")
    if not (np.abs(array) < _MOST).all():
        raise ValueError(f"{array.tolist()} holds what no time and no load can be")
    return array
