"""All ranks of a tensor-parallel group, added up: what ``/metrics`` shows."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Optional, Protocol, Union

import numpy as np

from lightllm_otel.parts import Parts
from lightllm_otel.records import layout
from lightllm_otel.records.vocabulary import DropReason, ExporterStage, Mode, Operator, Stage, StepOnlyReason
from lightllm_otel.reduce.analytic import Analytic
from lightllm_otel.reduce.collectives import Collectives
from lightllm_otel.reduce.distortion import Distortion
from lightllm_otel.reduce.estimate import Estimate, Kind, size_octave
from lightllm_otel.reduce.expectation import Expectation
from lightllm_otel.reduce.histogram import STEP_BOUNDS, Histogram, operator_bounds
from lightllm_otel.reduce.matching import Matched, Matching
from lightllm_otel.reduce.recent import Recent
from lightllm_otel.reduce.soundness import are_sound

_COUNTERS = ("sampled_steps", "hook_seconds")


class Ring(Protocol):
    """A rank's ring as it is at this moment (:class:`~lightllm_otel.records.reader.RingReader`)."""

    @property
    def header(self) -> Any: ...

    def unread_since(self) -> float: ...


@dataclasses.dataclass
class Rank:
    """What is known of one rank beside its steps.

    ``header`` is a copy from the last poll. ``ring`` is asked for what must be true now, also when polls are slow.
    ``base`` keeps the header's counters of earlier lives of the rank, so that ours never go down.
    """

    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    header: Any = None
    ring: Optional[Ring] = None
    base: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    overwrites: int = 0
    steps: int = 0

    def in_flight(self, now: float) -> tuple[int, float]:
        """Return the number of the step that is or was last on the GPU, and for how many seconds it has been there; 0 when
        it has ended. ``now``: Unix time.
        """
        header = self.ring.header if self.ring is not None else self.header
        since = float(header["in_flight_since"]) if header["in_flight"] else now
        return int(header["in_flight_number"]), max(0.0, now - since)

    def oldest_unread(self) -> float:
        """Return the Unix time of the oldest step that has ended and is not counted yet; 0 for none."""
        header = self.ring.header if self.ring is not None else self.header
        unread = (float(header["oldest_unread"]), self.ring.unread_since() if self.ring is not None else 0.0)
        return min((time for time in unread if time > 0), default=0.0)

    def counter(self, name: str) -> np.ndarray:
        """A counter of the header over all lives of the rank."""
        now: np.ndarray = np.asarray(self.header[name], float) if self.header is not None else np.zeros(())
        total: np.ndarray = now + self.base.get(name, np.zeros(()))
        return total

    def restarted(self) -> None:
        """The rank's process is a new one: its header starts from zero."""
        for name in (*_COUNTERS, "dropped", "errors", "step_only"):
            self.base[name] = self.counter(name)
        self.header = self.ring = None
        self.facts = {}


