"""Comparison of two runs, operator by operator: how much slower or faster, how certain that is, and what theory expects.

The unit is the repeat, not the step: a run's thousand steps share its clocks, its temperature and its place in memory, so a
million of them say no more about the next run than one mean does. Steps are matched by size (:mod:`.strata`), each repeat
becomes one mean per operator, and the means are compared by Welch's t on their logarithms, so that a change is a ratio.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from lightllm_otel.records.vocabulary import Mode, Operator, Phase
from lightllm_otel.roofline.shape import ModelShape
from lightllm_otel.tools.analysis import expected
from lightllm_otel.tools.analysis.baseline import Side
from lightllm_otel.tools.analysis.lacking import Lacking, lacking
from lightllm_otel.tools.analysis.strata import PER_OCTAVE, Match, match
from lightllm_otel.tools.analysis.student import Difference, holm, welch

STEP = "step"
LEAST_REPEATS = 3  # a side, for an interval; two would give one with a single degree of freedom
LEAST_EFFECT = 0.01
ERROR, POWER = 0.05, 0.8
MUST_AGREE = ("model", "config")


class CannotCompare(ValueError):
    """The two runs have nothing that can be compared; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class OperatorChange:
    """One operator on both sides: seconds per step of one rank, at the same sizes. ``change``: second / first - 1.

    ``interval`` (of the change), ``p`` (Holm's, over all rows) and ``detectable`` (the smallest change that would be found
    four times in five, were it the only one) are None with too few repeats; ``expected``: the theoretical second / first.
    ``weight``: the difference in seconds, as a share of the first one's step.
    """

    phase: str
    mode: str
    operator: str
    first: float
    second: float
    interval: tuple[float, float] | None
    p: float | None
    detectable: float | None
    expected: float | None
    weight: float
    difference: Difference | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def change(self) -> float:
        return self.second / self.first - 1

    @property
    def verdict(self) -> str:
        """Return ``slower`` or ``faster`` if that is significant and at least one percent, else ``no difference found`` or
        ``not judged``."""
        if self.p is None:
            return "not judged"
        if self.p >= ERROR or abs(self.change) < LEAST_EFFECT:
            return "no difference found"
        return "slower" if self.change > 0 else "faster"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Result of a comparison. ``rows``: those that matter most for the step first. ``lacking``: operators without a row."""

    first: Side
    second: Side
    rows: tuple[OperatorChange, ...]
    notes: tuple[str, ...]
    lacking: tuple[Lacking, ...] = ()


def compare(first: Side, second: Side, shape: ModelShape | None = None) -> Comparison:
    """Compare two sides. ``shape``: of the model, where the recordings do not say it. Raises CannotCompare."""
    _check(first, second)
    notes = [*first.notes, *second.notes, *_differences(first, second)]
    judged = min(len(first.tables), len(second.tables)) >= LEAST_REPEATS
    if not judged:
        notes.append(
            f"{len(first.tables)} against {len(second.tables)} repeats: no interval and no verdict, because nothing says "
            f"how far two equal runs differ here; record at least {LEAST_REPEATS} on each side, better 5"
        )
    rows: list[OperatorChange] = []
    without: list[Lacking] = []
    for phase in (Phase.PREFILL, Phase.DECODE, Phase.MIXED):
        for mode in Mode:
            matched, said = _match(first, second, phase, mode)
            notes += said
            if matched is not None:
                rows += _rows(first, second, matched, phase, mode, judged, shape)
                without += lacking((first.name, second.name), len(first.tables), matched, phase, mode)
    notes += [each.note for each in without]
    if not rows:
        raise CannotCompare(
            f"{first.name} and {second.name} have no sampled steps of the same phase, mode, batch and context"
            + "".join(f"; {note}" for note in notes[-3:])
        )
    rows = _judged(rows)
    rows.sort(key=lambda row: (row.operator != STEP, -abs(row.weight)))
    return Comparison(first, second, tuple(rows), tuple(notes), tuple(without))


def _judged(rows: list[OperatorChange]) -> list[OperatorChange]:
    """Return the rows with p values adjusted over all of them, and with the change that each could have detected.

    Holm's first step takes an error of 1/rows.
    """
    found = [row for row in rows if row.difference is not None and row.p is not None]
    adjusted = dict(zip(map(id, found), holm([row.p for row in found if row.p is not None])))
    least = ERROR / max(len(found), 1)
    return [
        dataclasses.replace(
            row, p=adjusted[id(row)], detectable=max(LEAST_EFFECT, math.exp(row.difference.detectable(least, POWER)) - 1)
        )
        if row.difference is not None else row
        for row in rows
    ]  # fmt: skip


def _check(first: Side, second: Side) -> None:
    for fact in MUST_AGREE:
        one, two = first.facts.get(fact), second.facts.get(fact)
        if one is not None and two is not None and one != two:
            what = f"{one} and {two}" if fact == "model" else "their shapes differ"
            raise CannotCompare(
                f"{first.name} and {second.name} are runs of different models ({what}), so their times say nothing about "
                "each other; record both with the same model"
            )


# What makes a difference that is not the operator's own; said, not refused: it may be just what is compared.
_NAMED = {
    "gpu_name": "GPU", "tp": "tensor parallelism", "dtype": "data type", "lightllm": "LightLLM", "torch": "torch",
    "cuda": "CUDA", "clock": "clock", "plugin": "plugin", "driver": "driver", "sm_clock_mhz": "highest SM clock", "link": "link",
}  # fmt: skip


def _differences(first: Side, second: Side) -> list[str]:
    notes = [
        f"{name}: {first.facts.get(fact)} against {second.facts.get(fact)}"
        for fact, name in _NAMED.items()
        if first.facts.get(fact) != second.facts.get(fact)
    ]
    said = [side.facts.get("implementations") for side in (first, second)]
    one, two = (found if isinstance(found, dict) else {} for found in said)
    notes += [
        f"{operator} is another implementation: {one.get(operator, 'unknown')} against {two.get(operator, 'unknown')}"
        for operator in sorted({*one, *two})
        if one and two and one.get(operator) != two.get(operator)
    ]
    return notes


def _match(first: Side, second: Side, phase: Phase, mode: Mode) -> tuple[Match | None, list[str]]:
    """Return the steps that both sides have in one phase and mode, and notes about them."""
    tables = (*first.tables, *second.tables)
    has = [table.of(phase.code, mode.code).sampled.sum() > 0 for table in tables]
    kind = f"{phase} · {mode}"
    if not any(has):
        return None, []
    if not all(has):
        missing = first if not all(has[: len(first.tables)]) else second
        return None, [
            f"{kind}: {missing.name} has no sampled steps of this kind in every repeat; eager and graph are not mixed"
        ]
    matched = match(tables, phase.code, mode.code)
    if matched is None:
        return None, [f"{kind}: no batch and context occurs in all repeats; run both with the same batch and lengths"]
    notes = []
    if matched.coverage < 0.5:
        notes.append(
            f"{kind}: only {100 * matched.coverage:.0f} % of the sampled steps have a counterpart of their size"
        )
    if matched.width > 1 / PER_OCTAVE:
        notes.append(
            f"{kind}: sizes within {matched.width:g} octaves are taken as alike, because few occur in all repeats"
        )
    return matched, notes


def _rows(
    first: Side, second: Side, matched: Match, phase: Phase, mode: Mode, judged: bool, shape: ModelShape | None
) -> list[OperatorChange]:
    count = len(first.tables)
    operators, steps = matched.operators(), matched.seconds()
    theory = expected.ratios(first.facts, second.facts, phase, matched.size(), shape)
    whole = float(steps[:count].mean())
    columns = [(STEP, steps), *((operator.value, operators[:, operator.code]) for operator in Operator)]
    return [
        _row(name, values[:count], values[count:], phase, mode, judged, theory.get(name), whole)
        for name, values in columns
        if (values > 0).all()
    ]


def _row(
    name: str, first: np.ndarray, second: np.ndarray, phase: Phase, mode: Mode, judged: bool, theory: float | None,
    whole: float,
) -> OperatorChange:  # fmt: skip
    found = _logarithmic(first, second) if judged else None
    one, two = (math.exp(float(np.log(values).mean())) for values in (first, second))
    interval = p = None
    if found is not None:
        low, high = found.interval(1 - ERROR)
        interval, p = (math.exp(low) - 1, math.exp(high) - 1), found.p
    return OperatorChange(
        phase.value, mode.value, name, one, two, interval, p, None, theory,
        (two - one) / whole if name != STEP else two / one - 1, found,
    )  # fmt: skip


def _logarithmic(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> Difference:
    return welch(np.log(first).tolist(), np.log(second).tolist())
