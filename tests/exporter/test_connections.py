"""Thousands of connections that ask nothing, or slowly: they push each other out, and whoever asks is answered."""

import contextlib
import http.client
import os
import resource
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import records
from prometheus_client import CollectorRegistry

from lightllm_otel.exporter import http_server as server_module
from lightllm_otel.exporter.connections import (
    ANSWER_SECONDS,
    ANSWERED,
    CROWDED_ANSWER_SECONDS,
    MOST_CONNECTIONS,
    REQUEST_SECONDS,
    WATCHING,
    Connections,
)
from lightllm_otel.exporter.discovery import targets
from lightllm_otel.exporter.event_stream import EventStream
from lightllm_otel.exporter.http_server import MOST_HEAD_BYTES, MetricsServer
from lightllm_otel.parts import Parts
from lightllm_otel.records.folder import group_folder, ring_path
from lightllm_otel.records.vocabulary import ExporterStage
from lightllm_otel.records.writer import RingWriter

IDLE = 2000


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


# Which one goes -------------------------------------------------------------------------------------------------------


@pytest.fixture
def now():
    return [0.0]


@pytest.fixture
def pair():
    """``pair()``: our end of a connection, and the peer's."""
    with contextlib.ExitStack() as stack:

        def make():
            ends = socket.socketpair()
            for each in ends:
                stack.enter_context(each)
                each.settimeout(5)
            return ends

        yield make


def is_ended(peer):
    peer.setblocking(False)
    try:
        return peer.recv(1) == b""
    except BlockingIOError:
        return False


def test_the_oldest_that_has_not_asked_gives_its_place_to_a_new_one(now, pair):
    connections = Connections(lambda: now[0], most=2)
    ends = [pair() for _ in range(4)]
    for (ours, _), now[0] in zip(ends, (0.0, 1.0)):
        assert connections.add(ours, "10.0.0.1")
    connections.now_is(ends[0][0], ANSWERED)
    assert connections.add(ends[2][0], "10.0.0.1")
    assert [is_ended(peer) for _, peer in ends] == [False, True, False, False]


def test_a_host_with_many_idle_connections_pushes_out_its_own(now, pair):
    connections = Connections(lambda: now[0], most=4)
    ends = [pair() for _ in range(6)]
    for at, ((ours, _), host) in enumerate(zip(ends, ("scraper", "flood", "flood", "flood", "flood", "flood"))):
        now[0] = float(at)
        assert connections.add(ours, host)
    assert [is_ended(peer) for _, peer in ends] == [False, True, True, False, False, False]


def test_when_all_are_answered_a_slow_one_goes_and_watchers_stay(now, pair):
    connections = Connections(lambda: now[0], most=2)
    (slow, slow_peer), (watcher, watcher_peer), (new, _) = (pair() for _ in range(3))
    for ours, state in ((slow, ANSWERED), (watcher, WATCHING)):
        assert connections.add(ours, "host")
        connections.now_is(ours, state)
    assert not connections.add(new, "host")
    now[0] += CROWDED_ANSWER_SECONDS + 0.1
    assert connections.add(new, "host")
    assert (is_ended(slow_peer), is_ended(watcher_peer)) == (True, False)


@pytest.mark.parametrize(
    ("state", "seconds"), [(None, REQUEST_SECONDS), (ANSWERED, ANSWER_SECONDS), (WATCHING, float("inf"))]
)
def test_each_state_has_its_time(now, pair, state, seconds):
    connections, (ours, peer) = Connections(lambda: now[0]), pair()
    connections.add(ours, "host")
    if state is not None:
        connections.now_is(ours, state)
    now[0] += min(seconds, 1e6)
    connections.end_overdue()
    assert not is_ended(peer)
    now[0] += 0.1
    connections.end_overdue()
    assert is_ended(peer) == (state is not WATCHING)


def test_threads_of_ended_connections_are_waited_for_and_never_many(now, pair):
    connections = Connections(lambda: now[0], most=2)
    kept = [pair() for _ in range(6)]  # nobody takes them out: as threads that have not noticed yet
    assert [connections.add(ours, "host") for ours, _ in kept[:4]] == [True] * 4
    assert not connections.add(kept[4][0], "host")
    connections.remove(kept[0][0])
    assert connections.add(kept[5][0], "host")


