"""Fakes for tests of the model process: a clock that a test moves, a sink that keeps steps, timestamps, graphs, a session."""

from __future__ import annotations

import hooks
import numpy as np
from fake_host import Tensor

from lightllm_otel.contracts.fits import Fits
from lightllm_otel.contracts.patch_set import PatchSet
from lightllm_otel.contracts.table import HOOKS
from lightllm_otel.guard import Guard
from lightllm_otel.otel_environment import OtelEnvironment
from lightllm_otel.records import layout, progress
from lightllm_otel.records.control import Listener, Order
from lightllm_otel.records.vocabulary import Operator, Phase
from lightllm_otel.settings import Settings
from lightllm_otel.worker.gpu.agreement import Ballot
from lightllm_otel.worker.gpu.calibration import Calibration
from lightllm_otel.worker.gpu.clock import HostClock
from lightllm_otel.worker.gpu.graphs import tensors_in
from lightllm_otel.worker.gpu.timer import Timer
from lightllm_otel.worker.gpu.timestamp_kernels import KEPT, Overwritten
from lightllm_otel.worker.host import operators
from lightllm_otel.worker.host.instrumented_graphs import InstrumentedGraphs
from lightllm_otel.worker.host.slots import GROUP_LEAVES, TORCH_LEAVES
from lightllm_otel.worker.session import ServerSession


class ManualClock(HostClock):
    """Clock whose time is ``now[0]``. ``frontier``: later recordings are not done yet, as on a GPU that lags behind."""

    source = "manual"
    finished = True

    def __init__(self, now: list[float]) -> None:
        super().__init__(lambda: now[0])
        self.frontier = float("inf")
        self.fails = False
        self.gpu = None

    def record(self, handle, stream):
        if self.fails:
            raise RuntimeError("cudaErrorIllegalAddress")
        if self.gpu is not None:
            self.gpu.ask()
        super().record(handle, stream)

    def done(self, handle):
        if self.gpu is not None:
            self.gpu.ask()
        return handle[0] < self.frontier


class GpuLikeClock(ManualClock):
    """Clock of a GPU behind the host: a recording is not done when the next one is recorded, until it has ``caught_up``."""

    def __init__(self, now: list[float]) -> None:
        super().__init__(now)
        self.caught_up = False

    def done(self, handle):
        return self.caught_up


class StreamClock(ManualClock):
    """Clock of a GPU that runs beside the host: a recording has its stream's time, and is done when the host is there."""

    def __init__(self, gpu) -> None:
        super().__init__(gpu.now)
        self.gpu = gpu

    def stream(self):
        return self.gpu.current_stream()

    def record(self, handle, stream):
        super().record(handle, stream)
        handle[0] = self.gpu.time(stream)

    def done(self, handle):
        self.gpu.ask()
        return handle[0] <= self.gpu.now[0]


class Kept:
    """Sink that keeps all steps."""

    fits = 4096

    def __init__(self) -> None:
        self.steps: list[tuple[np.void, np.ndarray]] = []
        self.dropped: list[int] = []
        self.step_only: list[int] = []
        self.oldest_unread = 0.0
        self.in_flight = None
        self.progress = [0] * progress.WORDS
        self.header = np.zeros(1, layout.HEADER)
        self.facts = {}

    def describe(self, facts):
        self.facts = facts

    def write(self, step, intervals):
        self.steps.append((np.frombuffer(step, layout.STEP)[0], intervals))

    def enter(self, number, phase, wall_time):
        self.in_flight = number

    def leave(self):
        self.in_flight = None

    def count(self, dropped, step_only, sampled, hook_seconds, oldest_unread):
        self.dropped, self.step_only, self.oldest_unread = list(dropped), list(step_only), oldest_unread

    def seconds(self, index=-1):
        """Return {operator: [seconds of each call]} of one step."""
        table: dict[str, list[float]] = {}
        for interval in self.steps[index][1]:
            table.setdefault(Operator.of(int(interval["operator"])).value, []).append(float(interval["seconds"]))
        return table

    def phases(self):
        return [Phase.of(int(step["phase"])).value for step, _ in self.steps]


class FakeTimestamps:
    """Timestamps on the fake GPU: cells, a rotating slot for each replay, a counter that the graph advances.

    ``chained``: for each timestamp of the graph that was captured last, whether it is on the chain.
    """

    source, detail, branches = "fake", "fake", True

    def __init__(self, gpu, capacity=4096, cost=0.0):
        self.capacity, self._gpu, self.cost = capacity, gpu, cost
        self._cells = [0.0] * capacity
        self._slots = [(0, []) for _ in range(KEPT)]
        self._replays = self._launched = 0
        self.fails = False
        self.joined = 0
        self.chained = []

    def timestamp(self, at, chained=False):
        if self.fails:
            raise RuntimeError("cudaErrorStreamCaptureUnsupported")
        self.chained = [*self.chained, chained] if at else [chained]

        def kernel():
            self._gpu.spend(self.cost, "timestamp")
            self._cells[at] = self._gpu.time()

        self._gpu.launch(kernel)

    def join(self):
        self.joined += 1

    def publish(self, count):
        def kernel():
            self._slots[self._replays % KEPT] = (self._replays + 1, self._cells[:count])
            self._replays += 1

        self._gpu.launch(kernel)

    def launched(self):
        self._launched += 1
        return self._launched - 1

    def intervals(self, replay, count):
        filled, times = self._slots[replay % KEPT]
        if filled > replay + 1:
            raise Overwritten(replay)
        if filled < replay + 1:
            raise RuntimeError(f"replay {replay} left no timestamps")
        return np.diff(np.array(times[:count]))


