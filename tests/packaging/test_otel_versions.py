"""Metrics and traces over OTLP with the SDKs that LightLLM's pins allow: vllm 0.8.5 holds it at 1.26, protobuf at 1.27."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OTEL = ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http", "opentelemetry-exporter-otlp-proto-grpc")
BESIDE = ("numpy", "nvidia-ml-py", "prometheus-client==0.20.0", "pytest>=8", "pytest-timeout", "wrapt")


@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="these SDKs need pkg_resources, which newer Pythons do not bring"
)
@pytest.mark.parametrize("version", ["1.26.0", "1.27.0"])
def test_what_is_sent_is_the_same_with_an_older_sdk(version: str, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    install = [sys.executable, "-I", "-m", "pip", "--python", str(python), "install", "--quiet"]
    wanted = [*(f"{name}=={version}" for name in OTEL), *BESIDE]
    done = subprocess.run([*install, *wanted], capture_output=True, text=True, check=False, cwd=tmp_path)
    if "Failed to establish a new connection" in done.stderr or "Temporary failure in name" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    # How queues behave takes time to see; the oldest SDK differs most from ours.
    names = ["test_otlp.py", "test_traces.py", *(["test_span_queues.py"] if version == "1.26.0" else [])]
    tests = [str(ROOT / "tests" / "exporter" / name) for name in names]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [str(python), "-m", "pytest", "-q", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), *tests]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environ)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
