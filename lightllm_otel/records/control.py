"""Live control: a memory page in the group's folder that changes what all ranks measure, from the same forward on.

The exporter and the first rank write the page; every rank reads it. The exporter writes a *request*. The first rank turns it
into an *order*, which holds from forward ``at`` on. It does so when it enters a forward, before it launches anything of that
forward, and chooses an ``at`` some forwards ahead. No rank can have entered that forward yet: it would need collectives of
forwards that the first rank has not launched. So all ranks follow the order from the same forward on, and no rank waits.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from lightllm_otel.records import private
from lightllm_otel.records.vocabulary import Level

NAME = "control"
SIZE = 4096
AHEAD = 8  # forwards; a host launches at most two before the first of them has ended
# Words of 32 bits. The sequence number of an entry is written last, so a reader that sees it finds the rest in place. Both
# sequence numbers also form one word of 64 bits, which the fast path compares at every step.
REQUEST, ORDER = 0, 16
_LEVEL, _EVERY, _AT, _AT_HIGH = range(4)
_SEQS = 32
_SEQ = {REQUEST: _SEQS, ORDER: _SEQS + 1}
BOTH = _SEQS // 2


@dataclasses.dataclass(frozen=True)
class Order:
    """Order: from forward ``at`` on, measure at this level and sample one decode step in ``every``."""

    seq: int
    level: Level
    every: int
    at: int = 0


class ControlPage:
    """Mapped control page. The file is created if it is missing. Raises OSError if the file system is full, and NotOurs."""

    def __init__(self, path: Path) -> None:
        descriptor = private.open_file(path, os.O_RDWR | os.O_CREAT)
        try:
            os.posix_fallocate(descriptor, 0, SIZE)
            self._map = mmap.mmap(descriptor, SIZE)
        finally:
            os.close(descriptor)
        self.words = memoryview(self._map).cast("I")
        self.both = memoryview(self._map).cast("Q")

    @property
    def requested(self) -> int:
        """Sequence number of the last request."""
        return self.words[_SEQ[REQUEST]]

    def request(self, level: Level, every: int) -> int:
        """Write a request (exporter only), and return its sequence number."""
        seq = (self.requested + 1) & 0xFFFFFFFF or 1
        self._write(REQUEST, Order(seq, level, every))
        return seq

    def order(self, order: Order) -> None:
        """Write an order (first rank only)."""
        self._write(ORDER, order)

    def _write(self, at: int, order: Order) -> None:
        words = self.words
        words[at + _LEVEL], words[at + _EVERY] = order.level.code, order.every
        words[at + _AT], words[at + _AT_HIGH] = order.at & 0xFFFFFFFF, order.at >> 32
        words[_SEQ[at]] = order.seq

    def read(self, at: int) -> Order:
        """Return the entry at ``REQUEST`` or ``ORDER``."""
        words = self.words
        level = Level.of(min(words[at + _LEVEL], len(Level) - 1))
        first = words[at + _AT] | words[at + _AT_HIGH] << 32
        return Order(self.seq(at), Level(level), max(words[at + _EVERY], 1), first)

    def seq(self, at: int) -> int:
        """Return the sequence number of the entry at ``REQUEST`` or ``ORDER``."""
        return self.words[_SEQ[at]]

    def close(self) -> None:
        """Unmap the page."""
        self.words.release()
        self.both.release()
        self._map.close()


class Listener:
    """Reader of the control page in one rank.

    ``place`` is given to the first rank only, which turns requests into orders. It takes the number of the forward that is being
    entered and the request, and returns the forward from which the order holds.

    Requests and orders from before the listener was created are ignored. Call :meth:`due` when a forward is entered, unless
    ``both[BOTH] == heard and waiting is None``; the fast path checks that condition itself. Without a page, no order ever comes.
    """

    def __init__(self, page: ControlPage | None, place: Callable[[int, Order], int] | None) -> None:
        self._page = page
        self._place = place
        self.both: Sequence[int] = page.both if page is not None else [0] * (BOTH + 1)
        self.heard = self.both[BOTH]
        self.waiting: Order | None = None
        self._taken, self._seen = (page.seq(REQUEST), page.seq(ORDER)) if page is not None else (0, 0)

    def due(self, number: int) -> Order | None:
        """Return the order that begins with forward ``number``, which is being entered; None if there is none."""
        if self._page is None:
            return None
        # One order at a time: the first rank makes the next order only after it has followed this one. A slower rank finds the
        # next order on the page later.
        if self.waiting is None:
            self._look(number, self._page)
        if self.waiting is None or number < self.waiting.at:
            return None
        order, self.waiting = self.waiting, None
        return order

    def _look(self, number: int, page: ControlPage) -> None:
        self.heard = self.both[BOTH]  # first: whatever is written while we read counts as new the next time
        if page.seq(REQUEST) != self._taken:
            request = page.read(REQUEST)
            self._taken = request.seq
            if self._place is not None:
                page.order(dataclasses.replace(request, at=self._place(number, request)))
        if page.seq(ORDER) != self._seen:
            self.waiting = page.read(ORDER)
            self._seen = self.waiting.seq
