"""Connections of the exporter's HTTP server: their limits, and which one is closed to make room."""

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
"""Each connection has a thread. A few scrapers and all watchers of the live page need less than half."""
REQUEST_SECONDS = 5.0
"""Time limit for a request, up to the end of its headers."""
ANSWER_SECONDS = 15.0
"""Time limit for the client to read an answer. For a watcher of the live page it applies to each event."""
CROWDED_ANSWER_SECONDS = 2.0
"""Time limit for an answer while there is no room for another connection."""
_PATIENCE_SECONDS = 0.5  # for threads of ended connections to finish
ASKING, ANSWERED, WATCHING, ENDING = "asking", "answered", "watching", "ending"


@dataclasses.dataclass(eq=False)
class Connection:
    """One connection. ``since`` is the start of its ``state``, in monotonic seconds; a new one is ASKING."""

    socket: socket.socket
    host: str
    since: float
    state: str = ASKING

    def limit(self, crowded: bool) -> float:
        """Return for how many seconds the connection may stay in its state."""
        answered = CROWDED_ANSWER_SECONDS if crowded else ANSWER_SECONDS
        return {ASKING: REQUEST_SECONDS, ANSWERED: answered}.get(self.state, math.inf)


class Connections:
    """At most ``most`` open connections; usable from any thread. ``now`` returns monotonic seconds.

    A new connection replaces one that has not sent a request yet: the oldest one of the host that has most of these. So idle
    connections replace each other, and a scrape, which sends its request at once, gets through.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic, most: int = MOST_CONNECTIONS) -> None:
        self._now = now
        self._most = most
        self._changed = threading.Condition()
        self._open: dict[socket.socket, Connection] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, peer: socket.socket, host: str) -> bool:
        """Add a connection, ending another if needed. Return False if there is no room."""
        with self._changed:
            # Wait for threads of ended connections; their number would have no limit otherwise.
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
        """Set the state of a connection."""
        with self._changed:
            found = self._open.get(peer)
            if found is not None and found.state != ENDING:
                found.state, found.since = state, self._now()

    def remove(self, peer: socket.socket) -> None:
        """Forget a connection that is about to be closed."""
        with self._changed:
            self._open.pop(peer, None)
            self._changed.notify_all()

    def end_overdue(self) -> None:
        """End connections that have exceeded their time limit."""
        with self._changed:
            self._end([each for each in self._open.values() if self._age(each) > each.limit(crowded=False)])

    def end_idle(self) -> None:
        """End all connections without a request, because the process has no file descriptors left."""
        with self._changed:
            self._end([each for each in self._open.values() if each.state == ASKING])

    def _end(self, connections: Iterable[Connection]) -> None:
        """Shut down the sockets, which wakes up the threads that use them; each thread closes its own."""
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
