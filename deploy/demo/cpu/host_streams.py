"""CUDA streams and events where there is no CUDA: work is done when it is launched, and an event is the host's time.

A thread has a current stream, as with CUDA, so that code which asks for it, compares it or switches it takes the same
way as on a GPU.
"""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

from recorded_graphs import launch

_numbers = itertools.count(1)


class Stream:
    """A stream; ``cuda_stream`` is a number that no other stream of the process has, 0 for the default stream."""

    def __init__(self, device: object = None, priority: int = 0, **others: object) -> None:
        self.priority = priority
        self.cuda_stream = next(_numbers)
        self.device_index = 0

    @property
    def device(self) -> Any:
        import torch

        return torch.device("cpu")

    def __enter__(self) -> Stream:
        _current.stack.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        _current.stack.pop()

    def wait_stream(self, other: object) -> None: ...

    def wait_event(self, event: object) -> None: ...

    def record_event(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        event.record(self)
        return event

    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...


class Event:
    def __init__(
        self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False, external: bool = False
    ) -> None:
        self.enable_timing = enable_timing
        self.cuda_event = next(_numbers)
        self._recorded: list[float] = []

    def record(self, stream: object = None) -> None:
        launch(self._record)

    def _record(self) -> None:
        self._recorded[:] = [time.perf_counter()]

    def query(self) -> bool:
        return True

    def wait(self, stream: object = None) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds until ``end``; as with CUDA, both must have been recorded and made with ``enable_timing``."""
        if not (self.enable_timing and end.enable_timing):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        if not (self._recorded and end._recorded):
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        return (end._recorded[0] - self._recorded[0]) * 1e3


class _NoStream:
    """``torch.cuda.stream(None)`` changes nothing."""

    def __enter__(self) -> None: ...

    def __exit__(self, *exception: object) -> None: ...


class _Current(threading.local):
    def __init__(self) -> None:
        self.stack = [_default]


_default = Stream()
_default.cuda_stream = 0
_current = _Current()


def install(cuda: Any) -> None:
    cuda.Stream, cuda.Event = Stream, Event
    cuda.stream = lambda stream: _NoStream() if stream is None else stream
    cuda.set_stream = lambda stream: _current.stack.__setitem__(-1, stream)
    cuda.current_stream = lambda device=None: _current.stack[-1]
    cuda.default_stream = lambda device=None: _default
