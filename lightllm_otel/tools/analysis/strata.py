"""Strata: steps of the same kind and about the same size, which may be compared.

A decode step with a context of 2048 has no business beside one with 1024, nor a batch of 3 beside one of 20. Steps are put
into strata by phase, mode, tokens and context of a request, a quarter of an octave (19 %) wide; a stratum's sums are all
that a comparison needs, and what a baseline keeps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from lightllm_otel.records import layout
from lightllm_otel.records.vocabulary import Operator
from lightllm_otel.tools.analysis.runs import Repeat

PER_OCTAVE = 4
WIDTHS = (1, 2, 4)  # in quarters of an octave: wider only where the finer ones leave too much out
ENOUGH = 0.8  # of the sampled steps lie in strata that all repeats have


@dataclasses.dataclass(frozen=True)
class Table:
    """Sums of one repeat by stratum, over all ranks.

    ``keys``: codes of phase and mode, and the indices of tokens and context, shape (n, 4). ``seconds``: of all ``steps``;
    ``operators``: seconds of the ``sampled`` steps by operator, shape (n, operators). ``batch``, ``tokens``, ``context``: of
    all steps.
    """

    keys: np.ndarray
    steps: np.ndarray
    seconds: np.ndarray
    sampled: np.ndarray
    operators: np.ndarray
    batch: np.ndarray
    tokens: np.ndarray
    context: np.ndarray

    def of(self, phase: int, mode: int) -> Table:
        return self._at((self.keys[:, 0] == phase) & (self.keys[:, 1] == mode))

    def wider(self, factor: int) -> Table:
        """Return the same sums in strata that are ``factor`` times as wide."""
        keys = self.keys.copy()
        keys[:, 2:] //= factor
        found, group = np.unique(keys, axis=0, return_inverse=True)
        group = group.reshape(-1)

        def merge(values: np.ndarray) -> np.ndarray:
            sums = np.zeros((len(found), *values.shape[1:]))
            np.add.at(sums, group, values)
            return sums

        return Table(found, *(merge(getattr(self, name)) for name in _SUMS))

    def at(self, keys: np.ndarray) -> Table:
        """Return the table in the order of ``keys``, all of which are there."""
        places = {tuple(key): place for place, key in enumerate(self.keys.tolist())}
        return self._at(np.array([places[tuple(key)] for key in keys.tolist()], int))

    def _at(self, chosen: np.ndarray) -> Table:
        return Table(self.keys[chosen], *(getattr(self, name)[chosen] for name in _SUMS))

    def as_json(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name).tolist() for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Table:
        """Read a table from plain values. Raises KeyError, TypeError, ValueError and OverflowError."""
        keys = np.array(content["keys"], int).reshape(-1, 4)
        width = len(Operator)
        operators = np.array(content["operators"], float).reshape(len(keys), -1)
        padded = np.zeros((len(keys), width))
        padded[:, : operators.shape[1]] = operators[:, :width]  # written before an operator was added
        sums = {name: np.array(content[name], float).reshape(len(keys)) for name in _SUMS if name != "operators"}
        table = cls(keys=keys, operators=padded, **sums)
        least = {"steps": 1, "seconds": 1e-12}  # of what is divided by
        for name in _SUMS:
            values = getattr(table, name)
            if not np.isfinite(values).all() or (name != "operators" and (values < least.get(name, 0)).any()):
                raise ValueError(f"{name} has sums that cannot be")
        if not len(keys) or (keys < 0).any():
            raise ValueError("strata cannot be")
        return table


_SUMS = tuple(field.name for field in dataclasses.fields(Table) if field.name != "keys")


def tabulate(repeat: Repeat) -> Table:
    """Return the sums of one repeat by stratum. Steps without tokens (health checks) are left out."""
    of_requests = repeat.steps["tokens"] > 0
    steps = repeat.steps[of_requests]
    tokens = steps["tokens"].astype(float)
    context = steps["context"] / np.maximum(steps["batch"], 1)
    keys = np.stack([steps["phase"].astype(int), steps["mode"].astype(int), _bucket(tokens), _bucket(context)], axis=1)
    # One number for each key: np.unique over rows would sort a million of them as bytes.
    packed = ((keys[:, 0] * 16 + keys[:, 1]) * 1024 + keys[:, 2]) * 1024 + keys[:, 3]
    _, first, group = np.unique(packed, return_index=True, return_inverse=True)
    count, is_sampled = len(first), (steps["flags"] & layout.SAMPLED) > 0

    def total(values: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(group, values, count).astype(float)

    group_of_step = np.full(len(repeat.steps), -1)
    group_of_step[of_requests] = np.where(is_sampled, group, -1)
    of = group_of_step[repeat.of]
    operators = np.bincount(
        of[of >= 0] * len(Operator) + repeat.intervals["operator"][of >= 0],
        repeat.intervals["seconds"][of >= 0].astype(float), count * len(Operator),
    ).reshape(count, len(Operator))  # fmt: skip
    return Table(
        keys[first], total(), total(steps["seconds"]), total(is_sampled.astype(float)), operators,
        total(steps["batch"].astype(float)), total(tokens), total(steps["context"].astype(float)),
    )  # fmt: skip


def _bucket(size: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.floor(PER_OCTAVE * np.log2(np.maximum(size, 1))).astype(int)
    return found


@dataclasses.dataclass(frozen=True)
class Match:
    """Strata of one phase and mode that all of several repeats have.

    ``tables``: one for each, all with the same strata; ``weights``: of each stratum, their sum is 1; ``coverage``: the share
    of sampled steps in these strata, of the repeat that loses most; ``width``: of a stratum, in octaves.
    """

    tables: tuple[Table, ...]
    weights: np.ndarray
    coverage: float
    width: float

    def operators(self) -> np.ndarray:
        """Return the seconds of each operator in a step of one rank, weighted by strata, shape (repeats, operators)."""
        return np.stack([self.weights @ (table.operators / table.sampled[:, None]) for table in self.tables])

    def seconds(self) -> np.ndarray:
        """Return the seconds of a step, shape (repeats,)."""
        return np.stack([self.weights @ (table.seconds / table.steps) for table in self.tables])

    def size(self) -> tuple[float, float, float]:
        """Return the mean requests, tokens and context (of all requests together) of a step."""
        means = [
            float(np.mean([self.weights @ (getattr(table, name) / table.steps) for table in self.tables]))
            for name in ("batch", "tokens", "context")
        ]
        return means[0], means[1], means[2]


def match(tables: Sequence[Table], phase: int, mode: int) -> Match | None:
    """Return the strata that all have sampled, or None if there is none."""
    best: Match | None = None
    own = [table.of(phase, mode) for table in tables]
    for width in WIDTHS:
        found = _match([table.wider(width) for table in own], width / PER_OCTAVE)
        if found is not None and (best is None or found.coverage > best.coverage):
            best = found
        if best is not None and best.coverage >= ENOUGH:
            break
    return best


def _match(tables: list[Table], width: float) -> Match | None:
    common = set.intersection(*({tuple(key) for key in table.keys[table.sampled > 0].tolist()} for table in tables))
    if not common:
        return None
    keys = np.array(sorted(common), int)
    kept = tuple(table.at(keys) for table in tables)
    coverage = min(float(part.sampled.sum() / whole.sampled.sum()) for part, whole in zip(kept, tables))
    # Every repeat counts alike, however many steps of it were sampled.
    weights = np.mean([table.sampled / table.sampled.sum() for table in kept], axis=0)
    return Match(kept, weights, coverage, width)
