"""Stability of repeated runs: whether an operator differs more between runs than inside them.

Inside a run an operator's calls scatter. If runs were alike, means of runs would scatter by no more than that, divided by the
square root of the number of calls that are independent of each other. What lies above is a difference between the runs
themselves: another link, another neighbour on the machine, another clock.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

BLOCKS = 16  # a run's calls in their order: what drifts slowly makes neighbours alike, so whole blocks are compared
LEAST_RUNS = 3
LEAST_CALLS = 2 * BLOCKS
WORTH_SAYING = 0.01  # of the mean; smaller differences are none, however certain
_LIMIT = 3.0  # of the F statistic of blocks in runs


@dataclasses.dataclass(frozen=True)
class Variation:
    """Variation of one operator over runs. ``between``, ``inside``: coefficients of variation of the runs' means, and of a
    run's calls (the median run's); ``ratio``: the runs' variance against what their blocks would give; ``tail``: 99th
    percentile by median.
    """

    between: float
    inside: float
    ratio: float
    tail: float

    @property
    def differs(self) -> bool:
        """Tell whether runs differ by more than chance, and by enough to matter."""
        return self.ratio > _LIMIT and self.between > WORTH_SAYING


@dataclasses.dataclass(frozen=True)
class Trust:
    """Result. ``blame``: operators that differ from run to run, those that move the total most first."""

    trusted: bool
    blame: tuple[str, ...]
    operators: Mapping[str, Variation]
    sentence: str


def variation(runs: Sequence[np.ndarray]) -> Variation:
    """Return the variation of one operator. ``runs``: seconds of its calls in each run, in their order, at the same load."""
    means = np.array([run.mean() for run in runs])
    blocks = np.array([[block.mean() for block in np.array_split(run, BLOCKS)] for run in runs])
    chance = blocks.var(axis=1, ddof=1).mean() / BLOCKS
    spread = float(means.var(ddof=1))
    inside = float(np.median([run.std() / run.mean() for run in runs]))
    tail = float(np.median([np.quantile(run, 0.99) / np.quantile(run, 0.5) for run in runs]))
    ratio = spread / chance if chance > 0 else float("inf") if spread > 0 else 0.0
    return Variation(float(means.std(ddof=1) / means.mean()), inside, float(ratio), tail)


def trust(runs: Sequence[Mapping[str, np.ndarray]]) -> Trust:
    """``runs``: operator → seconds of its calls, shape (calls,). Operators that some run lacks, or hardly has, are left out.

    Raises ValueError for fewer than :data:`LEAST_RUNS` runs.
    """
    if len(runs) < LEAST_RUNS:
        raise ValueError(f"{len(runs)} runs; repeat the same load at least {LEAST_RUNS} times")
    common = set.intersection(*(set(run) for run in runs))
    names = sorted(name for name in common if all(len(run[name]) >= LEAST_CALLS for run in runs))
    operators = {name: variation([run[name] for run in runs]) for name in names}
    moved = {name: float(np.std([run[name].sum() for run in runs])) for name in names if operators[name].differs}
    blame = tuple(sorted(moved, key=lambda name: -moved[name]))
    if not names:
        return Trust(False, (), {}, f"no operator has {LEAST_CALLS} calls in every run, so nothing can be said")
    if not blame:
        return Trust(
            True, (), operators, f"{len(runs)} runs agree: no operator differs between them by more than inside them"
        )
    first = operators[blame[0]]
    certain = 100 * first.between / first.ratio**0.5
    sentence = (
        f"{', '.join(blame)} differ{'s' if len(blame) == 1 else ''} from run to run: {blame[0]} by "
        f"{100 * first.between:.1f} %, where its calls inside a run explain {certain:.1f} %; {_rest(len(names) - len(blame))}"
    )
    return Trust(False, blame, operators, sentence)


def _rest(others: int) -> str:
    return f"the other {others} do not" if others else "there is no other"
