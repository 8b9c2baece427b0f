"""Expectations on disk: one file per kind of server, and clear about what is none."""

import dataclasses
import json
import threading
import time

import pytest
import records

from lightllm_otel.exporter import baseline as baseline_module
from lightllm_otel.exporter.baseline import SAVE_SECONDS, Baseline, file_name, key_of
from lightllm_otel.exporter.exporter import Exporter
from lightllm_otel.records.folder import group_folder, ring_path
from lightllm_otel.records.vocabulary import ExporterStage, Operator, Phase
from lightllm_otel.records.writer import RingWriter
from lightllm_otel.reduce.expectation import SAMPLES, Expectation
from lightllm_otel.settings import Settings

FACTS = {**records.FACTS, "torch": "2.6.0", "cuda": "12.4"}
KEY = (Operator.FFN.code, Phase.DECODE.code)


def steps(expectation, count, seconds=0.25):
    for number in range(count):
        step = records.step(number=number, operators=[(Operator.FFN, seconds)], context=100)
        expectation.add(0, records.batch(step))
    return expectation


def begun(folder, pinned=None, facts=FACTS, link="none"):
    expectation = Expectation()
    baseline = Baseline(expectation, folder, pinned)
    baseline.begin(facts, link)
    return expectation, baseline


@pytest.fixture
def learned(tmp_path):
    expectation, baseline = begun(tmp_path)
    steps(expectation, SAMPLES)
    baseline.save(0.0)
    return next(tmp_path.glob("*.json"))


def test_what_was_learned_is_there_after_a_restart(learned):
    expectation, _ = begun(learned.parent)
    steps(expectation, 2, seconds=0.5)
    assert (expectation.compared[KEY], expectation.expected[KEY]) == (1.0, pytest.approx(0.5))


def test_the_file_is_written_when_something_was_learned_and_not_too_often(tmp_path):
    expectation, baseline = begun(tmp_path)
    baseline.save(0.0)
    assert list(tmp_path.iterdir()) == []
    for now, files in ((0.0, 1), (1.0, 0), (SAVE_SECONDS, 1)):
        expectation.planes.clear()
        steps(expectation, SAMPLES)
        baseline.save(now)
        assert len(list(tmp_path.glob("*.json"))) == files
        for path in tmp_path.iterdir():
            path.unlink()


@pytest.mark.parametrize(
    "change", [{"model": "llama-13b"}, {"gpu_name": "NVIDIA A40"}, {"tp": 2}, {"torch": "2.7.0"}, {"dtype": "bfloat16"}]
)
def test_another_kind_of_server_has_a_file_of_its_own(change):
    assert file_name(key_of({**FACTS, **change}, "none")) != file_name(key_of(FACTS, "none"))


def test_another_link_makes_another_kind_of_server():
    names = {file_name(key_of(FACTS, link)) for link in ("nvlink4x18", "pcie5x16-SYS")}
    assert len(names) == 2
    assert all(name.startswith("llama-7b-NVIDIA-H200-tp1-") for name in names)


def test_a_pinned_baseline_is_compared_with_and_teaches_nothing(learned, tmp_path):
    before = learned.read_text()
    expectation, baseline = begun(tmp_path / "own", pinned=learned, facts={**FACTS, "gpu_name": "another"})
    steps(expectation, 1)
    for number in range(3 * SAMPLES):  # a load that the baseline does not know
        step = records.step(number=number, operators=[(Operator.FFN, 1.0)], context=9000)
        expectation.add(0, records.batch(step))
    baseline.save(0.0)
    assert expectation.compared[KEY] == 0.25
    assert (learned.read_text(), (tmp_path / "own").exists()) == (before, False)


