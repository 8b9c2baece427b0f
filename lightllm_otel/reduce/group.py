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
from lightllm_otel.records.batch import RecordBatch
from lightllm_otel.records.vocabulary import DropReason, ExporterStage, Mode, Stage, StepOnlyReason
from lightllm_otel.reduce.analytic import Analytic
from lightllm_otel.reduce.collectives import Collectives
from lightllm_otel.reduce.distortion import Distortion
from lightllm_otel.reduce.estimate import Estimate
from lightllm_otel.reduce.expectation import Expectation
from lightllm_otel.reduce.matching import Matched, Matching
from lightllm_otel.reduce.operators import Operators
from lightllm_otel.reduce.recent import Recent
from lightllm_otel.reduce.soundness import are_sound
from lightllm_otel.reduce.steps import Computed, Steps

_COUNTERS = ("sampled_steps", "hook_seconds", "in_flight_number")


class Ring(Protocol):
    """A rank's ring as it is at this moment (:class:`~lightllm_otel.records.reader.RingReader`)."""

    @property
    def header(self) -> Any: ...

    def unread_since(self) -> float: ...


@dataclasses.dataclass
class RankState:
    """State of one rank beside its steps.

    ``header`` is a copy from the last poll. ``ring`` is asked for what must be true now, also when polls are slow.
    ``base`` and ``overwrites_before`` keep counters of earlier lives of the rank, so that ours never go down.
    """

    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    header: Any = None
    ring: Optional[Ring] = None
    base: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    overwrites: int = 0
    overwrites_before: int = 0
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
        """Return a counter of the header over all lives of the rank."""
        now: np.ndarray = np.asarray(self.header[name], float) if self.header is not None else np.zeros(())
        total: np.ndarray = now + self.base.get(name, np.zeros(()))
        return total

    def restarted(self) -> None:
        """The rank's process is a new one: its header starts from zero."""
        for name in (*_COUNTERS, "dropped", "errors", "step_only"):
            self.base[name] = self.counter(name)
        self.overwrites, self.overwrites_before = 0, self.overwrites_before + self.overwrites
        self.header = self.ring = None
        self.facts = {}


