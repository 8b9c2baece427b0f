"""One model process: where clock, ring, timer, patches and exporter come together."""

from __future__ import annotations

import os
import time
import weakref
from pathlib import Path
from typing import Any

from lightllm_otel import __version__
from lightllm_otel.activate.supervisor import Supervisor
from lightllm_otel.guard import Guard, log
from lightllm_otel.measure.calibration import Calibration, calibrate
from lightllm_otel.measure.clock import Clock
from lightllm_otel.measure.cuda import choose_clock
from lightllm_otel.measure.sampling import Sampling
from lightllm_otel.measure.timer import Timer
from lightllm_otel.patch import operators
from lightllm_otel.patch.identity import Identity, describe_host, describe_model, identify
from lightllm_otel.patch.ledger import Ledger
from lightllm_otel.ring.folder import group_folder, group_key, ring_path
from lightllm_otel.ring.writer import RingWriter
from lightllm_otel.settings import Settings
from lightllm_otel.vocabulary import Level, Operator, Stage

# Per layer: seven operators, their two leads, two collectives; twice that for families with more, and pairs.
BOUNDARIES_PER_LAYER = 24
BOUNDARIES_PER_STEP = 64
HOUSEKEEPING_SECONDS = 1.0


class ServerSession:
    """Composes the plugin in a model process; in all other processes of a server nothing but hooks exists.

    The first model that is built is the one that is measured; drafts of speculative decoding are counted.
    """

    def __init__(self, settings: Settings, guard: Guard, ledger: Ledger) -> None:
        self.timer: Timer | None = None
        self.guard = guard
        self.ledger = ledger
        self._settings = settings
        self._model: weakref.ref[Any] | None = None
        self.group_class: Any = None
        self._drafts = 0
        self._slots: dict[str, str] = {}
        self._prepared: tuple[Clock, RingWriter, Timer, Identity] | None = None
        self._supervisor: Supervisor | None = None
        self._next_housekeeping = 0.0

    def attach(self, model: Any) -> None:
        if self._model is not None:
            self._drafts += not self.owns(model)
            return
        self._model = weakref.ref(model)
        identity = identify(model, os.environ)
        clock = choose_clock()
        ring = self._make_ring(identity)
        if ring is None:
            return
        layers = len(getattr(model, "layers_infer", ()))
        timer = Timer(
            clock,
            ring,
            Sampling(self._settings.sample_every),
            operators=self._settings.level is Level.OPERATORS,
            boundaries=BOUNDARIES_PER_STEP + BOUNDARIES_PER_LAYER * layers,
        )
        self.guard.on_error = self._failed
        self._prepared = (clock, ring, timer, identity)
        if self._settings.level is Level.OPERATORS:
            self._slots = self._install(model, timer)

    def _install(self, model: Any, timer: Timer) -> dict[str, str]:
        slots = operators.install(model, timer, self.ledger, self.guard)
        with self.guard(Stage.PATCH):
            operators.install_all_collectives(self.group_class, timer, self.ledger, self.guard)
        slots[Operator.SAMPLING.value] = operators.INSTALLED
        return slots

    def _make_ring(self, identity: Identity) -> RingWriter | None:
        """The ring, in the first folder that has room for it; None, and one log line, when there is none."""
        key = group_key(identity.host, identity.port, identity.dp_rank)
        reasons = []
        for directory in (self._settings.directory, Path(f"/tmp/lightllm-otel-{os.getuid()}")):
            try:
                folder = group_folder(directory, key)
                ring = RingWriter(ring_path(folder, identity.rank), self._settings.ring_mib)
            except OSError as error:
                reasons.append(f"{directory}: {error.strerror or error}")
                continue
            self._supervisor = Supervisor(folder, eager=identity.rank == 0)
            return ring
        log.error(
            "no folder for %s MiB of measurements (%s); lightllm-otel stays off. Set LIGHTLLM_OTEL_DIR to a folder "
            "with room (in a container: a larger --shm-size) and restart the server.",
            self._settings.ring_mib, "; ".join(reasons),
        )  # fmt: skip
        return None

    def serve(self, model: Any) -> None:
        if self._prepared is None or not self.owns(model):
            return
        clock, ring, timer, identity = self._prepared
        calibration = Calibration()
        with self.guard(Stage.MEASURE):
            calibration = calibrate(clock)
        timer.calibration = calibration
        ring.header["clock_quantum"] = calibration.quantum
        ring.header["boundary_cost"] = calibration.boundary_cost
        ring.describe({
            "plugin": __version__,
            "started": time.time(),
            "rank": identity.rank, "tp": identity.tp, "dp_rank": identity.dp_rank, "dp": identity.dp,
            "node_rank": identity.node_rank,
            "clock": clock.source, "clock_detail": getattr(clock, "detail", ""),
            "level": self._settings.level.value, "sample_every": self._settings.sample_every,
            "slots": self._slots, "drafts": self._drafts,
            **describe_model(model), **describe_host(),
        })  # fmt: skip
        self.timer = timer
        self.housekeep()

    def owns(self, model: Any) -> bool:
        return self._model is not None and self._model() is model

    def housekeep(self) -> None:
        now = time.monotonic()
        if now < self._next_housekeeping or self._prepared is None:
            return
        self._next_housekeeping = now + HOUSEKEEPING_SECONDS
        ring = self._prepared[1]
        ring.header["heartbeat"] = time.time()
        ring.header["errors"][0, : len(self.guard.errors)] = self.guard.errors
        if self._supervisor is not None:
            with self.guard(Stage.ACTIVATE):  # an exporter that cannot be started is no reason to stop measuring
                self._supervisor.check(now)

    def _failed(self, stage: Stage) -> None:
        if self._prepared is None:
            return
        _, ring, timer, _ = self._prepared
        ring.header["errors"][0, : len(self.guard.errors)] = self.guard.errors
        if stage is Stage.MEASURE:
            timer.fail()
