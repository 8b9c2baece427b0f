"""Connections of the exporter's HTTP server: how many there may be, and which one goes when one more comes."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Optional

MOST_CONNECTIONS = 64
"""Each has a thread. A few scrapers and as many watchers as may watch need less than half."""
REQUEST_SECONDS = 5.0
"""A request, up to the end of its headers, must have come in this time."""
ANSWER_SECONDS = 15.0
"""An answer must have been taken in this time. Watchers stay longer: each event has this time of its own."""
CROWDED_ANSWER_SECONDS = 2.0
"""The same when there is no room for another connection."""
_PATIENCE_SECONDS = 0.5  # until threads whose connection was ended have gone
ASKING, ANSWERED, WATCHING, ENDING = "asking", "answered", "watching", "ending"


@dataclasses.dataclass(eq=False)
class Connection:
    """``state``: ASKING until a whole request has come, and so on; ``since``: when it began, monotonic seconds."""

    socket: socket.socket
    host: str
    since: float
    state: str = ASKING

    def limit(self, crowded: bool) -> float:
        """Return the seconds that it may stay in its state."""
        answered = CROWDED_ANSWER_SECONDS if crowded else ANSWER_SECONDS
        return {ASKING: REQUEST_SECONDS, ANSWERED: answered}.get(self.state, math.inf)


class Connections:
    """Keeps at most ``most`` of them. ``now``: monotonic seconds. Usable from any thread.

    When one more comes, one that has not asked for anything yet goes: of the host with the most of these, the oldest. So
    idle connections push each other out, and a scrape, which asks at once, finds a place.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic, most: int = MOST_CONNECTIONS) -> None:
        self._now = now
        self._most = most
        self._changed = threading.Condition()
        self._open: dict[socket.socket, Connection] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, peer: socket.socket, host: str) -> bool:
        """Return whether there is a place for this connection; one may be made by ending another."""
        with self._changed:
            # Threads of ended connections need a moment to go; they are waited for, or there could be any number.
            if not self._changed.wait_for(lambda: len(self._open) < 2 * self._most, _PATIENCE_SECONDS):
                return False
            if sum(each.state != ENDING for each in self._open.values()) >= self._most:
                victim = self._least_worth()
                if victim is None:
                    return False
                self._end([victim])
            self._open[peer] = Connection(peer, host, self._now())
        return True

    def now_is(self, peer: socket.socket, state: str) -> None:
        """Say that the connection has come so far."""
        with self._changed:
            found = self._open.get(peer)
            if found is not None and found.state != ENDING:
                found.state, found.since = state, self._now()

    def remove(self, peer: socket.socket) -> None:
        """Say that the connection is about to be closed."""
        with self._changed:
            self._open.pop(peer, None)
            self._changed.notify_all()

    def end_overdue(self) -> None:
        """End connections that took too long."""
        with self._changed:
            self._end([each for each in self._open.values() if self._age(each) > each.limit(crowded=False)])

    def end_idle(self) -> None:
        """End all that have not asked for anything: this process has no descriptors left."""
        with self._changed:
            self._end([each for each in self._open.values() if each.state == ASKING])

    def _end(self, connections: Iterable[Connection]) -> None:
        """Wake up whoever reads from these or writes to them. Each one's own thread closes it."""
        for each in connections:
            each.state = ENDING
            with contextlib.suppress(OSError):
                each.socket.shutdown(socket.SHUT_RDWR)

    def _age(self, connection: Connection) -> float:
        return self._now() - connection.since

    def _least_worth(self) -> Optional[Connection]:
        asking = [each for each in self._open.values() if each.state == ASKING]
        if asking:
            of_host = collections.Counter(each.host for each in asking)
            return max(asking, key=lambda each: (of_host[each.host], -each.since))
        slow = [each for each in self._open.values() if self._age(each) > each.limit(crowded=True)]
        return min(slow, key=lambda each: each.since) if slow else None
