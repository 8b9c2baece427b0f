"""One part of a poll that fails: it is counted and said once, and everything else goes on."""

import contextlib
import dataclasses
import json
import logging
import os
import resource
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import records
from prometheus_client.parser import text_string_to_metric_families

from lightllm_otel.exporter import exporter as exporter_module
from lightllm_otel.exporter import rank_rings
from lightllm_otel.exporter.baseline import FORMAT, VERSION, Baseline
from lightllm_otel.exporter.discovery import ADDRESS
from lightllm_otel.exporter.exporter import LINGER_SECONDS, Exporter
from lightllm_otel.records.folder import group_folder, ring_path
from lightllm_otel.records.vocabulary import ExporterStage, Operator
from lightllm_otel.records.writer import RingWriter
from lightllm_otel.settings import Settings

pytestmark = pytest.mark.usefixtures("lenient")
POLLS = 5


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Push:
    """A receiver's side of the exporter."""

    polls = 0

    def poll(self):
        self.polls += 1

    def close(self):
        pass


class World:
    """An exporter and the ring of rank 0. Each ``poll`` finds a new step."""

    def __init__(self, folder, **settings):
        self.folder = folder
        self.now = 0.0
        self.push = Push()
        self.ring = RingWriter(ring_path(folder, 0), 1)
        self.ring.describe(records.FACTS)
        chosen = dataclasses.replace(Settings.from_env({}), **{"port": free_port(), "state": None, **settings})
        self.exporter = Exporter(folder, chosen, now=lambda: self.now)
        self.exporter._pushes.append(self.push)
        self.steps = 0

    def poll(self, times=POLLS):
        for _ in range(times):
            self.ring.write(*records.step(number=self.steps, operators=[(Operator.FFN, 0.5)]))
            self.steps += 1
            self.now += 0.2
            self.exporter.poll()

    def scrape(self):
        with urllib.request.urlopen(f"http://{self.exporter.server.address}/metrics", timeout=10) as answer:
            families = text_string_to_metric_families(answer.read().decode())
            return {(s.name, *sorted(s.labels.items())): s.value for f in families for s in f.samples}

    def errors(self):
        """By stage, as a scraper sees them."""
        found = self.scrape()
        return {dict(key[1:])["stage"]: n for key, n in found.items() if key[0] == "lightllm_otel_errors_total" and n}

    def everything_goes_on(self):
        """Steps are counted, OTLP has been asked each time, the live page moves, the start line was said."""
        calls = self.scrape()["lightllm_gpu_operator_duration_seconds_count", ("mode", "eager"), ("operator", "ffn"),
                              ("phase", "decode")]  # fmt: skip
        live, rows = self.exporter.group.recent, len(self.exporter.group.recent._times)
        self.now += 10.0
        self.exporter.poll()
        return calls == self.steps and self.push.polls >= self.steps and len(live._times) == rows + 1


def said(caplog, words):
    return [words in record.getMessage() for record in caplog.records].count(True)


@pytest.fixture
def worlds(tmp_path, monkeypatch):
    monkeypatch.setattr("lightllm_otel.exporter.http_server.LOOK_SECONDS", 0.02)  # else each end takes half a second
    made = []

    def make(parent=tmp_path, **settings):
        made.append(World(group_folder(parent, "127.0.0.1-28765-dp0"), **settings))
        return made[-1]

    yield make
    for world in made:
        if world.exporter.server is not None:
            world.exporter.server.close()


