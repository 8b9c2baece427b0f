"""CUDA graphs of torch, reduced to the calls that capturing and checking an instrumented graph needs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

from lightllm_otel.worker.gpu.events import occupy
from lightllm_otel.worker.gpu.programmatic_edges import ProgrammaticEdges

# Longer than the launch of any graph. Otherwise the GPU waits for the launch, and longer if the graph has branches.
LAUNCH_SECONDS = 1e-3


class Graphs(Protocol):
    """Graph operations for the start of the server. In a step, only ``Graph.replay`` is called."""

    def capture(self, pool: Any, body: Callable[[], Any]) -> Any:
        """Return a graph (with ``replay()``) of what ``body`` launches, in the memory pool ``pool``. Raises what body raises."""

    def copy_of(self, outputs: Any) -> Any:
        """Wait for the GPU, and return a copy of the tensors in ``outputs``."""

    def same(self, left: Any, right: Any) -> bool:
        """Tell whether two copies are equal bit by bit."""

    def spoil(self, outputs: Any) -> None:
        """Overwrite the tensors in ``outputs``, so that they are correct only if a graph writes them again."""

    def deliver(self, made: Any, wanted: Any) -> bool:
        """Copy the outputs ``made`` to the memory of ``wanted`` while capturing; return False if they are there already."""

    def like(self, outputs: Any) -> Any:
        """Return new tensors like those in ``outputs``."""

    def seconds(self, graph: Any) -> float:
        """Replay the graph, wait for it, and return its GPU time in seconds, without the time of its launch."""

    def programmatic_edges(self) -> int:
        """Return the programmatic dependencies so far in the graph that is being captured; -1 where they are unknown."""

    def free_bytes(self) -> int:
        """Return the free memory of the GPU in bytes."""

    def wait(self) -> None:
        """Wait until the GPU is idle."""

    def release(self) -> None:
        """Return unused memory to the GPU."""


class TorchGraphs:
    """CUDA graphs of torch; see :class:`Graphs`."""

    def __init__(self) -> None:
        self._edges: ProgrammaticEdges | None = None
        with contextlib.suppress(OSError, AttributeError):  # the driver is missing or older than CUDA 12.3
            self._edges = ProgrammaticEdges()

    def capture(self, pool: Any, body: Callable[[], Any]) -> Any:
        import torch

        pool = torch.cuda.graph_pool_handle() if pool is None else pool
        graph, failure = torch.cuda.CUDAGraph(), None
        try:
            with torch.cuda.graph(graph, pool=pool):
                try:
                    body()
                except Exception as error:  # noqa: BLE001 - raised again below, after the capture has ended properly
                    failure = error
        except Exception:
            # Without this, torch still captures into the pool, and the host's next capture would be refused.
            _end_allocation(pool)
            raise
        if failure is not None:
            raise failure
        return graph

    def copy_of(self, outputs: Any) -> list[Any]:
        import torch

        torch.cuda.synchronize()
        return [tensor.detach().to("cpu", copy=True) for tensor in tensors_in(outputs)]

    def same(self, left: Any, right: Any) -> bool:
        import torch

        def bits(tensor: Any) -> Any:
            return tensor.contiguous().view(-1).view(torch.uint8)  # compared as bytes, NaN equals itself

        return len(left) == len(right) > 0 and all(torch.equal(bits(a), bits(b)) for a, b in zip(left, right))

    def spoil(self, outputs: Any) -> None:
        for tensor in tensors_in(outputs):
            tensor.fill_(-1)

    def like(self, outputs: Any) -> list[Any]:
        import torch

        return [torch.empty_like(tensor) for tensor in tensors_in(outputs)]

    def deliver(self, made: Any, wanted: Any) -> bool:
        # LightLLM has one output buffer for all graphs. Without its tensor cache, each graph has its own.
        pairs = [(source, target) for source, target in zip(tensors_in(made), tensors_in(wanted))
                 if source.data_ptr() != target.data_ptr()]  # fmt: skip
        for source, target in pairs:
            target.copy_(_apart(source, target))
        return bool(pairs)

    def seconds(self, graph: Any) -> float:
        import torch

        event_class: Any = torch.cuda.Event
        before, after = event_class(enable_timing=True), event_class(enable_timing=True)
        with contextlib.suppress(
            AttributeError
        ):  # a private function of torch's; without it the launch is timed as well
            occupy(LAUNCH_SECONDS)
        before.record()
        graph.replay()
        after.record()
        after.synchronize()
        return float(before.elapsed_time(after)) * 1e-3

    def programmatic_edges(self) -> int:
        import torch

        return -1 if self._edges is None else self._edges.count(torch.cuda.current_stream().cuda_stream)

    def free_bytes(self) -> int:
        import torch

        return int(torch.cuda.mem_get_info()[0])

    def wait(self) -> None:
        import torch

        torch.cuda.synchronize()

    def release(self) -> None:
        import torch

        torch.cuda.empty_cache()


def _apart(source: Any, target: Any) -> Any:
    """Return ``source``, or a copy of it whose memory does not overlap with that of ``target``.

    Since December 2025 LightLLM keeps outputs without owning their memory, so the allocator may reuse it for our outputs. A
    kernel that copies between overlapping places would read what it has just written. Of three live blocks, at least one does
    not overlap.
    """
    copies = [source]
    while _overlap(copies[-1], target) and len(copies) < 3:
        copies.append(source.clone())
    return copies[-1]


def _overlap(one: Any, other: Any) -> bool:
    first, second = _extent(one), _extent(other)
    return first[0] < second[1] and second[0] < first[1]


def _extent(tensor: Any) -> tuple[int, int]:
    """Return the first address of a tensor, and the first address after it."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    begin = tensor.data_ptr()
    return begin, begin + (last + 1) * tensor.element_size()


def _end_allocation(pool: Any) -> None:
    import torch

    # Older versions of torch have the second name.
    for name in ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"):
        end: Any = getattr(torch._C, name, None)
        if end is not None:
            with contextlib.suppress(Exception):  # the allocation has already ended
                end(torch.cuda.current_device(), pool)
            return


def tensors_in(outputs: Any) -> list[Any]:
    """Return the tensors of a model's output: the output itself, or those among its attributes or items."""
    if hasattr(outputs, "data_ptr"):
        return [outputs]
    parts = outputs if isinstance(outputs, (list, tuple)) else list(vars(outputs).values())
    return [tensor for part in parts if part is not None and _may_hold(part) for tensor in tensors_in(part)]


def _may_hold(part: Any) -> bool:
    return hasattr(part, "data_ptr") or isinstance(part, (list, tuple))
