"""The last hour of a group in buckets of ten seconds, and its slowest steps: all that a live page needs.

Sums only ever grow, and every ten seconds they are copied into the next row of a ring. What happened in a window is the
difference between now and the row at its start. Size and cost do not depend on load or on who is looking.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from lightllm_otel.records.batch import RecordBatch
from lightllm_otel.records.vocabulary import IdleReason, Mode, Operator, Phase, Site

EVERY_SECONDS = 10.0
ROWS = 361  # an hour, and the row at its start
COLUMN_ROWS = 6  # a column of the hour's picture is a minute
SLOW_MINUTES = 10
MOST_SLOW = 5  # of each phase
MOST_RANKS = 16  # of one host; no machine has more GPUs
KINDS = tuple((phase, mode) for phase in Phase for mode in Mode)
FIELDS: dict[str, tuple[int, ...]] = {
    # By kind: phase and mode.
    "steps": (len(KINDS),),
    "seconds": (len(KINDS),),
    "batch": (len(KINDS),),
    "context": (len(KINDS),),
    "tokens": (len(KINDS),),
    "sampled": (len(KINDS),),
    "sampled_seconds": (len(KINDS),),
    "operator_seconds": (len(KINDS), len(Operator)),
    "operator_calls": (len(KINDS), len(Operator)),
    "idle": (len(IdleReason),),
    # Copied from elsewhere when a row is kept.
    "compared": (len(Phase), len(Operator)),
    "expected": (len(Phase), len(Operator)),
    "compared_calls": (len(Phase), len(Site)),
    "known_calls": (len(Phase), len(Site)),
    "transfer_calls": (len(Phase), len(Site)),
    "transfer_seconds": (len(Phase), len(Site)),
    "rank_wait_seconds": (len(Phase), len(Site), MOST_RANKS),
    "last_arrivals": (len(Phase), len(Site), MOST_RANKS),
    "hook_seconds": (1,),
    "exporter_seconds": (1,),
}
_PLACES: dict[str, slice] = {}
_WIDTH = 0
for _name, _shape in FIELDS.items():
    _PLACES[_name] = slice(_WIDTH, _WIDTH + math.prod(_shape))
    _WIDTH += math.prod(_shape)
Sums = Mapping[str, np.ndarray]
"""Sums by the names of :data:`FIELDS`, each in its shape."""


def _named(row: np.ndarray) -> Sums:
    return {name: row[place].reshape(FIELDS[name]) for name, place in _PLACES.items()}


@dataclasses.dataclass(frozen=True)
class SlowStep:
    """A step of one rank; ``operators``: seconds by operator code, None where it was not sampled."""

    rank: int
    step: np.void
    operators: np.ndarray | None

    @property
    def seconds(self) -> float:
        return float(self.step["seconds"])

    def is_same(self, other: SlowStep) -> bool:
        """Tell whether both are one step of the group, as two ranks had it. Numbers begin anew with a restart."""
        near = abs(float(self.step["wall_time"]) - float(other.step["wall_time"])) < 1.0
        return bool(near and self.step["number"] == other.step["number"])


def _slowest(steps: Sequence[SlowStep], most: int) -> list[SlowStep]:
    """Return each step of the group once, as its slowest rank had it; the slowest first."""
    kept: list[SlowStep] = []
    for each in sorted(steps, key=lambda each: -each.seconds):
        if not any(each.is_same(other) for other in kept):
            kept.append(each)
        if len(kept) == most:
            break
    return kept


class _Minutes:
    """The slowest steps of each of the last minutes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._minutes: deque[list[SlowStep]] = deque([[]], maxlen=SLOW_MINUTES)

    @property
    def least(self) -> float:
        """Return the seconds above which a step is worth offering."""
        now = self._minutes[-1]
        return now[-1].seconds if len(now) == self._most else 0.0

    def offer(self, steps: Sequence[SlowStep]) -> None:
        self._minutes[-1] = _slowest([*self._minutes[-1], *steps], self._most)

    def next(self) -> None:
        self._minutes.append([])

    def found(self) -> list[SlowStep]:
        return _slowest([step for minute in self._minutes for step in minute], self._most)


