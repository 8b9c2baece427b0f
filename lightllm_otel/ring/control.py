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
from collections.abc import Callable
from pathlib import Path

from lightllm_otel.vocabulary import Level

NAME = "control"
SIZE = 4096
AHEAD = 8  # forwards; a host launches at most two before the first one of them is done
# Words of 32 bits. A sequence number is written last, so what belongs to it is there when it is seen.
_REQUEST, _ORDER = 0, 16
_SEQ, _LEVEL, _EVERY, _AT = range(4)


@dataclasses.dataclass(frozen=True)
class Order:
    """From forward ``at`` on: this level, one decode step in ``every``."""

    seq: int
    level: Level
    every: int
    at: int = 0


class ControlPage:
    """The mapped page; made if it is missing. Raises OSError when there is no room for it."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, SIZE)
            self._map = mmap.mmap(descriptor, SIZE)
        finally:
            os.close(descriptor)
        self.words = memoryview(self._map).cast("I")

    @property
    def requested(self) -> int:
        return self.words[_REQUEST + _SEQ]

    def request(self, level: Level, every: int) -> int:
        """The exporter's side. Returns the request's number."""
        seq = (self.requested + 1) & 0xFFFFFFFF or 1
        self._write(_REQUEST, Order(seq, level, every))
        return seq

    def order(self, order: Order) -> None:
        self._write(_ORDER, order)

    def _write(self, at: int, order: Order) -> None:
        words = self.words
        words[at + _LEVEL], words[at + _EVERY], words[at + _AT] = order.level.code, order.every, order.at
        words[at + _SEQ] = order.seq

    def read(self, at: int) -> Order:
        words = self.words
        level = Level.of(min(words[at + _LEVEL], len(Level) - 1))
        return Order(words[at + _SEQ], Level(level), max(words[at + _EVERY], 1), words[at + _AT])

    def close(self) -> None:
        self.words.release()
        self._map.close()


class Listener:
    """A rank's side. ``place`` makes it the leader, the first rank, which turns requests into orders: it is given the
    forward that is being entered and the request, and says from which forward on the order holds.

    What was requested or ordered before it began to listen is over.
    """

    def __init__(self, page: ControlPage, place: Callable[[int, Order], int] | None) -> None:
        self._page = page
        self._words = page.words
        self._place = place
        self._taken = page.words[_REQUEST + _SEQ]
        self._seen = page.words[_ORDER + _SEQ]
        self._waiting: Order | None = None

    def due(self, number: int) -> Order | None:
        """The order that begins with forward ``number``, which is being entered. Two comparisons when there is none."""
        words = self._words
        if self._place is not None and words[_REQUEST] != self._taken:
            request = self._page.read(_REQUEST)
            self._taken = request.seq
            self._page.order(dataclasses.replace(request, at=self._place(number, request)))
        if words[_ORDER] != self._seen:
            self._waiting = self._page.read(_ORDER)
            self._seen = self._waiting.seq
        if self._waiting is None or number < self._waiting.at:
            return None
        order, self._waiting = self._waiting, None
        return order
