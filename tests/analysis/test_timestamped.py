"""Operators inside CUDA graphs, from traces in the profiler's form: what lies between timestamps, and what belongs to nobody."""

import json
from decimal import Decimal

import pytest

from lightllm_otel.records import profile_request
from lightllm_otel.tools.analysis.kernels import OUTSIDE, STAMPS, kernels
from lightllm_otel.tools.analysis.timestamped import from_its_start, ranges_in_graphs
from lightllm_otel.tools.kernel_capture import NoTrace, capture, with_operators

TWIN = ["gap", "ffn", "all_reduce", "ffn"]
MAIN, BRANCH, OTHER = 7, 9, 8
STAMP_SECONDS = 1.5  # of microseconds


def kernel(name, ts, dur, tid=MAIN, launch=1, cat="kernel"):
    return {
        "ph": "X",
        "cat": cat,
        "name": name,
        "ts": ts,
        "dur": dur,
        "pid": 0,
        "tid": tid,
        "args": {"correlation": launch},
    }


def replay(at, launch=1, names=("copy", "gemm", "reduce", "gemm"), took=(2, 10, 20, 10)):
    """As a GPU runs an instrumented graph: a timestamp begins half a microsecond after the kernel that it waits for, beside the
    next one."""
    events = [kernel("lightllm_otel_stamp", at - 2, STAMP_SECONDS, MAIN, launch)]
    for name, microseconds in zip(names, took):
        events.append(kernel(name, at, microseconds, MAIN, launch))
        at += microseconds
        events.append(kernel("lightllm_otel_stamp", at + 0.5, STAMP_SECONDS, BRANCH, launch))
    return [*events, kernel("lightllm_otel_publish", at + 3, 2, MAIN, launch)]


def found(events, instrumented_graphs=(TWIN,)):
    trace = {"traceEvents": [*events, *ranges_in_graphs({"traceEvents": events}, instrumented_graphs)]}
    return {(row.operator, row.name): (row.calls, round(row.seconds * 1e6, 3)) for row in kernels(trace)}


def test_a_kernel_of_a_twin_belongs_to_the_operator_between_whose_stamps_it_ran():
    seen = found(replay(100.0) + replay(200.0, 2))
    assert {key: value for key, value in seen.items() if key[0] != STAMPS} == {
        ("gap", "copy"): (2, 4.0), ("ffn", "gemm"): (4, 40.0), ("all_reduce", "reduce"): (2, 40.0),
    }  # fmt: skip
    assert seen[STAMPS, "lightllm_otel_stamp"] == (10, 15.0)


def test_ranges_begin_and_end_with_their_kernels():
    ranges = ranges_in_graphs({"traceEvents": replay(100.0)}, [TWIN])
    assert [(each["name"], each["ts"], each["dur"], each["tid"]) for each in ranges] == [
        ("lightllm_otel: gap", 100.0, 2, MAIN), ("lightllm_otel: ffn", 102.0, 10, MAIN),
        ("lightllm_otel: all_reduce", 112.0, 20, MAIN), ("lightllm_otel: ffn", 132.0, 10, MAIN),
    ]  # fmt: skip


def test_a_kernel_that_begins_before_the_last_one_has_ended_keeps_its_operator():
    events = replay(100.0)
    (reduce,) = (event for event in events if event["name"] == "reduce")
    reduce["ts"], reduce["dur"] = reduce["ts"] - 0.25, reduce["dur"] + 0.25
    assert found(events)["all_reduce", "reduce"] == (1, 20.25)


def test_what_runs_outside_replays_is_outside():
    seen = found([kernel("before", 1, 5), *replay(100.0), kernel("sampling", 160, 5, launch=3), *replay(200.0, 2)])
    assert (seen[OUTSIDE, "before"], seen[OUTSIDE, "sampling"]) == ((1, 5.0), (1, 5.0))


