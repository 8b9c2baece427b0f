"""CUDA graphs where there is no CUDA: what is launched while a graph is captured is recorded, and a replay launches it again.

A graph contains operators of torch, Triton kernels, collectives and what calls :func:`launch`, each with the very tensors
and numbers that it was captured with. Python does not run in a replay, so a graph behaves as on a GPU: it sees a new
input only where somebody copied it into a captured tensor, and a kernel that was not launched during the capture is not in
it. Two things differ: a capture also executes what it records, and no memory of a pool is used twice.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

# An operator that only allocates leaves nothing behind that a replay could repeat.
ALLOCATIONS = ("aten::empty", "aten::new_empty")
# An operator whose result goes to the host: CUDA refuses it in a capture.
TO_THE_HOST = ("aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::is_nonzero")


class _Capture(threading.local):
    """The graph that this thread captures, and whether what it launches is part of something that is recorded already."""

    graph: CUDAGraph | None = None
    inside = False


_capture = _Capture()


def is_capturing() -> bool:
    return _capture.graph is not None


def launch(function: Callable[[], Any], name: str = "") -> None:
    """Call ``function``, now and in every replay of the graph that this thread captures."""
    record(function, name or getattr(function, "__qualname__", "function"))
    with _recorded():
        function()


def record(again: Callable[[], Any], name: str) -> None:
    if _capture.graph is not None and not _capture.inside:
        _capture.graph.launches.append((name, again))


@contextlib.contextmanager
def _recorded() -> Iterator[None]:
    """Make all that is launched in this block part of one record."""
    before, _capture.inside = _capture.inside, True
    try:
        yield
    finally:
        _capture.inside = before


class CUDAGraph:
    """``launches``: the name of everything in the graph, and the function that does it again."""

    def __init__(self, keep_graph: bool = False) -> None:
        self.launches: list[tuple[str, Callable[[], Any]]] = []

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        if is_capturing():
            raise RuntimeError("this thread is capturing a graph already")
        self.launches = []
        _capture.graph = self

    def capture_end(self) -> None:
        _capture.graph = None

    def replay(self) -> None:
        if is_capturing():
            raise RuntimeError("a graph cannot be replayed during a capture")
        import torch

        with torch.no_grad():
            for _, again in self.launches:
                again()

    def reset(self) -> None:
        self.launches = []

    def pool(self) -> tuple[int, int]:
        return (0, 0)


def _recorder_class() -> Any:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Recorder(TorchDispatchMode):  # type: ignore[misc]
        """Record every operator of torch, below autograd and in the form in which it is executed."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if _capture.inside or not is_capturing():
                return func(*args, **kwargs)
            if func.name().partition(".")[0] in TO_THE_HOST:
                raise RuntimeError(f"operation not permitted when stream is capturing: {func.name()}")
            with _recorded():
                result = func(*args, **kwargs)
            again = _again(func, args, kwargs, result)
            if again is not None:
                record(again, func.name())
            return result

    return Recorder


def _again(func: Any, args: Any, kwargs: Any, result: Any) -> Callable[[], Any] | None:
    """The function that does once more what ``func`` did; None when there is nothing to do."""
    name, schema = func.name(), func._schema
    if name.startswith("c10d::"):
        return lambda: _wait(func(*args, **kwargs))
    if any(argument.alias_info is not None and argument.alias_info.is_write for argument in schema.arguments):
        return lambda: func(*args, **kwargs)
    is_view = any(returned.alias_info is not None for returned in schema.returns)
    if is_view or name.startswith(ALLOCATIONS):
        return None
    from torch.utils._pytree import tree_leaves

    places = tree_leaves(result)

    def compute() -> None:
        for place, value in zip(places, tree_leaves(func(*args, **kwargs))):
            if hasattr(place, "copy_"):
                place.copy_(value)

    return compute


def _wait(result: Any) -> None:
    """Until a collective is done."""
    import torch.distributed as dist

    for each in result if isinstance(result, (tuple, list)) else [result]:
        if type(each).__name__ == "ScriptObject":
            dist.Work.unbox(each).wait()


def _graph_class(cuda: Any) -> Any:
    recorder_class = _recorder_class()

    class graph:
        """``with torch.cuda.graph(graph, pool=…)``: a capture on a stream of its own."""

        def __init__(
            self, cuda_graph: CUDAGraph, pool: Any = None, stream: Any = None, capture_error_mode: str = "global"
        ) -> None:
            self.cuda_graph = cuda_graph
            self._pool = pool
            self._stream = cuda.stream(stream or cuda.Stream())
            self._recorder = recorder_class()

        def __enter__(self) -> None:
            self._stream.__enter__()
            self.cuda_graph.capture_begin(self._pool)
            self._recorder.__enter__()

        def __exit__(self, *exception: Any) -> None:
            self._recorder.__exit__(*exception)
            self.cuda_graph.capture_end()
            self._stream.__exit__(*exception)

    return graph


def install(cuda: Any) -> None:
    cuda.CUDAGraph = CUDAGraph
    cuda.graph = _graph_class(cuda)
    cuda.is_current_stream_capturing = is_capturing
    cuda.graph_pool_handle = lambda: (0, 0)


def record_triton(interpreter: Any) -> None:
    """Triton's interpreter runs a kernel by calling a ``GridExecutor``; torch sees only what happens inside.

    One at a time: the interpreter keeps the program that it is in for the whole process, and LightLLM launches from two threads.
    """
    execute = interpreter.GridExecutor.__call__
    alone = threading.Lock()

    def recorded(self: Any, *args: Any, **kwargs: Any) -> None:
        def run() -> None:
            with alone:
                execute(self, *args, **kwargs)

        launch(run, getattr(self.fn, "__name__", "kernel"))

    interpreter.GridExecutor.__call__ = recorded
