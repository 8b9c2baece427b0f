"""Session of one model process: connects clock, ring, timer, hooks, live control and exporter."""

from __future__ import annotations

import os
import time
import weakref
from pathlib import Path
from typing import Any

from lightllm_otel import __version__
from lightllm_otel.contracts.fits import Fits
from lightllm_otel.contracts.patch_set import PatchSet
from lightllm_otel.guard import Guard, log
from lightllm_otel.otel_environment import OtelEnvironment
from lightllm_otel.records import control
from lightllm_otel.records.folder import group_folder, group_key, ring_path
from lightllm_otel.records.notes import NotesWriter
from lightllm_otel.records.private import NotOurs
from lightllm_otel.records.vocabulary import Level, Operator, Stage
from lightllm_otel.records.writer import RingWriter
from lightllm_otel.settings import Settings
from lightllm_otel.worker.forwards import Forwards
from lightllm_otel.worker.gpu.agreement import ballot_of_process_group
from lightllm_otel.worker.gpu.calibration import Calibration, calibrate
from lightllm_otel.worker.gpu.clock import Clock
from lightllm_otel.worker.gpu.events import choose_clock
from lightllm_otel.worker.gpu.graphs import TorchGraphs
from lightllm_otel.worker.gpu.profiler import nvtx
from lightllm_otel.worker.gpu.timer import Timer
from lightllm_otel.worker.gpu.timestamp_kernels import choose_timestamps
from lightllm_otel.worker.host import implementations, operators, ranges
from lightllm_otel.worker.host.fast_path import FastPath
from lightllm_otel.worker.host.identity import Identity, describe_host, describe_model, identify
from lightllm_otel.worker.host.instrumented_graphs import InstrumentedGraphs
from lightllm_otel.worker.host.profiling import KernelProfile
from lightllm_otel.worker.host.step_notes import StepNotes
from lightllm_otel.worker.sampling import Sampling
from lightllm_otel.worker.supervisor import Supervisor

# A layer has nine operators, a boundary before each, three collectives, and ends of pairs; other families need a third more.
BOUNDARIES_PER_LAYER = 32
BOUNDARIES_PER_STEP = 64
HOUSEKEEPING_SECONDS = 1.0
QUIET_MARGIN = 2  # forwards around a change of the rule without a sampled one, where samples leave room


