"""Operators that some repeats of a comparison lack. They have no ratio of times, so they are named instead."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from lightllm_otel.records.vocabulary import Mode, Operator, Phase
from lightllm_otel.tools.analysis.strata import Match


@dataclasses.dataclass(frozen=True)
class Lacking:
    """Operator without a counterpart. ``note``: a sentence on who lacks it, and how much of the others' step it is."""

    phase: str
    mode: str
    operator: str
    note: str


def lacking(names: tuple[str, str], count: int, matched: Match, phase: Phase, mode: Mode) -> Iterator[Lacking]:
    """Return the operators that a side lacks. ``names``: of the sides; the first has the first ``count`` repeats of
    ``matched``."""
    operators, steps = matched.operators(), matched.seconds()
    for operator in Operator:
        seconds = operators[:, operator.code]
        if not (seconds > 0).any() or (seconds > 0).all():
            continue
        said = _said(names, [seconds[:count] / steps[:count], seconds[count:] / steps[count:]])
        yield Lacking(phase.value, mode.value, operator.value, f"{phase} · {mode}: {operator} {said}")


def _said(names: tuple[str, str], shares: list[np.ndarray]) -> str:
    """Return the sentence on one operator. ``shares``: of each repeat's step, by side."""
    for name, own, other in zip(names, shares, reversed(shares)):
        if (own > 0).all() and not (other > 0).any():
            return f"occurs only in {name}, {100 * own.mean():.3g} % of its step"
    having = [
        f"in {(own > 0).sum()} of {len(own)} repeats of {name} ({100 * own.mean():.3g} % of a step)"
        for name, own in zip(names, shares)
    ]
    return f"occurs {' and '.join(having)}, so it is not compared; find out why the others lack it"
