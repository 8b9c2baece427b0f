"""Matching of ranks: the same sampled step on every rank of a group, or the reason why it cannot be compared.

Ranks run in step and sample by the count of forwards alone, so a step has the same number everywhere. That is not
trusted: a step is compared only if all ranks say that they computed the same batch with the same calls.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lightllm_otel.records import layout
from lightllm_otel.records.batch import RecordBatch
from lightllm_otel.records.vocabulary import COLLECTIVES, Scope, Unmatched

MOST_WAITING = 256  # steps that some rank has delivered and another has not
# Of a collective in a recording that does not say: some tens of microseconds of Python and NCCL.
UNKNOWN_LAUNCHING_SECONDS = 100e-6
# From the launch of a kernel to its start on a GPU that has nothing else to do: some microseconds.
START_SECONDS = 10e-6
_CODES = [operator.code for operator in COLLECTIVES]
_SAME_STEP = ("phase", "mode", "batch", "context", "padded")
_SAME_CALL = ("operator", "site", "layer", "occurrence", "payload_bytes")


@dataclasses.dataclass(frozen=True)
class Matched:
    """The collectives of one step. ``calls``: those of the first rank (``INTERVAL``, shape (calls,)); ``seconds`` of each on
    each rank, shape (ranks, calls), rows in the order of ``ranks``. ``launching``: seconds within which the host launched it
    where the GPU waited for that, else 0; the same shape.
    """

    step: np.void
    ranks: tuple[int, ...]
    calls: np.ndarray
    seconds: np.ndarray
    launching: np.ndarray
    scope: Scope
    size: int

    @functools.cached_property
    def min_seconds(self) -> np.ndarray:
        """Return the least seconds that each rank was in each collective, the same shape."""
        return without_launching(self.seconds, self.launching)

    def only(self, chosen: np.ndarray) -> Matched:
        """Return the same step with some of its calls; ``chosen``: bool, shape (calls,)."""
        return dataclasses.replace(
            self, calls=self.calls[chosen], seconds=self.seconds[:, chosen], launching=self.launching[:, chosen]
        )


def without_launching(seconds: np.ndarray, launching: np.ndarray) -> np.ndarray:
    """Return the rest of ``seconds`` if each rank arrived as late as its host's ``launching`` seconds allow; the same shape."""
    started = np.where(launching > 0, launching + START_SECONDS, 0.0)
    return np.asarray(np.maximum(seconds - started, 0.0))


