"""Work beside the polls: a folder on a network may keep whoever writes to it waiting for ever."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Optional

Work = Callable[[], None]


class Aside:
    """Does one piece of work after the other on a thread of its own, which begins with the first. Work catches its errors."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: queue.Queue[Work] = queue.Queue(1)
        self._thread: Optional[threading.Thread] = None

    @property
    def busy(self) -> bool:
        """Whether work is under way."""
        return self._waiting.unfinished_tasks > 0

    def offer(self, work: Work) -> bool:
        """Return whether it will be done; not while other work is under way."""
        if self.busy:
            return False
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name=self._name)
            self._thread.start()
        self._waiting.put(work)
        return True

    def wait(self, seconds: float) -> bool:
        """Wait until all is done, but not longer. Return whether it is."""
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
