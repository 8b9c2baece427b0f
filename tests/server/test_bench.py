"""Benchmarks of real models: through a real server, and without one."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Observed, ServerOf

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "deploy" / "demo"
LAYERS = 2


def run(python: Path, folder: Path, words: list[str], environment: dict[str, str]) -> dict[str, Any]:
    command = [str(python), "-m", "lightllm_otel", *words, "--json"]
    done = subprocess.run(
        command, env={**os.environ, **environment}, cwd=folder, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def calls(report: dict[str, Any], phase: str, operator: str) -> float:
    (found,) = (each for each in report["phases"] if each["phase"] == phase)
    (row,) = (each for each in found["operators"] if each["operator"] == operator)
    return float(row["calls_per_step"])


@pytest.mark.parametrize("observed", [("old", 1), ("new", 2)], ids=["old-tp1", "new-tp2"], indirect=True)
def test_a_served_benchmark_records_each_repeat_with_exact_lengths(
    observed: Observed, wheel_python: Path, tiny_model: Path, tmp_path: Path
) -> None:
    here = {"LIGHTLLM_OTEL_DIR": str(observed.folder)}
    words = ["bench", "--url", observed.server.url, "--model-dir", str(tiny_model), "--batch-size", "2", "--input-len", "24",
             "--output-len", "5", "--repeats", "2", "--warmup", "0", "--every", "1", "--out", str(tmp_path / "run")]  # fmt: skip
    (manifest,) = run(wheel_python, tmp_path, words, here)["runs"].values()
    assert [repeat["output_tokens"] for repeat in manifest["repeats"]] == [10, 10]
    # A note would say that other than 2 × 24 tokens were prefilled.
    assert [repeat["notes"] for repeat in manifest["repeats"]] == [[], []]
    report = run(wheel_python, tmp_path, ["report", str(tmp_path / "run")], {})
    assert report["repeats"] == 2
    assert report["ranks"] == observed.host.tp
    assert calls(report, "decode", "ffn") == LAYERS


@pytest.mark.parametrize("version", ["old", "new"])
def test_servers_in_two_environments_take_turns_and_can_be_compared(
    version: str, server_of: ServerOf, wheel_python: Path, tiny_model: Path, tmp_path: Path
) -> None:
    server = server_of(types.SimpleNamespace(version=version, tp=1), {}, log=tmp_path / "unused.log")
    words = ["bench", "--serve", shlex.join(server.command), "--ab", "COLOUR=red", "", "--model-dir", str(tiny_model),
             "--batch-size", "1", "--input-len", "24", "--output-len", "5", "--repeats", "1", "--warmup", "1", "--every", "1",
             "--out", str(tmp_path / "run")]  # fmt: skip
    runs = run(wheel_python, tmp_path, words, server.environment)["runs"]
    assert [Path(name).name for name in runs] == ["a", "b"]
    assert [each["changes"] for each in runs.values()] == [{"COLOUR": "red"}, {}]
    for manifest in runs.values():
        (repeat,) = manifest["repeats"]
        assert (repeat["output_tokens"], repeat["notes"]) == (5, [])
    assert server.processes() == []  # both were started in the server's environment
    compared = run(wheel_python, tmp_path, ["compare", *runs], {})
    assert compared["kind"] == "compare"


@pytest.mark.parametrize("observed", [("old", 1)], ids=["old-tp1"], indirect=True)
def test_a_capture_has_every_step_and_leaves_the_sampling_as_it_was(
    observed: Observed, wheel_python: Path, tmp_path: Path
) -> None:
    here = {"LIGHTLLM_OTEL_DIR": str(observed.folder)}
    command = [str(wheel_python), "-m", "lightllm_otel", "capture", "--steps", "3", "--out", str(tmp_path), "--json"]
    with subprocess.Popen(
        command, env={**os.environ, **here}, cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as capturing:
        while capturing.poll() is None:
            observed.server.generate("captured", 12)
        assert capturing.stdout is not None
        found = json.loads(capturing.stdout.read())
    assert found["complete"]
    assert found["sampled"] >= 3
    assert run(wheel_python, tmp_path, ["report", found["path"]], {})["repeats"] == 1


@pytest.mark.parametrize("observed", [("old", 1)], ids=["old-tp1"], indirect=True)
def test_kernels_are_captured_inside_operators_while_the_server_goes_on(
    observed: Observed, wheel_python: Path, tmp_path: Path
) -> None:
    here = {"LIGHTLLM_OTEL_DIR": str(observed.folder)}
    before = observed.server.generate("profiled", 4)
    command = [
        str(wheel_python),
        "-m",
        "lightllm_otel",
        "capture",
        "--kernels",
        "--seconds",
        "1",
        "--out",
        str(tmp_path),
        "--json",
    ]
    with subprocess.Popen(
        command, env={**os.environ, **here}, cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as capturing:
        while capturing.poll() is None:
            assert observed.server.generate("profiled", 4) == before
        assert capturing.stdout is not None
        found = json.loads(capturing.stdout.read())
    assert {"attention", "ffn", "qkv_proj", "lm_head"} <= {row["operator"] for row in found["kernels"]}
    assert observed.server.generate("profiled", 4) == before
    assert observed.settled().total("lightllm_otel_errors_total") == 0


@pytest.mark.parametrize(("version", "tp"), [("old", 1), ("new", 2)], ids=["old-tp1", "new-tp2"])
def test_a_static_benchmark_needs_no_server(version: str, tp: int, tiny_model: Path, tmp_path: Path) -> None:
    if version == "new" and not os.environ.get("LIGHTLLM_SRC"):
        pytest.skip("LIGHTLLM_SRC names no checkout of the current LightLLM")
    pytest.importorskip("lightllm", reason="lightllm is not installed here: make venv")
    source = [os.environ["LIGHTLLM_SRC"]] if version == "new" else []
    environment = {
        "PYTHONPATH": os.pathsep.join([*source, str(DEMO / "cpu"), str(DEMO / "stand_in")]),
        "LIGHTLLM_ON_CPU": version, "OMP_NUM_THREADS": "1", "DISABLE_GPU_TENSOR_CACHE": "1",
    }  # fmt: skip
    words = ["bench", "--static", "--model-dir", str(tiny_model), "--tp", str(tp), "--data-type", "float32", "--batch-size", "2",
             "--input-len", "12", "--output-len", "3", "--repeats", "1", "--warmup", "0", "--every", "1", "--no-graphs",
             "--ab", "SIDE=a", "SIDE=b", "--out", str(tmp_path / "run")]  # fmt: skip
    runs = run(Path(sys.executable), tmp_path, words, environment)["runs"]
    assert [manifest["changes"] for manifest in runs.values()] == [{"SIDE": "a"}, {"SIDE": "b"}]
    for folder in runs:
        report = run(Path(sys.executable), tmp_path, ["report", folder], {})
        assert report["ranks"] == tp
        assert calls(report, "prefill", "ffn") == LAYERS
        assert calls(report, "decode", "ffn") == LAYERS
        assert report["phases"][0]["step"]["tokens"] == 2 * 12
