"""Boundary recorders: they record boundaries as events of an eager step, or as timestamp kernels in a captured graph."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from lightllm_otel.records import progress
from lightllm_otel.records.progress import BOUNDARIES, PLACE
from lightllm_otel.worker.gpu.clock import Clock, Handle
from lightllm_otel.worker.gpu.timestamp_kernels import Timestamps


class BoundaryRecorder:
    """Recorder for the hooks of operators. ``codes``: the boundaries so far; the first one begins the first interval.

    ``context``: the operator that is running, or -1; collectives inside it are cut out of it. ``pairs``: the host synchronises
    between its operators, so each is timed from its own start. ``payloads``: (position, packed payload) of collectives.
    ``full``: there were more boundaries than ``capacity``, so the operators cannot be told apart. ``thread``: the thread whose
    operators these are; calls of other threads are ignored.
    """

    __slots__ = ("capacity", "codes", "context", "full", "in_collective", "pairs", "payloads", "thread")

    def __init__(self, capacity: int, pairs: bool = False) -> None:
        self.capacity = capacity
        self.pairs = pairs
        self.codes: list[int] = []
        self.payloads: list[tuple[int, int]] = []
        self.context = -1
        self.in_collective = False
        self.full = False
        self.thread = threading.get_ident()

    def record(self, code: int) -> None:
        """Record a boundary: the interval since the previous one belongs to the operator of this code."""
        raise NotImplementedError

    def record_behind_nccl(self, code: int) -> None:
        """Record a boundary that follows a kernel of NCCL's."""
        self.record(code)


class EagerRecorder(BoundaryRecorder):
    """Recorder that uses events on the step's stream.

    ``before[i]``: the clock's answer for boundary i-1 when boundary i was recorded; if that was over, the GPU waited for the
    host. ``at[i]``: the host's clock just before boundary i, in seconds; for the first boundary just after it. ``places``: the
    step's first event, which begins the first interval, then the events of ``block``. ``words``: progress words of step
    ``number``, which show how far the host has come if it gets stuck. ``reaches``: the progress word of each code.
    """

    __slots__ = (
        "_ask",
        "_capturing",
        "_now",
        "_reaches",
        "_record",
        "_stream",
        "_words",
        "at",
        "before",
        "block",
        "places",
    )

    def __init__(
        self,
        clock: Clock,
        first: Handle,
        code: int,
        block: list[Handle],
        stream: Any,
        pairs: bool,
        now: Callable[[], float],
        words: progress.Words,
        reaches: Sequence[int],
        number: int,
    ) -> None:
        super().__init__(len(block), pairs)
        self._words = words
        self._reaches = reaches
        progress.begin(words, number)
        self.block = block
        self.places = [first, *block]
        self.codes.append(code)
        self.before: list[Any] = [None]
        self.at: list[float] = [now()]
        self._now = now
        self._record = clock.record
        self._ask = clock.ask
        self._capturing = clock.capturing
        self._stream = stream

    def record(self, code: int) -> None:
        codes = self.codes
        at = len(codes)
        if at >= self.capacity:
            self.full = True
            progress.forget(self._words)
            return
        if self._capturing():  # the host captures a graph in the middle of a step: an event would end its capture
            self.full = True
            progress.forget(self._words)
            return
        places = self.places
        before = self._ask(places[at - 1])
        now = self._now()
        self._record(places[at], self._stream)
        codes.append(code)
        self.before.append(before)
        self.at.append(now)
        words = self._words
        words[BOUNDARIES] = at
        place = self._reaches[code]
        if place:
            words[PLACE] = place

    def launched(self) -> None:
        """Note that all of the step is launched. Later boundaries say nothing about the host's progress."""
        progress.launched(self._words)
        self._words = [0] * progress.WORDS

    def end(self, code: int, last: Handle) -> None:
        """End the last interval with the step's last event, which the caller records."""
        at = len(self.codes)
        self.before.append(self._ask(self.places[at - 1]))
        self.at.append(self._now())
        self.places[at] = last
        self.codes.append(code)


class CaptureRecorder(BoundaryRecorder):
    """Recorder that adds timestamp kernels to the graph being captured. It never queries the GPU: that would end the capture.

    ``chains``: NCCL adds a node behind each of its kernels, and branches beside such a node run late. So from NCCL's first
    kernel on, timestamps lie on the chain (docs/decisions/0014). ``chained_from``: the first timestamp on the chain, or -1.
    ``count_edges`` returns the number of programmatic dependencies so far; ``edges``: its results at the boundaries.
    """

    __slots__ = ("_chains", "_count_edges", "_timestamp", "chained_from", "edges")

    def __init__(
        self, timestamps: Timestamps, chains: bool = True, count_edges: Callable[[], int] = lambda: -1
    ) -> None:
        super().__init__(timestamps.capacity)
        self.edges: list[int] = []
        self._count_edges = count_edges
        self.chained_from = -1
        self._chains = chains
        self._timestamp: Callable[[int, bool], None] = timestamps.timestamp

    def record(self, code: int) -> None:
        at = len(self.codes)
        if at >= self.capacity:
            self.full = True
            return
        self.edges.append(self._count_edges())  # the timestamp may come with edges of its own
        self._timestamp(at, self.chained_from >= 0)
        self.codes.append(code)

    def programmatic(self) -> tuple[int, ...]:
        """Return the programmatic dependencies in each interval between two boundaries; empty where they are unknown."""
        if min(self.edges, default=-1) < 0:
            return ()
        return tuple(after - before for before, after in zip(self.edges, self.edges[1:]))

    def record_behind_nccl(self, code: int) -> None:
        if self._chains and self.chained_from < 0:
            self.chained_from = len(self.codes)
        self.record(code)