class ServerSession:
    """The plugin in a model process. All other processes of a server have hooks only.

    The first model that is built is measured. Later ones are drafts of speculative decoding; they are counted.
    """

    def __init__(self, settings: Settings, guard: Guard, patch_set: PatchSet, live: PatchSet) -> None:
        self.timer: Timer | None = None
        self.forwards: Forwards | None = None
        self.instrumented_graphs: InstrumentedGraphs | None = None
        self.guard = guard
        self.patch_set = patch_set
        self.live = live
        self.fast_path = FastPath()
        self.operator_patches = PatchSet()
        self.group_class: Any = None
        self.otel_environment = OtelEnvironment.from_env(os.environ)
        self.fits = Fits()
        self.watches: Any = None
        self.sees_replays = True
        self.notes: StepNotes | None = None
        self._settings = settings
        self._model: weakref.ref[Any] | None = None
        self._drafts = 0
        self._slots: dict[str, str] = {}
        self._layers: dict[str, dict[str, Any]] = {}
        self._implementations: dict[str, str] = {}
        self._prepared: tuple[Clock, RingWriter, Timer, Identity] | None = None
        self._supervisor: Supervisor | None = None
        self._folder: Path | None = None
        self.listener = control.Listener(None, None)
        self._next_housekeeping = 0.0
        self._kernels: KernelProfile | None = None

    @property
    def settings(self) -> Settings:
        return self._settings

    # While the server starts -----------------------------------------------------------------------------------------

    def attach(self, model: Any) -> None:
        """Create ring and timer, and wrap the model's operators. Only the first model is measured."""
        if self._model is not None:
            self._drafts += not self.owns(model)
            return
        self._model = weakref.ref(model)
        identity = identify(model, os.environ)
        clock = self._choose_clock()
        ring = self._make_ring(identity)
        if ring is None:
            return
        layers = len(getattr(model, "layers_infer", ()))
        operators_too = self._settings.level is Level.OPERATORS
        timer = self._make_timer(clock, ring, operators_too, BOUNDARIES_PER_STEP + BOUNDARIES_PER_LAYER * layers)
        self.guard.on_error = self._failed
        self._prepared = (clock, ring, timer, identity)
        if operators_too:
            self._install(model, timer)
            self.instrumented_graphs = self._make_instrumented_graphs(timer)

    def _install(self, model: Any, timer: Timer) -> None:
        with self.guard(Stage.PATCH):
            self._implementations = implementations.names(model)
        slots = operators.install(model, timer, self.operator_patches, self.guard)
        self._slots, self._layers = slots, slots.layers
        with self.guard(Stage.PATCH):
            self._install_collectives(timer)
        self._slots[Operator.SAMPLING.value] = operators.INSTALLED
        if self._settings.nvtx and (found := nvtx()) is not None:
            ranges.install(model, self.operator_patches, self.guard, *found)

    def _make_ring(self, identity: Identity) -> RingWriter | None:
        """Create the ring in the first folder that has room for it; return None, after one log line, if none has."""
        key = group_key(identity.host, identity.port, identity.dp_rank)
        reasons: list[str] = []
        for directory in (self._settings.directory, Path(f"/tmp/lightllm-otel-{os.getuid()}")):
            try:
                folder = group_folder(directory, key)
                ring = RingWriter(ring_path(folder, identity.rank), self._settings.ring_mib)
            except OSError as error:
                reasons.append(str(error) if isinstance(error, NotOurs) else f"{directory}: {error.strerror or error}")
                continue
            if reasons and identity.rank == 0:
                log.warning("measurements are kept in %s, because of this: %s", folder, "; ".join(reasons))
            self._supervisor = Supervisor(folder, eager=identity.rank == 0)
            self._folder = folder
            return ring
        log.error(
            "no folder has room for %s MiB of measurements (%s); lightllm-otel stays off. Set LIGHTLLM_OTEL_DIR to a folder "
            "of your own with enough room (in a container: a larger --shm-size) and restart the server.",
            self._settings.ring_mib, "; ".join(reasons),
        )  # fmt: skip
        return None

    def serve(self, model: Any) -> None:
        """Start measuring: the model is complete. Does nothing for a draft model."""
        if self._prepared is None or not self.owns(model):
            return
        clock, ring, timer, identity = self._prepared
        # First, so that no later error prevents it: a rank that does not count does not replay what the others replay.
        forwards = self.forwards = Forwards(self._settings.level, Sampling(self._settings.sample_every))
        if self.instrumented_graphs is not None:
            with self.guard(Stage.PATCH):
                self.instrumented_graphs.activate()
        with self.guard(Stage.MEASURE):
            timer.step_reader.calibration = self._calibrate(clock)
        with self.guard(Stage.RING):
            self._describe(ring, timer)
            ring.describe(self.facts(model, clock, identity))
        with self.guard(Stage.ACTIVATE):  # everything else works without live control
            self.listener = self._listen_to(identity, forwards)
            ring.header["listening"] = 1
        self.sees_replays = self.fits.fits("graph_replay") or getattr(model, "graph", None) is None
        self._say_what_is_lost(identity.rank)
        self.timer = timer
        if identity.rank == 0 and self._folder is not None:
            self._kernels = KernelProfile(self._folder, self.guard, instrumented_graphs=self._operators_of_graphs)
            if self.otel_environment.traces:
                with self.guard(Stage.RING):  # without notes, steps have no requests
                    self.notes = StepNotes(NotesWriter(self._folder / f"rank-{os.getpid()}.notes"))
        self.housekeep()

    def _say_what_is_lost(self, rank: int) -> None:
        lost = self.fits.lost()
        if lost and rank == 0:
            log.warning(
                "parts of this LightLLM (%s) are unknown: %s. Everything else is measured; lightllm-otel doctor shows details.",
                describe_host()["lightllm"], "; ".join(sentence for each in lost.values() for sentence in each),
            )  # fmt: skip

    def _operators_of_graphs(self) -> list[list[str]]:
        return self.instrumented_graphs.operators() if self.instrumented_graphs is not None else []

    def _describe(self, ring: RingWriter, timer: Timer) -> None:
        calibration, timestamps, header = (
            timer.step_reader.calibration,
            timer.step_reader.timestamp_calibration,
            ring.header,
        )
        header["clock_quantum"], header["boundary_cost"] = calibration.quantum, calibration.boundary_cost
        header["timestamp_quantum"], header["timestamp_cost"] = timestamps.quantum, timestamps.most_cost
        header["level"], header["sample_every"] = self._settings.level.code, self._settings.sample_every

    def facts(self, model: Any, clock: Clock, identity: Identity) -> dict[str, Any]:
        """Return the ring's JSON page, which describes this rank and the operators and graphs that were found."""
        graphs = self.instrumented_graphs
        return {
            "plugin": __version__,
            "started": time.time(),
            "rank": identity.rank, "tp": identity.tp, "dp_rank": identity.dp_rank, "dp": identity.dp,
            "node_rank": identity.node_rank, "nodes": identity.nodes,
            "start_latency": self._start_latency(),
            "clock": clock.source, "clock_detail": getattr(clock, "detail", ""),
            "level": self._settings.level.value, "sample_every": self._settings.sample_every,
            "slots": self._slots, "layer_classes": self._layers, "implementations": self._implementations, "drafts": self._drafts,
            "contracts": self.fits.facts(),
            "problems": self._settings.problems, "notes": self._settings.notes,
            "graphs": graphs.facts() if graphs is not None else {"state": "off", "reason": "level steps"},
            **describe_model(model, os.environ), **describe_host(),
        }  # fmt: skip

    def _start_latency(self) -> float:
        return self._prepared[2].step_reader.calibration.start_latency if self._prepared is not None else 0.0

    # What needs a GPU or the processes of a group; a test has others ----------------------------------------------------

    def _choose_clock(self) -> Clock:
        return choose_clock()

    def _calibrate(self, clock: Clock) -> Calibration:
        return calibrate(clock)

    def _make_timer(self, clock: Clock, ring: RingWriter, operators_too: bool, boundaries: int) -> Timer:
        return Timer(clock, ring, operators=operators_too, boundaries=boundaries)

    def _make_instrumented_graphs(self, timer: Timer) -> InstrumentedGraphs:
        return InstrumentedGraphs(
            timer, self.guard, self._settings, TorchGraphs(), choose_timestamps, ballot_of_process_group
        )

    def _install_collectives(self, timer: Timer) -> None:
        operators.install_all_collectives(self.group_class, timer, self.operator_patches, self.guard)

    # In a step -------------------------------------------------------------------------------------------------------

    def owns(self, model: Any) -> bool:
        """Tell whether this is the measured model."""
        return self._model is not None and self._model() is model

    def _listen_to(self, identity: Identity, forwards: Forwards) -> control.Listener:
        assert self._folder is not None

        def place(number: int, request: control.Order) -> int:
            if identity.tp == 1:
                return number
            sampling = Sampling(request.every)
            return forwards.quiet(number + control.AHEAD, request.level, sampling, QUIET_MARGIN)

        page = control.ControlPage(self._folder / control.NAME)
        return control.Listener(page, place if identity.rank == 0 else None)

    def listen(self) -> None:
        """Follow live control if an order begins with the forward that is being entered."""
        if self.forwards is not None:
            order = self.listener.due(self.forwards.completed)
            if order is not None:
                self.follow(order)

    def follow(self, order: control.Order) -> None:
        """Use this level and sampling from the forward on that is being entered."""
        assert self._prepared is not None
        assert self.forwards is not None
        _, ring, timer, _ = self._prepared
        # The rule first, so that no error below can keep it from being followed: all ranks share it.
        self.forwards.follow(order.level, Sampling(order.every))
        self.fast_path.close()
        ring.header["level"], ring.header["sample_every"] = order.level.code, order.every
        ring.header["control_at"], ring.header["control_seq"] = self.forwards.completed & 0xFFFFFFFF, order.seq
        if order.level is Level.OPERATORS:
            self._resume_operators(timer)
        else:
            self.operator_patches.suspend()
        if order.level is Level.OFF:
            timer.pause()
            self.live.suspend()
            self.timer = None
        else:
            self.live.resume()
            self.timer = timer

    def _resume_operators(self, timer: Timer) -> None:
        model = self._model() if self._model is not None else None
        if not self._slots and model is not None:  # the server was started with level steps
            self._install(model, timer)
        self.operator_patches.resume()

    def housekeep(self) -> None:
        """Write the heartbeat and error counts, and check on exporter and profiler; at most once a second."""
        now = time.monotonic()
        if now < self._next_housekeeping or self._prepared is None:
            return
        self._next_housekeeping = now + HOUSEKEEPING_SECONDS
        ring = self._prepared[1]
        ring.header["heartbeat"] = time.time()
        ring.header["errors"][0, : len(self.guard.errors)] = self.guard.errors
        model = self._model() if self._model is not None else None
        if self._kernels is not None and model is not None:
            with self.guard(Stage.ACTIVATE):
                self._kernels.tick(model, now)
        if self._supervisor is not None:
            with self.guard(Stage.ACTIVATE):  # measuring goes on even if the exporter cannot be started
                self._supervisor.check(now)

    def _failed(self, stage: Stage) -> None:
        if self._prepared is None:
            return
        _, ring, timer, _ = self._prepared
        ring.header["errors"][0, : len(self.guard.errors)] = self.guard.errors
        if stage is Stage.MEASURE:
            self.fast_path.close()
            timer.fail()
