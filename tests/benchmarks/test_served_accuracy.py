"""A server's operators beside CUPTI: on made-up traces and recordings, where every figure is known."""

import dataclasses
import json
import time
import types
from pathlib import Path

import comparison
import numpy as np
import pytest
import served_accuracy
import traced_steps
from kernels import MARKER, Kernel, Mismatch, launches_in
from passes import GAP, PLAIN, PREFILL, TWIN
from streams import Stream
from traced_steps import Traced

from lightllm_otel.records import layout
from lightllm_otel.records.recording import RecordingWriter
from lightllm_otel.records.vocabulary import Mode, Operator, Phase

DEFAULT, STREAM, OTHER_STREAM, BRANCH = 7, 13, 20, 25
LAYERS = 3
# (kernel, microseconds, operator) of a layer; what no method launches is a residual or something else.
LAYER = [
    ("rms", 3, "attn_norm"), ("gemm", 40, "qkv_proj"), ("rotary", 2, "qkv_proj"), ("copy_kv", 2, "kv_write"),
    ("flash", 60, "attention"), ("gemm", 15, "o_proj"), ("CUDAFunctor_add", 2, "residual"), ("rms", 3, "ffn_norm"),
    ("gemm", 80, "ffn"), ("silu", 5, "ffn"), ("gemm", 30, "ffn"), ("CUDAFunctor_add", 2, "residual"),
]  # fmt: skip
HEAD = [("gather_token", 3, GAP), ("copy_index", 2, GAP)]
TAIL = [("softmax", 20, "sampling"), ("argmax", 10, "sampling"), ("scatter", 4, "tail"), ("Memcpy DtoH", 3, "tail")]
MODEL = [("embed", 10, "embedding"), *LAYER * LAYERS, ("rms", 3, "lm_head"), ("gemm", 100, "lm_head")]
STEP = [*HEAD, *MODEL, *TAIL]


def line(entries, start=0, apart=500, slower=0):
    """Kernels one after the other on the model's stream; ``slower``: microseconds more for each of attention."""
    made, now = [Kernel(MARKER, start, start + 1000, 0, STREAM)], start + 1000
    for name, microseconds, operator in entries:
        begin = now + apart
        now = begin + 1000 * microseconds + (1000 * slower if operator == "attention" else 0)
        made.append(Kernel(name, begin, now, 0, STREAM))
    return made


def traced(kernels, *entries):
    """The host launched every kernel when the one before had ended."""
    return Traced(kernels, *entries or (None, None), frozenset(kernels))


def trace_of(steps):
    """A trace as the observer makes it: a marker on the default stream first, and other work beside the steps."""
    kernels = [Kernel(MARKER, 0, 1000, 0, DEFAULT)]
    now = 10_000
    for entries in steps:
        made = line(entries, now)
        kernels += [*made, Kernel("fill", now + 5000, now + 5600, 0, DEFAULT),
                    Kernel("ncclDevKernel_Broadcast", now + 6000, now + 7000, 0, OTHER_STREAM)]  # fmt: skip
        now = made[-1].end + 50_000
    return sorted(kernels, key=lambda kernel: (kernel.start, kernel.end))


def marked(entries):
    """A step without graphs as it looks with a marker around each method: its kernels, and the calls."""
    kernels, calls, inside = [], [], None
    for name, microseconds, operator in entries:
        method = None if operator in (GAP, "residual", "other", "tail") else operator
        if inside is not None and inside != method:
            kernels.append((MARKER, 1, ""))
            calls.append(("leave", inside))
        if method is not None and inside != method:
            kernels.append((MARKER, 1, ""))
            calls.append(("enter", method))
        inside = method
        kernels.append((name, microseconds, operator))
    return kernels, [("forward", ""), *calls]


def owned(entries):
    return [(name, operator) for name, _, operator in entries if "DtoH" not in name]


