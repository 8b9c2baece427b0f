"""Around operators that work on a real GPU: NVTX ranges, and the profiler's kernels inside them."""

import json
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from lightllm_otel.contracts.patch_set import PatchSet  # noqa: E402
from lightllm_otel.guard import Guard  # noqa: E402
from lightllm_otel.records import profile_request  # noqa: E402
from lightllm_otel.tools.analysis.kernels import OUTSIDE, kernels  # noqa: E402
from lightllm_otel.worker.gpu.profiler import nvtx  # noqa: E402
from lightllm_otel.worker.host import ranges  # noqa: E402
from lightllm_otel.worker.host.profiling import KernelProfile  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]
LAYERS, SIZE = 2, 256


@pytest.fixture
def model():
    """Layers with two operators, each one matrix product; called once, so that everything is loaded."""
    weight, value = (torch.randn(SIZE, SIZE, device="cuda") for _ in range(2))
    layers = [
        SimpleNamespace(_get_qkv=lambda: torch.mm(value, weight), _ffn=lambda: torch.mm(weight, value))
        for _ in range(LAYERS)
    ]
    made = SimpleNamespace(pre_infer=None, post_infer=None, layers_infer=layers)
    step(made)
    return made


def step(model):
    for layer in model.layers_infer:
        layer._get_qkv()
        layer._ffn()
    torch.cuda.synchronize()


def test_nvtx_ranges_of_a_step_are_closed_again(model):
    found = nvtx()
    assert found is not None
    push, pop = found
    guard, patch_set, said = Guard(strict=True), PatchSet(), []

    def counted(label):
        said.append(label)
        return push(label)

    assert ranges.install(model, patch_set, guard, counted, pop) == 2 * LAYERS
    before = torch.cuda.nvtx.range_push("outside")
    pop()
    step(model)
    after = torch.cuda.nvtx.range_push("outside")  # the depth, or without a tool that listens always the same
    pop()
    patch_set.undo()
    assert said == ["qkv_proj 0", "ffn 0", "qkv_proj 1", "ffn 1"]
    assert before == after


def test_kernels_of_a_step_are_inside_their_operators(model, tmp_path):
    capturing = KernelProfile(tmp_path, Guard(strict=True))
    path = tmp_path / "trace.json"
    profile_request.ask(tmp_path, {"path": str(path), "seconds": 1})
    capturing.tick(model, 0.0)
    step(model)
    capturing.tick(model, 2.0)
    assert profile_request.answered(tmp_path) == {
        "ok": True,
        "text": str(path),
        "instrumented_graphs": [],
    }  # no graphs here
    trace = json.loads(path.read_text())
    assert any(event.get("cat") == "kernel" for event in trace["traceEvents"])
    calls = dict.fromkeys(("qkv_proj", "ffn", OUTSIDE), 0)
    for kernel in kernels(trace):
        assert kernel.seconds >= 0
        calls[kernel.operator] += kernel.calls
    assert calls["qkv_proj"] >= LAYERS
    assert calls["ffn"] >= LAYERS
    assert calls[OUTSIDE] == 0
