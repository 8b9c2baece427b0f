"""The exporter process of a group: reads the rings of its ranks, serves ``/metrics``, ends when the ranks have."""

from __future__ import annotations

import functools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Optional, Protocol

from prometheus_client import CollectorRegistry

from lightllm_otel import __version__
from lightllm_otel.aggregate.group import Group
from lightllm_otel.export import discovery, nvml
from lightllm_otel.export.baseline import Baseline
from lightllm_otel.export.control import Controller, ControlServer
from lightllm_otel.export.hardware import Hardware, State
from lightllm_otel.export.link import GroupLink, link
from lightllm_otel.export.live import Live
from lightllm_otel.export.outbound import NoSuchExporter, load
from lightllm_otel.export.prometheus import GroupCollector
from lightllm_otel.export.recording import RecordingWriter
from lightllm_otel.export.server import MetricsServer, NoFreePort
from lightllm_otel.export.traces import TraceBook
from lightllm_otel.guard import log, log_to_stderr
from lightllm_otel.ring import notes, private
from lightllm_otel.ring.folder import (
    LOCK_NAME,
    PROCESS_NAME,
    RING_PATTERN,
    FileLock,
    group_folder,
    is_locked,
    rank_of,
    remove_if_dead,
    sweep,
)
from lightllm_otel.ring.notes import NotesReader
from lightllm_otel.ring.reader import RingReader
from lightllm_otel.settings import Settings
from lightllm_otel.standard import Standard
from lightllm_otel.vocabulary import Signal, SpanDrop

POLL_SECONDS = 0.2
LIVENESS_SECONDS = 1.0
LINGER_SECONDS = 10.0  # after the last rank: time for one more scrape
FIRST_RANK_SECONDS = 60.0
PORT_RETRY_SECONDS = 10.0
READS_OF_THE_DEAD = 50  # polls after which files of processes that are gone are removed
POSITIONS = "positions.json"
MOST_POSITIONS = 1 << 20  # bytes
LOG_NAME = "exporter.log"


class Push(Protocol):
    """Something that hands over by itself what is known."""

    def poll(self) -> None: ...

    def close(self) -> None: ...


