"""A real server that ``lightllm-otel run`` has started, in a Python from which the site has taken our .pth file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import venv
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Observe, Observed


@pytest.fixture
def without_pth(probed_python: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "without-pth"
    shutil.copytree(probed_python.parents[1], copy, symlinks=True)
    for path in copy.glob("lib/python*/site-packages/lightllm_otel_boot.*"):
        path.unlink()
    return copy / "bin" / "python"


@pytest.fixture
def another_python(wheel_python: Path, tmp_path: Path) -> Path:
    """One that has the commands and their needs, but nothing of ours among its site's files."""
    venv.create(tmp_path / "another", symlinks=True, with_pip=False)
    (folder,) = (tmp_path / "another").glob("lib/python*/site-packages")
    (packages,) = wheel_python.parents[1].glob("lib/python*/site-packages")
    host = (packages / "00-host.pth").read_text()
    (folder / "paths.pth").write_text(f"{packages}\n{host}")
    return tmp_path / "another" / "bin" / "python"


def doctor(observed: Observed, python: Path) -> tuple[int, list[dict[str, str]]]:
    environment = {**os.environ, "LIGHTLLM_OTEL_DIR": str(observed.folder)}
    environment.pop("PYTHONPATH", None)  # a checkout before the wheel
    command = [str(python), "-m", "lightllm_otel", "doctor", "--json"]
    done = subprocess.run(
        command, env=environment, cwd=observed.folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_doctor_believes_a_server_that_run_has_started(
    observe: Observe, without_pth: Path, another_python: Path, wheel_python: Path
) -> None:
    link = {"LIGHTLLM_OTEL_PORT": "tcp://10.0.0.1:9464"}  # a Service of Kubernetes that has our name
    run = [str(without_pth), "-m", "lightllm_otel", "run", "--"]
    observed = observe(("old", 1), env={**link, "LIGHTLLM_OTEL": "yes"}, python=str(without_pth), launcher=run)

    log = observed.server.log.read_text(errors="replace")
    assert (
        len([line for line in log.splitlines() if "LIGHTLLM_OTEL_PORT=tcp://10.0.0.1:9464 was set by" in line]) == 1
    ), log

    for python in (without_pth, another_python):
        status, found = doctor(observed, python)
        (hook,) = [finding for finding in found if finding["about"] == "hook"]
        assert (hook["state"], "The running server is measured" in hook["what"]) == ("note", True)
        assert status == 0, found
    _, found = doctor(observed, wheel_python)
    assert [finding["state"] for finding in found if finding["about"] == "hook"] == ["ok"]
