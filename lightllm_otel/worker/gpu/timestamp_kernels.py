"""Timestamp kernels: boundaries inside CUDA graphs, and the memory in which the host finds their times.

A timestamp is a one-thread kernel that writes ``%globaltimer`` to a cell of device memory. It lies on a branch beside the
host's kernels: it waits for the kernel before it, but the kernel after it does not wait for the timestamp. So a graph with
timestamps is hardly slower than one without (docs/decisions/0006). In a graph with NCCL's kernels it lies on the chain of
the host's kernels (docs/decisions/0014).

The last node of an instrumented graph copies its cells to pinned memory, into one of :data:`KEPT` slots. A counter in device
memory chooses the slot, and the graph itself advances it. So replays that follow each other directly do not mix, and each
slot says which replay filled it. The host reads a slot only after the step's end event.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lightllm_otel.guard import log

KEPT = 8  # slots: more than a host's steps in flight
PTX = Path(__file__).parent / "timestamp.ptx"
PUBLISH_THREADS = 256


class Overwritten(LookupError):
    """A later replay has overwritten the slot before it was read."""


class Timestamps(Protocol):
    """Timestamps in graphs. ``capacity``: the most boundaries of one graph. ``source`` and ``detail`` are exported.

    ``branches``: timestamps lie on a branch beside the host's kernels, unless ``chained`` asks otherwise.
    """

    source: str
    detail: str
    capacity: int
    branches: bool

    def timestamp(self, at: int, chained: bool = False) -> None:
        """Record boundary ``at`` on the current stream, which is capturing. ``chained``: the kernels after it wait for it."""

    def join(self) -> None:
        """Join the branch of the timestamps with the current stream, after the last timestamp."""

    def publish(self, count: int) -> None:
        """End a graph of ``count`` boundaries: add the copy of its timestamps."""

    def launched(self) -> int:
        """Count a replay that is about to be launched, and return its number, from 0."""

    def intervals(self, replay: int, count: int) -> np.ndarray:
        """Return the seconds between the ``count`` boundaries of a finished replay; float64, shape (count - 1,).

        Raises Overwritten if a later replay took the slot, and RuntimeError if the slot was never filled.
        """


class TimestampKernels(Protocol):
    """The two kernels, independent of how they were loaded. Memory is that of the current device."""

    detail: str

    def timestamp(self, cells: Any, at: int) -> None:
        """Launch the kernel that writes the GPU's time to ``cells[at]``."""

    def publish(self, cells: Any, slots: Any, counter: Any, count: int, stride: int) -> None:
        """Launch the kernel that copies ``count`` cells to the next slot. ``stride``: int64 numbers of one slot."""


class KernelTimestamps:
    """Timestamps by kernels. All memory is allocated once: ``capacity`` cells on the GPU, and 8 slots of them on the host."""

    source = "globaltimer"
    branches = True

    def __init__(self, kernels: TimestampKernels, capacity: int) -> None:
        import torch

        self.capacity = capacity
        self.detail = kernels.detail
        self._kernels = kernels
        self._stride = capacity + 1
        self._cells = torch.zeros(capacity, dtype=torch.int64, device="cuda")
        self._counter = torch.zeros(1, dtype=torch.int64, device="cuda")
        self._slots = torch.zeros(KEPT * self._stride, dtype=torch.int64).pin_memory()
        self._read: np.ndarray = self._slots.numpy().reshape(KEPT, self._stride)
        self._replays = 0
        # High priority: if the next kernel fills the GPU, the timestamp must not wait until one of its blocks ends.
        stream_class: Any = torch.cuda.Stream
        self._branch = stream_class(priority=-1)
        self._branched = False
        self._torch = torch
        self._probe()

    def _probe(self) -> None:
        """Launch both kernels once, so that a kernel that cannot be launched raises here and not during a capture."""
        import torch

        for at in range(2):
            self.timestamp(at)
        self.publish(2)
        torch.cuda.synchronize()  # the server is still starting
        seconds = self.intervals(self.launched(), 2)[0]
        if not 0 <= seconds < 1.0:
            raise RuntimeError(f"two timestamps in a row are {seconds} s apart")

    def timestamp(self, at: int, chained: bool = False) -> None:
        if at == 0:
            # Not on the branch: there it would run before the first kernel can start.
            self._branched = False
        if at == 0 or chained:
            self.join()
            self._kernels.timestamp(self._cells, at)
            return
        self._branched = True
        self._branch.wait_stream(self._torch.cuda.current_stream())
        with self._torch.cuda.stream(self._branch):
            self._kernels.timestamp(self._cells, at)

    def join(self) -> None:
        if self._branched:  # a capture must not wait for a stream that does not belong to it
            self._torch.cuda.current_stream().wait_stream(self._branch)
            self._branched = False

    def publish(self, count: int) -> None:
        self.join()
        self._kernels.publish(self._cells, self._slots, self._counter, count, self._stride)

    def launched(self) -> int:
        self._replays += 1
        return self._replays - 1

    def intervals(self, replay: int, count: int) -> np.ndarray:
        return slot_intervals(self._read[replay % KEPT], replay, count)