def server_name(folder: Path, settings: Settings) -> str:
    """What the server of this group's folder is called: stays the same over restarts on the same machine."""
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
        standard: Standard = Standard(),  # noqa: B008 - it is frozen
    ) -> None:
        self.group = Group()
        self.server: MetricsServer | None = None
        self._control: ControlServer | None = None
        self._folder = folder
        self._settings = settings
        self._now = now
        self._detached = detached
        self._load_nvml = functools.cache(load_nvml)
        self._readers: dict[int, RingReader] = {}
        self._refused: set[tuple[str, int]] = set()
        self._baseline = Baseline(self.group.expectation, settings.state, settings.baseline)
        self._hardware = Hardware()
        self._pretended: dict[int, State] = {}
        self._live = Live(self.group)
        self._collector = GroupCollector(self.group, self._hardware, server=server_name(folder, settings))
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self._collector)
        self._record: RecordingWriter | None = None
        self._standard = standard
        self._book: TraceBook | None = None
        self._notes = NotesFolder(folder)
        self._announcement = discovery.Announcement(folder, settings.targets, now)
        self._pushes = self._outward()
        self._last_alive = now()
        self._had_rank = False
        self._next_liveness = 0.0
        self._next_port = 0.0
        self._announced = False
        self._failures = 0
        self._is_successor = (folder / POSITIONS).exists()
        if settings.record is not None:
            self._record = RecordingWriter(settings.record, folder.name, settings.record_max_mib << 20)

    def run(self) -> None:
        """Poll until the ranks have ended."""
        self._listen()
        while not self.over():
            try:
                self.poll()
            except Exception as error:  # noqa: BLE001 - one bad poll must not end the only view on a server
                self._failures += 1
                if self._failures == 1:
                    log.exception("a poll failed and the next one is tried: %r", error)
            time.sleep(POLL_SECONDS)
        self.close()

    def _outward(self) -> list[Push]:
        """What goes to receivers by itself; OpenTelemetry's SDK is imported only if something does."""
        for problem in self._standard.problems:
            log.error(problem)
        pushes: list[Push] = []
        if receivers := loaded(Signal.METRICS, self._standard.metrics):
            from lightllm_otel.export.push import MetricsPush

            pushes.append(
                MetricsPush(receivers, self._standard, self.group, self._collector, self._folder.name, self._now)
            )
        if receivers := loaded(Signal.TRACES, self._standard.traces):
            from lightllm_otel.export.spans import SpanPush

            outbound = self._collector.outbound
            self._book = TraceBook(self._standard, self.group, outbound)
            pushes.append(
                SpanPush(receivers, self._standard, self.group, self._book, outbound, self._folder.name, self._now)
            )
        return pushes

    def _listen(self) -> None:
        try:
            self._control = ControlServer(self._folder, Controller(self._folder, self.group))
        except OSError as error:
            log.error("lightllm-otel ctl will not work: no socket in %s (%s)", self._folder, error)

    def poll(self) -> None:
        """Read what is new from every rank."""
        self._serve()
        read_something = False
        # The lowest rank first: it is the one that counts the group's tokens.
        for path in sorted(self._folder.glob(RING_PATTERN), key=rank_of):
            reader = self._reader(rank_of(path), path)
            if reader is None:
                continue
            cells = reader.read()
            self._know(rank_of(path), reader)
            if len(cells):
                read_something = True
                self.group.consume(rank_of(path), cells)
                if self._record is not None:
                    self._record.append(rank_of(path), cells)
                if self._book is not None and rank_of(path) == min(self.group.ranks):
                    self._book.steps(cells, self._now())
        if self._book is not None:  # after the rings: who ran in a step is noted before, or at once
            self._book.notes(self._notes.read(), self._now())
            self._collector.outbound.dropped[SpanDrop.OVERWRITTEN] = self._notes.lost
        self._look_at_gpus()
        self.group.settle()
        if self.group.complete:
            self._baseline.begin(self.group.facts(), self._collector.link.name)
        self._baseline.save(self._now())
        if read_something:
            self._keep_positions()
        self._announce()
        for push in self._pushes:
            push.poll()
        self._live.poll(self._now())  # last: whatever fails in a page's figures has kept nothing else from being done

    def over(self) -> bool:
        """Whether all ranks have been gone for a while, or none ever came."""
        now = self._now()
        if now < self._next_liveness:
            return False
        self._next_liveness = now + LIVENESS_SECONDS
        if any(is_locked(path) for path in self._folder.glob(RING_PATTERN)):
            self._last_alive, self._had_rank = now, True
        return now - self._last_alive > (LINGER_SECONDS if self._had_rank else FIRST_RANK_SECONDS)

    def close(self) -> None:
        """Withdraw the address and remove the rings of ranks that are gone."""
        if self._control is not None:
            self._control.close()
        self._baseline.save(math.inf)
        for push in self._pushes:
            push.close()
        self._announcement.withdraw()
        for path in (*self._folder.glob(RING_PATTERN), *self._folder.glob(notes.PATTERN)):
            remove_if_dead(path)
        (self._folder / POSITIONS).unlink(missing_ok=True)
        if self._record is not None:
            self._record.close()
        self._live.feed.close()
        if self.server is not None:
            self.server.close()

    def pretend(self, link: GroupLink, states: Mapping[int, State]) -> None:
        """For a replay: the link and the state of GPUs that are not here, as they were or are supposed to be."""
        self._collector.link = link
        self._hardware.states.update(states)
        self._pretended = dict(states)

    def _look_at_gpus(self) -> None:
        if self._pretended:
            self._hardware.keep(self._pretended, self._now())
            return

        buses = {
            number: str(rank.facts["pci_bus_id"])
            for number, rank in self.group.ranks.items()
            if rank.facts.get("pci_bus_id")
        }
        library = self._load_nvml() if buses and self._settings.nvml else None
        if library is not None:
            self._hardware.poll(library, buses, self._now())

    # Ranks -----------------------------------------------------------------------------------------------------------

    def _reader(self, rank: int, path: Path) -> RingReader | None:
        """The rank's reader; a new one when its process is a new one."""
        try:
            inode = path.stat().st_ino
        except OSError:
            return self._readers.get(rank)
        reader = self._readers.get(rank)
        if reader is not None and reader.inode == inode:
            return reader
        if (path.name, inode) in self._refused:
            return None
        try:
            successor = RingReader(path, self._position(rank, inode) if reader is None else 0)
        except (OSError, ValueError) as error:
            self._refused.add((path.name, inode))
            log.error("%s", error)
            return None
        if reader is not None:
            self.group.consume(rank, reader.read())  # what the old process wrote last
            self.group.restarted(rank)
            if self._book is not None and rank == min(self.group.ranks):
                self._book.restarted()
        self._readers[rank] = successor
        return successor

    def _know(self, rank: int, reader: RingReader) -> None:
        known = self.group.ranks[rank]
        known.header = reader.header
        known.overwrites = reader.overwrites
        if not known.facts:
            facts = reader.facts()
            if facts:
                self.group.know(rank, facts)
                everyone = {number: each.facts for number, each in self.group.ranks.items() if each.facts}
                has_gpu = any(each.get("pci_bus_id") for each in everyone.values())
                self._collector.link = link(list(everyone.values()), self._load_nvml() if has_gpu else None)
                if self._record is not None:
                    self._record.describe(everyone)

    def _position(self, rank: int, inode: int) -> int:
        """Where an exporter that died had read to; counting from the start again would show as a burst."""
        try:
            kept = json.loads(private.read(self._folder / POSITIONS, MOST_POSITIONS))[str(rank)]
        except (OSError, ValueError, LookupError):
            return 0
        return int(kept["position"]) if kept["inode"] == inode else 0

    def _keep_positions(self) -> None:
        kept = {str(rank): {"inode": each.inode, "position": each.position} for rank, each in self._readers.items()}
        private.write(self._folder / POSITIONS, json.dumps(kept).encode())

    # Address ---------------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        if self.server is not None:
            self._announcement.keep(self.server, self.group.facts())
            return
        if self._now() < self._next_port:
            return
        first = self._next_port == 0.0
        self._next_port = self._now() + PORT_RETRY_SECONDS
        try:
            self.server = MetricsServer(self._registry, self._settings.host, self._settings.port, self._live.feed)
        except NoFreePort as error:
            if first:
                log.error("%s. Tried again every %.0f s; nothing is lost but old data", error, PORT_RETRY_SECONDS)
            return
        self._announcement.keep(self.server, self.group.facts())

    def _announce(self) -> None:
        """The one line of the server's log that says where to look, once the ranks have said what they found."""
        if self._announced or self.server is None or not self.group.facts():
            return
        self._announced = True
        if self._is_successor:
            log.info("the exporter is back: http://%s/metrics", self.server.address)
        else:
            log.info(start_line(self.group, self.server.address))
        if self._detached:
            let_go_of_stderr(self._folder)