def ring_step(label, at, seconds, batch=8, operators=None, tokens=0):
    step = np.zeros(1, layout.STEP)
    step["wall_time"], step["seconds"], step["closure_seconds"] = at, seconds, seconds
    step["phase"] = (Phase.PREFILL if label == PREFILL else Phase.DECODE).code
    step["mode"] = (Mode.EAGER if label == PREFILL else Mode.GRAPH).code
    step["flags"] = 0 if label == PLAIN else layout.SAMPLED
    step["batch"], step["tokens"] = batch, tokens or batch
    operators = operators or {}
    intervals = np.zeros(sum(len(each) for each in operators.values()), layout.INTERVAL)
    intervals["operator"] = [Operator(name).code for name, each in operators.items() for _ in each]
    intervals["seconds"] = [seconds for each in operators.values() for seconds in each]
    return step[0], intervals


def intervals_of(entries, error=0.0, slower=0):
    """What a plugin that is right says of a step: each operator from the end before to its own."""
    found = {"gap": [4 * 500e-9], "other": [0.0]}
    kernels = line(entries, slower=slower)[1:]
    previous, last = None, None
    for kernel, (_, _, operator) in zip(kernels, entries):
        begin = (
            kernel.start
            if operator == GAP or (operator != last and operator in ("embedding", "sampling"))
            else previous.end
        )
        seconds = (kernel.end - begin) * 1e-9
        if operator in (GAP, "other", "tail"):
            found["other"][0] += seconds
        elif operator == last:
            found[operator][-1] += seconds
        else:
            found.setdefault(operator, []).append(seconds + error * 1e-6)
        previous, last = kernel, operator
    return found


class TestTrace:
    def test_a_step_is_what_lies_on_the_models_stream_behind_its_marker(self):
        steps = traced_steps.steps_behind_markers(trace_of([STEP, STEP]))
        assert [[kernel.name for kernel in step[1:]] for step in steps] == [[name for name, _, _ in STEP]] * 2

    def test_stamps_on_a_branch_of_the_graph_stay_in_their_step(self):
        kernels = trace_of([STEP])
        kernels.append(Kernel("lightllm_otel_stamp", 60_000, 60_500, 0, BRANCH))
        (step,) = traced_steps.steps_behind_markers(sorted(kernels, key=lambda kernel: kernel.start))
        assert "lightllm_otel_stamp" in [kernel.name for kernel in step]

    def test_a_trace_without_markers_or_on_the_default_stream_is_refused(self):
        with pytest.raises(Mismatch, match="1 markers"):
            traced_steps.steps_behind_markers(trace_of([]))
        with pytest.raises(Mismatch, match="default stream"):
            traced_steps.steps_behind_markers([Kernel(MARKER, 0, 1, 0, 7), Kernel(MARKER, 5, 6, 0, 7)])

    def test_methods_say_which_kernel_is_which_operator_and_names_say_what_is_a_residual(self):
        kernels, calls = marked(STEP)
        assert traced_steps.owned_steps(trace_of([kernels] * 2), calls * 2) == [owned(STEP)] * 2

    def test_what_no_method_launches_is_other_and_never_its_neighbours(self):
        entries = [*MODEL[:5], ("mystery", 4, "other"), *MODEL[5:]]
        kernels, calls = marked(entries)
        (found,) = traced_steps.owned_steps(trace_of([kernels]), calls)
        assert found == owned(entries)
        assert ("mystery", "other") in found

    def test_nested_methods_belong_to_the_outer_one(self):
        calls = [("forward", ""), ("enter", "kv_write"), ("enter", "ffn"), ("leave", "ffn"), ("leave", "kv_write")]
        kernels = [(MARKER, 1, ""), ("a", 1, ""), (MARKER, 1, ""), ("b", 1, ""), (MARKER, 1, ""), (MARKER, 1, "")]
        (found,) = traced_steps.owned_steps(trace_of([kernels]), calls)
        assert found == [("a", "kv_write"), ("b", "kv_write")]

    def test_a_lost_marker_is_noticed(self):
        kernels, calls = marked(STEP)
        with pytest.raises(Mismatch, match="markers of"):
            traced_steps.owned_steps(trace_of([kernels]), calls[:-1])