def slot_intervals(slot: np.ndarray, replay: int, count: int) -> np.ndarray:
    """Return the seconds between the ``count`` timestamps in a slot; float64, shape (count - 1,).

    ``slot``: int64; the number of the replay that filled it, plus 1, then timestamps in nanoseconds. Raises Overwritten, and
    RuntimeError if replay ``replay`` has not filled it.
    """
    filled = int(slot[0])
    if filled > replay + 1:
        raise Overwritten(replay)
    if filled < replay + 1:
        raise RuntimeError(f"replay {replay} left no timestamps: its slot holds replay {filled - 1}")
    times = slot[1 : count + 1].copy()
    if int(slot[0]) != filled:  # overwritten while it was read
        raise Overwritten(replay)
    seconds: np.ndarray = np.diff(times) * 1e-9
    return seconds


class EventTimestamps:
    """Timestamps by event-record nodes on the chain, where no kernel can be loaded.

    Each node takes about 3 µs, and there is one set of events, which every replay overwrites.
    """

    source = "event_node"
    detail = "torch"
    branches = False

    def __init__(self, capacity: int) -> None:
        import torch

        self.capacity = capacity
        event_class: Any = torch.cuda.Event
        self._events = [event_class(enable_timing=True, external=True) for _ in range(capacity)]
        for event in self._events:
            event.record()  # torch creates the event with its first record; that must not happen during a capture
        self._replays = 0

    def timestamp(self, at: int, chained: bool = False) -> None:
        self._events[at].record()

    def join(self) -> None:
        """Do nothing: events are recorded on the stream itself."""

    def publish(self, count: int) -> None:
        """Do nothing: the events stay where they are."""

    def launched(self) -> int:
        self._replays += 1
        return self._replays - 1

    def intervals(self, replay: int, count: int) -> np.ndarray:
        if replay != self._replays - 1:
            raise Overwritten(replay)
        events = self._events[:count]
        return np.array([a.elapsed_time(b) for a, b in zip(events, events[1:])], dtype=np.float64) * 1e-3


class _RawStream:
    """Stream by its address, in CuPy's protocol for foreign streams."""

    def __init__(self, address: int) -> None:
        self._address = address

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._address


class CupyKernels:
    """Kernels from :data:`PTX`, loaded and launched through CuPy."""

    detail = "ptx through cupy"

    def __init__(self) -> None:
        import cupy
        import torch

        self._torch = torch
        from_external: Any = getattr(cupy.cuda.Stream, "from_external", None)
        if from_external is not None:  # CuPy 14
            self._stream: Any = lambda address: from_external(_RawStream(address))
        else:
            self._stream = cupy.cuda.ExternalStream
        module = cupy.RawModule(path=str(PTX))
        self._timestamp = module.get_function("lightllm_otel_stamp")
        self._publish = module.get_function("lightllm_otel_publish")

    def timestamp(self, cells: Any, at: int) -> None:
        with self._stream(self._torch.cuda.current_stream().cuda_stream):
            self._timestamp((1,), (1,), (np.uint64(cells.data_ptr() + 8 * at),))

    def publish(self, cells: Any, slots: Any, counter: Any, count: int, stride: int) -> None:
        pointers = (tensor.data_ptr() for tensor in (cells, slots, counter))
        arguments = tuple(np.uint64(number) for number in (*pointers, count, stride, KEPT))
        with self._stream(self._torch.cuda.current_stream().cuda_stream):
            self._publish((1,), (PUBLISH_THREADS,), arguments)


def choose_timestamps(capacity: int) -> Timestamps | None:
    """Return the cheapest timestamps that work in this process; None, after one log line, if none do.

    Call it on the thread and device of the model.
    """
    reasons = []
    for name, make in _WAYS:
        try:
            chosen: Timestamps = make(capacity)
            return chosen
        except Exception as reason:  # noqa: BLE001 - the next way may work, whatever the reason is
            reasons.append(f"{name}: {type(reason).__name__}: {reason}")
    log.warning("operators inside CUDA graphs cannot be timed here, their steps are (%s)", "; ".join(reasons))
    return None


def _triton(capacity: int) -> Timestamps:
    from lightllm_otel.worker.gpu.timestamp_triton import TritonKernels

    return KernelTimestamps(TritonKernels(), capacity)


_WAYS: tuple[tuple[str, Any], ...] = (
    ("PTX through CuPy", lambda capacity: KernelTimestamps(CupyKernels(), capacity)),
    ("Triton", _triton),
    ("event nodes", EventTimestamps),
)