# The server -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def parts():
    return Parts()


@pytest.fixture
def server(parts, monkeypatch):
    monkeypatch.setattr("lightllm_otel.exporter.http_server.LOOK_SECONDS", 0.02)  # else each end takes half a second
    started = MetricsServer(CollectorRegistry(), "127.0.0.1", None, EventStream(), parts)
    yield started
    started.close()


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def status_of(peer):
    return int(peer.recv(4096).split()[1])


def test_half_a_request_is_ended_in_time_however_busily_it_drips(server, monkeypatch):
    monkeypatch.setattr("lightllm_otel.exporter.connections.REQUEST_SECONDS", 0.5)
    with connect(server) as peer:
        peer.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n")

        def is_turned_away():
            try:
                peer.sendall(b"X: y\r\n")
            except OSError:
                return True
            return False

        assert until(is_turned_away, 10)
    assert until(lambda: len(server._server.connections) == 0)


@pytest.mark.parametrize(
    "request_", [b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"y" * 60_000,
                 b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"X: %s\r\n" % (b"y" * 1000) for _ in range(99)),
                 b"GET /" + b"x" * 60_000]
)  # fmt: skip
def test_headers_without_end_take_a_bounded_place_and_are_no_request(server, request_):
    assert len(request_) > MOST_HEAD_BYTES
    with connect(server) as peer, contextlib.suppress(OSError):
        peer.sendall(request_ + b"\r\n\r\n")
        answer = peer.recv(4096)
        assert answer == b"" or b" 431 " in answer.splitlines()[0]
    assert until(lambda: len(server._server.connections) == 0)


def test_an_answer_that_nobody_takes_is_given_up(server, monkeypatch):
    monkeypatch.setattr("lightllm_otel.exporter.connections.ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(
        server_module, "choose_encoder", lambda accept: (lambda registry: b"x" * (64 << 20), "text/plain")
    )
    with connect(server) as peer:
        peer.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert until(lambda: len(server._server.connections) == 1)
        assert until(lambda: len(server._server.connections) == 0)


def test_so_many_scrapes_are_written_at_once_and_no_more(server, monkeypatch):
    at_once, most, free = [0], [0], threading.Event()

    def encode(registry):
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        free.wait(10)
        at_once[0] -= 1
        return b"ok"

    monkeypatch.setattr(server_module, "choose_encoder", lambda accept: (encode, "text/plain"))
    peers = [connect(server) for _ in range(3 * server_module.MOST_SCRAPES)]
    for peer in peers:
        peer.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert until(lambda: at_once[0] == server_module.MOST_SCRAPES)
    time.sleep(0.2)
    free.set()
    assert [status_of(peer) for peer in peers] == [200] * len(peers)
    assert most[0] == server_module.MOST_SCRAPES
    for peer in peers:
        peer.close()


