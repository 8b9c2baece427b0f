"""The exporter's life, on a manual clock; its ranks are rings that another process holds."""

import dataclasses
import json
import logging
import socket
import subprocess
import sys
import urllib.request

import pytest
import records

from lightllm_otel.exporter import rank_rings
from lightllm_otel.exporter.discovery import ADDRESS
from lightllm_otel.exporter.exporter import FIRST_RANK_SECONDS, LINGER_SECONDS, Exporter
from lightllm_otel.exporter.http_server import FIRST_PORT, MetricsServer, NoFreePort
from lightllm_otel.records.folder import FileLock, group_folder, ring_path
from lightllm_otel.records.vocabulary import Operator
from lightllm_otel.records.writer import RingWriter
from lightllm_otel.settings import Settings


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def now():
    return [0.0]


@pytest.fixture
def folder(tmp_path):
    return group_folder(tmp_path, "127.0.0.1-28765-dp0")


@pytest.fixture
def start(folder, now):
    started = []

    def make(**changes):
        settings = dataclasses.replace(Settings.from_env({}), **{"port": free_port(), **changes})
        started.append(Exporter(folder, settings, now=lambda: now[0]))
        return started[-1]

    yield make
    for exporter in started:
        if exporter.server is not None:
            exporter.server.close()


@pytest.fixture
def alive(monkeypatch):
    """Which rings are held by a living process."""
    held = set()
    monkeypatch.setattr(rank_rings, "is_locked", lambda path: path.name in held)
    return held


def rank_of_a_server(folder, rank=0, steps=2):
    ring = RingWriter(ring_path(folder, rank), 1)
    ring.describe({**records.FACTS, "rank": rank})
    for number in range(steps):
        ring.write(*records.step(number=number, operators=[(Operator.FFN, 0.5)]))
    return ring


def scrape(exporter):
    with urllib.request.urlopen(f"http://{exporter.server.address}/metrics", timeout=5) as answer:
        return answer.read().decode()


def test_what_the_ranks_wrote_is_served(folder, start):
    rank_of_a_server(folder)
    exporter = start()
    exporter.poll()
    text = scrape(exporter)
    assert 'lightllm_gpu_operator_duration_seconds_sum{mode="eager",operator="ffn",phase="decode"} 1.0' in text
    assert "lightllm_server_info{" in text


@pytest.mark.parametrize("given", ["", "rack 4"])
def test_a_server_is_called_as_it_is_told_or_by_host_and_group(folder, start, given):
    rank_of_a_server(folder)
    exporter = start(server=given)
    exporter.poll()
    assert f'server="{given or f"{socket.gethostname()}/{folder.name}"}"' in scrape(exporter)


def test_openmetrics_is_served_to_whoever_asks_for_it(folder, start):
    exporter = start()
    exporter.poll()
    request = urllib.request.Request(
        f"http://{exporter.server.address}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        assert answer.read().endswith(b"# EOF\n")


def test_its_address_is_announced_to_prometheus_and_withdrawn(folder, start, tmp_path):
    rank_of_a_server(folder)
    exporter = start(targets=tmp_path / "for-prometheus")
    exporter.poll()
    (path,) = (tmp_path / "for-prometheus").iterdir()
    (group,) = json.loads(path.read_text())
    assert group["targets"] == [exporter.server.address]
    assert json.loads((folder / ADDRESS).read_text()) == {"address": exporter.server.address}
    exporter.close()
    assert not path.exists()
    assert not (folder / ADDRESS).exists()


def test_the_server_log_gets_one_line_that_says_where_to_look(folder, start, caplog):
    caplog.set_level(logging.INFO, "lightllm_otel")
    rank_of_a_server(folder)
    exporter = start()
    exporter.poll()
    exporter.poll()
    (line,) = [record.message for record in caplog.records]
    assert exporter.server.address in line
    assert "missing: none" in line
    assert "lightllm-otel top" in line


def test_it_ends_after_its_ranks(folder, start, now, alive):
    rank_of_a_server(folder)
    alive.add("rank-0.ring")
    exporter = start()
    now[0] = 1000.0
    assert not exporter.over()
    alive.clear()
    now[0] += LINGER_SECONDS
    assert not exporter.over()
    now[0] += 2
    assert exporter.over()
    exporter.close()
    assert not ring_path(folder, 0).exists()


def test_it_ends_when_no_rank_ever_comes(start, now, alive):
    exporter = start()
    now[0] = FIRST_RANK_SECONDS - 1
    assert not exporter.over()
    now[0] = FIRST_RANK_SECONDS + 2
    assert exporter.over()


def test_a_successor_goes_on_where_the_last_one_stopped(folder, start):
    ring = rank_of_a_server(folder, steps=3)
    first = start()
    first.poll()
    ring.write(*records.step(number=3, operators=[(Operator.FFN, 0.5)]))
    second = start()  # the first one was killed: nothing was tidied up
    second.poll()
    assert [sum(h.count for h in e.group.operators.histograms.values()) for e in (first, second)] == [3, 1]


def test_a_rank_that_starts_again_keeps_the_counters_going_up(folder, start):
    rank_of_a_server(folder, steps=3)
    exporter = start()
    exporter.poll()
    rank_of_a_server(folder, steps=2)
    exporter.poll()
    assert sum(h.count for h in exporter.group.operators.histograms.values()) == 5


def test_tokens_of_a_group_are_counted_once_whatever_order_the_rings_are_found_in(folder, start):
    for rank in (2, 10, 1, 0):
        rank_of_a_server(folder, rank, steps=3)
    exporter = start()
    exporter.poll()
    assert sum(exporter.group.computed.tokens.values()) == 3


def test_a_file_that_is_no_ring_is_named_once_and_the_others_are_read(folder, start, caplog):
    rank_of_a_server(folder)
    ring_path(folder, 1).write_bytes(b"x" * 100)
    exporter = start()
    for _ in range(3):
        exporter.poll()
    assert len([r for r in caplog.records if "rank-1.ring is not a ring" in r.message]) == 1
    assert sum(h.count for h in exporter.group.operators.histograms.values()) == 2


def test_without_a_port_it_says_so_once_and_tries_again(folder, start, now, caplog):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        exporter = start(port=port)
        for now[0] in (0.0, 5.0, 11.0):
            exporter.poll()
        assert exporter.server is None
        assert len([r for r in caplog.records if "LIGHTLLM_OTEL_PORT" in r.message]) == 1
    now[0] = 30.0
    exporter.poll()
    assert exporter.server.port == port


def test_the_first_free_port_of_the_range_is_taken():
    from prometheus_client import CollectorRegistry

    first = MetricsServer(CollectorRegistry(), "127.0.0.1", None)
    second = MetricsServer(CollectorRegistry(), "127.0.0.1", None)
    try:
        assert FIRST_PORT <= first.port < second.port
    finally:
        first.close()
        second.close()


def test_an_address_of_another_machine_is_one_clear_sentence():
    from prometheus_client import CollectorRegistry

    with pytest.raises(NoFreePort, match="Set LIGHTLLM_OTEL_PORT to a free port"):
        MetricsServer(CollectorRegistry(), "192.0.2.1", 9464)


def test_a_second_exporter_of_a_folder_ends_at_once(folder):
    lock = FileLock(folder / "exporter.lock")
    assert lock.acquire()
    command = [sys.executable, "-m", "lightllm_otel", "exporter", "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    lock.release()
    assert done.returncode == 1
    assert "another exporter serves" in done.stderr
    assert "Traceback" not in done.stderr
