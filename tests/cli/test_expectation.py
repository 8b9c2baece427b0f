"""``compare --save-expectation``: from a good run to ``/metrics`` of a server that is held against it."""

import dataclasses
import json

import pytest
import simulated
from prometheus_client import CollectorRegistry

from lightllm_otel import cli
from lightllm_otel.analyze import runs
from lightllm_otel.export.exporter import Exporter
from lightllm_otel.export.recording import read_recording
from lightllm_otel.ring.folder import group_folder, ring_path
from lightllm_otel.ring.writer import RingWriter
from lightllm_otel.settings import Settings
from lightllm_otel.vocabulary import Operator

STEPS = 200


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return simulated.write(tmp_path_factory.mktemp("good"), 0, repeats=2, ranks=2, steps=STEPS, run_noise=0.0)


@pytest.fixture
def kept(good, tmp_path, capsys):
    assert cli.main(["compare", str(good), "--save-expectation", str(tmp_path / "good.json")]) == 0
    said = capsys.readouterr()
    assert f"LIGHTLLM_OTEL_BASELINE={tmp_path / 'good.json'}" in said.out
    assert "decode · graph: " in said.out
    assert said.err == ""
    return tmp_path / "good.json"


def serve(tmp_path, run, environ):
    """An exporter of a server that does what was recorded; what it says of operators: (operator, name) → seconds."""
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
    assert not list((tmp_path / "state").glob("*.json"))  # nothing is learned


def test_a_baseline_of_comparisons_is_refused_by_a_server_which_says_what_to_give_it(good, tmp_path, caplog):
    wrong = tmp_path / "compared.json"
    assert cli.main(["compare", str(good), "--save-baseline", str(wrong)]) == 0
    slow = simulated.write(tmp_path / "slow", 1, ranks=2, steps=STEPS)
    assert serve(tmp_path, slow, {"LIGHTLLM_OTEL_BASELINE": str(wrong)}) == {}
    (said,) = [record.message for record in caplog.records if str(wrong) in record.message]
    assert "its format is 'lightllm-otel baseline'" in said
    assert "LIGHTLLM_OTEL_STATE" in said
    assert "compare RUN --save-expectation FILE" in said
    assert said.endswith("nothing is compared")


def test_json_says_what_was_written(good, tmp_path, capsys):
    assert cli.main(["compare", str(good), "--save-expectation", str(tmp_path / "good.json"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["kind"], said["file"]) == ("expectation", str(tmp_path / "good.json"))
    assert said["loads"]["decode · graph"] >= 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["A", "A"], "takes one run and compares nothing; leave out a second run"),
        (["A", "--fail-if", "ffn:decode:+5%", "--html", "x.html"], "leave out --fail-if and --html"),
        (["nothing"], "there is no nothing"),
        (["h200-llama-tp2"], "record a longer run"),
        (["KEPT"], "is not a folder"),
        (["A", "KEPT/a.json"], "cannot be written"),
    ],
)
def test_what_cannot_be_learned_from_is_one_sentence_and_status_1(good, tmp_path, capsys, words, said):
    kept = tmp_path / "kept.json"
    kept.write_text("{}")
    names = {"A": str(good), "KEPT": str(kept)}
    *rest, file = words if words[-1] == "KEPT/a.json" else [*words, "a.json"]
    file = str(kept / "a.json" if file == "KEPT/a.json" else tmp_path / file)
    assert cli.main(["compare", *(names.get(word, word) for word in rest), "--save-expectation", file]) == 1
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


def test_what_is_learned_is_what_the_run_was(kept, good, tmp_path):
    (first, *_) = runs.load(good).repeats
    said = serve(tmp_path, first.path, {"LIGHTLLM_OTEL_BASELINE": str(kept)})
    for operator, _ in said:
        assert said[operator, "compared"] == pytest.approx(said[operator, "expected"], rel=0.01)
