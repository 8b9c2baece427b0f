"""``lightllm-otel ctl`` over the socket of a real exporter, with rings in the place of ranks."""

import contextlib
import dataclasses
import errno
import json
import os
import socket
import threading
import time

import pytest
import records

from lightllm_otel.exporter import control as control_module
from lightllm_otel.exporter.control import SOCKET, Controller, ControlServer, Refused, ask
from lightllm_otel.exporter.exporter import Exporter
from lightllm_otel.parts import Parts
from lightllm_otel.records.control import NAME, REQUEST, ControlPage, Listener
from lightllm_otel.records.folder import LOCK_NAME, FileLock, group_folder, ring_path
from lightllm_otel.records.vocabulary import ExporterStage, Level
from lightllm_otel.records.writer import RingWriter
from lightllm_otel.reduce.group import Group
from lightllm_otel.settings import Settings
from lightllm_otel.tools import cli

ended: set[str] = set()
"""Names of rings whose ranks are gone."""


class Ranks:
    """Rings of a server, and a thread that steps through forwards as its model threads would."""

    def __init__(self, folder, present, tp, busy=True):
        self.rings = [RingWriter(ring_path(folder, rank), 1) for rank in range(present)]
        for ring in self.rings:
            ring.describe({**records.FACTS, "tp": tp})
            ring.header["level"], ring.header["sample_every"] = Level.OPERATORS.code, 64
            ring.header["listening"] = 1
        self.page = ControlPage(folder / NAME)
        self.listeners = [Listener(self.page, self.place if rank == 0 else None) for rank in range(present)]
        self.number = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        if busy:
            self._thread.start()

    @staticmethod
    def place(number, request):
        return number + 8

    def _run(self):
        while not self._stop.is_set():
            for ring, listener in zip(self.rings, self.listeners):
                order = listener.due(self.number)
                if order is not None:
                    ring.header["level"], ring.header["sample_every"] = order.level.code, order.every
                    ring.header["control_at"], ring.header["control_seq"] = self.number, order.seq
            self.number += 1
            time.sleep(0.002)

    def close(self):
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self.page.close()


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """``serve(present, tp)`` → (folder, ranks) with an exporter that polls and listens."""
    monkeypatch.setenv("LIGHTLLM_OTEL_DIR", str(tmp_path / "dir"))
    monkeypatch.setattr("lightllm_otel.tools.scrape.os.getuid", lambda: 4_000_000)
    monkeypatch.setattr(control_module, "PATIENCE_SECONDS", 1.0)
    running = []
    ended.clear()

    def start(present=2, tp=2, busy=True, name="127.0.0.1-28765-dp0"):
        folder = group_folder(tmp_path / "dir", name)
        lock = FileLock(folder / LOCK_NAME)
        assert lock.acquire()
        ranks = Ranks(folder, present, tp, busy)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        exporter = Exporter(folder, dataclasses.replace(Settings.from_env({}), port=port))
        exporter._listen()
        stop = threading.Event()

        def poll():
            while not stop.wait(0.02):
                exporter.poll()

        exporter.poll()
        thread = threading.Thread(target=poll, daemon=True)
        thread.start()
        running.append((exporter, ranks, stop, thread, lock))
        return folder, ranks

    # A process does not see its own locks; the command under test is usually another process than the exporter.
    monkeypatch.setattr("lightllm_otel.tools.ctl.is_locked", lambda path: path.exists())
    monkeypatch.setattr(control_module, "is_locked", lambda path: path.exists() and path.name not in ended)
    yield start
    for exporter, ranks, stop, thread, lock in running:
        stop.set()
        thread.join()
        ranks.close()
        exporter.close()
        lock.release()


def test_every_rank_follows_and_the_answer_says_from_where_on(serve, capsys):
    _, ranks = serve()
    assert cli.main(["ctl", "every", "16"]) == 0
    assert "operators: one decode step in 16; 2 ranks, from forward" in capsys.readouterr().out
    assert {int(ring.header["control_at"][0]) for ring in ranks.rings} != {0}
    assert len({int(ring.header["control_at"][0]) for ring in ranks.rings}) == 1
    assert cli.main(["ctl", "off"]) == 0
    assert "all patches are undone except the one that counts" in capsys.readouterr().out
    assert cli.main(["ctl", "operators"]) == 0
    assert "one decode step in 16" in capsys.readouterr().out  # what was not said stays
    assert Level.of(int(ranks.rings[1].header["level"][0])) is Level.OPERATORS


