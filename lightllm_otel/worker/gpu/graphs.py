"""CUDA graphs as torch makes them, behind the few calls that capturing and checking an instrumented graph needs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

from lightllm_otel.worker.gpu.events import occupy
from lightllm_otel.worker.gpu.programmatic_edges import ProgrammaticEdges

# Longer than the launch of any graph. Else the GPU waits for it, and longer for that of a graph with branches.
LAUNCH_SECONDS = 1e-3


class Graphs(Protocol):
    """For the time in which the server starts; nothing here is called in a step but ``Graph.replay``."""

    def capture(self, pool: Any, body: Callable[[], Any]) -> Any:
        """A graph (with ``replay()``) of what ``body`` launches, in the memory pool ``pool``. Raises what body raises."""

    def copy_of(self, outputs: Any) -> Any:
        """A copy of the tensors in ``outputs``, once the GPU has computed them."""

    def same(self, left: Any, right: Any) -> bool:
        """Whether two copies are equal bit by bit."""

    def spoil(self, outputs: Any) -> None:
        """Overwrite the tensors in ``outputs``, so that only a graph that writes them again can make them right."""

    def deliver(self, made: Any, wanted: Any) -> bool:
        """While capturing: copy the outputs ``made`` to where ``wanted`` has them; False if they are there already."""

    def like(self, outputs: Any) -> Any:
        """New tensors like those in ``outputs``."""

    def seconds(self, graph: Any) -> float:
        """How long the GPU takes for a replay, which is waited for. It does not wait for the launch meanwhile."""

    def programmatic_edges(self) -> int:
        """How many programmatic dependencies the graph has that is being captured, so far; -1 where it cannot be told."""

    def free_bytes(self) -> int:
        """Free memory of the GPU."""

    def wait(self) -> None:
        """Until the GPU is done."""

    def release(self) -> None:
        """Give memory that nothing holds any more back to the GPU."""


class TorchGraphs:
    def __init__(self) -> None:
        self._edges: ProgrammaticEdges | None = None
        with contextlib.suppress(OSError, AttributeError):  # no driver, or one before CUDA 12.3
            self._edges = ProgrammaticEdges()

    def capture(self, pool: Any, body: Callable[[], Any]) -> Any:
        import torch

        pool = torch.cuda.graph_pool_handle() if pool is None else pool
        graph, failure = torch.cuda.CUDAGraph(), None
        try:
            with torch.cuda.graph(graph, pool=pool):
                try:
                    body()
                except Exception as error:  # noqa: BLE001 - raised again below, when the capture has ended as it should
                    failure = error
        except Exception:
            # torch goes on believing that it captures into this pool, and the host's next capture would be refused.
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
            return tensor.contiguous().view(-1).view(torch.uint8)  # NaN is equal to itself here

        return len(left) == len(right) > 0 and all(torch.equal(bits(a), bits(b)) for a, b in zip(left, right))

    def spoil(self, outputs: Any) -> None:
        for tensor in tensors_in(outputs):
            tensor.fill_(-1)

    def like(self, outputs: Any) -> list[Any]:
        import torch

        return [torch.empty_like(tensor) for tensor in tensors_in(outputs)]

    def deliver(self, made: Any, wanted: Any) -> bool:
        # LightLLM keeps one output buffer for all graphs, unless its tensor cache is off: then each graph has its own.
        pairs = [(source, target) for source, target in zip(tensors_in(made), tensors_in(wanted))
                 if source.data_ptr() != target.data_ptr()]  # fmt: skip
        for source, target in pairs:
            target.copy_(_apart(source, target))
        return bool(pairs)

    def seconds(self, graph: Any) -> float:
        import torch

        event_class: Any = torch.cuda.Event
        before, after = event_class(enable_timing=True), event_class(enable_timing=True)
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

    Since December 2025 LightLLM keeps outputs without owning their memory, so the allocator may give it to ours; a kernel that
    copied between two places that overlap would read what it has just written. Of three live blocks at least one is apart.
    """
    copies = [source]
    while _overlap(copies[-1], target) and len(copies) < 3:
        copies.append(source.clone())
    return copies[-1]


def _overlap(one: Any, other: Any) -> bool:
    first, second = _extent(one), _extent(other)
    return first[0] < second[1] and second[0] < first[1]


def _extent(tensor: Any) -> tuple[int, int]:
    """First address of a tensor, and the first one behind it."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    begin = tensor.data_ptr()
    return begin, begin + (last + 1) * tensor.element_size()


def _end_allocation(pool: Any) -> None:
    import torch

    for name in ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"):  # the second in older versions
        end: Any = getattr(torch._C, name, None)
        if end is not None:
            with contextlib.suppress(Exception):  # it had ended already
                end(torch.cuda.current_device(), pool)
            return


def tensors_in(outputs: Any) -> list[Any]:
    """The tensors of a model's output: the output itself, or those among its attributes or items."""
    if hasattr(outputs, "data_ptr"):
        return [outputs]
    parts = outputs if isinstance(outputs, (list, tuple)) else list(vars(outputs).values())
    return [tensor for part in parts if part is not None and _may_hold(part) for tensor in tensors_in(part)]


def _may_hold(part: Any) -> bool:
    return hasattr(part, "data_ptr") or isinstance(part, (list, tuple))