class Group:
    """Adds the records of each rank to all figures of the group. Keys are codes of the vocabulary.

    ``now``: seconds of a monotonic clock. ``lock`` is held while sums change; who reads several of them holds it too.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.parts = Parts()
        self.lock = threading.RLock()
        self.ranks: dict[int, RankState] = defaultdict(RankState)
        self.operators = Operators()
        self.steps = Steps()
        self.computed = Computed()
        self.estimate = Estimate(now)
        self.distortion = Distortion()
        self.analytic = Analytic()
        self.collectives = Collectives()
        self.expectation = Expectation()
        self.recent = Recent()
        self.matching = Matching(self._matched)

    def set_facts(self, rank: int, facts: dict[str, Any]) -> None:
        """Take what a rank says of itself."""
        with self.lock:
            self.ranks[rank].facts = facts
            with self._apart("analytic"):
                self.analytic.set_facts(facts)
            with self._apart("matching"):
                self.matching.set_facts(rank, facts)

    @property
    def complete(self) -> bool:
        """Tell whether every rank that can be seen here has said what it is."""
        return self.matching.complete

    def restarted(self, rank: int) -> None:
        """The rank's process is a new one."""
        with self.lock:
            self.ranks[rank].restarted()
            self.matching.restarted(rank)

    def add(self, rank: int, batch: RecordBatch) -> None:
        """Add the steps of one rank. What no rank can have written is counted and left out."""
        sound = are_sound(batch)
        if not sound.all():
            self.parts.failed(
                ExporterStage.AGGREGATE, f"steps of rank {rank}",
                f"rank {rank} wrote steps that this version does not understand; they are left out. Restart the server, so "
                "that it and its exporter are of one version",
            )  # fmt: skip
            batch = batch.only(sound)
        if len(batch):
            with self.lock:
                self._add(rank, batch)

    def _add(self, rank: int, batch: RecordBatch) -> None:
        counts_for_group = rank == min((*self.ranks, rank))  # the ranks of a group compute the same tokens
        self.ranks[rank].steps += len(batch)
        for each in (self.operators, self.estimate, self.steps):
            each.add(rank, batch)
        for name, reducer in (("distortion", self.distortion), ("matching", self.matching),
                              ("expectation", self.expectation), ("recent", self.recent)):  # fmt: skip
            with self._apart(name):
                reducer.add(rank, batch)
        if counts_for_group:
            self.computed.add(rank, batch)
            with self._apart("analytic"):
                self.analytic.add(rank, batch)
            with self._apart("recent"):
                self.recent.keep_last(batch)

    def _apart(self, what: str) -> AbstractContextManager[None]:
        """These figures may fail for themselves, and take no others with them."""
        return self.parts(ExporterStage.AGGREGATE, what)

    def settle(self) -> None:
        """Compare what all ranks have delivered by now; after each has been read."""
        with self.lock:
            self.matching.settle()

    def _matched(self, matched: Matched) -> None:
        with self._apart("collectives"):
            self.collectives.add(matched, *self.clock(int(matched.step["mode"])))

    def clock(self, mode: int) -> tuple[float, float]:
        """Return ``(quantum, cost of a boundary)`` of steps of this mode, in seconds: the largest of all ranks."""
        names = (
            ("timestamp_quantum", "timestamp_cost") if mode == Mode.GRAPH.code else ("clock_quantum", "boundary_cost")
        )
        headers: list[Any] = [rank.header for rank in self.ranks.values() if rank.header is not None]
        quantum, cost = (max((float(header[name]) for header in headers), default=0.0) for name in names)
        return quantum, cost

    def counter(self, name: str) -> float:
        """Return a counter of the headers, over all ranks."""
        return float(sum(rank.counter(name).sum() for rank in self.ranks.values()))

    def dropped(self) -> dict[DropReason, int]:
        drops = {reason: self._by_code("dropped", reason.code) for reason in DropReason}
        drops[DropReason.OVERWRITTEN] += sum(rank.overwrites + rank.overwrites_before for rank in self.ranks.values())
        return drops

    def errors(self) -> dict[Union[Stage, ExporterStage], int]:
        """Return errors of the plugin by stage: of the model processes, as their headers say, and of the exporter."""
        errors: dict[Union[Stage, ExporterStage], int] = dict(self.parts.errors.items())
        return {**{stage: self._by_code("errors", stage.code) for stage in Stage}, **errors}

    def whole(self) -> dict[StepOnlyReason, int]:
        return {reason: self._by_code("step_only", reason.code) for reason in StepOnlyReason}

    def instrumented_graphs(self) -> int:
        """Return how many batch sizes have an instrumented graph on every rank."""
        sizes = [set((rank.facts.get("graphs") or {}).get("sizes", ())) for rank in self.ranks.values() if rank.facts]
        return len(set.intersection(*sizes)) if sizes else 0

    def _by_code(self, name: str, code: int) -> int:
        values = (rank.counter(name) for rank in self.ranks.values())
        return int(sum(value[code] for value in values if value.ndim))

    def facts(self) -> dict[str, Any]:
        """Return what the lowest rank says of model, GPU and versions; empty before it has said so."""
        for number in sorted(self.ranks):
            if self.ranks[number].facts:
                return self.ranks[number].facts
        return {}

    def slots(self) -> dict[str, bool]:
        """Return for each operator whether every rank has wrapped it."""
        found: dict[str, bool] = {}
        for rank in self.ranks.values():
            for operator, state in rank.facts.get("slots", {}).items():
                found[operator] = found.get(operator, True) and state == "installed"
        return found

    def data_age(self, now: float) -> float:
        """Return the seconds since the oldest step that is not counted yet, over all ranks; 0 when all are."""
        ages = [rank.oldest_unread() for rank in list(self.ranks.values()) if rank.header is not None]
        return max(0.0, now - min(age for age in ages if age)) if any(ages) else 0.0
