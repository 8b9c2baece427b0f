"""Event stream of the live page: one text for all watchers, made by the thread that reads the rings."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import NamedTuple

MOST_LISTENERS = 16


class Full(Exception):
    """No further listener is accepted."""


class Shown(NamedTuple):
    """A text and its ``serial``, which grows with each one. ``text`` is None if no new one came in time."""

    serial: int
    text: bytes | None


class EventStream:
    """The newest text, for a limited number of listeners. Nothing is queued, so a slow listener misses some."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._listeners = 0
        self._serial = 0
        self._text = b""
        self.closed = False

    @property
    def listeners(self) -> int:
        return self._listeners

    @contextlib.contextmanager
    def listening(self) -> Iterator[int]:
        """Count the caller as a listener, and give the serial of the newest text. Raises Full."""
        with self._changed:
            if self._listeners >= MOST_LISTENERS:
                raise Full
            self._listeners += 1
            serial = self._serial
        try:
            yield serial
        finally:
            with self._changed:
                self._listeners -= 1

    def publish(self, text: bytes) -> None:
        with self._changed:
            self._serial += 1
            self._text = text
            self._changed.notify_all()

    def after(self, serial: int, seconds: float) -> Shown:
        """Wait up to ``seconds`` for a text newer than ``serial``, and return it."""
        with self._changed:
            self._changed.wait_for(lambda: self._serial > serial or self.closed, seconds)
            return Shown(self._serial, self._text if self._serial > serial else None)

    def close(self) -> None:
        """Wake up all listeners; no further text will come."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