class TestOwners:
    def test_the_copying_of_a_graphs_inputs_is_gap(self):
        names = [
            "gather_token",
            "copy_index",
            "copy_input",
            "copy_input",
            *[name for name, _, _ in [*MODEL, *TAIL[:3]]],
        ]
        found = traced_steps.carried_over(owned(STEP), names)
        assert found == [GAP] * 4 + [operator for _, _, operator in [*MODEL, *TAIL[:3]]]

    def test_another_kernel_within_an_operator_is_that_operators(self):
        names = ["flash_v2" if name == "flash" else name for name, _, _ in STEP if "DtoH" not in name]
        assert traced_steps.carried_over(owned(STEP), names) == [operator for _, operator in owned(STEP)]

    def test_a_kernel_between_two_operators_is_not_guessed(self):
        names = [name for name, _ in owned(STEP)]
        at = names.index("copy_kv")
        found = traced_steps.carried_over(owned(STEP), [*names[:at], "mystery", *names[at:]])
        assert found[at] == "ambiguous"
        assert [*found[:at], *found[at + 1 :]] == [operator for _, operator in owned(STEP)]


class TestSeen:
    def test_operators_and_parts_are_the_whole_step(self):
        step = line(STEP)
        found = traced_steps.seen_of(traced(step), owned(STEP))
        assert found.seconds == pytest.approx((step[-1].end - step[0].end) * 1e-9)
        assert found.operators["attention"].seconds == pytest.approx(LAYERS * 60.5e-6)
        assert found.parts["residual"] == pytest.approx(2 * LAYERS * 2.5e-6)
        assert found.parts["sampling"] == pytest.approx(30.5e-6)
        assert found.parts["gap"] == pytest.approx(
            4 * 0.5e-6
        )  # around two kernels before the model, and before sampling
        assert found.parts["other"] == pytest.approx(5e-6 + 8e-6)  # those two kernels; scatter and the copy to the host
        named = sum(time.seconds for time in found.operators.values())
        assert named + sum(found.parts[name] for name in ("sampling", "gap", "other")) == pytest.approx(found.seconds)
        busy = sum(microseconds for _, microseconds, _ in STEP) * 1e-6
        assert found.busy == pytest.approx(busy)

    def test_unclaimed_work_inside_the_model_is_other_as_well(self):
        entries = [*STEP[:7], ("mystery", 4, "other"), *STEP[7:]]
        found = traced_steps.seen_of(traced(line(entries)), owned(entries))
        assert found.parts["other"] == pytest.approx(13e-6 + 4.5e-6)
        assert found.operators["other"].seconds == pytest.approx(4.5e-6)

    def test_where_the_gpu_waits_for_the_host_an_operator_begins_where_it_was_entered(self):
        """Without graphs: 40 µs before the embedding's kernel and 30 before sampling's nothing runs; both begin meanwhile."""
        first, sampling = len(HEAD) + 1, len(STEP) - len(TAIL) + 1
        step = line(STEP)
        late = [40_000 * (at >= first) + 30_000 * (at >= sampling) for at in range(len(step))]
        step = [dataclasses.replace(each, start=each.start + by, end=each.end + by) for each, by in zip(step, late)]
        unknown = traced_steps.seen_of(traced(step), owned(STEP))
        assert unknown.parts["gap"] == pytest.approx(72e-6)
        entries = step[first].start - 10_000, step[sampling].start - 25_000
        found = traced_steps.seen_of(traced(step, *entries), owned(STEP))
        assert found.parts["gap"] == pytest.approx(72e-6 - 35e-6)
        assert found.operators["embedding"].seconds == pytest.approx(20e-6)
        assert found.operators["embedding"].busy == pytest.approx(10e-6)
        assert found.parts["sampling"] == pytest.approx(30.5e-6 + 25e-6)
        assert found.parts["other"] == pytest.approx(unknown.parts["other"])

    def test_an_operator_that_was_entered_before_the_gpu_came_to_it_begins_behind_the_work_before(self):
        step = line(STEP)
        found = traced_steps.seen_of(traced(step, step[0].start - 1, step[0].start), owned(STEP))
        assert found.parts["gap"] == 0.0
        assert found.operators["embedding"].seconds == pytest.approx((step[len(HEAD) + 1].end - step[0].end) * 1e-9)
        assert found.parts["sampling"] == pytest.approx(31e-6)

    def test_between_kernels_that_were_launched_in_time_the_gpu_works(self):
        step = line(STEP)
        found = traced_steps.seen_of(Traced(step), owned(STEP))
        assert found.parts["gap"] == 0.0
        assert found.parts["other"] == pytest.approx(5e-6 + 8e-6 + 4 * 0.5e-6)
        late = traced_steps.seen_of(Traced(step, late=frozenset(step[2:3])), owned(STEP))
        assert late.parts["gap"] == pytest.approx(0.5e-6)
        assert late.parts["other"] == pytest.approx(found.parts["other"] - 0.5e-6)

    def test_a_kernel_is_late_when_its_launch_returned_behind_the_end_of_all_before(self):
        kernels = [Kernel("a", 0, 10, 1), Kernel("b", 2, 6, 2), Kernel("c", 12, 13, 3), Kernel("d", 20, 21, 4)]
        assert traced_steps.late_of(kernels, {1: 0, 2: 1, 3: 8, 4: 15}) == {kernels[3]}
        assert traced_steps.late_of(kernels, {1: 0, 2: 1, 3: 11, 4: 15}) == {kernels[2], kernels[3]}

    def test_entries_are_told_by_the_launch_of_the_marker(self):
        trace = {"traceEvents": [
            {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 100, "dur": 5.5, "args": {"correlation": 7}},
            {"cat": "kernel", "name": MARKER, "ts": 140, "dur": 1, "args": {"correlation": 7, "stream": 13}},
        ]}  # fmt: skip
        launches = launches_in(trace)
        noted = {"at": 5_000_000, "first_operator_at": 5_020_000, "sampling_at": 5_300_000}
        found = traced_steps.entries_of(noted, Kernel(MARKER, 0, 1, 7), launches)
        assert found == (105_500 + 20_000, 105_500 + 300_000)
        assert traced_steps.entries_of({"at": 1}, Kernel(MARKER, 0, 1, 7), launches) == (None, None)
        with pytest.raises(Mismatch, match="launch of a step's marker"):
            traced_steps.entries_of(noted, Kernel(MARKER, 0, 1, 8), launches)

    def test_kernels_at_the_same_time_are_busy_once(self):
        kernels = [Kernel("a", 0, 10), Kernel("b", 5, 8), Kernel("c", 6, 14), Kernel("d", 20, 21)]
        assert traced_steps.busy_seconds(kernels) == pytest.approx(15e-9)
        assert traced_steps.busy_seconds(kernels, 12, 20.5) == pytest.approx(2.5e-9)

    def test_an_instrumented_step_lies_beside_the_own_steps_around_it(self):
        labels = [PLAIN] * 8 + [TWIN, PLAIN, TWIN, TWIN, PLAIN, TWIN]
        assert served_accuracy.beside(labels) == [
            (8, 7, 0.5), (8, 9, 0.5), (10, 9, 2 / 3), (10, 12, 1 / 3), (11, 9, 1 / 3), (11, 12, 2 / 3),
        ]  # fmt: skip


