"""What a setting costs, from decode steps that ran twice: with it and without it, at the same place of the same batch.

A batch is generated again and again. Within a pass, blocks of steps with and without the setting alternate, and the next
pass has them the other way round. So every position of two such passes gives a pair: the same tokens, the same context,
about a second apart. Passes follow each other as ABBA.

Seconds of neighbouring steps are alike, so single pairs must not be drawn for an interval of confidence. What is drawn
are cells: two neighbouring blocks of two passes. In a cell the setting is once in the earlier and once in the later
pass, so what drifts between the passes cancels.

A machine that others use too interrupts a process now and then, for milliseconds: those pairs say nothing about the
setting and hide everything else. So of each cell the fifth of the pairs with the least and that with the largest
difference are left out for what is claimed. That leaves out rare steps which a setting itself makes dearer, too; where it
does so on purpose (a sampled step in 64), their known cost is added (``with_rare_steps``). The same with all pairs stands
beside it, as do 99th percentiles.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

DRAWS = 4000
TAIL_DRAWS = 1000
TAIL = 99
LEFT_OUT = 0.2  # at each end


@dataclasses.dataclass(frozen=True)
class Schedule:
    """``dropped``: the first steps of every block, in which the change of the setting itself is still to be seen."""

    positions: int
    block: int
    passes: int
    dropped: int = 1

    def __post_init__(self) -> None:
        if self.positions % (2 * self.block) or self.passes % 2 or self.dropped >= self.block:
            raise ValueError(f"{self}: passes go by twos, and so do the blocks of a pass")

    def is_on(self, number: int, position: int) -> bool:
        """Whether pass ``number`` has the setting at this position."""
        inverted = number % 4 in (1, 2)
        return (position // self.block % 2 == 1) != inverted

    def counts(self, position: int) -> bool:
        return position % self.block >= self.dropped


@dataclasses.dataclass(frozen=True)
class Cell:
    """Two neighbouring blocks of two passes: seconds with and without the setting, by position."""

    passes: int
    blocks: int
    on: np.ndarray
    off: np.ndarray

    def kept(self) -> np.ndarray:
        """Which pairs are left when the outermost differences are not counted."""
        order = np.argsort(self.on - self.off, kind="stable")
        cut = int(LEFT_OUT * len(order))
        return order[cut : len(order) - cut]


def cells(schedule: Schedule, seconds: Sequence[np.ndarray]) -> list[Cell]:
    """``seconds`` of every position, pass by pass."""
    found = []
    for first in range(0, len(seconds) - 1, 2):
        pair = np.stack(seconds[first : first + 2])
        for start in range(0, schedule.positions, 2 * schedule.block):
            positions = [at for at in range(start, start + 2 * schedule.block) if schedule.counts(at)]
            with_it = [0 if schedule.is_on(first, at) else 1 for at in positions]
            without = [1 - row for row in with_it]
            found.append(
                Cell(first // 2, start // (2 * schedule.block), pair[with_it, positions], pair[without, positions])
            )
    return found


def whole_passes(schedule: Schedule, on: Sequence[np.ndarray], off: Sequence[np.ndarray]) -> list[Cell]:
    """The same cells where the setting cannot change within a pass: pass ``n`` of one beside pass ``n`` of the other."""
    found = []
    for number, (with_it, without) in enumerate(zip(on, off)):
        for start in range(0, schedule.positions, 2 * schedule.block):
            positions = [at for at in range(start, start + 2 * schedule.block) if schedule.counts(at)]
            found.append(Cell(number, start // (2 * schedule.block), with_it[positions], without[positions]))
    return found


def cell_rows(case: str, found: Sequence[Cell]) -> list[dict[str, Any]]:
    """What of the cells is kept."""
    return [
        {
            "case": case, "kind": "cell", "passes": cell.passes, "blocks": cell.blocks, "pairs": len(cell.on),
            "off_us": round(1e6 * float(cell.off.mean()), 3), "on_us": round(1e6 * float(cell.on.mean()), 3),
            "off_kept_us": round(1e6 * float(cell.off[kept].mean()), 3),
            "on_kept_us": round(1e6 * float(cell.on[kept].mean()), 3),
        }
        for cell in found
        for kept in [cell.kept()]
    ]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Estimate:
    """With its interval of confidence of 95 %."""

    value: float
    low: float
    high: float

    def rounded(self, digits: int = 4) -> tuple[float, list[float]]:
        return round(self.value, digits), [round(self.low, digits), round(self.high, digits)]


@dataclasses.dataclass(frozen=True)
class Sample:
    """Cells as numbers: how many pairs each has, and their mean with and without the setting."""

    pairs: np.ndarray
    on: np.ndarray
    off: np.ndarray

    @classmethod
    def of_rows(cls, rows: Sequence[dict[str, Any]], kept: bool = True) -> Sample:
        """``kept``: without the outermost pairs of each cell."""
        names = ("pairs", "on_kept_us", "off_kept_us") if kept else ("pairs", "on_us", "off_us")
        return cls(*(np.array([row[name] for row in rows], float) for name in names))

    def means(self, seed: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """With and without the setting: as they are, or of many samples drawn from the cells."""
        chosen = np.arange(len(self.pairs))[None] if seed is None else _drawn(len(self.pairs), DRAWS, seed)
        weights = self.pairs[chosen]
        on, off = ((weights * each[chosen]).sum(1) / weights.sum(1) for each in (self.on, self.off))
        return on, off


def throughput_loss(sample: Sample, seed: int = 0) -> Estimate:
    """Percent fewer steps per second."""
    return _estimate(sample, seed, lambda on, off: 100 * (1 - off / on))


def latency_increase(sample: Sample, seed: int = 0) -> Estimate:
    """Percent more seconds per step."""
    return _estimate(sample, seed, lambda on, off: 100 * (on / off - 1))


def added(sample: Sample, seed: int = 0) -> Estimate:
    """What a step takes longer, in the unit of the sample."""
    return _estimate(sample, seed, lambda on, off: on - off)


def added_beyond(sample: Sample, other: Sample, seed: int = 0) -> Estimate:
    """How much more the setting of ``sample`` adds than that of ``other``."""
    value = added(sample).value - added(other).value
    (on, off), (other_on, other_off) = sample.means(seed), other.means(seed + 1)
    return _around(value, on - off - (other_on - other_off), min(len(sample.pairs), len(other.pairs)))


def with_rare_steps(sample: Sample, share: float, often: Sample, never: Sample, seed: int = 0) -> Estimate:
    """The loss of ``sample``, from which rare dearer steps were left out with the outermost pairs: ``share`` of its steps
    cost what ``often`` adds beyond ``never``.
    """
    extra = share * added_beyond(often, never).value
    (on, off), (often_on, often_off), (never_on, never_off) = (
        each.means(seed + number) for number, each in enumerate((sample, often, never))
    )
    drawn = on + share * (often_on - often_off - (never_on - never_off))
    value_on, value_off = (float(each[0]) for each in sample.means())
    return _around(100 * (1 - value_off / (value_on + extra)), 100 * (1 - off / drawn), len(sample.pairs))


def tail_increase(found: Sequence[Cell], equal_context: bool = False, seed: int = 0) -> Estimate:
    """Percent that the 99th percentile of the intervals is higher.

    ``equal_context``: as if all steps had the same context. A step takes longer the more has been generated, and the
    longest of a whole pass are the last ones, with or without any setting; that hides what the setting does elsewhere.
    """
    on, off = (np.stack([getattr(cell, name) for cell in found]) for name in ("on", "off"))
    if equal_context:
        blocks = np.array([cell.blocks for cell in found])
        typical = np.array([np.median(off[blocks == block]) for block in range(blocks.max() + 1)])[blocks]
        on, off = on / typical[:, None], off / typical[:, None]
    chosen = _drawn(len(found), TAIL_DRAWS, seed)
    ratios = [np.percentile(on[draw], TAIL) / np.percentile(off[draw], TAIL) for draw in chosen]
    value = np.percentile(on, TAIL) / np.percentile(off, TAIL)
    return _around(100 * (float(value) - 1), 100 * (np.array(ratios) - 1), len(found))


def tail_row(case: str, found: Sequence[Cell]) -> dict[str, Any]:
    """Percentiles need every interval, and those are not kept: so they are computed where they are measured."""
    on, off = (np.concatenate([getattr(cell, name) for cell in found]) for name in ("on", "off"))
    plain, plain_interval = tail_increase(found).rounded(3)
    equal, equal_interval = tail_increase(found, equal_context=True).rounded(3)
    return {
        "case": case, "kind": "tail", "pairs": len(on),
        **{f"p{at}_{name}_us": round(1e6 * float(np.percentile(each, at)), 2)
           for at in (50, TAIL) for name, each in (("off", off), ("on", on))},
        "itl_p99_increase_percent": plain, "itl_p99_increase_percent_ci95": plain_interval,
        "itl_p99_increase_at_equal_context_percent": equal,
        "itl_p99_increase_at_equal_context_percent_ci95": equal_interval,
    }  # fmt: skip


def _estimate(sample: Sample, seed: int, statistic: Any) -> Estimate:
    value = float(statistic(*sample.means())[0])
    return _around(value, statistic(*sample.means(seed)), len(sample.pairs))


def _around(value: float, drawn: np.ndarray, cells_drawn: int) -> Estimate:
    """Few cells, drawn with replacement, spread less than new ones would: wider by what a variance's n - 1 makes up."""
    wider = (cells_drawn / max(cells_drawn - 1, 1)) ** 0.5
    low, high = (value + wider * (float(np.percentile(drawn, at)) - value) for at in (2.5, 97.5))
    return Estimate(value, low, high)


def _drawn(size: int, draws: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, size, (draws, size))
