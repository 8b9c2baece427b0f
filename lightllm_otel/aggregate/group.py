"""All ranks of a tensor-parallel group, added up: what ``/metrics`` shows."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Any

import numpy as np

from lightllm_otel.aggregate.analytic import Analytic
from lightllm_otel.aggregate.collectives import Collectives
from lightllm_otel.aggregate.distortion import Distortion
from lightllm_otel.aggregate.estimate import Estimate, batch_bucket
from lightllm_otel.aggregate.expectation import Expectation
from lightllm_otel.aggregate.histogram import STEP_BOUNDS, Histogram, operator_bounds
from lightllm_otel.aggregate.matching import Matched, Matching
from lightllm_otel.aggregate.recent import Recent
from lightllm_otel.ring import layout
from lightllm_otel.vocabulary import DropReason, Mode, Operator, Stage, Whole

_COUNTERS = ("sampled_steps", "hook_seconds")


@dataclasses.dataclass
class Rank:
    """What is known of one rank beside its steps.

    ``base`` keeps the header's counters of earlier lives of the rank, so that ours never go down.
    """

    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    header: Any = None
    base: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    overwrites: int = 0
    steps: int = 0

    def counter(self, name: str) -> np.ndarray:
        """A counter of the header over all lives of the rank."""
        now: np.ndarray = np.asarray(self.header[name], float) if self.header is not None else np.zeros(())
        total: np.ndarray = now + self.base.get(name, np.zeros(()))
        return total

    def restarted(self) -> None:
        """The rank's process is a new one: its header starts from zero."""
        for name in (*_COUNTERS, "dropped", "errors", "whole"):
            self.base[name] = self.counter(name)
        self.header = None
        self.facts = {}