@pytest.fixture
def full_disk(tmp_path):
    """``fill()`` of a real file system in memory that has no room left then."""
    place = tmp_path / "tmpfs"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "none", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")

    def fill():
        with (place / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        return place / "filler"

    yield place, fill
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_costs_the_positions_and_nothing_else(full_disk, worlds, caplog):
    caplog.set_level(logging.INFO, "lightllm_otel")
    place, fill = full_disk
    world = worlds(place)
    filler = fill()
    world.poll()
    assert world.errors()["positions"] == POLLS
    assert world.everything_goes_on()
    assert (said(caplog, "positions failed"), said(caplog, "/metrics, live page")) == (1, 1)
    filler.unlink()
    world.poll(1)
    assert json.loads((world.folder / "positions.json").read_text())["0"]["position"] > 0


def test_a_discovery_file_that_found_no_room_is_written_when_there_is_some(full_disk, worlds, caplog):
    place, fill = full_disk
    world = worlds(place, targets=place / "targets")
    filler = fill()
    world.poll()
    assert world.errors()["discovery"] >= 1
    filler.unlink()
    world.now += 60.0
    world.poll(1)
    address = world.exporter.server.address
    assert json.loads((world.folder / ADDRESS).read_text()) == {"address": address}
    (path,) = (place / "targets").glob("*.json")
    assert json.loads(path.read_text())[0]["targets"] == [address]
    assert said(caplog, "cannot be written") == 1


def test_positions_are_whole_or_the_ones_before(worlds, monkeypatch):
    world = worlds()
    world.poll()
    before = (world.folder / "positions.json").read_text()
    monkeypatch.setattr(rank_rings.json, "dumps", lambda kept: 1 / 0)
    world.poll()
    assert (world.folder / "positions.json").read_text() == before


@pytest.mark.parametrize(
    "content",
    ["[]", "{", "null", "7", '{"0": 5}', '{"0": []}', '{"0": {"inode": INODE, "position": "x"}}', "[" * 100_000,
     '{"0": {"inode": INODE, "position": 1e999}}', '{"0": {"inode": INODE, "position": null}}',
     '{"0": {"inode": INODE, "position": -5}}', '{"0": {"inode": INODE, "position": 1e30}}', b"\xff\xfe"],
    ids=lambda content: str(content)[:40],
)  # fmt: skip
def test_positions_that_hold_something_else_are_not_used(worlds, content, caplog):
    world = worlds()
    text = content if isinstance(content, bytes) else content.replace(
        "INODE", str(ring_path(world.folder, 0).stat().st_ino)).encode()  # fmt: skip
    (world.folder / "positions.json").write_bytes(text)
    world.poll()
    assert world.everything_goes_on() or b"1e30" in text
    assert set(world.errors()) <= {"positions"}
    assert sum(world.errors().values()) == said(caplog, "positions.json cannot be used")


@pytest.mark.parametrize("name", ["rank-0.bak.ring", "rank-.ring", "rank-x.ring", "rank--1.ring", "rank-1_0.ring",
                                  "rank-٣.ring", "rank-00.ring"])  # fmt: skip
def test_a_file_that_only_looks_like_a_ring_is_named_once_and_left_alone(worlds, name, caplog):
    world = worlds()
    (world.folder / name).write_bytes(ring_path(world.folder, 0).read_bytes())
    world.poll()
    assert (world.errors(), said(caplog, name)) == ({"rings": 1}, 1)
    assert world.everything_goes_on()
    world.exporter.close()
    assert (world.folder / name).exists()


def damaged(folder, rank, **fields):
    """A ring of another rank, with these in its header."""
    ring = RingWriter(ring_path(folder, rank), 1)
    ring.describe({**records.FACTS, "rank": rank, "tp": 1})
    for name, value in fields.items():
        ring.header[name] = value
    return ring


@pytest.mark.parametrize("cells", [0, 1 << 20, 1 << 63])
def test_a_ring_that_says_it_has_a_wrong_number_of_cells_is_named_once(worlds, cells, caplog):
    world = worlds()
    damaged(world.folder, 1, cells=cells)
    world.poll()
    assert (world.errors(), said(caplog, "rank-1.ring is damaged")) == ({"rings": 1}, 1)
    assert world.everything_goes_on()


@pytest.mark.parametrize("kind", ["directory", "pipe", "link to nothing", "device"])
def test_what_is_no_file_is_no_ring_and_keeps_nobody_waiting(worlds, kind):
    world = worlds()
    path = ring_path(world.folder, 1)
    make = {"directory": path.mkdir, "pipe": lambda: os.mkfifo(path), "device": lambda: path.symlink_to("/dev/zero"),
            "link to nothing": lambda: path.symlink_to("/nonexistent")}  # fmt: skip
    make[kind]()
    began = time.monotonic()
    world.poll()
    assert time.monotonic() - began < 60
    assert world.errors() == ({} if kind == "link to nothing" else {"rings": 1})
    assert world.everything_goes_on()


@pytest.mark.parametrize("text", [b"[]", b"[" * 20_000, b'"x"', b'{"tp": "many"}', b'{"config": {"layers": "many"}}',
                                  b'{"slots": 5}', b'{"graphs": [1]}', b'{"pci_bus_id": {}}'])  # fmt: skip
def test_a_ring_that_says_nonsense_of_itself_costs_no_other(worlds, text, caplog):
    world = worlds()
    ring = damaged(world.folder, 1)
    ring._map[4096 : 4096 + len(text)] = text
    ring.header["json_bytes"] = len(text)
    world.poll()
    assert world.scrape()[
        "lightllm_gpu_operator_seconds_total", ("operator", "ffn"), ("phase", "decode"), ("rank", "0")
    ]
    assert world.everything_goes_on()
    assert len(caplog.records) < 10


def test_a_ring_that_cannot_be_opened_now_is_tried_again(worlds, monkeypatch):
    world = worlds()
    real, reader = rank_rings.RingReader, []

    def reads(path, position=0):
        reader.append(path)
        if len(reader) < 3:
            raise OSError(24, "Too many open files", str(path))
        return real(path, position)

    monkeypatch.setattr(rank_rings, "RingReader", reads)
    world.poll()
    assert (world.errors(), len(reader)) == ({"rings": 2}, 3)
    assert world.everything_goes_on()


def test_one_rank_whose_steps_cannot_be_added_up_costs_no_other(worlds, monkeypatch):
    world = worlds()
    damaged(world.folder, 1).write(*records.step(phase=Operator.FFN))  # no phase has this code
    world.poll()
    assert world.errors() == {"aggregate": 1}
    assert world.everything_goes_on()


PLANES = {"format": FORMAT, "version": VERSION, "key": {"model": "llama-7b"}}
BUCKET = (
    '{"phase": "decode", "mode": "eager", "size": SIZE, "context": 6,'
    ' "planes": [{"reach": REACH, "operators": {"ffn": FFN}}]}'
)


def bucket(size="0", reach="[[1, 1], [1, 1000]]", ffn="[1, 0, 0]"):
    return BUCKET.replace("SIZE", size).replace("REACH", reach).replace("FFN", ffn)


@pytest.mark.parametrize(
    "buckets",
    [bucket(size="1e999"), bucket(size="NaN"), bucket(reach="[[-1e999, 1e999], [1, 1000]]"), bucket(ffn="[1e999, 0, 0]"),
     bucket(ffn="[NaN, 0, 0]"), bucket(ffn="[1e308, 1e308, 1e308]"), bucket(ffn=f"[1{'0' * 400}, 0, 0]"),
     bucket(size="-Infinity"), "[" * 100_000, "[[[[]]]]", "{}", "7"],
    ids=lambda buckets: buckets[:9] + buckets[-60:],
)  # fmt: skip
def test_a_baseline_of_nonsense_is_one_sentence_and_nothing_is_compared(worlds, tmp_path, buckets, caplog):
    path = tmp_path / "good.json"
    path.write_text(json.dumps({**PLANES, "buckets": None}).replace("null", f"[{buckets}]"))
    world = worlds(baseline=path)
    with np.errstate(all="raise"):
        world.poll()
    assert (world.errors(), said(caplog, f"{path} is damaged")) == ({"baseline": 1}, 1)
    assert max(len(record.getMessage()) for record in caplog.records) < 1000
    assert world.everything_goes_on()


@pytest.mark.parametrize(
    ("stage", "break_it"),
    [
        ("discovery", lambda exporter, patch: patch.setattr(exporter, "_serve", lambda: 1 / 0)),
        ("discovery", lambda exporter, patch: patch.setattr(exporter._announcement, "keep", lambda *_: 1 / 0)),
        ("nvml", lambda exporter, patch: patch.setattr(exporter._nvml, "check", lambda: 1 / 0)),
        ("aggregate", lambda exporter, patch: patch.setattr(exporter.group, "settle", lambda: 1 / 0)),
        ("baseline", lambda exporter, patch: patch.setattr(Baseline, "save", lambda *_: 1 / 0)),
        ("positions", lambda exporter, patch: patch.setattr(exporter._rings, "keep_positions", lambda: 1 / 0)),
        ("otlp", lambda exporter, patch: exporter._pushes.insert(0, None)),
        ("live", lambda exporter, patch: patch.setattr(exporter._live, "poll", lambda now: 1 / 0)),
    ],
)  # fmt: skip
def test_whatever_part_of_a_poll_fails_the_others_go_on(worlds, monkeypatch, stage, break_it, caplog):
    world = worlds()
    world.poll(1)  # it has an address
    break_it(world.exporter, monkeypatch)
    world.poll()
    assert world.errors() == {stage: POLLS}
    assert said(caplog, f"{stage}") == 1
    if stage != "live":
        assert world.everything_goes_on()


def test_a_part_that_fails_at_the_end_keeps_nothing_from_being_withdrawn(worlds, monkeypatch, tmp_path):
    world = worlds(targets=tmp_path / "targets")
    world.poll()
    files = [world.folder / ADDRESS, *(tmp_path / "targets").iterdir()]
    assert len(files) == 2
    world.push.close = lambda: 1 / 0
    monkeypatch.setattr(world.exporter._baseline, "close", lambda: 1 / 0)
    world.exporter.close()
    assert [path.exists() for path in (*files, ring_path(world.folder, 0))] == [False, False, False]
    with pytest.raises(urllib.error.URLError, match="refused"):
        world.scrape()


@pytest.mark.parametrize("section", ["_measured", "_described", "_of_hardware", "_of_collectives"])
def test_a_section_of_metrics_that_fails_costs_no_other(worlds, monkeypatch, section):
    world = worlds()
    world.poll()
    whole = len(world.scrape())
    monkeypatch.setattr(type(world.exporter._collector), section, lambda self: 1 / 0)
    assert 5 < len(world.scrape()) <= whole + 1
    assert world.errors()["metrics"] >= 1
    assert ("lightllm_gpu_step_in_flight_seconds", ("rank", "0")) in world.scrape()


@contextlib.contextmanager
def no_descriptor_left():
    """As if somebody held all others that this process may have."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.fixture
def hold():
    """Another process that holds the lock of a file, as a rank does with its ring."""
    code = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'r+b'); fcntl.lockf(file, fcntl.LOCK_EX);"
        "print(flush=True); time.sleep(60)"
    )
    holders = []

    def start(path):
        holders.append(subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE))
        assert holders[-1].stdout.readline() == b"\n"
        return holders[-1]

    yield start
    for holder in holders:
        with holder:
            holder.kill()


def test_without_a_descriptor_left_nobody_is_taken_for_dead_and_the_exporter_does_not_end(worlds, hold):
    world = worlds()
    world.poll()  # which frees our own lock: it opens and closes the ring
    holder = hold(ring_path(world.folder, 0))
    assert not world.exporter.over()
    with no_descriptor_left():
        for _ in range(100):
            world.now += 1.0
            with world.exporter._parts(ExporterStage.POLL):
                world.exporter.poll()
            assert not world.exporter.over()
    world.poll()
    assert world.everything_goes_on()
    world.now += 1.0
    assert not world.exporter.over()
    holder.kill()
    holder.wait()
    ended = []
    for _ in range(int(LINGER_SECONDS) + 2):
        world.now += 1.0
        ended.append(world.exporter.over())
    assert (ended[0], ended[-1]) == (False, True)


def test_a_failing_part_says_so_in_a_bounded_number_of_lines(caplog):
    from lightllm_otel.parts import MOST_LINES, Parts

    parts = Parts()
    for number in range(10 * MOST_LINES):
        with parts(ExporterStage.RINGS, f"rank-{number}.ring"):
            raise OSError(5, "Input/output error")
    assert parts.errors[ExporterStage.RINGS] == 10 * MOST_LINES
    assert len(caplog.records) == MOST_LINES


def test_a_signal_ends_the_exporter_from_any_part():
    from lightllm_otel.parts import Parts

    with pytest.raises(SystemExit), Parts()(ExporterStage.POLL):
        raise SystemExit(0)


def test_the_log_file_is_not_needed_for_anything(worlds, monkeypatch):
    world = worlds()
    world.exporter._holds_stderr = True
    tried = []
    monkeypatch.setattr(
        exporter_module, "let_go_of_stderr", lambda folder: tried.append(folder) or Path("/nonexistent/x").touch()
    )
    world.poll()
    assert len(tried) == POLLS
    assert world.errors() == {"discovery": POLLS}
    assert world.everything_goes_on()
