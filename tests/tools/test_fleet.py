"""Tests of the simulated servers of ``lightllm-otel demo --fleet``."""

import contextlib
import dataclasses
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

from lightllm_otel.records.folder import group_folder
from lightllm_otel.records.vocabulary import Operator, Phase, Site
from lightllm_otel.settings import Settings
from lightllm_otel.tools import cli, prometheus
from lightllm_otel.tools.fleet import RANKS, Fault, SimulatedServer, StepTemplate


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def settings(tmp_path):
    return dataclasses.replace(Settings.from_env({}), directory=tmp_path, state=None, nvml=False, port=free_port())


@pytest.fixture(scope="module")
def template():
    return StepTemplate(Phase.DECODE, 24, 1, 1600)


def test_who_is_slow_is_waited_for_and_waits_for_nobody(template):
    times = template.seconds(np.random.default_rng(1), Fault(rank=2, slow=1.5), 1.0, 0.0)
    reduces = template.intervals["operator"] == Operator.ALL_REDUCE.code
    assert (times[2, reduces] <= times[:, reduces].min(axis=0) + 1e-12).all()
    assert times[0, reduces].sum() > 1.5 * times[2, reduces].sum()
    ends = times.sum(axis=1)
    last = float(times[:, np.flatnonzero(template.collective)[-1] + 1 :].sum(axis=1).max())
    assert np.ptp(ends) <= last  # all ranks leave each collective together


def test_a_slow_link_makes_transfers_longer_and_nothing_else(template):
    well, slow = (template.seconds(np.random.default_rng(1), Fault(), link, 0.0) for link in (1.0, 1.25))
    ratio = slow / well
    assert np.allclose(ratio[:, template.collective], 1.25)
    assert np.allclose(ratio[:, ~template.collective], 1.0)


def test_collectives_carry_what_the_model_says(template):
    at = template.intervals[template.collective]
    assert set(at["site"]) == {Site.EMBEDDING.code, Site.ATTENTION.code, Site.FFN.code, Site.LM_HEAD.code}
    reduces = at[at["operator"] == Operator.ALL_REDUCE.code]
    assert set(reduces["payload_bytes"]) == {24 * 8192 * 2}


def test_its_exporter_matches_every_sampled_step_of_all_ranks(tmp_path, settings):
    server = SimulatedServer(group_folder(tmp_path, "one"), settings, Fault(), 1)
    try:
        server.advance(1.0)
        group = server.exporter.group
        assert len(group.ranks) == RANKS
        assert group.counter("sampled_steps") > 0
        assert sum(group.matching.unmatched.values()) == 0
        assert group.facts()["lightllm"] == "simulated"
    finally:
        server.close()


def test_without_a_prometheus_it_says_where_to_get_one(monkeypatch, capsys):
    monkeypatch.setattr(prometheus.shutil, "which", lambda name: None)
    assert cli.main(["demo", "--fleet", "--port", str(free_port()), "--prometheus", "--seconds", "1"]) == 1
    assert "there is no prometheus in PATH" in capsys.readouterr().err


@pytest.fixture
def ports():
    """Return the first of four consecutive free ports."""
    for first in range(21500, 27000, 10):
        with contextlib.ExitStack() as probes, contextlib.suppress(OSError):
            for port in range(first, first + 4):
                probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise OSError("no free ports")


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus in PATH (Debian: prometheus)")
class TestWithPrometheus:
    def test_its_prometheus_ends_with_it_also_when_it_is_told_to(self, ports):
        command = [sys.executable, "-m", "lightllm_otel", "demo", "--fleet", "--port", str(ports)]
        command += ["--prometheus", str(ports + 3), "--seconds", "100"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
            said = [demo.stdout.readline() for _ in range(5)]
            assert said[-1].strip() == f"Prometheus: http://127.0.0.1:{ports + 3}"
            demo.terminate()
            demo.wait(timeout=30)
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", ports + 3)) != 0

    def test_a_port_that_is_taken_is_said(self, ports, capsys):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", ports + 3))
            taken.listen()
            words = ["demo", "--fleet", "--port", str(ports), "--prometheus", str(ports + 3), "--seconds", "1"]
            assert cli.main(words) == 1
        assert "address already in use" in capsys.readouterr().err