class Matching:
    """Collects the collectives of each rank's sampled steps, and hands steps on that are whole to ``sink``.

    ``unmatched``: steps with collectives that were given up, by reason. Steps of a group whose other ranks have not shown
    up yet wait, at most :data:`MOST_WAITING` of them.
    """

    def __init__(self, sink: Callable[[Matched], None]) -> None:
        self.unmatched: dict[Unmatched, int] = dict.fromkeys(Unmatched, 0)
        self._sink = sink
        self._ranks: set[int] = set()
        self._size = 0
        self._nodes = 1
        self._began = 0.0
        self._progress: dict[int, int] = {}
        self._waiting: dict[int, dict[int, tuple[np.void, np.ndarray]]] = defaultdict(dict)

    @property
    def scope(self) -> Scope:
        """``node`` where some ranks of the group can never be seen here."""
        return Scope.NODE if self._nodes > 1 and len(self._ranks) < self._size else Scope.GROUP

    @property
    def complete(self) -> bool:
        """Tell whether all ranks that can be seen here have shown up."""
        return bool(self._expected())

    def set_facts(self, rank: int, facts: Mapping[str, Any]) -> None:
        """Take the facts of a rank that has started. No step from before belongs to the group as it is now."""
        self._ranks.add(rank)
        self._size = int(facts.get("tp", 1))
        self._nodes = int(facts.get("nodes", 1))
        began = float(facts.get("started", 0.0))
        if began > self._began:
            self._began = began
            self._progress.clear()
            for number, of_rank in list(self._waiting.items()):
                for each in [each for each, (step, _) in of_rank.items() if step["wall_time"] < began]:
                    del of_rank[each]
                if not of_rank:
                    self._give_up(number, Unmatched.RESTARTED)

    def restarted(self, rank: int) -> None:
        """The rank's process is a new one, which counts from zero."""
        self._progress.pop(rank, None)
        for number in [number for number, of_rank in self._waiting.items() if rank in of_rank]:
            self._give_up(number, Unmatched.RESTARTED)

    def add(self, rank: int, batch: RecordBatch) -> None:
        """Add consecutive steps of one rank, sampled or not."""
        is_call = np.isin(batch.intervals["operator"], _CODES)
        calls, bounds = batch.intervals[is_call], np.arange(len(batch) + 1)
        ends = np.searchsorted(batch.step_of_interval[is_call], bounds)
        for at, step in enumerate(batch.steps):
            number = int(step["number"])
            if step["wall_time"] < self._began:
                self.unmatched[Unmatched.RESTARTED] += bool(step["flags"] & layout.SAMPLED)
                continue
            if number <= self._progress.get(rank, -1):
                self.restarted(rank)  # seen before its facts
            self._progress[rank] = number
            if not step["flags"] & layout.SAMPLED:
                continue
            if ends[at + 1] > ends[at]:
                self._waiting[number][rank] = (step, calls[ends[at] : ends[at + 1]])

    def settle(self) -> None:
        """Emit complete steps and drop those that can no longer become complete."""
        expected = self._expected()
        for number in sorted(self._waiting) if expected else ():
            absent = expected - self._waiting[number].keys()
            if not absent:
                self._match(number, tuple(sorted(expected)))
            elif all(self._progress.get(rank, -1) >= number for rank in absent):  # else it would be given up once more
                self._give_up(number, Unmatched.MISSING)
        for number in sorted(self._waiting)[: max(len(self._waiting) - MOST_WAITING, 0)]:
            self._give_up(number, Unmatched.LATE)

    def _expected(self) -> set[int]:
        """Return the ranks whose records make a step complete; empty as long as that is not known."""
        if len(self._ranks) == self._size or self.scope is Scope.NODE:
            return self._ranks
        return set()

    def _match(self, number: int, ranks: tuple[int, ...]) -> None:
        of_rank = self._waiting.pop(number)
        first, calls = of_rank[ranks[0]]
        for rank in ranks[1:]:
            step, other = of_rank[rank]
            same = all(step[name] == first[name] for name in _SAME_STEP) and len(other) == len(calls)
            if not (same and all((other[name] == calls[name]).all() for name in _SAME_CALL)):
                self.unmatched[Unmatched.DIFFERENT] += 1
                return
        seconds = np.stack([of_rank[rank][1]["seconds"] for rank in ranks]).astype(float)
        flags = np.stack([of_rank[rank][1]["flags"] for rank in ranks])
        launching = layout.launching_seconds(flags, UNKNOWN_LAUNCHING_SECONDS)
        self._sink(Matched(first, ranks, calls, seconds, launching, self.scope, self._size))

    def _give_up(self, number: int, reason: Unmatched) -> None:
        del self._waiting[number]
        self.unmatched[reason] += 1


def match(batches: Mapping[int, RecordBatch], sink: Callable[[Matched], None]) -> dict[Unmatched, int]:
    """Match the steps of whole recordings, given by rank. Return how many steps were given up, by reason."""
    matching = Matching(sink)
    for rank in batches:
        matching.set_facts(rank, {"tp": len(batches)})
    for first in range(0, max(map(len, batches.values()), default=0), MOST_WAITING):
        for rank, batch in batches.items():
            chosen = np.zeros(len(batch), bool)
            chosen[first : first + MOST_WAITING] = True
            matching.add(rank, batch.only(chosen))
        matching.settle()
    return matching.unmatched