def run(error=0.0, distortion=1.0, growing=0, steps=40, graph_layout=TWIN, batch=8, seed=0):
    """A batch of which a random half of the steps is instrumented; attention grows by ``growing`` µs each step."""
    random = np.random.default_rng(seed)
    ring, seen = [], []
    for number in range(steps):
        label = graph_layout if random.random() < 0.5 else PLAIN
        kernels = line(STEP, slower=growing * number)
        seconds = (kernels[-1].end - kernels[0].end) * 1e-9 * (distortion if label == TWIN else 1.0)
        operators = intervals_of(STEP, error, growing * number) if label == TWIN else {}
        ring.append(ring_step(label, 100 + 0.01 * number, seconds, batch, operators))
        seen.append(traced(kernels))
    return ring, seen


CASE = {"shape": "tiny", "batch": 8, "host": "main"}


def rows_of(error=0.0, **changes):
    ring, seen = run(error, **changes)
    alone, _ = run(error, seed=1, **changes)
    return served_accuracy.compare(CASE, (alone, [1]), (ring, [1]), seen, {PLAIN: owned(STEP)}, 6e-7)


class TestComparison:
    def test_a_plugin_that_is_right_has_no_error(self):
        rows = rows_of()
        operators = {row["operator"]: row for row in rows if "operator" in row}
        assert set(operators) == {operator for _, _, operator in MODEL}
        for row in operators.values():
            assert row["error_us"] == pytest.approx(0, abs=1e-3)
            assert row["share_error_points"] == pytest.approx(0, abs=1e-3)
        assert operators["attention"]["calls"] == LAYERS
        assert operators["attention"]["cupti_us"] == pytest.approx(60.5)
        case = rows[-1]
        for part in ("gap", "residual", "other", "sampling", "gap_and_other"):
            assert case[f"{part}_error_points"] == pytest.approx(0, abs=1e-3)
        assert case["distortion_percent"] == pytest.approx(0, abs=1e-6)
        assert case["tokens_identical"]

    def test_an_error_of_each_call_is_found(self):
        operators = {row["operator"]: row for row in rows_of(error=0.4) if "operator" in row}
        for name in ("attention", "qkv_proj", "o_proj", "ffn_norm"):
            assert operators[name]["error_us"] == pytest.approx(0.4, abs=1e-3)
            assert operators[name]["error_us_without_cupti"] == pytest.approx(0.4, abs=1e-3)

    def test_a_context_that_grows_is_no_error(self):
        """Attention grows by 1 µs each step; which steps are instrumented is chance."""
        for row in rows_of(growing=1):
            if row.get("operator") == "attention":
                assert row["error_us"] == pytest.approx(0, abs=0.02)

    def test_an_instrumented_step_that_takes_longer_is_distortion(self):
        assert rows_of(distortion=1.02, growing=1)[-1]["distortion_percent"] == pytest.approx(2.0, abs=0.05)

    def test_steps_of_another_batch_are_left_out(self):
        ring, seen = run()
        others, other_kernels = run(batch=7, seed=5, error=50.0)
        both = ([*others, *ring], [1])
        rows = served_accuracy.compare(CASE, (ring, [1]), both, [*other_kernels, *seen], {PLAIN: owned(STEP)}, 0.0)
        assert all(abs(row["error_us"]) < 1e-3 for row in rows if "operator" in row)

    def test_a_graph_that_is_not_instrumented_is_said_so(self):
        with pytest.raises(Mismatch, match="no graph of this size"):
            rows_of(graph_layout=PLAIN)

    def test_time_that_the_plugin_gives_to_a_neighbour_shows_in_the_points(self):
        """A residual that is counted as ffn: the sum is right, and the parts are not."""
        ring, seen = run()
        residual, ffn = Operator("residual").code, Operator("ffn").code
        for _, intervals in ring:
            intervals["operator"][intervals["operator"] == residual] = ffn
        rows = served_accuracy.compare(CASE, (ring, [1]), (ring, [1]), seen, {PLAIN: owned(STEP)}, 0.0)
        share = 100 * 2 * LAYERS * 2.5e-6 / (seen[0].kernels[-1].end - seen[0].kernels[0].end) * 1e9
        assert rows[-1]["residual_error_points"] == pytest.approx(-share, abs=1e-3)

    def test_a_wait_for_the_host_is_looked_for_in_the_step_that_it_was_in(self):
        """The host stops for 3 ms in front of one instrumented step: the others, and LightLLM's own, know nothing of it."""
        ring, seen = run()
        at = next(number for number, (step, _) in enumerate(ring) if number > 8 and step["flags"])
        step, intervals = ring[at]
        intervals["seconds"][intervals["operator"] == Operator("gap").code] += 3e-3
        step["seconds"] += 3e-3
        first, *rest = seen[at].kernels
        timestamp = Kernel("lightllm_otel_stamp", first.end + 3_000_000, first.end + 3_000_100)
        late = [dataclasses.replace(each, start=each.start + 3_000_000, end=each.end + 3_000_000) for each in rest]
        seen[at] = traced([first, timestamp, *late])
        rows = served_accuracy.compare(CASE, (ring, [1]), (ring, [1]), seen, {PLAIN: owned(STEP)}, 0.0)
        assert rows[-1]["gap_ours_percent"] > 10
        assert rows[-1]["gap_error_points"] == pytest.approx(0, abs=1e-3)

    def test_prefills_are_compared_by_the_same_kernels(self):
        prefills = [
            (ring_step(PREFILL, 90 + at, 2e-3, 1, intervals_of(STEP), 1024), traced(line(STEP))) for at in range(3)
        ]
        short = (
            ring_step(PREFILL, 95, 2e-3, 1, intervals_of(STEP), 256),
            traced(line([*HEAD, ("other_gemm", 5, "ffn")])),
        )
        under = [step for step, _ in (*prefills, short)]
        rows = served_accuracy.prefill_rows(CASE, under, under, [each for _, each in (*prefills, short)], owned(STEP))
        assert rows[-1]["steps_compared"] == 3
        assert rows[-1]["tokens"] == 1024
        assert all(abs(row["error_us"]) < 1e-3 for row in rows if "operator" in row)

    def test_prefills_with_other_kernels_are_not_compared(self):
        ring = [ring_step(PREFILL, 90, 2e-3, 1, intervals_of(STEP), 1024)]
        (row,) = served_accuracy.prefill_rows(CASE, ring, ring, [traced(line(STEP[:5]))], owned(STEP))
        assert "none of 1 prefills" in row["problem"]

    def test_the_summary_has_the_worst_case_of_each_part(self):
        rows = [*rows_of(), *rows_of(error=0.4)]
        summary = comparison.summarise(rows)
        assert summary["median_error_us"] == pytest.approx(0.2, abs=0.25)
        assert summary["max_residual_error_points"] > 0.1
        assert summary["problems"] == []
        assert summary["clock_check_max_us"] is None


