"""Background work beside the polls, because a write to a network folder may hang forever."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Optional

Work = Callable[[], None]


class Aside:
    """Worker thread that does one piece of work at a time. Work must catch its own errors."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: queue.Queue[Work] = queue.Queue(1)
        self._thread: Optional[threading.Thread] = None

    @property
    def busy(self) -> bool:
        """Return True while work is in progress."""
        return self._waiting.unfinished_tasks > 0

    def offer(self, work: Work) -> bool:
        """Start ``work`` and return True, or return False while other work is in progress."""
        if self.busy:
            return False
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name=self._name)
            self._thread.start()
        self._waiting.put(work)
        return True

    def wait(self, seconds: float) -> bool:
        """Wait up to ``seconds`` for the work to end, and return True if it has."""
        end = time.monotonic() + seconds
        while self.busy and time.monotonic() < end:
            time.sleep(0.01)
        return not self.busy

    def _run(self) -> None:
        while True:
            work = self._waiting.get()
            try:
                work()
            finally:
                self._waiting.task_done()
