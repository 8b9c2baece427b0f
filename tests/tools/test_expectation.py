"""Tests of ``compare --save-baseline``: from a good run to ``/metrics`` of a server that is compared with it."""

import dataclasses
import json

import pytest
import simulated
from prometheus_client import CollectorRegistry

from lightllm_otel.exporter import baseline
from lightllm_otel.exporter.exporter import Exporter
from lightllm_otel.records.folder import group_folder, ring_path
from lightllm_otel.records.recording import read_recording
from lightllm_otel.records.vocabulary import Operator
from lightllm_otel.records.writer import RingWriter
from lightllm_otel.settings import Settings
from lightllm_otel.tools import cli
from lightllm_otel.tools.analysis import runs

STEPS = 200


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return simulated.write(tmp_path_factory.mktemp("good"), 0, repeats=2, ranks=2, steps=STEPS, run_noise=0.0)


@pytest.fixture
def kept(good, tmp_path, capsys):
    assert cli.main(["compare", str(good), "--save-baseline", str(tmp_path / "good.json")]) == 0
    said = capsys.readouterr()
    assert f"LIGHTLLM_OTEL_BASELINE={tmp_path / 'good.json'}" in said.out
    assert said.err == ""
    return tmp_path / "good.json"


def serve(tmp_path, run, environ):
    """Replay a recording through an exporter, and return its operator metrics: seconds by (operator, name)."""
    folder = group_folder(tmp_path / "server", "127.0.0.1-1-dp0")
    settings = Settings.from_env({"LIGHTLLM_OTEL_STATE": str(tmp_path / "state"), **environ})
    exporter = Exporter(folder, dataclasses.replace(settings, port=None))
    recording = read_recording(run)
    rings = []
    for rank, facts in recording.facts.items():
        ring = RingWriter(ring_path(folder, rank), 4)
        ring.describe(facts)
        rings.append(ring)
    exporter.poll()
    for rank, ring in enumerate(rings):
        for step, intervals in recording.steps(rank):
            ring.write(step.tobytes(), intervals)
    exporter.poll()
    registry = CollectorRegistry(auto_describe=False)
    registry.register(exporter._collector)
    found = {}
    for metric in registry.collect():
        for sample in metric.samples:
            if sample.labels.get("phase") == "decode" and sample.name.endswith(
                ("expected_seconds_total", "compared_seconds_total")
            ):
                found[sample.labels["operator"], sample.name.split("_")[-3]] = sample.value
    exporter.close()
    return found


def test_a_server_is_held_against_a_good_run_and_its_slow_operator_shows(kept, tmp_path):
    slow = simulated.write(tmp_path / "slow", 1, ranks=2, steps=STEPS, run_noise=0.0, slower={Operator.ALL_REDUCE: 1.1})
    said = serve(tmp_path, slow, {"LIGHTLLM_OTEL_BASELINE": str(kept)})
    ratios = {operator: said[operator, "compared"] / said[operator, "expected"] for operator, _ in said}
    assert ratios.keys() == {*(operator.value for operator in simulated.LAYER), "lm_head"}
    assert ratios.pop("all_reduce") == pytest.approx(1.1, abs=0.01)
    assert all(ratio == pytest.approx(1.0, abs=0.01) for ratio in ratios.values())
    assert not list((tmp_path / "state").glob("*.json"))  # no baseline is learned


@pytest.fixture
def short(tmp_path):
    return simulated.write(tmp_path / "short", 1, ranks=2, steps=20)


def test_a_run_that_is_too_short_is_a_baseline_for_comparisons_alone(short, good, tmp_path, capsys, caplog):
    kept = tmp_path / "short.json"
    assert cli.main(["compare", str(short), "--save-baseline", str(kept)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"wrote {kept}, for comparisons only: ")
    assert "record a longer run" in said
    assert cli.main(["compare", str(kept), str(good)]) == 0
    (first, *_) = runs.load(good).repeats
    assert serve(tmp_path, first.path, {"LIGHTLLM_OTEL_BASELINE": str(kept)}) == {}
    (said,) = [record.message for record in caplog.records if str(kept) in record.message]
    assert "is from a run that was too short to learn a baseline" in said
    assert said.endswith("nothing is compared")


def test_a_baseline_that_is_saved_again_is_still_one_for_servers(kept, good, tmp_path, capsys):
    again = tmp_path / "again.json"
    assert cli.main(["compare", str(kept), "--save-baseline", str(again), "--json"]) == 0
    assert f"LIGHTLLM_OTEL_BASELINE={again}" in json.loads(capsys.readouterr().out)["saved"][0]
    (planes, key), (kept_planes, kept_key) = baseline.read(again), baseline.read(kept)
    assert (planes.keys(), key) == (kept_planes.keys(), kept_key)


def test_what_is_learned_is_what_the_run_was(kept, good, tmp_path):
    (first, *_) = runs.load(good).repeats
    said = serve(tmp_path, first.path, {"LIGHTLLM_OTEL_BASELINE": str(kept)})
    for operator, _ in said:
        assert said[operator, "compared"] == pytest.approx(said[operator, "expected"], rel=0.01)