class FakeServer:
    """A server that is right: what it computes is recorded, traced where it is asked for, and a random half instrumented."""

    port = 1

    def __init__(self, folder, broken_batch=0):
        self.folder, self._random, self.asked = folder, np.random.default_rng(7), []
        self._broken = broken_batch
        self._writer = RecordingWriter(folder / "record", "group", 1 << 28)
        self._writer.describe({0: {}})
        self._noted, self._calls, self._trace, self._annotate, self._number = [], [], None, False, 0
        self._time = 10**6

    def watch(self, batch, cpu_time):
        pass

    def hold(self, arm):
        self.asked.append(arm.name)

    def ring(self):
        return {"stamp_cost": 6e-7}

    def ask(self, do, **given):
        if do == "start_trace":
            self._trace, self._noted = [Kernel(MARKER, 0, 1000, 0, DEFAULT)], []
        elif do == "annotate" and given["on"]:
            self._annotate, self._calls = True, []
        elif do == "annotate":
            self._annotate = False
            return {"calls": self._calls}
        elif do == "stop_trace":
            events = [
                {"cat": "kernel", "name": each.name, "ts": each.start / 1000, "dur": (each.end - each.start) / 1000,
                 "args": {"correlation": at, "stream": each.stream}} for at, each in enumerate(self._trace)
            ]  # fmt: skip
            events += [
                {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": each.start / 1000 - 0.3, "dur": 0.2,
                 "args": {"correlation": at}}
                for at, each in enumerate(self._trace)
            ]  # fmt: skip
            Path(given["path"]).write_text(json.dumps({"traceEvents": events}))
            self._trace = None
            return {"forwards": self._noted}
        return {}

    def together(self, port, requests):
        batch, length = len(requests), len(requests[0].text)
        self._forward([*HEAD, ("prefill_gemm", 100 + length, "ffn"), *STEP], batch, True, batch * length)
        for _ in range(requests[0].tokens - 1):
            self._forward(STEP, batch, False, batch)
        return [Stream([], tuple(range(request.tokens))) for request in requests]

    def _forward(self, entries, batch, prefill, tokens):
        label = PREFILL if prefill else TWIN if self._random.random() < 0.5 and batch != self._broken else PLAIN
        now = time.time() + 0.01 * self._number - 3600
        kernels, calls = marked(entries)
        made = line(kernels if self._annotate else entries, self._time)
        seconds = (made[-1].end - made[0].end) * 1e-9
        step, intervals = ring_step(
            label, now, seconds, batch, intervals_of(entries) if label != PLAIN else None, tokens
        )
        step["magic"], step["intervals"], step["number"] = layout.STEP_MAGIC, len(intervals), self._number
        cells = np.concatenate([np.array(step).reshape(1).view(np.uint8), intervals.view(np.uint8)])
        self._writer.append(0, cells.reshape(-1, layout.CELL_BYTES))
        self._number += 1
        if self._trace is not None:
            self._noted.append({"at": int(now * 1e9) - 20_000, "batch": batch, "context": 1, "prefill": prefill})
            self._trace += made
            self._calls += calls if self._annotate else []
            self._time = made[-1].end + 10**6