class NotesFolder:
    """Reads the notes of every process of the server. ``lost``: how often one was quicker than we are."""

    def __init__(self, folder: Path) -> None:
        self.lost = 0
        self._folder = folder
        self._readers: dict[Path, NotesReader | None] = {}
        self._reads = 0

    def read(self) -> list[Any]:
        found = []
        self._reads += 1
        for path in sorted(self._folder.glob(notes.PATTERN)):
            if path not in self._readers:
                self._readers[path] = self._reader(path)
            reader = self._readers[path]
            if reader is None:
                continue
            over = self._reads % READS_OF_THE_DEAD == 0 and not is_locked(path)  # before its last notes are read
            lost = reader.lost
            found += reader.read()
            self.lost += reader.lost - lost
            if over:  # HTTP workers come and go, each with a file of its own
                remove_if_dead(path)
                del self._readers[path]
                reader.close()
        return found

    def _reader(self, path: Path) -> NotesReader | None:
        try:
            return NotesReader(path)
        except (OSError, ValueError) as error:
            log.error("%s", error)
            return None


def loaded(signal: Signal, names: Iterable[str]) -> list[Any]:
    """The SDK's exporters of these names; one line in the log for each that there is not, or that cannot be made."""
    found = []
    for name in names:
        try:
            found.append(load(signal, name))
        except NoSuchExporter as error:
            log.error("%s over OTLP are off: %s", signal, error)
        except Exception as error:  # noqa: BLE001 - a receiver's own settings may be wrong in any way
            log.error("%s over OTLP are off: %s could not be made: %r", signal, name, error)
    return found


