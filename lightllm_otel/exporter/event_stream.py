"""Who is watching, and what they are shown: one text for all, made by the thread that reads the rings."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import NamedTuple

MOST_LISTENERS = 16


class Full(Exception):
    """So many are listening that one more is refused."""


class Shown(NamedTuple):
    """``serial`` grows with each text; ``text``: None when nothing new came in time."""

    serial: int
    text: bytes | None


class EventStream:
    """The newest text, handed to a bounded number of listeners. Nothing is queued: who is slow misses some."""

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
        """Be counted as a listener meanwhile; the serial of the newest text. Raises Full."""
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
        """The newest text, as soon as there is one newer than ``serial``."""
        with self._changed:
            self._changed.wait_for(lambda: self._serial > serial or self.closed, seconds)
            return Shown(self._serial, self._text if self._serial > serial else None)

    def close(self) -> None:
        """No text will come any more."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