class Recent:
    """``total``: sums since the start, to be added to; ``last``: of each kind the last sampled step of the lowest rank."""

    def __init__(self) -> None:
        self._sums = np.zeros(_WIDTH)
        self.total: Sums = _named(self._sums)
        self.last: dict[int, tuple[np.void, np.ndarray]] = {}
        self.last_wall_time = 0.0
        self._rows = np.zeros((ROWS, _WIDTH))
        self._times: deque[float] = deque(maxlen=ROWS)
        self._next = 0
        self._sampled = [_Minutes(MOST_SLOW) for _ in Phase]
        self._any = [_Minutes(1) for _ in Phase]

    def add(self, rank: int, batch: RecordBatch) -> None:
        """Add the steps of one rank, sampled or not."""
        steps = batch.steps
        kinds = steps["phase"].astype(int) * len(Mode) + steps["mode"]
        self.total["steps"][:] += np.bincount(kinds, minlength=len(KINDS))
        for name in ("seconds", "batch", "context", "tokens"):
            self.total[name][:] += np.bincount(kinds, steps[name].astype(float), len(KINDS))
        self.total["idle"][:] += np.bincount(steps["idle_reason"], steps["idle_seconds"].astype(float), len(IdleReason))
        self.last_wall_time = max(self.last_wall_time, float(steps["wall_time"].max()))
        for phase, slowest in enumerate(self._any):
            own = steps[steps["phase"] == phase]
            if len(own) and own["seconds"].max() > slowest.least:
                slowest.offer([SlowStep(rank, own[int(np.argmax(own["seconds"]))], None)])
        if batch.is_timed.any():
            self._add_timed(rank, batch.timed)

    def _add_timed(self, rank: int, batch: RecordBatch) -> None:
        steps, of_step, intervals = batch.steps, batch.step_of_interval, batch.intervals
        kinds = steps["phase"].astype(int) * len(Mode) + steps["mode"]
        self.total["sampled"][:] += np.bincount(kinds, minlength=len(KINDS))
        self.total["sampled_seconds"][:] += np.bincount(kinds, steps["seconds"], len(KINDS))
        cells = kinds[of_step] * len(Operator) + intervals["operator"]
        shape = FIELDS["operator_seconds"]
        seconds = batch.seconds
        self.total["operator_seconds"][:] += np.bincount(cells, seconds, math.prod(shape)).reshape(shape)
        self.total["operator_calls"][:] += np.bincount(cells, minlength=math.prod(shape)).reshape(shape)
        for phase, slowest in enumerate(self._sampled):
            places = np.flatnonzero((steps["phase"] == phase) & (steps["seconds"] > slowest.least)).tolist()
            slowest.offer([
                SlowStep(rank, steps[at], np.bincount(intervals["operator"][of_step == at], seconds[of_step == at],
                                                      len(Operator)))
                for at in heapq.nlargest(MOST_SLOW, places, key=lambda at: float(steps["seconds"][at]))
            ])  # fmt: skip

    def keep_last(self, batch: RecordBatch) -> None:
        """Keep the last sampled step of each kind, of the rank that is shown as the example."""
        timed = batch.timed
        kinds = timed.steps["phase"].astype(int) * len(Mode) + timed.steps["mode"]
        for kind in np.unique(kinds).tolist():
            at = int(np.flatnonzero(kinds == kind)[-1])
            self.last[kind] = timed.steps[at], timed.intervals_of(at).copy()

    def due(self, now: float) -> bool:
        """Tell whether the next row is to be kept at ``now`` (monotonic seconds)."""
        return not self._times or now - self._times[-1] >= EVERY_SECONDS

    def keep(self, now: float) -> None:
        """Keep the sums as they are now as a row; every sixth row begins a new minute of the slowest steps."""
        # After a pause (a machine that slept) the rows that are missing are like this one, so that a minute stays one.
        missed = int(min((now - self._times[-1]) // EVERY_SECONDS, ROWS)) if self._times else 1
        for behind in range(max(missed, 1) - 1, -1, -1):
            self._rows[self._next % ROWS] = self._sums
            self._times.append(now - behind * EVERY_SECONDS)
            self._next += 1
            if self._next % COLUMN_ROWS == 0:
                for minutes in (*self._sampled, *self._any):
                    minutes.next()

    def over(self, seconds: float, now: float) -> tuple[Sums, float]:
        """Return the sums of the last ``seconds`` (up to ten more), and the seconds that they really cover; fewer after a
        start."""
        if not self._times:
            return _named(np.zeros(_WIDTH)), 0.0
        age = next((age for age, time in enumerate(reversed(self._times)) if now - time >= seconds), None)
        age = len(self._times) - 1 if age is None else age
        began = self._times[len(self._times) - 1 - age]
        return _named(self._sums - self._rows[(self._next - 1 - age) % ROWS]), max(now - began, 0.0)

    def columns(self) -> list[Sums]:
        """Return the sums of the last hour minute by minute, whole minutes only, the oldest first."""
        rows = [self._rows[(self._next - 1 - age) % ROWS] for age in range(0, len(self._times), COLUMN_ROWS)]
        return [_named(newer - older) for newer, older in zip(rows, rows[1:])][::-1]

    def slowest(self, phase: Phase) -> list[SlowStep]:
        """Return the slowest sampled steps of the last ten minutes."""
        return self._sampled[phase.code].found()

    def longest(self, phase: Phase) -> SlowStep | None:
        """Return the slowest step of the last ten minutes, sampled or not."""
        found = self._any[phase.code].found()
        return found[0] if found else None
