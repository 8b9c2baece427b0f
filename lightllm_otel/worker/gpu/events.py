"""CUDA events as a clock: through CuPy's runtime, which records most cheaply, or through torch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lightllm_otel.guard import log
from lightllm_otel.installation import install_command
from lightllm_otel.worker.gpu.clock import Clock, HostClock


def choose_clock() -> Clock:
    """Return the cheapest clock that works in this process. Call it on the thread and device that run the model."""
    import torch

    if not torch.cuda.is_available():
        return HostClock()
    try:
        return CupyEvents()
    except Exception as reason:  # noqa: BLE001 - CuPy may be missing or built for another CUDA; torch's events still work
        log.info(
            "CuPy cannot be used (%s: %s). Events are recorded through torch, which costs a little more CPU time. Install CuPy "
            "(cuda13 for CUDA 13) and restart the server: %s", type(reason).__name__, reason, install_command("cuda12"),
        )  # fmt: skip
        return TorchEvents()


class CupyEvents:
    """Clock that uses events through CuPy's binding of the CUDA runtime; a handle is the event's address."""

    source = "cuda_event"
    detail = "cupy"
    finished = 0  # cudaSuccess; "not ready" is returned, any other error raised

    def __init__(self) -> None:
        import torch
        from cupy.cuda import runtime

        self._device = torch.cuda.current_device()
        # CuPy may have loaded another runtime library, in which the thread's device is not set yet.
        runtime.setDevice(self._device)
        # One call into torch without a Python frame: every step makes it.
        self.stream = functools.partial(torch._C._cuda_getCurrentRawStream, self._device)
        self.capturing = _capturing_question()
        self._runtime = runtime
        self.record = runtime.eventRecord
        self.ask = runtime.eventQuery
        self._elapsed = runtime.eventElapsedTime
        self.intervals(self._probe())

    def _probe(self) -> list[int]:
        """Record and return two events, so that a runtime that cannot time raises here and not later."""
        probe = self.handles(2)
        for handle in probe:
            self.record(handle, self.stream())
        self._runtime.eventSynchronize(probe[-1])
        return probe

    def adopt_thread(self) -> None:
        self._runtime.setDevice(self._device)

    def seconds(self, first: int, last: int) -> float:
        return float(self._elapsed(first, last)) * 1e-3

    def handles(self, count: int) -> list[int]:
        return [self._runtime.eventCreate() for _ in range(count)]

    def done(self, handle: int) -> bool:
        return bool(self.ask(handle) == self.finished)

    def intervals(self, handles: Sequence[int]) -> np.ndarray:
        elapsed = self._elapsed
        return np.array([elapsed(a, b) for a, b in zip(handles, handles[1:])], dtype=np.float64) * 1e-3

    def occupy(self, seconds: float) -> None:
        occupy(seconds)


class TorchEvents:
    """Clock that uses events through torch alone; a handle is a ``torch.cuda.Event``."""

    source = "cuda_event"
    detail = "torch"
    finished = True

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self.capturing = _capturing_question()

    def adopt_thread(self) -> None:
        """Do nothing: torch knows the device of each of its threads."""

    def stream(self) -> Any:
        return self._torch.cuda.current_stream()

    def handles(self, count: int) -> list[Any]:
        event_class: Any = self._torch.cuda.Event
        events = [event_class(enable_timing=True) for _ in range(count)]
        for event in events:
            event.record()  # torch creates the event with its first record; that must not happen in a step
        return events

    def record(self, handle: Any, stream: Any) -> None:
        handle.record(stream)

    def done(self, handle: Any) -> bool:
        return bool(handle.query())

    ask = done

    def seconds(self, first: Any, last: Any) -> float:
        return float(first.elapsed_time(last)) * 1e-3

    def intervals(self, handles: Sequence[Any]) -> np.ndarray:
        return np.array([a.elapsed_time(b) for a, b in zip(handles, handles[1:])], dtype=np.float64) * 1e-3

    def occupy(self, seconds: float) -> None:
        occupy(seconds)


def _capturing_question() -> Callable[[], bool]:
    """Return torch's function that tells whether the stream captures; every boundary of an eager step calls it.

    The internal function is preferred, because it needs no Python frame.
    """
    import torch

    question: Callable[[], bool] = getattr(torch._C, "_cuda_isCurrentStreamCapturing", None) or (
        torch.cuda.is_current_stream_capturing
    )
    return question


def occupy(seconds: float) -> None:
    """Keep the GPU busy for about ``seconds`` on the current stream."""
    import torch

    spin: Any = torch.cuda._sleep
    spin(int(seconds * 1.5e9))  # cycles; GPUs run at 1 to 2 GHz
