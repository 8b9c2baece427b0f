"""Our dependencies live beside what LightLLM pins."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PINS = Path(__file__).parent / "lightllm-pins.txt"


def pins() -> list[Requirement]:
    lines = [line.partition("#")[0].strip() for line in PINS.read_text().splitlines()]
    return [Requirement(line) for line in lines if line]


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="LightLLM's numpy 1.25.1 has no wheels for this Python")
@pytest.mark.parametrize("extra", ["", "[otlp]", "[otlp-grpc]"])
def test_installing_ours_changes_no_pin(wheel: Path, tmp_path: Path, extra: str) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-I", "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    command += ["--only-binary", ":all:", "--report", str(report), "--constraint", str(PINS), f"{wheel}{extra}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Failed to establish a new connection" in done.stderr or "Temporary failure in name" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr

    installs = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    chosen = {canonicalize_name(item["name"]): item["version"] for item in installs}
    assert {"numpy", "prometheus-client", "opentelemetry-sdk", "wrapt", "nvidia-ml-py"} <= chosen.keys()
    for pin in pins():
        name = canonicalize_name(pin.name)
        assert name not in chosen or chosen[name] in pin.specifier, (pin, chosen[name])


@pytest.mark.parametrize("host", ["torch", "lightllm"])
def test_the_host_is_no_dependency(wheel: Path, host: str) -> None:
    with ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = archive.read(name).decode()
    required = [line.partition(": ")[2] for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    assert required
    assert host not in {Requirement(line).name for line in required}
