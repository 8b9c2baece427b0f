"""The exporter process of a group: reads the rings of its ranks, serves ``/metrics``, ends when the ranks have."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Optional

import numpy as np
from prometheus_client import CollectorRegistry

from lightllm_otel.exporter import discovery, nvml, otlp
from lightllm_otel.exporter.background import Aside
from lightllm_otel.exporter.baseline import Baseline
from lightllm_otel.exporter.control import Controller, ControlServer
from lightllm_otel.exporter.hardware import GpuState, Hardware
from lightllm_otel.exporter.http_server import MetricsServer, NoFreePort
from lightllm_otel.exporter.link import GroupLink
from lightllm_otel.exporter.live import Live
from lightllm_otel.exporter.notes_folder import NotesFolder
from lightllm_otel.exporter.nvml_thread import NvmlThread
from lightllm_otel.exporter.process import let_go_of_stderr
from lightllm_otel.exporter.prometheus import GroupCollector
from lightllm_otel.exporter.rank_rings import RankRings
from lightllm_otel.exporter.start_line import start_line
from lightllm_otel.guard import log
from lightllm_otel.otel_environment import OtelEnvironment
from lightllm_otel.records import notes
from lightllm_otel.records.batch import RecordBatch
from lightllm_otel.records.folder import remove_if_dead
from lightllm_otel.records.reader import RingReader
from lightllm_otel.records.recording import RecordingWriter
from lightllm_otel.records.vocabulary import ExporterStage, SpanDrop
from lightllm_otel.reduce.group import Group
from lightllm_otel.settings import Settings

POLL_SECONDS = 0.2
LIVENESS_SECONDS = 1.0
LINGER_SECONDS = 10.0  # after the last rank: time for one more scrape
FIRST_RANK_SECONDS = 60.0
PORT_RETRY_SECONDS = 10.0


def server_name(folder: Path, settings: Settings) -> str:
    """Return the name of the server of this group's folder, which stays the same over restarts on the same machine."""
    return settings.server or f"{socket.gethostname()}/{folder.name}"


