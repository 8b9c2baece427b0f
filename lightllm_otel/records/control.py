"""Live control: a page in the group's folder that the exporter and the first rank write, and every rank reads.

The exporter leaves a *request*. The first rank turns it into an *order*: from forward ``at`` on, this is the rule. It
does so at the entry of a forward, before it launches anything of it, and names one that lies some forwards ahead. No
rank can have entered that one yet: it would need collectives of forwards that the first rank has not launched. So all
ranks follow the order from the same forward on, without any of them waiting for another.
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
AHEAD = 8  # forwards; a host launches at most two before the first one of them is done
# Words of 32 bits. A sequence number is written last, so what belongs to it is there when it is seen. The two numbers
# are also one word of 64 bits: whoever asks at every step whether there is anything new compares that one.
REQUEST, ORDER = 0, 16
_LEVEL, _EVERY, _AT, _AT_HIGH = range(4)
_SEQS = 32
_SEQ = {REQUEST: _SEQS, ORDER: _SEQS + 1}
BOTH = _SEQS // 2


@dataclasses.dataclass(frozen=True)
class Order:
    """From forward ``at`` on: this level, one decode step in ``every``."""

    seq: int
    level: Level
    every: int
    at: int = 0


class ControlPage:
    """The mapped page; made if it is missing. Raises OSError when there is no room for it, and NotOurs."""

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
        return self.words[_SEQ[REQUEST]]

    def request(self, level: Level, every: int) -> int:
        """The exporter's side. Returns the request's number."""
        seq = (self.requested + 1) & 0xFFFFFFFF or 1
        self._write(REQUEST, Order(seq, level, every))
        return seq

    def order(self, order: Order) -> None:
        self._write(ORDER, order)

    def _write(self, at: int, order: Order) -> None:
        words = self.words
        words[at + _LEVEL], words[at + _EVERY] = order.level.code, order.every
        words[at + _AT], words[at + _AT_HIGH] = order.at & 0xFFFFFFFF, order.at >> 32
        words[_SEQ[at]] = order.seq

    def read(self, at: int) -> Order:
        words = self.words
        level = Level.of(min(words[at + _LEVEL], len(Level) - 1))
        first = words[at + _AT] | words[at + _AT_HIGH] << 32
        return Order(self.seq(at), Level(level), max(words[at + _EVERY], 1), first)

    def seq(self, at: int) -> int:
        return self.words[_SEQ[at]]

    def close(self) -> None:
        self.words.release()
        self.both.release()
        self._map.close()


class Listener:
    """A rank's side. ``place`` makes it the leader, the first rank, which turns requests into orders: it is given the
    forward that is being entered and the request, and says from which forward on the order holds.

    What was requested or ordered before it began to listen is over. :meth:`due` must be asked at the entry of a forward
    unless ``both[BOTH] == heard and waiting is None``, which a hot path finds out by itself. Without a page there is
    nothing to hear.
    """

    def __init__(self, page: ControlPage | None, place: Callable[[int, Order], int] | None) -> None:
        self._page = page
        self._place = place
        self.both: Sequence[int] = page.both if page is not None else [0] * (BOTH + 1)
        self.heard = self.both[BOTH]
        self.waiting: Order | None = None
        self._taken, self._seen = (page.seq(REQUEST), page.seq(ORDER)) if page is not None else (0, 0)

    def due(self, number: int) -> Order | None:
        """The order that begins with forward ``number``, which is being entered."""
        if self._page is None:
            return None
        # One order after the other: the leader makes the next one when it has followed this one, so a rank that is
        # still before it will find that next one on the page afterwards.
        if self.waiting is None:
            self._look(number, self._page)
        if self.waiting is None or number < self.waiting.at:
            return None
        order, self.waiting = self.waiting, None
        return order

    def _look(self, number: int, page: ControlPage) -> None:
        self.heard = self.both[BOTH]  # first: what is written while we read is news the next time
        if page.seq(REQUEST) != self._taken:
            request = page.read(REQUEST)
            self._taken = request.seq
            if self._place is not None:
                page.order(dataclasses.replace(request, at=self._place(number, request)))
        if page.seq(ORDER) != self._seen:
            self.waiting = page.read(ORDER)
            self._seen = self.waiting.seq