class Group:
    """Consumes the cells of each rank, and keeps counters and histograms. Keys are codes of the vocabulary."""

    def __init__(self) -> None:
        self.ranks: dict[int, Rank] = defaultdict(Rank)
        self.operator_histograms: dict[tuple[int, int, int], Histogram] = {}
        self.operator_seconds: dict[tuple[int, int, int], float] = defaultdict(float)
        self.starved_seconds: dict[tuple[int, int], float] = defaultdict(float)
        self.step_histograms: dict[tuple[int, int], Histogram] = defaultdict(lambda: Histogram(STEP_BOUNDS))
        self.tokens: dict[int, int] = defaultdict(int)
        self.requests: dict[int, int] = defaultdict(int)
        self.idle_seconds: dict[tuple[int, int], float] = defaultdict(float)
        self.estimate = Estimate(len(Operator))
        self.distortion = Distortion()
        self.analytic = Analytic()
        self.collectives = Collectives()
        self.expectation = Expectation()
        self.recent = Recent()
        self.matching = Matching(self._matched)

    def know(self, rank: int, facts: dict[str, Any]) -> None:
        """What a rank says of itself, once it has."""
        self.ranks[rank].facts = facts
        self.analytic.know(facts)
        self.matching.know(rank, facts)

    @property
    def complete(self) -> bool:
        """Whether every rank that can be seen here has said what it is."""
        return self.matching.complete

    def restarted(self, rank: int) -> None:
        """The rank's process is a new one."""
        self.ranks[rank].restarted()
        self.matching.restarted(rank)

    def consume(self, rank: int, cells: np.ndarray) -> None:
        """Add the whole steps in ``cells`` (uint8, shape (n, 16))."""
        steps = layout.steps_in(cells)
        if not steps:
            return
        headers = np.array([step for step, _ in steps], layout.STEP)
        self.ranks[rank].steps += len(headers)
        self._add_steps(rank, headers)
        self.matching.add(rank, steps)
        sampled = [(step, intervals) for step, intervals in steps if step["flags"] & layout.SAMPLED]
        if sampled:
            of_step = np.repeat(np.arange(len(sampled)), [len(intervals) for _, intervals in sampled])
            headers = np.array([step for step, _ in sampled], layout.STEP)
            intervals = np.concatenate([intervals for _, intervals in sampled])
            self._add_intervals(rank, headers[of_step], intervals)
            self.expectation.add(rank, headers, of_step, intervals)
            self.recent.add_sampled(rank, headers, of_step, intervals, rank == min(self.ranks))
        self.estimate.attribute()

    def _add_steps(self, rank: int, steps: np.ndarray) -> None:
        buckets = batch_bucket(steps["padded"])
        for key in _distinct(steps["phase"], steps["mode"], buckets):
            phase, mode, bucket = key
            chosen = steps[(steps["phase"] == phase) & (steps["mode"] == mode) & (buckets == bucket)]
            self.step_histograms[phase, mode].observe(chosen["seconds"])
            self.estimate.add(key, float(chosen["seconds"].sum()))
            if rank == min(self.ranks):  # the ranks of a group compute the same tokens
                self.tokens[phase] += int(chosen["tokens"].sum())
                self.requests[phase] += int(chosen["requests"].sum())
        self.distortion.add(steps)
        self.recent.add(rank, steps)
        if rank == min(self.ranks):
            self.analytic.add(steps)
        for (reason,) in _distinct(steps["idle_reason"]):
            self.idle_seconds[reason, rank] += float(steps["idle_seconds"][steps["idle_reason"] == reason].sum())

    def _add_intervals(self, rank: int, steps: np.ndarray, intervals: np.ndarray) -> None:
        """``steps[i]`` is the step of ``intervals[i]``."""
        operators, seconds = intervals["operator"], intervals["seconds"].astype(float)
        starved = (intervals["flags"] & layout.STARVED) > 0
        for operator, phase, mode in _distinct(operators, steps["phase"], steps["mode"]):
            chosen = (operators == operator) & (steps["phase"] == phase) & (steps["mode"] == mode)
            if (operator, phase, mode) not in self.operator_histograms:
                self.operator_histograms[operator, phase, mode] = Histogram(operator_bounds(phase))
            self.operator_histograms[operator, phase, mode].observe(seconds[chosen])
            self.operator_seconds[operator, phase, rank] += float(seconds[chosen].sum())
            waited = float(seconds[chosen & starved].sum())
            if waited:
                self.starved_seconds[operator, phase] += waited
        buckets = batch_bucket(steps["padded"])
        for key in _distinct(steps["phase"], steps["mode"], buckets):
            chosen = (steps["phase"] == key[0]) & (steps["mode"] == key[1]) & (buckets == key[2])
            self.estimate.learn(key, np.bincount(operators[chosen], seconds[chosen], len(Operator)))

    def settle(self) -> None:
        """Compare what all ranks have delivered by now; after each has been read."""
        self.matching.settle()

    def _matched(self, matched: Matched) -> None:
        self.collectives.add(matched, *self.clock(int(matched.step["mode"])))

    def clock(self, mode: int) -> tuple[float, float]:
        """``(quantum, cost of a boundary)`` in seconds, in steps of this mode: the largest of all ranks."""
        names = ("stamp_quantum", "stamp_cost") if mode == Mode.GRAPH.code else ("clock_quantum", "boundary_cost")
        headers: list[Any] = [rank.header for rank in self.ranks.values() if rank.header is not None]
        quantum, cost = (max((float(header[name]) for header in headers), default=0.0) for name in names)
        return quantum, cost

    def counter(self, name: str) -> float:
        """A counter of the headers, over all ranks."""
        return float(sum(rank.counter(name).sum() for rank in self.ranks.values()))

    def dropped(self) -> dict[DropReason, int]:
        drops = {reason: self._by_code("dropped", reason.code) for reason in DropReason}
        drops[DropReason.OVERWRITTEN] += sum(rank.overwrites for rank in self.ranks.values())
        return drops

    def errors(self) -> dict[Stage, int]:
        return {stage: self._by_code("errors", stage.code) for stage in Stage}

    def whole(self) -> dict[Whole, int]:
        return {reason: self._by_code("whole", reason.code) for reason in Whole}

    def twins(self) -> int:
        """Batch sizes that have an instrumented twin on every rank that has said so."""
        sizes = [set((rank.facts.get("graphs") or {}).get("sizes", ())) for rank in self.ranks.values() if rank.facts]
        return len(set.intersection(*sizes)) if sizes else 0

    def _by_code(self, name: str, code: int) -> int:
        values = (rank.counter(name) for rank in self.ranks.values())
        return int(sum(value[code] for value in values if value.ndim))

    def facts(self) -> dict[str, Any]:
        """What the lowest rank says of model, GPU and versions; empty before it has said so."""
        for number in sorted(self.ranks):
            if self.ranks[number].facts:
                return self.ranks[number].facts
        return {}

    def slots(self) -> dict[str, bool]:
        """Operators and whether every rank has wrapped them."""
        found: dict[str, bool] = {}
        for rank in self.ranks.values():
            for operator, state in rank.facts.get("slots", {}).items():
                found[operator] = found.get(operator, True) and state == "installed"
        return found

    def data_age(self, now: float) -> float:
        """Seconds since the oldest step that is not counted yet, over all ranks; 0 when all are."""
        oldest = [
            float(rank.header["oldest_unread"])
            for rank in self.ranks.values()
            if rank.header is not None and rank.header["oldest_unread"]
        ]
        return max(0.0, now - min(oldest)) if oldest else 0.0


def _distinct(*columns: np.ndarray) -> list[Any]:
    """The distinct rows of these columns of small integers (codes and buckets: below 1024, none negative)."""
    packed = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        packed = packed << 10 | column.astype(np.int64)
    found = np.unique(packed)
    shifts = range(10 * (len(columns) - 1), -1, -10)
    return list(zip(*((found >> shift & 1023).tolist() for shift in shifts)))