def test_the_answer_as_json_says_what_was_asked_of_whom(serve, capsys):
    folder, _ = serve()
    assert cli.main(["ctl", "every", "16", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["kind"], said["group"], said["asked"]) == ("ctl", folder.name, {"every": 16})
    assert "one decode step in 16" in said["said"]


def test_an_idle_server_takes_it_with_its_next_requests(serve, capsys):
    serve(busy=False)
    assert cli.main(["ctl", "steps"]) == 0
    assert "the server is idle, so the change takes effect with the next requests" in capsys.readouterr().out


def test_a_group_that_spans_hosts_is_refused_with_what_to_do(serve, capsys):
    serve(present=1, tp=2)
    assert cli.main(["ctl", "off"]) == 1
    said = capsys.readouterr().err
    assert "1 of 2 ranks are on this host" in said
    assert "LIGHTLLM_OTEL_LEVEL" in said


def test_rings_of_ranks_that_have_ended_are_no_ranks(serve, capsys):
    serve(present=4, tp=4)
    ended.update({"rank-2.ring", "rank-3.ring"})
    assert cli.main(["ctl", "off"]) == 1
    assert "2 of 4 ranks are on this host" in capsys.readouterr().err


def test_a_rank_that_does_not_listen_is_named_and_nothing_is_asked(serve, capsys):
    _, ranks = serve()
    ranks.rings[1].header["listening"] = 0
    time.sleep(0.1)
    before = ranks.page.requested
    assert cli.main(["ctl", "off"]) == 1
    assert "rank 1 does not follow live control" in capsys.readouterr().err
    assert ranks.page.requested == before


def test_what_was_asked_of_an_idle_server_is_kept_by_what_is_asked_next(serve, capsys):
    _, ranks = serve(busy=False)
    assert cli.main(["ctl", "off"]) == 0
    assert cli.main(["ctl", "every", "16"]) == 0
    waiting = ranks.page.read(REQUEST)
    assert (waiting.level, waiting.every) == (Level.OFF, 16)


@pytest.mark.parametrize("words", [["of"], ["every"], ["every", "x"], ["operators", "16"]])
def test_what_is_not_understood_is_one_sentence(serve, capsys, words):
    serve()
    assert cli.main(["ctl", *words]) == 1
    assert "pass off, steps, operators, or every N" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"level": "all"}, "level 'all' is not known"),
        ({"every": 0}, "give a whole number of at least 1"),
        ({"every": True}, "give a whole number"),
        ([], "one JSON object"),
    ],
)
def test_the_socket_refuses_what_makes_no_sense(serve, request_, said):
    folder, _ = serve()
    with pytest.raises(Refused, match=said):
        ask(folder, request_)


def test_rubbish_on_the_socket_is_answered_and_the_next_caller_served(serve, monkeypatch):
    folder, _ = serve()
    monkeypatch.chdir(folder)  # the whole path may be longer than an address can be
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(SOCKET))
        caller.sendall(b"\xff\x00 not JSON\n")
        assert json.loads(caller.recv(4096))["ok"] is False
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(SOCKET))
        caller.sendall(b"[" * 4000 + b"\n")  # deeper than a parser goes
        assert json.loads(caller.recv(4096))["ok"] is False
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(SOCKET))
    assert "one decode step in 5" in ask(folder, {"every": 5})


def test_only_the_owner_can_open_the_socket(serve):
    folder, _ = serve()
    assert (folder / SOCKET).stat().st_mode & 0o777 == 0o600
    assert control_module.is_owner(os.getuid())
    assert not control_module.is_owner(os.getuid() + 1)


def test_several_servers_must_be_told_apart(serve, capsys):
    serve()
    serve(name="127.0.0.1-28999-dp0")
    assert cli.main(["ctl", "off"]) == 1
    assert "select one with --group: 127.0.0.1-28765-dp0, 127.0.0.1-28999-dp0" in capsys.readouterr().err
    assert cli.main(["ctl", "--group", "127.0.0.1-28999-dp0", "off"]) == 0
    assert cli.main(["ctl", "--group", "nobody", "off"]) == 1


def test_without_a_server_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LIGHTLLM_OTEL_DIR", str(tmp_path / "nothing"))
    monkeypatch.setattr("lightllm_otel.tools.scrape.os.getuid", lambda: 4_000_000)
    assert cli.main(["ctl", "off"]) == 1
    assert "no server with the plugin runs here" in capsys.readouterr().err


class Exhausted:
    """A listening socket that has no descriptor for the next ``times`` callers."""

    def __init__(self, real, times):
        self._real, self.times = real, times

    def accept(self):
        if self.times:
            self.times -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return self._real.accept()

    def close(self):
        self._real.close()


def test_a_caller_for_whom_there_is_no_descriptor_does_not_end_live_control(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(control_module, "RETRY_SECONDS", 0.01)
    parts = Parts()
    real = socket.socket
    made = []

    def a_socket(*how):
        made.append(Exhausted(real(*how), 3))
        made[-1].bind, made[-1].listen = made[-1]._real.bind, made[-1]._real.listen
        return made[-1]

    with monkeypatch.context() as patch:
        patch.setattr(control_module.socket, "socket", a_socket)
        server = ControlServer(tmp_path, Controller(tmp_path, Group()), parts)
    with pytest.raises(Refused, match="no rank of the server has come up yet"):
        ask(tmp_path, {"level": "steps"})
    assert parts.errors[ExporterStage.CONTROL] == 3
    assert ["cannot accept a connection" in record.message for record in caplog.records] == [True]
    server.close()


def test_a_caller_whose_line_has_no_end_is_let_go(monkeypatch):
    ours, peer = socket.socketpair()
    with ours, peer:
        ours.settimeout(0.5)
        stop = threading.Event()

        def drip():
            while not stop.wait(0.05):
                with contextlib.suppress(OSError):
                    peer.send(b"x")

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        with pytest.raises(TimeoutError, match="no end"):
            control_module.receive(ours)
        stop.set()
        thread.join()