def test_a_pinned_baseline_of_another_kind_of_server_is_said_in_one_sentence(learned, tmp_path, caplog):
    begun(tmp_path / "own", pinned=learned, facts={**FACTS, "gpu_name": "NVIDIA A40", "torch": "2.7.0"})
    (said,) = [record.message for record in caplog.records]
    assert "is from another kind of server, which differs in gpu_name ('NVIDIA H200', here 'NVIDIA A40'); " in said
    caplog.clear()
    begun(tmp_path / "own", pinned=learned, facts={**FACTS, "torch": "2.7.0"})
    assert not caplog.records, "other versions are what a baseline is for"
    content = json.loads(learned.read_text())
    learned.write_text(json.dumps({**content, "key": {**content["key"], "link": "unknown", "dtype": ""}}))
    begun(tmp_path / "own", pinned=learned)
    assert not caplog.records, "what a file does not know is no difference"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda text: "{", "is damaged"),
        (lambda text: json.dumps({"format": "other"}), "is not a baseline that this version can read"),
        (lambda text: text.replace("reach", "grasp"), "is damaged"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_and_is_left_as_it_is(learned, damage, sentence, caplog):
    learned.write_text(damage(learned.read_text()))
    before = learned.read_text()
    expectation, baseline = begun(learned.parent)
    steps(expectation, SAMPLES + 1)
    baseline.save(0.0)
    assert expectation.compared[KEY] == 0.25
    assert learned.read_text() == before
    assert [sentence in record.message for record in caplog.records] == [True]


def test_a_baseline_that_is_not_there_is_said_and_nothing_is_compared(tmp_path, caplog):
    expectation, _ = begun(tmp_path, pinned=tmp_path / "missing.json")
    steps(expectation, 3 * SAMPLES)
    assert not expectation.compared
    assert "cannot be read" in caplog.records[0].message


def test_a_folder_that_cannot_be_written_is_one_line_and_memory_goes_on(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    expectation, baseline = begun(tmp_path / "file")
    steps(expectation, SAMPLES + 1)
    baseline.save(0.0)
    expectation.changed = True
    baseline.save(100.0)
    assert expectation.compared[KEY] == 0.25
    assert ["LIGHTLLM_OTEL_STATE" in record.message for record in caplog.records] == [True]


def test_an_exporter_begins_when_all_ranks_have_come_and_saves_at_its_end(tmp_path):
    folder = group_folder(tmp_path, "127.0.0.1-1-dp0")
    settings = dataclasses.replace(Settings.from_env({}), port=None, state=tmp_path / "state")
    exporter = Exporter(folder, settings)
    rings = []
    for rank in range(2):
        ring = RingWriter(ring_path(folder, rank), 1)
        ring.describe({**FACTS, "tp": 2, "rank": rank})
        rings.append(ring)
        exporter.poll()
        assert exporter.group.expectation.begun == (rank == 1)
    for number in range(2 * SAMPLES):
        for ring in rings:
            ring.write(*records.step(number=number, operators=[(Operator.FFN, 0.25)], context=100))
    exporter.poll()
    exporter.close()
    (path,) = (tmp_path / "state").iterdir()
    assert json.loads(path.read_text())["key"]["tp"] == 2


@pytest.mark.parametrize("where", ["state", "pinned"])
def test_a_folder_that_hangs_keeps_no_poll_waiting(tmp_path, where, monkeypatch):
    monkeypatch.setattr(baseline_module, "PATIENCE_SECONDS", 0.1)
    folder = group_folder(tmp_path, "127.0.0.1-1-dp0")
    state, free = tmp_path / "state", threading.Event()
    monkeypatch.setattr(baseline_module, "read", lambda path, given: free.wait(30) and ({}, {}))
    monkeypatch.setattr(baseline_module, "write", lambda path, text: free.wait(30))
    settings = dataclasses.replace(Settings.from_env({}), port=None, state=state,
                                   baseline=tmp_path / "good.json" if where == "pinned" else None)  # fmt: skip
    exporter = Exporter(folder, settings)
    ring = RingWriter(ring_path(folder, 0), 1)
    ring.describe(FACTS)
    began = time.monotonic()
    for number in range(4 * SAMPLES):
        ring.write(*records.step(number=number, operators=[(Operator.FFN, 0.25)], context=100))
        exporter.poll()
    exporter.close()
    assert time.monotonic() - began < 25
    assert exporter.group.steps.histograms[Phase.DECODE.code, 0].count == 4 * SAMPLES
    assert exporter.group.errors()[ExporterStage.BASELINE] == (where == "pinned")
    free.set()
