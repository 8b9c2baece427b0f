"""Tests of the tap: it records only new steps, and disturbs neither the server nor the exporter."""

import json
import multiprocessing

import pytest
import records

from lightllm_otel.records.folder import group_folder, ring_path
from lightllm_otel.records.reader import RingReader
from lightllm_otel.records.vocabulary import Operator
from lightllm_otel.records.writer import RingWriter
from lightllm_otel.tools.analysis.runs import load
from lightllm_otel.tools.bench import _changes, _order
from lightllm_otel.tools.benchmark import static
from lightllm_otel.tools.benchmark.manifest import Manifest, Outcome, Workload
from lightllm_otel.tools.benchmark.tap import NoRing, Tap

WORKLOAD = Workload(batch_size=2, input_len=8, output_len=4, repeats=3, warmup=0, every=1)


def step(number):
    return records.step(number=number, operators=[(Operator.FFN, 1e-3)], seconds=1e-3)


def _model_process(folder, numbers, wrote):
    """Write a step of each requested number to the rings of two ranks. It runs in another process, which holds their locks."""
    rings = [RingWriter(ring_path(folder, rank), 1) for rank in range(2)]
    for rank, ring in enumerate(rings):
        ring.describe({**records.FACTS, "rank": rank, "tp": 2})
    wrote.put("ready")
    while (number := numbers.get()) is not None:
        for ring in rings:
            ring.write(*step(number))
        wrote.put(number)


@pytest.fixture
def group(tmp_path):
    """Start a group. Return its folder, and a function that makes it write a step."""
    folder = group_folder(tmp_path / "dir", "127.0.0.1-28765-dp0")
    context = multiprocessing.get_context("spawn")
    numbers, wrote = context.Queue(), context.Queue()
    process = context.Process(target=_model_process, args=(folder, numbers, wrote))
    process.start()
    assert wrote.get(timeout=60) == "ready"

    def write(number):
        numbers.put(number)
        assert wrote.get(timeout=60) == number

    yield folder, write
    numbers.put(None)
    process.join(30)


def test_only_what_passes_meanwhile_is_recorded_of_every_rank(group, tmp_path):
    folder, write = group
    write(1)
    tap = Tap(folder, tmp_path / "out")
    write(2)
    write(3)
    assert tap.until(lambda: tap.sampled == 2, 10)
    tap.close()
    (repeat,) = load(tap.path).repeats
    assert sorted(repeat.steps["number"].tolist()) == [2, 2, 3, 3]
    assert sorted(repeat.facts) == [0, 1]
    assert (tap.steps, tap.lost) == (2, 0)


def test_the_exporters_own_reading_is_not_disturbed(group, tmp_path):
    folder, write = group
    exporter = RingReader(ring_path(folder, 0))
    exporter.read()
    tap = Tap(folder, tmp_path / "out")
    write(5)
    tap.until(lambda: tap.sampled == 1, 10)
    assert len(exporter.read()) == 5
    tap.close()


def test_it_gives_up_after_its_time(group, tmp_path):
    folder, _ = group
    tap = Tap(folder, tmp_path / "out")
    assert not tap.until(lambda: tap.sampled == 1, 0.3)
    tap.close()


def test_without_a_living_rank_there_is_nothing_to_tap(tmp_path):
    folder = group_folder(tmp_path, "gone")
    RingWriter(ring_path(folder, 0), 1)  # this process does not see its own lock, so the ring looks abandoned
    with pytest.raises(NoRing, match="no rank of gone is running here"):
        Tap(folder, tmp_path / "out")


def test_repeats_take_turns_about_who_is_first():
    assert list(_order(["a", "b"], 3)) == [("a", 1), ("b", 1), ("b", 2), ("a", 2), ("a", 3), ("b", 3)]


def test_environments_are_read_as_a_shell_would():
    assert _changes("A=1 B='two words'") == {"A": "1", "B": "two words"}
    assert _changes("") == {}
    with pytest.raises(ValueError, match="NAME=VALUE"):
        _changes("A")


def test_the_manifest_is_whole_after_every_repeat_and_keeps_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("NCCL_P2P_DISABLE", "1")
    monkeypatch.setenv("LIGHTLLM_API_TOKEN", "secret")
    manifest = Manifest(tmp_path, "static", WORKLOAD, tp=1)
    for number in (1, 2):
        manifest.add(Outcome(f"repeat-{number}", 2.0, 100))
        content = json.loads((tmp_path / "bench.json").read_text())
        assert len(content["repeats"]) == number
    assert content["repeats"][0]["output_tokens_per_second"] == 50
    assert content["plan"]["input_len"] == 8
    assert content["machine"]["environment"]["NCCL_P2P_DISABLE"] == "1"
    assert "secret" not in json.dumps(content)


def test_a_rank_that_fails_says_its_last_words(tmp_path):
    with pytest.raises(static.RankFailed, match=r"^rank 0 exited early: \w.*$"):
        static.repeat(WORKLOAD, tmp_path / "nothing here", 1, 1, tmp_path)


@pytest.mark.parametrize("field", ["batch_size", "input_len", "output_len", "repeats"])
def test_numbers_below_one_are_refused(field):
    import dataclasses

    with pytest.raises(ValueError, match=f"--{field.replace('_', '-')} 0"):
        dataclasses.replace(WORKLOAD, **{field: 0}).check()
