"""A GPU for the fake hosts: memory, streams, events and CUDA graphs, on a manual clock.

Kernels are functions. A kernel that is launched while a graph is captured becomes a node of the graph, else it runs at
once. Facts of a real GPU that decide how an instrumented graph must be made:

* A node keeps the memory that it was captured with, not the tensor (``place``): a tensor can be bound to other memory
  later (``tensor.data = other``), and the graph goes on with the old memory.
* Memory of a tensor that is allocated in a capture belongs to the graph's pool. It goes back to the pool when the tensor
  dies, also when a graph still writes there. A later capture can get it (``without_reference``).
* Nothing may be asked of the GPU while a stream captures.
* Reading a tensor of the GPU makes the host wait; ``waits`` counts how often.
"""

from __future__ import annotations

import collections
import contextlib
import threading

# Seconds that each kernel of a fake host takes; powers of two, so that sums are exact in floating point.
COST = {
    "embedding": 2**-10,
    "att_norm": 2**-12,
    "qkv": 2**-9,
    "kv": 2**-13,
    "attention": 2**-8,
    "o": 2**-11,
    "add": 2**-14,
    "ffn_norm": 2**-12,
    "ffn": 2**-7,
    "lm_head": 2**-9,
    "all_reduce": 2**-6,
    "all_gather": 2**-6,
    "gather_into": 2**-4,
    "reduce_scatter": 2**-3,
    "pad_copy": 2**-15,
    "sample": 2**-10,
    "between": 2**-5,
    # Today's host only.
    "broadcast": 2**-13,
    "all_to_all": 2**-3,
    "to_gpu": 2**-17,
    "to_cpu": 2**-17,
    "copy": 2**-16,
    "pad": 2**-17,
    "gather_token": 2**-16,
    "scatter_token": 2**-15,
    "count_tokens": 2**-16,
    "index": 2**-16,
    "block_seq": 2**-15,
    "linear_in_proj": 2**-9,
    "linear_attention": 2**-8,
    "linear_post": 2**-11,
    "verify": 2**-14,
    "argmax": 2**-15,
    "ranks": 2**-14,
}
CODES = {name: number for number, name in enumerate(COST)}


class CaptureBroken(RuntimeError):
    """cudaErrorStreamCaptureInvalidated: something was asked of the GPU while a stream was capturing."""


class Place:
    """Memory of one tensor."""

    _next = 0

    def __init__(self, value=None) -> None:
        self.value = value
        Place._next += 1024
        self.address = Place._next


class Rows:
    """A part of the memory of a tensor, by rows."""

    def __init__(self, place, rows) -> None:
        self._place, self._rows = place, rows
        self.address = place.address + (rows.start or 0)

    @property
    def value(self):
        return self._place.value[self._rows]

    @value.setter
    def value(self, new) -> None:
        whole = list(self._place.value)
        whole[self._rows] = new
        self._place.value = tuple(whole)


class Pool:
    """Memory of CUDA graphs: what captures have allocated and nobody holds any more."""

    def __init__(self) -> None:
        self.free: list[Place] = []
        self.places = 0

    def take(self) -> Place:
        if self.free:
            return self.free.pop()
        self.places += 1
        return Place()


class _Storage:
    """Holds memory for as long as a tensor has it."""

    def __init__(self, place, pool=None) -> None:
        self.place, self._pool = place, pool

    def __del__(self) -> None:
        if self._pool is not None:
            self._pool.free.append(self.place)


class Tensor:
    """A shape, and a value that kernels read and write: for today's host a tuple with an item for each row.

    ``gpu``: where the tensor lies; None for the CPU, and for tensors of the host of 2025, which does not ask.
    """

    def __init__(self, *shape: int, value=None, gpu=None, storage=None) -> None:
        self.shape, self.gpu = shape, gpu
        self.storage = storage or _Storage(*(gpu.memory() if gpu is not None else (Place(),)))
        if value is not None:
            self.value = value

    @property
    def place(self):
        return self.storage.place

    @property
    def value(self):
        """For tests and kernels; a host asks with ``tolist`` or ``item``."""
        return self.place.value

    @value.setter
    def value(self, new) -> None:
        self.place.value = new

    @property
    def data(self):
        return self

    @data.setter
    def data(self, other) -> None:
        """Bind this tensor to the memory of ``other``."""
        self.storage, self.shape = other.storage, other.shape

    @property
    def is_cuda(self) -> bool:
        return self.gpu is not None

    def data_ptr(self) -> int:
        return self.place.address

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows):
        rows = slice(*rows.indices(self.shape[0])) if isinstance(rows, slice) else slice(rows, rows + 1)
        view = Tensor(rows.stop - rows.start, *self.shape[1:], gpu=self.gpu, storage=_Storage(Rows(self.place, rows)))
        view.base = self  # as in torch, a view keeps the memory
        return view

    def numel(self) -> int:
        total = 1
        for size in self.shape:
            total *= size
        return total

    def element_size(self) -> int:
        return 2

    def view(self, *shape):
        return self

    def contiguous(self):
        return self

    def detach(self):
        return self

    # The CPU asks ---------------------------------------------------------------------------------------------------

    def tolist(self) -> list:
        if self.gpu is not None:
            self.gpu.wait()
        return list(self.value)

    def item(self):
        (only,) = self.tolist()
        return only

    def cpu(self):
        return Tensor(*self.shape, value=tuple(self.tolist()))

    def sum(self):
        return Tensor(1, value=(sum(self.tolist()),))

    def any(self):
        return Tensor(1, value=(any(self.tolist()),))

    def __int__(self) -> int:
        return int(self.item())

    __index__ = __int__

    def __bool__(self) -> bool:
        return bool(self.item())

    def __iter__(self):
        return iter(self.tolist())

    def clone(self):
        """At the start of a server alone, when nothing else runs."""
        return Tensor(*self.shape, value=self.value, gpu=self.gpu)

    def new_tensor(self, values):
        return Tensor(len(values), value=tuple(values), gpu=self.gpu)

    def new_full(self, shape, value):
        return Tensor(*shape, value=(value,) * shape[0], gpu=self.gpu)

    # Kernels --------------------------------------------------------------------------------------------------------

    def copy_(self, source, non_blocking=False):
        gpu = self.gpu or source.gpu
        gpu.run("copy" if self.gpu and source.gpu else "to_gpu" if self.gpu else "to_cpu", _same, self, source)
        return self

    def fill_(self, value):
        count = self.shape[0]
        self.gpu.run("copy", lambda: (value,) * count, self)
        return self

    def add_(self, other):
        self.gpu.run("add", rowwise("add"), self, self, other)
        return self


