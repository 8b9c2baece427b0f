"""Clocks behind one protocol: something to record on a stream, and the seconds between two recordings, later."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

Handle = Any
"""One recording: a CUDA event, or a place for a host time. Made once, recorded again and again."""


class Clock(Protocol):
    """A clock never waits: a recording that the GPU has not reached yet is simply not ``done``."""

    source: str
    """``cuda_event`` or ``host``: exported, because a host time is not a GPU time."""

    finished: Any
    """What :meth:`ask` answers for a recording that the GPU has reached; without a GPU something that it never answers."""

    def adopt_thread(self) -> None:
        """Called once on each thread that records, before it does: a library may keep a device for each thread."""
        ...

    def stream(self) -> Any:
        """What the calling thread launches on now; passed to ``record``."""
        ...

    def handles(self, count: int) -> list[Handle]:
        """New handles. Slow; for start-up and rare growth."""
        ...

    def record(self, handle: Handle, stream: Any) -> None: ...

    def capturing(self) -> bool:
        """Tell whether the calling thread's stream captures a graph: a recording or a question would end its capture."""
        ...

    def done(self, handle: Handle) -> bool: ...

    def ask(self, handle: Handle) -> Any:
        """The same, as cheaply as it can be had: ``finished`` where :meth:`done` says True, else something else."""
        ...

    def seconds(self, first: Handle, last: Handle) -> float:
        """Between two recordings, both of them done."""
        ...

    def intervals(self, handles: Sequence[Handle]) -> np.ndarray:
        """Seconds between consecutive recordings, all of them done; float64, shape (len(handles) - 1,)."""
        ...

    def occupy(self, seconds: float) -> None:
        """Keep the GPU busy for about so long, so that recordings queue up behind; used for calibration only."""
        ...


class HostClock:
    """The host's own clock, where there is no CUDA: tests, demonstration. Everything is done when it is recorded."""

    source = "host"
    finished: Any = -1  # there is no GPU here that could wait for the host

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
