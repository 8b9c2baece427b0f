"""`bench --static` of a tiny model in CUDA graphs, and what `calibrate` reaches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from lightllm_otel.roofline import gpus  # noqa: E402
from lightllm_otel.tools import calibrate  # noqa: E402
from lightllm_otel.tools.analysis.report import report  # noqa: E402
from lightllm_otel.tools.analysis.runs import load  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]
ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "deploy" / "demo"
LAYERS, STEPS = 2, 8


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same without and with NVTX ranges."""
    source = os.environ.get("LIGHTLLM_SRC")
    if not source:
        pytest.skip("LIGHTLLM_SRC names no checkout of the current LightLLM")
    pytest.importorskip("transformers", reason="LightLLM's packages are not installed here")
    sys.path.insert(0, str(DEMO))
    import checkpoint

    folder = tmp_path_factory.mktemp("bench")
    # Heads of 128: LightLLM's kernels are written for those.
    shape = checkpoint.ModelShape(layers=LAYERS, hidden=512, intermediate=1024, heads=4, kv_heads=4, vocab=512)
    model = checkpoint.write(folder / "model", shape)
    path = [
        source,
        str(ROOT),
        *([] if _has_torchvision() else [str(DEMO / "stand_in")]),
        os.environ.get("PYTHONPATH", ""),
    ]
    command = [
        sys.executable, "-m", "lightllm_otel", "bench", "--static", "--model-dir", str(model), "--batch-size", "4",
        "--input-len", "64", "--output-len", str(STEPS), "--repeats", "1", "--every", "1", "--ab", "", "LIGHTLLM_OTEL_NVTX=1",
        "--out", str(folder / "run"), "--json",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return [load(Path(name)) for name in json.loads(done.stdout)["runs"]]


def _has_torchvision():
    import importlib.util

    return importlib.util.find_spec("torchvision") is not None


def test_every_operator_of_a_static_benchmark_has_its_time_in_graphs(runs):
    for run in runs:
        phases = {(phase["phase"], phase["mode"]): phase for phase in report(run)["phases"]}
        assert {("prefill", "eager"), ("decode", "graph")} <= set(phases)
        for key in (("prefill", "eager"), ("decode", "graph")):
            rows = {row["operator"]: row for row in phases[key]["operators"]}
            assert rows["ffn"]["calls_per_step"] == rows["attention"]["calls_per_step"] == LAYERS
            assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
            assert all(row["seconds_per_step"] >= 0 for row in rows.values())
        assert phases["decode", "graph"]["step"]["sampled"] >= STEPS - 1


def test_what_is_reached_is_below_the_data_sheet_and_not_far():
    found = calibrate.measure("cuda", 1)
    try:
        sheet = gpus.find(found["name"])
    except gpus.UnknownGpu:
        pytest.skip(f"{found['name']} is not in the table of GPUs")
    assert 0.3 * sheet.flops < found["flops"] <= sheet.flops
    assert 0.5 * sheet.memory_bytes_per_second < found["memory_bytes_per_second"] <= sheet.memory_bytes_per_second
    assert found["memory_bytes"] == pytest.approx(sheet.memory_bytes, rel=0.15)