def _same(value):
    return value


def blend(name: str, *numbers: int) -> int:
    """A number that depends on all of them and on their order, as a hidden state does on what has been computed."""
    return hash((CODES[name], *numbers)) & 0xFFFFF


def rowwise(name: str, *more: int):
    """A kernel's computation: each row of its output from the same row of every input."""
    return lambda *tables: tuple(blend(name, *more, *row) for row in zip(*tables))


class Stream:
    """``until``: when all that has been launched here is done."""

    def __init__(self, gpu) -> None:
        self._gpu, self.until = gpu, 0.0

    def wait_stream(self, other) -> None:
        self.until = max(self.until, other.until)

    def synchronize(self) -> None:
        self._gpu.wait(self)


class Event:
    def __init__(self, gpu) -> None:
        self._gpu, self.at = gpu, 0.0

    def record(self, stream=None) -> None:
        self._gpu.ask()
        self.at = self._gpu.time(stream)

    def query(self) -> bool:
        self._gpu.ask()
        return self.at <= self._gpu.now[0]

    def synchronize(self) -> None:
        self._gpu.ask()
        self._gpu.waits += 1
        self._gpu.now[0] = max(self._gpu.now[0], self.at)


class Gpu:
    """``now``: the host's clock, a list of one float.

    ``asynchronous``: kernels advance the time of their stream and not the host's, which goes on at once; without it the
    host waits for every kernel, so that one clock is enough.
    """

    def __init__(self, now=None, asynchronous=False) -> None:
        self.now = [0.0] if now is None else now
        self.capturing = None
        self.replayed = []  # every graph that was replayed, in order
        self.ran = collections.Counter()  # kernels that have run, by name
        self.waits = 0
        self.default_stream = Stream(self)
        self._asynchronous = asynchronous
        self._streams = threading.local()

    # Launching ------------------------------------------------------------------------------------------------------

    def launch(self, kernel) -> None:
        if self.capturing is not None:
            self.capturing.nodes.append(kernel)
        else:
            kernel()

    def run(self, name, compute=None, out=None, *inputs) -> None:
        """Launch the kernel ``name``, which writes ``compute(values of inputs)`` to ``out``."""
        target, places = None if out is None else out.place, [each.place for each in inputs]

        def kernel():
            self.spend(COST[name], name)
            if compute is not None:
                target.value = compute(*[place.value for place in places])

        self.launch(kernel)

    def spend(self, seconds, name="") -> None:
        """A kernel runs for so long."""
        self.ran[name] += 1
        if self._asynchronous:
            stream = self.current_stream()
            stream.until = max(stream.until, self.now[0]) + seconds
        else:
            self.now[0] += seconds

    def memory(self):
        """Memory for a new tensor, and the pool that it goes back to."""
        pool = None if self.capturing is None else self.capturing.pool
        return (pool.take(), pool) if isinstance(pool, Pool) else (Place(),)

    # Streams and time -----------------------------------------------------------------------------------------------

    def current_stream(self):
        return getattr(self._streams, "current", None) or self.default_stream

    @contextlib.contextmanager
    def stream(self, stream):
        before = self.current_stream()
        self._streams.current = stream
        try:
            yield
        finally:
            self._streams.current = before

    def time(self, stream=None) -> float:
        """When what has been launched on the stream so far is done."""
        if not self._asynchronous:
            return self.now[0]
        return max((stream or self.current_stream()).until, self.now[0])

    def ask(self) -> None:
        """An event query or record: it would invalidate a capture."""
        if self.capturing is not None:
            raise CaptureBroken("an event was used while a graph was captured")

    def wait(self, stream=None) -> None:
        """The host waits until the stream is done."""
        self.ask()
        self.waits += 1
        self.now[0] = self.time(stream)

    # Graphs ---------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def graph(self, graph, pool=None):
        """As ``torch.cuda.graph``: capture what is launched in this context."""
        if self.capturing is not None:
            raise CaptureBroken("a capture began while another graph was captured")
        graph.pool = pool if pool is not None else graph.pool
        self.capturing = graph
        try:
            yield
        finally:
            self.capturing = None

    def capture(self, pool, body):
        graph = Graph(self, pool)
        with self.graph(graph):
            graph.output = body()
        return graph


class Graph:
    def __init__(self, gpu, pool=None) -> None:
        self.gpu, self.pool, self.nodes, self.output = gpu, pool, [], None

    def replay(self) -> None:
        assert self.gpu.capturing is None
        self.gpu.replayed.append(self)
        for node in self.nodes:
            node()


def without_reference(tensor):
    """A tensor on the same memory that does not keep it: a later capture may get it."""
    return Tensor(*tensor.shape, gpu=tensor.gpu, storage=_Storage(tensor.place))