def start_line(group: Group, address: str) -> str:
    facts, slots = group.facts(), group.slots()
    missing = [operator for operator, found in slots.items() if not found]
    parts = [
        f"lightllm-otel {__version__}: http://{address}/metrics, live page http://{address}/",
        f"{len(slots) - len(missing)} operators, missing: {', '.join(missing) or 'none'}",
        f"level {facts.get('level')}, 1 decode step in {facts.get('sample_every')}",
        f"CUDA graphs: {graphs_line(facts.get('graphs') or {})}",
        "next: lightllm-otel top",
    ]
    return " · ".join(parts)


def graphs_line(graphs: dict[str, Any]) -> str:
    """What became of the instrumented twins, for a person."""
    if graphs.get("state") == "armed":
        return (
            f"{len(graphs['sizes'])} instrumented twins ({graphs['bytes'] / 2**20:.0f} MiB, {graphs['seconds']:.1f} s)"
        )
    return f"whole steps only ({graphs.get('reason') or 'no graphs'})"


def let_go_of_stderr(folder: Path) -> None:
    """From now on into our own log: holding the server's stderr would keep its pipe open after its end."""
    try:
        descriptor = private.open_file(folder / LOG_NAME, os.O_WRONLY | os.O_CREAT)
        os.ftruncate(descriptor, 0)
    except OSError as error:
        log.error("%s: the exporter has no log from here on", error)
        descriptor = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def detach(folder: Path) -> int:
    """Start the exporter in a session of its own and return at once; nobody waits for it.

    A new program with all descriptors but the standard ones closed: sockets of NCCL and the like, inherited from the
    model process, must not outlive the server in us. (Closing them in here could take one from another thread.)
    """
    command = [sys.executable, "-m", "lightllm_otel", "exporter", "--folder", str(folder), "--detached"]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, close_fds=True)
    child.returncode = 0  # it is not ours to wait for
    return 0


def name_process() -> None:
    """So that the host's health monitor can be told which processes are ours, also when they have ended."""
    try:
        Path("/proc/self/comm").write_text(PROCESS_NAME)
    except OSError as error:
        log.debug("no process name: %s", error)


def main(folder: Path, settings: Settings, detached: bool) -> int:
    """Run a group's exporter in this process; ``detached``: as a server's companion. Exit status."""
    log_to_stderr()
    try:
        folder = folder.absolute()
        lock = FileLock(group_folder(folder.parent, folder.name) / LOCK_NAME)
        free = lock.acquire()
    except OSError as error:
        log.error("the exporter does not start: %s", error)
        return 1
    if not free:
        if not detached:
            log.error("another exporter serves %s; its address is in %s", folder, folder / discovery.ADDRESS)
        return 0 if detached else 1
    try:
        sweep(folder.parent, folder, (POSITIONS, discovery.ADDRESS))
    except OSError as error:
        log.warning("files of servers that have ended stay: %s", error)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if detached:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.nice(5)
    exporter = Exporter(folder, settings, detached=detached, standard=Standard.from_env(os.environ))
    try:
        exporter.run()
    except (SystemExit, KeyboardInterrupt):
        exporter.close()
    return 0
