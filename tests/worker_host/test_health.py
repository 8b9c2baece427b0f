"""LightLLM's health monitor must not watch exporters, whether they live or have just ended."""

import os
import subprocess
import sys
import time
import types
from pathlib import Path

import hooks
import pytest

from lightllm_otel.contracts.fits import Fits
from lightllm_otel.contracts.patch_set import PatchSet
from lightllm_otel.frontend.health import is_exporter
from lightllm_otel.guard import Guard
from lightllm_otel.otel_environment import OtelEnvironment
from lightllm_otel.settings import Settings


@pytest.fixture
def ended_exporter():
    """Return a zombie: it has ended but has not been collected, as below a process 1 that does not collect."""
    name = "from lightllm_otel.exporter.process import name_process; name_process()"
    process = subprocess.Popen([sys.executable, "-c", name])
    while Path(f"/proc/{process.pid}/stat").read_text().split()[2] != "Z":
        time.sleep(0.01)
    yield process.pid
    process.wait(10)


@pytest.fixture
def living_exporter(tmp_path):
    process = subprocess.Popen([sys.executable, "-m", "lightllm_otel", "exporter", "--folder", str(tmp_path / "group")])
    while not Path(f"/proc/{process.pid}/cmdline").read_bytes():
        time.sleep(0.01)
    yield process.pid
    process.kill()
    process.wait(10)


def test_an_exporter_is_told_from_other_processes(living_exporter, ended_exporter):
    assert is_exporter(living_exporter)
    assert is_exporter(ended_exporter)
    assert not is_exporter(os.getpid())
    assert not is_exporter(2**30)


def session_with_a_patch_set():
    return types.SimpleNamespace(
        patch_set=PatchSet(),
        guard=Guard(strict=True),
        fits=Fits(),
        settings=Settings.from_env({}),
        otel_environment=OtelEnvironment.from_env({}),
    )


def test_the_monitors_list_has_everything_but_exporters(ended_exporter):
    module = types.SimpleNamespace(get_all_cared_pids=lambda: [1, os.getpid(), ended_exporter])
    session = session_with_a_patch_set()
    hooks.hook(session, health_monitor__manager=module)
    assert module.get_all_cared_pids() == [1, os.getpid()]
    session.patch_set.undo()
    assert ended_exporter in module.get_all_cared_pids()


def test_a_version_without_such_a_list_is_left_alone():
    module = types.SimpleNamespace()
    session = session_with_a_patch_set()
    hooks.hook(session, health_monitor__manager=module)
    assert vars(module) == {}
    assert session.fits.lost() == {}
