"""Clocks behind one protocol: it records on a stream, and later returns the seconds between two recordings."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

Handle = Any
"""One recording: a CUDA event, or a place for a host time. It is created once and recorded many times."""


class Clock(Protocol):
    """Clock that never waits: a recording that the GPU has not reached yet is not ``done``."""

    source: str
    """``cuda_event`` or ``host``. It is exported, because a host time is not a GPU time."""

    finished: Any
    """Answer of :meth:`ask` for a recording that the GPU has reached. Without a GPU, a value that is never returned."""

    def adopt_thread(self) -> None:
        """Prepare the calling thread. Called once on each thread that records, because libraries keep a device per thread."""
        ...

    def stream(self) -> Any:
        """Return the calling thread's current stream, for :meth:`record`."""
        ...

    def handles(self, count: int) -> list[Handle]:
        """Create handles. Slow: for start-up and rare growth."""
        ...

    def record(self, handle: Handle, stream: Any) -> None:
        """Record on the stream: the handle is done when the GPU has finished what was launched before."""
        ...

    def capturing(self) -> bool:
        """Tell whether the calling thread's stream captures a graph. A recording or a query would end the capture."""
        ...

    def done(self, handle: Handle) -> bool:
        """Tell whether the GPU has reached the recording."""
        ...

    def ask(self, handle: Handle) -> Any:
        """Return :attr:`finished` where :meth:`done` is true, else another value. It is the cheapest query there is."""
        ...

    def seconds(self, first: Handle, last: Handle) -> float:
        """Return the seconds between two recordings that are done."""
        ...

    def intervals(self, handles: Sequence[Handle]) -> np.ndarray:
        """Return the seconds between consecutive recordings that are done; float64, shape (len(handles) - 1,)."""
        ...

    def occupy(self, seconds: float) -> None:
        """Keep the GPU busy for about this long, so that recordings queue up. Used for calibration only."""
        ...


class HostClock:
    """Clock of the host, used without CUDA in tests and demonstrations. A recording is done at once. ``now``: in seconds."""

    source = "host"
    finished: Any = -1  # no GPU can wait for the host here

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self.ask = self.done

    def adopt_thread(self) -> None:
        return None

    def stream(self) -> None:
        return None

    def handles(self, count: int) -> list[list[float]]:
        return [[0.0] for _ in range(count)]

    def record(self, handle: list[float], stream: None) -> None:
        handle[0] = self._now()

    def capturing(self) -> bool:
        return False

    def done(self, handle: list[float]) -> bool:
        return True

    def seconds(self, first: list[float], last: list[float]) -> float:
        return last[0] - first[0]

    def intervals(self, handles: Sequence[list[float]]) -> np.ndarray:
        return np.diff(np.array(handles, dtype=np.float64)[:, 0])

    def occupy(self, seconds: float) -> None:
        return None