@pytest.fixture
def fake(tmp_path, monkeypatch):
    def made(**changes):
        server = FakeServer(tmp_path, **changes)
        monkeypatch.setattr(served_accuracy, "together", server.together)
        monkeypatch.setattr(served_accuracy, "WAIT_SECONDS", 0.0)
        monkeypatch.setattr(served_accuracy, "time", types.SimpleNamespace(
            time=lambda: time.time() + 0.01 * server._number - 3600 - 0.005, sleep=lambda seconds: None))  # fmt: skip
        return server

    return made


AMOUNT = served_accuracy.Amount(
    batches=(1, 8), steps=30, input_tokens=16, prefills=3, prefill_tokens=64, annotated_steps=3
)


class TestWhole:
    def test_all_batches_of_a_server_that_is_right(self, fake):
        server, rows = fake(), []
        served_accuracy.measure(server, AMOUNT, {"shape": "tiny", "host": "main"}, rows.extend)
        summary = comparison.summarise(rows)
        assert summary["problems"] == []
        assert set(summary["by_case"]) == {"tiny, batch 1", "tiny, batch 8"}
        assert summary["median_error_us"] == pytest.approx(0, abs=1e-3)
        assert summary["max_gap_error_points"] == pytest.approx(0, abs=1e-3)
        assert summary["max_other_error_points"] == pytest.approx(0, abs=1e-3)
        assert summary["eager"]["prefill eager"]["median_error_us"] == pytest.approx(0, abs=1e-3)
        prefill = next(row for row in rows if row["mode"] == "prefill eager" and "operator" not in row)
        assert (prefill["steps_compared"], prefill["tokens"]) == (3, 64)
        assert all(case["tokens_identical"] for case in summary["by_case"].values())
        assert server.asked == ["EVERY_SECOND", "DEFAULT"]

    def test_a_batch_without_an_instrumented_graph_is_a_problem_and_the_others_count(self, fake):
        server, rows = fake(broken_batch=1), []
        served_accuracy.measure(server, AMOUNT, {"shape": "tiny", "host": "main"}, rows.extend)
        summary = comparison.summarise(rows)
        assert len(summary["problems"]) == 1
        assert "no graph of this size" in summary["problems"][0]
        assert set(summary["by_case"]) == {"tiny, batch 8"}