def test_a_serving_thread_that_fails_is_started_again(server, parts, monkeypatch, lenient):
    broken = iter((True, True))
    real = server._server.connections.end_overdue
    monkeypatch.setattr(server._server.connections, "end_overdue", lambda: 1 / 0 if next(broken, False) else real())
    assert until(lambda: parts.errors[ExporterStage.HTTP] == 2)
    with connect(server) as peer:
        peer.sendall(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert status_of(peer) == 404


def test_a_thread_that_cannot_be_started_costs_that_connection(server, parts, monkeypatch):
    real = threading.Thread.start

    def start(thread):
        if thread.name == "http":
            raise RuntimeError("can't start new thread")
        real(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with connect(server) as peer:
            assert peer.recv(1) == b""
    assert parts.errors[ExporterStage.HTTP] == 1
    with connect(server) as peer:
        peer.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert status_of(peer) == 200


# The exporter, as users run it ------------------------------------------------------------------------------------------


@pytest.fixture
def many_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < IDLE + 500:
        pytest.skip(f"this process may have {hard} descriptors, and {IDLE + 500} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, IDLE + 500), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Running:
    """An exporter in a process of its own, whose only rank is this process."""

    def __init__(self, tmp_path, descriptors):
        self.folder = group_folder(tmp_path, "127.0.0.1-28765-dp0")
        self.ring = RingWriter(ring_path(self.folder, 0), 1)
        self.ring.describe(records.FACTS)
        command = [sys.executable, "-m", "lightllm_otel", "exporter", "--folder", str(self.folder)]
        environ = {**os.environ, "LIGHTLLM_OTEL_DIR": str(tmp_path)}
        self.log = (tmp_path / "log").open("wb")
        self.process = subprocess.Popen(
            ["prlimit", f"--nofile={descriptors}:{descriptors}", *command], env=environ, stderr=self.log
        )
        assert until(lambda: targets(tmp_path), 60)
        self.address = next(iter(targets(tmp_path).values()))
        self.host, _, port = self.address.rpartition(":")
        self.port = int(port)
        self.number = 0

    def counts(self):
        """Whether a step that is written now is on ``/metrics`` soon."""
        self.ring.write(*records.step(number=self.number))
        self.number += 1

        def there():
            with contextlib.suppress(OSError):  # one of many connections may be turned away
                return f'_count{{mode="eager",phase="decode"}} {self.number}.0' in self.scrape()

        return until(there)

    def scrape(self):
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=10) as answer:
            return answer.read().decode()

    def status(self, name):
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

    def close(self):
        self.process.terminate()
        self.process.wait(20)
        self.log.close()


@pytest.fixture
def running(tmp_path):
    started = []

    def start(descriptors):
        started.append(Running(tmp_path, descriptors))
        return started[-1]

    yield start
    for each in started:
        each.close()


def flood(address, peers, many):
    for _ in range(many):
        peer = socket.socket()
        peer.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            peer.connect(address)
        peers.append(peer)
        if len(peers) % 50 == 0:
            time.sleep(0.02)


def test_two_thousand_idle_connections_cost_a_scraper_nothing(running, many_descriptors):
    exporter = running(descriptors=1024)
    assert exporter.counts()
    threads, memory = exporter.status("Threads"), exporter.status("VmRSS")
    peers, most = [], 0
    try:
        for _ in range(10):
            flood((exporter.host, exporter.port), peers, IDLE // 10)
            assert exporter.counts()
            most = max(most, exporter.status("Threads"))
        assert len(peers) == IDLE
        assert most <= threads + 2 * MOST_CONNECTIONS
        assert exporter.status("VmRSS") < memory + 64 * 1024
        assert exporter.counts()
    finally:
        for peer in peers:
            peer.close()
    assert exporter.counts()
    assert exporter.process.poll() is None
    assert until(lambda: exporter.status("Threads") <= threads + 2)
    assert 'lightllm_otel_errors_total{stage="http"}' not in exporter.scrape()


def test_an_exporter_without_descriptors_for_its_connections_goes_on(running, many_descriptors, tmp_path):
    """Fewer than it may have connections: accepting fails for real."""
    exporter = running(descriptors=40)
    assert exporter.counts()
    peers = []
    try:
        for _ in range(4):
            flood((exporter.host, exporter.port), peers, 100)
            time.sleep(1.0)
        assert exporter.process.poll() is None
    finally:
        for peer in peers:
            peer.close()
    assert exporter.counts()
    assert 'lightllm_otel_errors_total{stage="http"}' in exporter.scrape()
    said = (tmp_path / "log").read_text()
    assert said.count("no connection can be taken") == 1
    assert "Traceback" not in said


def test_watchers_may_stay_while_others_are_turned_away(server):
    with contextlib.ExitStack() as stack:
        watcher = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        stack.callback(watcher.close)
        watcher.request("GET", "/events")
        answer = watcher.getresponse()
        for _ in range(3 * MOST_CONNECTIONS):
            stack.enter_context(connect(server))
        assert until(lambda: len(server._server.connections) <= MOST_CONNECTIONS)
        server._event_stream.publish(b'{"n":1}')
        assert b"n" in b"".join(answer.readline() for _ in range(4))