class Exporter:
    """Polls the rings of ``folder``. Everything that takes time is given by ``now`` (monotonic seconds)."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        now: Callable[[], float] = time.monotonic,
        detached: bool = False,
        load_nvml: Callable[[], Optional[nvml.Nvml]] = nvml.load,
        otel_environment: OtelEnvironment = OtelEnvironment(),  # noqa: B008 - it is frozen
    ) -> None:
        self.group = Group(now)
        self.server: MetricsServer | None = None
        self._control: ControlServer | None = None
        self._folder = folder
        self._settings = settings
        self._now = now
        self._parts = self.group.parts
        self._rings = RankRings(folder, self._parts, self._set_facts, self._take, self._restarted)
        self._baseline = Baseline(
            self.group.expectation, settings.state, settings.baseline, self._parts, Aside("baseline")
        )
        self._hardware = Hardware(now)
        self._nvml = NvmlThread(load_nvml, self._hardware, self._parts, settings.nvml, now)
        self._simulated: tuple[GroupLink, Mapping[int, GpuState]] | None = None
        self._live = Live(self.group)
        self._collector = GroupCollector(self.group, self._hardware, server=server_name(folder, settings))
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self._collector)
        self._record: RecordingWriter | None = None
        self._notes = NotesFolder(folder, self._parts)
        self._announcement = discovery.Announcement(folder, settings.targets, now, self._parts)
        self._pushes, self._book = otlp.pushes(
            otel_environment, self.group, self._collector, folder.name, self._parts, now
        )
        self._last_alive = now()
        self._had_rank = False
        self._next_liveness = 0.0
        self._next_port = 0.0
        self._announced = False
        self._holds_stderr = detached
        if settings.record is not None:
            self._record = RecordingWriter(
                settings.record, folder.name, settings.record_max_mib << 20, parts=self._parts
            )

    def run(self) -> None:
        """Poll until the ranks have ended."""
        self._listen()
        over = False
        while not over:
            with self._parts(ExporterStage.POLL):
                self.poll()
            time.sleep(POLL_SECONDS)
            with self._parts(ExporterStage.POLL):
                over = self.over()
        self.close()

    def _listen(self) -> None:
        try:
            self._control = ControlServer(self._folder, Controller(self._folder, self.group), self._parts)
        except OSError as error:
            self._parts.failed(
                ExporterStage.CONTROL, "socket",
                f"lightllm-otel ctl will not work: no socket in {self._folder} ({error})",
            )  # fmt: skip

    def poll(self) -> None:
        """Read what is new from every rank. Each part fails for itself; see :class:`Parts`."""
        part, now = self._parts, self._now()
        with part(ExporterStage.DISCOVERY):
            self._serve()
        with part(ExporterStage.DISCOVERY, "address"):
            if self.server is not None:
                self._announcement.keep(self.server, self.group.facts())
        read_something = False
        with part(ExporterStage.RINGS):
            read_something = self._rings.read()
        if self._book is not None:  # after the rings: who ran in a step is noted before, or at once
            with part(ExporterStage.NOTES):
                self._book.notes(self._notes.read(), now)
                self._collector.otlp_sender.dropped[SpanDrop.OVERWRITTEN] = self._notes.lost
        with part(ExporterStage.NVML):
            self._look_at_gpus()
        with part(ExporterStage.AGGREGATE):
            self.group.settle()
        with part(ExporterStage.BASELINE):
            if self.group.complete and (self._simulated is not None or self._nvml.settled):
                self._baseline.begin(self.group.facts(), self._collector.link.name)
            self._baseline.save(now)
        with part(ExporterStage.POSITIONS):
            if read_something:
                self._rings.keep_positions()
        with part(ExporterStage.DISCOVERY, "start line"):
            self._announce()
        for push in self._pushes:
            with part(ExporterStage.OTLP, type(push).__name__):
                push.poll()
        with part(ExporterStage.LIVE):
            self._live.poll(now)

    def over(self) -> bool:
        """Tell whether all ranks have been gone for a while, or none ever came."""
        now = self._now()
        if now < self._next_liveness:
            return False
        self._next_liveness = now + LIVENESS_SECONDS
        if self._rings.any_alive():
            self._last_alive, self._had_rank = now, True
        return now - self._last_alive > (LINGER_SECONDS if self._had_rank else FIRST_RANK_SECONDS)

    def close(self) -> None:
        """Withdraw the address and remove the rings of ranks that are gone."""
        part = self._parts
        with part(ExporterStage.CONTROL, "end"):
            if self._control is not None:
                self._control.close()
        with part(ExporterStage.BASELINE, "end"):
            self._baseline.close()
        for push in self._pushes:
            with part(ExporterStage.OTLP, "end"):
                push.close()
        with part(ExporterStage.DISCOVERY, "end"):
            self._announcement.withdraw()
        with part(ExporterStage.POSITIONS, "end"):
            self._tidy()
        with part(ExporterStage.RECORDING, "end"):
            if self._record is not None:
                self._record.close()
        with part(ExporterStage.HTTP, "end"):
            self._live.event_stream.close()
            if self.server is not None:
                self.server.close()

    def _tidy(self) -> None:
        """Remove what nobody holds any more."""
        self._rings.tidy()
        for path in self._folder.glob(notes.PATTERN):
            remove_if_dead(path)

    def simulate(self, link: GroupLink, states: Mapping[int, GpuState]) -> None:
        """Use this link and these states of GPUs, which are not here, for a replay."""
        self._simulated = link, dict(states)
        self._look_at_gpus()

    def _look_at_gpus(self) -> None:
        if self._simulated is not None:
            self._collector.link, states = self._simulated
            self._hardware.keep(states, self._now())
            return
        self._nvml.check()
        self._collector.link = self._nvml.link

    # What rings bring -------------------------------------------------------------------------------------------------

    def _set_facts(self, rank: int, reader: RingReader) -> None:
        known = self.group.ranks[rank]
        known.header, known.ring = reader.header, reader
        known.overwrites = reader.overwrites
        if known.facts or not (facts := reader.facts()):
            return
        self.group.set_facts(rank, facts)
        everyone = {number: each.facts for number, each in self.group.ranks.items() if each.facts}
        with self._parts(ExporterStage.NVML, "link"):
            self._nvml.ask(everyone)
        with self._parts(ExporterStage.RECORDING):
            if self._record is not None:
                self._record.describe(everyone)

    def _take(self, rank: int, cells: np.ndarray) -> None:
        batch = RecordBatch.of_cells(cells)
        self.group.add(rank, batch)
        if self._record is not None:
            with self._parts(ExporterStage.RECORDING):
                self._record.append(rank, cells)
        if self._book is not None and rank == min(self.group.ranks):
            with self._parts(ExporterStage.NOTES, "steps"):
                self._book.steps(batch, self._now())

    def _restarted(self, rank: int) -> None:
        self.group.restarted(rank)
        if self._book is not None and rank == min(self.group.ranks):
            self._book.restarted()

    # Address ---------------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        if self.server is not None or self._now() < self._next_port:
            return
        self._next_port = self._now() + PORT_RETRY_SECONDS
        try:
            self.server = MetricsServer(
                self._registry, self._settings.host, self._settings.port, self._live.event_stream, self._parts
            )
        except NoFreePort as error:
            self._parts.failed(
                ExporterStage.DISCOVERY, "port",
                f"{error}. Tried again every {PORT_RETRY_SECONDS:.0f} s; only data older than the rings is lost",
            )  # fmt: skip

    def _announce(self) -> None:
        """Log the one line that says where to look, once the ranks have said what they found."""
        if self.server is None or not self.group.facts():
            return
        if not self._announced:
            self._announced = True
            if self._rings.is_successor:
                log.info("the exporter is back: http://%s/metrics", self.server.address)
            else:
                log.info(start_line(self.group, self.server.address))
        if self._holds_stderr:
            let_go_of_stderr(self._folder)
            self._holds_stderr = False
