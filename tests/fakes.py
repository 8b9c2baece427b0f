"""What tests of the model process's side need: a clock that a test moves, a sink that keeps, a session of its own."""

from __future__ import annotations

import numpy as np

from lightllm_otel.guard import Guard
from lightllm_otel.measure.clock import HostClock
from lightllm_otel.measure.sampling import Sampling
from lightllm_otel.measure.timer import Timer
from lightllm_otel.patch import operators, seams
from lightllm_otel.patch.ledger import Ledger
from lightllm_otel.patch.slots import GROUP_LEAVES, TORCH_LEAVES
from lightllm_otel.vocabulary import Operator, Phase


class ManualClock(HostClock):
    """Time is ``now[0]``. ``frontier``: recordings after it are not done yet, as on a GPU that lags behind."""

    source = "manual"

    def __init__(self, now: list[float]) -> None:
        super().__init__(lambda: now[0])
        self.frontier = float("inf")
        self.fails = False

    def record(self, handle, stream):
        if self.fails:
            raise RuntimeError("cudaErrorIllegalAddress")
        super().record(handle, stream)

    def done(self, handle):
        return handle[0] < self.frontier


class GpuLikeClock(ManualClock):
    """The GPU is behind the host by ``lag`` seconds, so that a boundary is not done when the next one is recorded."""

    def __init__(self, now: list[float]) -> None:
        super().__init__(now)
        self.caught_up = False

    def done(self, handle):
        return self.caught_up


class Kept:
    """A sink that keeps what it is given."""

    fits = 4096

    def __init__(self) -> None:
        self.steps: list[tuple[np.void, np.ndarray]] = []
        self.dropped: list[int] = []
        self.oldest_unread = 0.0
        self.in_flight = None

    def write(self, step, intervals):
        self.steps.append((step[0], intervals))

    def enter(self, number, phase, wall_time):
        self.in_flight = number

    def leave(self):
        self.in_flight = None

    def count(self, dropped, sampled, hook_seconds, oldest_unread):
        self.dropped, self.oldest_unread = list(dropped), oldest_unread

    def seconds(self, index=-1):
        """{operator: [seconds of each call]} of one step."""
        table: dict[str, list[float]] = {}
        for interval in self.steps[index][1]:
            table.setdefault(Operator.of(int(interval["operator"])).value, []).append(float(interval["seconds"]))
        return table

    def phases(self):
        return [Phase.of(int(step["phase"])).value for step, _ in self.steps]


class FakeSession:
    """Patches one fake host, with a timer of its own; ``serve`` makes its steps count."""

    def __init__(self, host, every=1, strict=True, clock=None, operators_too=True, boundaries=512):
        self.clock = clock or ManualClock(host.now)
        self.kept = Kept()
        self.guard = Guard(strict=strict)
        self.ledger = Ledger()
        self.group_class = None
        self.timer = None
        self.slots = {}
        self.model = None
        self.housekept = 0
        self._host = host
        self._timer = Timer(
            self.clock, self.kept, Sampling(every), operators=operators_too, boundaries=boundaries,
            wall_clock=lambda: 1e9 + host.now[0], cpu_clock=lambda: 0.0,
        )  # fmt: skip
        self.guard.on_error = lambda stage: self._timer.fail()

    def patch(self):
        seams.patch_groups(self._host.communication_op, self)
        seams.patch_model(self._host.basemodel, self)
        seams.patch_graph(self._host.cuda_graph, self)
        seams.patch_sample(self._host.post_process, self)
        seams.patch_backend(self._host.base_backend, self)
        seams.patch_rpc(self._host.model_rpc, self)
        return self

    def attach(self, model):
        if self.model is None:
            self.model = model
            self.slots = operators.install(model, self._timer, self.ledger, self.guard)
            operators.install_collectives(self._host.dist, TORCH_LEAVES, self._timer, self.ledger, self.guard)
            operators.install_collectives(self.group_class, GROUP_LEAVES, self._timer, self.ledger, self.guard)

    def serve(self, model):
        if self.owns(model):
            self.timer = self._timer

    def owns(self, model):
        return model is self.model

    def housekeep(self):
        self.housekept += 1
