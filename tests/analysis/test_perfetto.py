"""A trace: every slice where the GPU ran it, waits of collectives told apart, bounded."""

import json

import pytest
import records
import simulated

from lightllm_otel.records.recording import RecordingWriter
from lightllm_otel.records.vocabulary import IdleReason, Operator
from lightllm_otel.tools import cli
from lightllm_otel.tools.analysis import perfetto
from lightllm_otel.tools.analysis.runs import load


def slices(trace, rank=0, thread=perfetto.OPERATORS):
    return [
        event for event in trace["traceEvents"] if event["ph"] == "X" and (event["pid"], event["tid"]) == (rank, thread)
    ]


@pytest.fixture
def two_ranks(tmp_path):
    """Rank 1 comes 2 ms late to the all_reduce, which takes 1 ms: rank 0 waits."""
    writer = RecordingWriter(tmp_path, "test", 1 << 20)
    writer.describe({rank: {**records.FACTS, "tp": 2} for rank in range(2)})
    for rank, (ffn, reduce) in enumerate(((1e-3, 3e-3), (3e-3, 1e-3))):
        steps = [
            records.step(number=number, wall_time=100.0 + number, seconds=4e-3, idle_reason=IdleReason.HOST,
                         operators=[(Operator.FFN, ffn), (Operator.ALL_REDUCE, reduce)])
            for number in range(2)
        ]  # fmt: skip
        writer.append(rank, records.cells(*steps))
    writer.close()
    return writer.path


def test_operators_follow_one_another_from_the_start_of_their_step(two_ranks):
    trace = perfetto.trace(load(two_ranks).repeats[0])
    first = [event for event in slices(trace) if event["ts"] < 1e6]
    assert [(event["name"], event["ts"], event["dur"]) for event in first] == [
        ("ffn", 0, 1000), ("all_reduce", 1000, pytest.approx(3000)),
        ("wait for the last rank", 1000, pytest.approx(2000, rel=1e-3)),
    ]  # fmt: skip
    assert {event["pid"] for event in trace["traceEvents"]} == {0, 1}


def test_only_the_rank_that_waited_has_a_wait(two_ranks):
    trace = perfetto.trace(load(two_ranks).repeats[0])
    assert [sum(event["name"].startswith("wait") for event in slices(trace, rank)) for rank in range(2)] == [2, 0]


def test_what_the_gpu_waited_for_between_steps_is_named(two_ranks):
    trace = perfetto.trace(load(two_ranks).repeats[0])
    idle = [event for event in slices(trace, thread=perfetto.STEPS) if "idle" in event["name"]]
    assert [event["name"] for event in idle] == ["idle: host"]
    assert idle[0]["dur"] == pytest.approx(1e6 - 4000, rel=1e-6)


def test_slices_of_a_thread_nest_or_follow(tmp_path):
    trace = perfetto.trace(load(simulated.write(tmp_path, steps=20, ranks=2)).repeats[0])
    for thread in (perfetto.STEPS, perfetto.OPERATORS):
        end = 0.0
        for event in slices(trace, 1, thread):
            if event["name"].startswith("wait"):
                continue  # lies in the collective before it
            assert event["ts"] >= end - 0.01
            end = event["ts"] + event["dur"]


def test_a_trace_is_bounded_and_says_what_it_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(perfetto, "MOST_EVENTS", 100)
    trace = perfetto.trace(load(simulated.write(tmp_path, steps=20)).repeats[0])
    assert len(trace["traceEvents"]) == 100
    assert trace["otherData"]["left_out"] > 100


def test_the_command_writes_one(two_ranks, tmp_path, capsys):
    path = tmp_path / "trace.json"
    assert cli.main(["report", str(two_ranks), "--perfetto", str(path)]) == 0
    assert len(json.loads(path.read_text())["traceEvents"]) > 10
    assert f"wrote {path}" in capsys.readouterr().out