class FakeGraphs:
    """Graphs of the fake GPU. ``free``: free bytes. ``fails``: a capture runs out of memory. ``edges``: counts dependencies."""

    def __init__(self, gpu):
        self._gpu = gpu
        self.free, self.fails, self.made, self.released = 80 << 30, False, [], 0
        self.edges = lambda: 0

    def programmatic_edges(self):
        return self.edges()

    def capture(self, pool, body):
        if self.fails:
            raise MemoryError("CUDA out of memory")
        self.made.append(self._gpu.capture(pool, body))
        return self.made[-1]

    def copy_of(self, outputs):
        return [tensor.value for tensor in tensors_in(outputs)]

    def same(self, left, right):
        return left == right

    def spoil(self, outputs):
        for tensor in tensors_in(outputs):
            tensor.value = "spoilt"

    def like(self, outputs):
        return [Tensor(*tensor.shape) for tensor in tensors_in(outputs)]

    def deliver(self, made, wanted):
        pairs = [(source.place, target.place) for source, target in zip(tensors_in(made), tensors_in(wanted))]
        pairs = [(source, target) for source, target in pairs if source is not target]

        def kernel():
            for source, target in pairs:
                target.value = source.value

        if pairs:
            self._gpu.launch(kernel)
        return bool(pairs)

    def free_bytes(self):
        return self.free

    def wait(self):
        pass

    def release(self):
        self.released += 1

    def seconds(self, graph):
        began = self._gpu.time()
        graph.replay()
        return self._gpu.time() - began


class GivenOrders(Listener):
    """Follows ``session.orders``, a list of (forward, level, every), as if the first rank had ordered them."""

    def __init__(self, session):
        self._session = session
        super().__init__(None, None)

    @property
    def waiting(self):
        return self._session.orders or None

    @waiting.setter
    def waiting(self, order):
        """Only :attr:`FakeSession.orders` says what waits."""

    def due(self, number):
        orders = self._session.orders
        if not orders or number < orders[0][0]:
            return None
        at, level, every = orders.pop(0)
        return Order(1, level, every, at)


class FakeSession(ServerSession):
    """The session of a model process, on one fake host. Only what needs a GPU, a folder or other processes is another."""

    def __init__(self, host, every=1, strict=True, clock=None, operators_too=True, boundaries=512, environ=None,
                 ballot=None, timestamp_cost=0.0, rows=HOOKS):  # fmt: skip
        given = {
            "LIGHTLLM_OTEL_SAMPLE_EVERY": str(every),
            **({} if operators_too else {"LIGHTLLM_OTEL_LEVEL": "steps"}),
        }
        settings = Settings.from_env({"LIGHTLLM_OTEL": "1", **given, **(environ or {})})
        assert not settings.problems
        super().__init__(settings, Guard(strict=strict), PatchSet(), PatchSet())
        self.otel_environment = OtelEnvironment.from_env({})
        self.fits = Fits(rows)
        self.clock = clock or ManualClock(host.now)
        self.clock.gpu = host.gpu
        self.kept = Kept()
        self.graphs = FakeGraphs(host.gpu)
        self.timestamps = FakeTimestamps(host.gpu, boundaries, timestamp_cost)
        self.housekept = 0
        self.orders = []
        self._host, self._boundaries, self._environ = host, boundaries, environ or {}
        self.choose_timestamps = lambda capacity: self.timestamps
        self.ballot = ballot or (lambda: Ballot(None, 0, 1))

    def patch(self):
        hooks.install(self._host, self, self.fits.hooks)
        return self

    def undo(self):
        for patch_set in (self.operator_patches, self.live, self.patch_set):
            patch_set.undo()

    @property
    def model(self):
        return self._model() if self._model is not None else None

    @property
    def slots(self):
        return self._slots

    def housekeep(self):
        self.housekept += 1
        super().housekeep()

    # In place of a GPU, a folder and other processes

    def _choose_clock(self):
        return self.clock

    def _calibrate(self, clock):
        return Calibration()

    def _make_ring(self, identity):
        return self.kept

    def _make_timer(self, clock, ring, operators_too, boundaries):
        return Timer(
            clock, ring, operators=operators_too, boundaries=self._boundaries,
            wall_clock=lambda: 1e9 + self._host.now[0], cpu_clock=lambda: 0.0,
        )  # fmt: skip

    def _make_instrumented_graphs(self, timer):
        return InstrumentedGraphs(
            timer, self.guard, self.settings, self.graphs, self.choose_timestamps, self.ballot, self._environ
        )

    def _install_collectives(self, timer):
        transport = operators.Transport(lambda: "nccl")
        arguments = (timer, self.operator_patches, self.guard, transport)
        operators.install_collectives(self._host.dist, TORCH_LEAVES, *arguments)
        operators.install_collectives(self.group_class, GROUP_LEAVES, *arguments)

    def _listen_to(self, identity, forwards):
        return GivenOrders(self)