def test_what_another_stream_runs_beside_a_graph_is_not_the_graphs():
    seen = found([*replay(100.0), kernel("prefill", 104.0, 3, OTHER, launch=5)])
    assert (OUTSIDE, "prefill") in seen


def test_where_the_profiler_does_not_say_which_launch_a_kernel_is_of_its_time_decides():
    events = [{**event, "args": {}} for event in replay(100.0)]
    assert found(events)["ffn", "gemm"] == (2, 20.0)


def test_a_replay_that_had_begun_before_the_trace_has_no_ranges():
    seen = found(replay(100.0)[3:] + replay(200.0, 2))
    assert seen["ffn", "gemm"] == (2, 20.0)  # of the whole one
    assert seen[OUTSIDE, "gemm"] == (2, 20.0)


@pytest.mark.parametrize("instrumented_graphs", [[], [TWIN[:-1]], [TWIN, ["gap", "ffn", "ffn", "ffn"]]])
def test_a_replay_whose_operators_are_not_known_has_no_ranges(instrumented_graphs):
    assert ranges_in_graphs({"traceEvents": replay(100.0)}, instrumented_graphs) == []


def test_times_since_1970_keep_their_nanoseconds():
    text = json.dumps({
        "baseTimeNanoseconds": 5, "traceEvents": [
            {"ph": "M", "name": "process_name", "pid": 0, "ts": 0, "args": {"name": "python"}},
            kernel("b", "T0.126", 1.5), kernel("a", "T0.125", 1.5),
        ],
    }).replace('"T0', "1732612345678900").replace('.126"', ".126").replace('.125"', ".125")  # fmt: skip
    trace = from_its_start(json.loads(text, parse_float=Decimal))
    assert [event["ts"] for event in trace["traceEvents"]] == [0, 0.001, 0.0]
    assert trace["baseTimeNanoseconds"] == 5 + 1732612345678900125
    assert json.loads(json.dumps(trace)) == trace


def test_a_capture_puts_the_ranges_into_the_trace_that_it_keeps(tmp_path, monkeypatch):
    path = tmp_path / "trace.json"

    def asked(folder, wanted):
        path.write_text(json.dumps({"traceEvents": replay(100.0)}))
        profile_request.answer(folder, {"ok": True, "text": str(path), "instrumented_graphs": [TWIN]})

    monkeypatch.setattr("lightllm_otel.tools.kernel_capture.profile_request.ask", asked)
    trace = with_operators(path, capture(tmp_path, path, 0.1, 1.0))
    assert json.loads(path.read_text()) == trace
    assert [row.operator for row in kernels(trace)][:2] == ["ffn", "all_reduce"]


def test_a_stamp_that_comes_late_once_is_outvoted():
    late = replay(200.0, 2)
    (timestamp,) = (
        event for event in late if event["ts"] == 212.5
    )  # of the first ffn, whose next kernel lasts until 232
    timestamp["ts"] += 20
    assert found(replay(100.0) + late + replay(300.0, 3))["all_reduce", "reduce"] == (3, 60.0)


def test_ranges_of_a_stream_never_overlap_nor_last_less_than_nothing():
    events = replay(100.0)
    (reduce,) = (event for event in events if event["name"] == "reduce")
    reduce["ts"], reduce["dur"] = reduce["ts"] - 9, reduce["dur"] + 9  # begins with the one before it
    ranges = ranges_in_graphs({"traceEvents": events}, [TWIN])
    assert min(each["dur"] for each in ranges) >= 0
    assert all(one["ts"] + one["dur"] <= two["ts"] for one, two in zip(ranges, ranges[1:]))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"traceEvents": [{"ph": "X", "ts": "soon"}]}'])
def test_a_file_that_is_no_trace_is_one_sentence(tmp_path, text):
    (tmp_path / "trace.json").write_text(text)
    with pytest.raises(NoTrace, match=r"not a readable trace of torch\.profiler"):
        with_operators(tmp_path / "trace.json", [TWIN])
