"""Profile on request: it starts and ends between steps, it is always answered, and it leaves nothing behind."""

import json
from pathlib import Path

import fake_host
import pytest

from lightllm_otel.guard import Guard
from lightllm_otel.records import profile_request
from lightllm_otel.worker.host import profiling as module
from lightllm_otel.worker.host.profiling import KernelProfile


class Profiler:
    def __init__(self, broken=False):
        self.running, self.broken = True, broken

    def stop(self):
        self.running = False
        if self.broken:
            raise RuntimeError("CUPTI is taken")

    def export_chrome_trace(self, path):
        Path(path).write_text(json.dumps({"traceEvents": []}))


@pytest.fixture
def model():
    return fake_host.make([0.0]).basemodel.TpPartBaseModel()


@pytest.fixture(autouse=True)
def _no_torch(monkeypatch):
    monkeypatch.setattr(module, "record_functions", lambda name_of: (lambda label: None, lambda: None))


def slots(model):
    return {name: value for name, value in vars(model.layers_infer[0]).items() if callable(value)}


def test_it_runs_for_its_time_and_leaves_the_model_as_it_was(model, tmp_path):
    before, profilers = slots(model), []
    capturing = KernelProfile(
        tmp_path, Guard(), lambda: profilers.append(Profiler()) or profilers[-1], lambda: [["gap", "ffn"]]
    )
    capturing.tick(model, 0.0)
    assert not profilers
    profile_request.ask(tmp_path, {"path": str(tmp_path / "trace.json"), "seconds": 2})
    capturing.tick(model, 1.0)
    assert slots(model) != before
    capturing.tick(model, 2.0)
    assert profilers[0].running
    assert profile_request.answered(tmp_path) is None
    capturing.tick(model, 3.0)
    assert not profilers[0].running
    assert profile_request.answered(tmp_path) == {
        "ok": True,
        "text": str(tmp_path / "trace.json"),
        "instrumented_graphs": [["gap", "ffn"]],
    }
    assert (tmp_path / "trace.json").exists()
    assert slots(model) == before
    capturing.tick(model, 4.0)
    assert len(profilers) == 1


@pytest.mark.parametrize("asked", [{}, {"path": "/x", "seconds": "no number"}])
def test_an_errand_that_is_not_understood_is_answered(model, tmp_path, asked):
    profile_request.ask(tmp_path, asked)
    KernelProfile(tmp_path, Guard(), Profiler).tick(model, 1.0)
    assert profile_request.answered(tmp_path)["ok"] is False


def test_a_profiler_that_fails_is_answered_and_forgotten(model, tmp_path):
    before = slots(model)
    capturing = KernelProfile(tmp_path, Guard(), lambda: Profiler(broken=True))
    profile_request.ask(tmp_path, {"path": str(tmp_path / "trace.json"), "seconds": 0})
    capturing.tick(model, 1.0)
    capturing.tick(model, 2.0)
    assert profile_request.answered(tmp_path) == {"ok": False, "text": "CUPTI is taken"}
    assert slots(model) == before


def test_a_profiler_does_not_go_on_when_the_ranges_fail(model, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no such slot")

    before, profiler = slots(model), Profiler()
    monkeypatch.setattr(module.ranges, "install", broken)
    profile_request.ask(tmp_path, {"path": str(tmp_path / "trace.json"), "seconds": 1})
    KernelProfile(tmp_path, Guard(), lambda: profiler).tick(model, 1.0)
    assert profile_request.answered(tmp_path) == {"ok": False, "text": "no such slot"}
    assert not profiler.running
    assert slots(model) == before


def test_a_damaged_errand_is_no_errand(tmp_path, model):
    (tmp_path / profile_request.ASKED).write_text("{")
    KernelProfile(tmp_path, Guard(), Profiler).tick(model, 1.0)
    assert profile_request.answered(tmp_path) is None
    assert not (tmp_path / profile_request.ASKED).exists()