class Group:
    """Consumes the cells of each rank, and keeps counters and histograms. Keys are codes of the vocabulary.

    ``now``: seconds of a monotonic clock. ``lock`` is held while sums change; who reads several of them holds it too.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.parts = Parts()
        self.lock = threading.RLock()
        self._now = now
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

    def set_facts(self, rank: int, facts: dict[str, Any]) -> None:
        """What a rank says of itself, once it has."""
        with self.lock:
            self.ranks[rank].facts = facts
            with self._apart("analytic"):
                self.analytic.set_facts(facts)
            with self._apart("matching"):
                self.matching.set_facts(rank, facts)

    @property
    def complete(self) -> bool:
        """Whether every rank that can be seen here has said what it is."""
        return self.matching.complete

    def restarted(self, rank: int) -> None:
        """The rank's process is a new one."""
        with self.lock:
            self.ranks[rank].restarted()
            self.matching.restarted(rank)

    def consume(self, rank: int, cells: np.ndarray) -> None:
        """Add the whole steps in ``cells`` (uint8, shape (n, 16)). What cannot be of a rank is counted and left out."""
        found = layout.steps_in(cells)
        if not found:
            return
        headers = np.array([step for step, _ in found], layout.STEP)
        sound = are_sound(headers, [intervals for _, intervals in found])
        if not sound.all():
            self.parts.failed(
                ExporterStage.AGGREGATE, f"steps of rank {rank}",
                f"rank {rank} wrote steps that this version does not understand; they are left out. Restart the server, so "
                "that it and its exporter are of one version",
            )  # fmt: skip
            headers, found = headers[sound], [each for each, is_sound in zip(found, sound) if is_sound]
        if len(headers):
            with self.lock:
                self._consume(rank, headers, found)

    def _consume(self, rank: int, headers: np.ndarray, steps: list[tuple[np.void, np.ndarray]]) -> None:
        is_lowest = rank == min((*self.ranks, rank))  # the ranks of a group compute the same tokens
        self.ranks[rank].steps += len(headers)
        sampled = [(step, intervals) for step, intervals in steps if step["flags"] & layout.SAMPLED and len(intervals)]
        of_step, intervals = np.zeros(0, int), np.zeros(0, layout.INTERVAL)
        timed = np.array([step for step, _ in sampled], layout.STEP)
        if sampled:
            of_step = np.repeat(np.arange(len(sampled)), [len(intervals) for _, intervals in sampled])
            intervals = np.concatenate([intervals for _, intervals in sampled])
            self._add_intervals(rank, timed[of_step], intervals)
        self._add_estimate(headers, timed, of_step, intervals)
        self._add_steps(rank, headers, is_lowest)
        with self._apart("distortion"):
            self.distortion.add(headers)
        with self._apart("matching"):
            self.matching.add(rank, steps)
        with self._apart("analytic"):
            if is_lowest:
                self.analytic.add(headers)
        with self._apart("expectation"):
            if sampled:
                self.expectation.add(rank, timed, of_step, intervals)
        with self._apart("recent"):
            self.recent.add(rank, headers)
            if sampled:
                self.recent.add_sampled(rank, timed, of_step, intervals, is_lowest)

    def _apart(self, what: str) -> AbstractContextManager[None]:
        """These figures may fail for themselves, and take no others with them."""
        return self.parts(ExporterStage.AGGREGATE, what)

    def _add_estimate(self, steps: np.ndarray, timed: np.ndarray, of_step: np.ndarray, intervals: np.ndarray) -> None:
        """``timed``: the sampled ones of ``steps``; ``of_step[i]`` is the row there that interval i is of."""
        now = self._now()
        sampled = (steps["flags"] & layout.SAMPLED > 0) & (steps["intervals"] > 0)
        kinds = _by_kind(steps)
        for kind, rows in kinds if len(timed) else ():  # before the others, which take their shares
            own = rows[sampled]
            if own.any():
                chosen = own[of_step]
                seconds = np.bincount(intervals["operator"][chosen], intervals["seconds"][chosen], len(Operator))
                self.estimate.add_sampled(kind, float(timed["seconds"][own].sum()), seconds, now)
        for kind, rows in kinds:
            others = steps["seconds"][rows & ~sampled]
            if len(others):
                self.estimate.add(kind, float(others.sum()), now)

    def _add_steps(self, rank: int, steps: np.ndarray, is_lowest: bool) -> None:
        for phase, mode in _distinct(steps["phase"], steps["mode"]):
            chosen = steps[(steps["phase"] == phase) & (steps["mode"] == mode)]
            self.step_histograms[phase, mode].observe(chosen["seconds"])
            if is_lowest:
                self.tokens[phase] += int(chosen["tokens"].sum())
                self.requests[phase] += int(chosen["requests"].sum())
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

    def settle(self) -> None:
        """Compare what all ranks have delivered by now; after each has been read."""
        with self.lock:
            self.matching.settle()

    def _matched(self, matched: Matched) -> None:
        with self._apart("collectives"):
            self.collectives.add(matched, *self.clock(int(matched.step["mode"])))

    def clock(self, mode: int) -> tuple[float, float]:
        """``(quantum, cost of a boundary)`` in seconds, in steps of this mode: the largest of all ranks."""
        names = (
            ("timestamp_quantum", "timestamp_cost") if mode == Mode.GRAPH.code else ("clock_quantum", "boundary_cost")
        )
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

    def errors(self) -> dict[Union[Stage, ExporterStage], int]:
        """Return errors of the plugin by stage: of the model processes, as their headers say, and of the exporter."""
        errors: dict[Union[Stage, ExporterStage], int] = dict(self.parts.errors.items())
        return {**{stage: self._by_code("errors", stage.code) for stage in Stage}, **errors}

    def whole(self) -> dict[StepOnlyReason, int]:
        return {reason: self._by_code("step_only", reason.code) for reason in StepOnlyReason}

    def instrumented_graphs(self) -> int:
        """Batch sizes that have an instrumented graph on every rank that has said so."""
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
        ages = [rank.oldest_unread() for rank in list(self.ranks.values()) if rank.header is not None]
        return max(0.0, now - min(age for age in ages if age)) if any(ages) else 0.0


def _by_kind(steps: np.ndarray) -> list[tuple[Kind, np.ndarray]]:
    """Split ``steps`` (``STEP``, shape (n,)): each kind of the estimate, and which of them are of it (bool, shape (n,))."""
    octaves = size_octave(steps)
    return [
        (kind, (steps["phase"] == kind[0]) & (steps["mode"] == kind[1]) & (octaves == kind[2]))
        for kind in _distinct(steps["phase"], steps["mode"], octaves)
    ]


def _distinct(*columns: np.ndarray) -> list[Any]:
    """The distinct rows of these columns of small integers (codes and buckets: below 1024, none negative)."""
    packed = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        packed = packed << 10 | column.astype(np.int64)
    found = np.unique(packed)
    shifts = range(10 * (len(columns) - 1), -1, -10)
    return list(zip(*((found >> shift & 1023).tolist() for shift in shifts)))
