"""From lists of kernels to seconds per operator: on made-up lists, where every figure is known."""

import json
from argparse import Namespace
from decimal import Decimal

import accuracy
import comparison
import kernels
import numpy as np
import passes
import pytest
from kernels import Kernel, Mismatch, Time
from static_model import graph_sizes_for

from lightllm_otel.records import layout
from lightllm_otel.records.vocabulary import Mode, Operator, Phase

STAMP, PUBLISH = "lightllm_otel_stamp", "lightllm_otel_publish"
COST = 1e-6  # of a boundary, in the made-up instrumented graph below


def line(*entries, start=0, gap=0):
    """Kernels one after the other, ``gap`` ns between them, from ``(name, nanoseconds)``."""
    made = []
    for name, duration in entries:
        made.append(Kernel(name, start, start + duration))
        start += duration + gap
    return made


# norm 3 µs, qkv of two kernels 10 + 5 µs, norm again 4 µs; a timestamp takes 1 µs with its launch.
PLAIN = line(("copy_inputs", 700), ("rms", 3000), ("gemm", 10000), ("rotary", 5000), ("rms", 4000), ("softmax", 900))
TWIN = line(
    ("copy_inputs", 700), (STAMP, 1000), ("rms", 3000), (STAMP, 1000), ("gemm", 10000), ("rotary", 5000), (STAMP, 1000),
    ("rms", 4000), (STAMP, 1000), ("copy_outputs", 500), (PUBLISH, 2000), ("softmax", 900),
)  # fmt: skip
INTERVALS = ["attn_norm", "qkv_proj", "ffn_norm"]


def ring_step(label, seconds=25e-6, operators=()):
    step = np.zeros(1, layout.STEP)
    step["phase"] = (Phase.PREFILL if label == "prefill" else Phase.DECODE).code
    step["mode"] = (Mode.GRAPH if label in ("twin", "plain") else Mode.EAGER).code
    step["flags"] = 0 if label == "plain" else layout.SAMPLED
    step["seconds"] = step["closure_seconds"] = seconds
    intervals = np.zeros(len(operators), layout.INTERVAL)
    intervals["operator"] = [Operator(operator).code for operator, _ in operators]
    intervals["seconds"] = [duration for _, duration in operators]
    return step[0], intervals


RIGHT = (("attn_norm", 3e-6), ("qkv_proj", 15e-6), ("ffn_norm", 4e-6), ("gap", 2e-6))


def run(operators=RIGHT, graph_layout=TWIN, plain=PLAIN, with_kernels=True):
    """A pass of one plain and three pairs, of which the first two of each kind do not count."""
    labels = ["plain", *["twin", "plain"] * 3]
    ring = [ring_step(label, 26e-6 if label == "twin" else 25e-6, RIGHT if label == "plain" else operators)
            for label in labels]  # fmt: skip
    seen = [list(graph_layout if label == "twin" else plain) for label in labels] if with_kernels else None
    return passes.Pass(labels, ring, [[7, 8]], seen)


def rows_of(operators=RIGHT, intervals=INTERVALS, **lists):
    case = {"shape": "tiny", "batch": 8}
    return comparison.graph_rows(case, run(operators, with_kernels=False), run(operators, **lists), intervals, COST)


class TestTrace:
    def test_kernels_are_read_to_the_nanosecond_and_in_order(self, tmp_path):
        path = tmp_path / "trace.json"
        events = [
            {"ph": "X", "cat": "kernel", "name": "b", "ts": 1, "dur": 1, "args": {"correlation": 2}},
            {"ph": "X", "cat": "gpu_memcpy", "name": "a", "ts": 0, "dur": 1, "args": {"correlation": 1}},
            {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 0, "dur": 9, "args": {}},
            {"ph": "M", "name": "process_name"},
        ]
        # More digits than a float has.
        text = json.dumps({"traceEvents": events}).replace('"ts": 1,', '"ts": 4705097603083.351,')
        path.write_text(text.replace('"dur": 1,', '"dur": 2.176,'))
        assert kernels.kernels_in(kernels.read_trace(path)) == [
            Kernel("a", 0, 2176, 1),
            Kernel("b", 4705097603083351, 4705097603085527, 2),
        ]

    def test_steps_are_what_lies_between_pairs_of_markers(self):
        spin = "at::cuda::(anonymous namespace)::spin_kernel(long)"
        seen = line(("x", 1), (spin, 1), ("a", 1), ("b", 1), (spin, 1), ("x", 1), (spin, 1), (spin, 1))
        assert [[kernel.name for kernel in step] for step in kernels.steps_between_markers(seen)] == [["a", "b"], []]
        with pytest.raises(Mismatch, match="odd"):
            kernels.steps_between_markers(seen[:-1])

    def test_a_kernel_belongs_to_the_annotation_that_launched_it_or_to_what_leads_to_the_next(self):
        def event(cat, name, ts, dur, **args):
            return {"cat": cat, "name": name, "ts": Decimal(ts), "dur": Decimal(dur), "args": args}

        trace = {"traceEvents": [
            event("cuda_runtime", "launch", 1, 1, correlation=1),
            event("user_annotation", "operator:embedding:gap", 10, 5),
            event("cuda_driver", "launch", 12, 1, correlation=2),
            event("user_annotation", "operator:attn_norm:residual", 20, 5),
            event("cuda_runtime", "launch", 17, 1, correlation=3),
            event("cuda_runtime", "launch", 24, 9, correlation=4),
            event("cuda_runtime", "launch", 27, 1, correlation=5),
            event("user_annotation", "operator:ffn:", 30, 10),
            event("user_annotation", "operator:ffn:", 30, 2),  # nested, and its outer one begins with it
            event("cuda_runtime", "launch", 39, 1, correlation=6),
            event("cuda_runtime", "launch", 50, 1, correlation=7),
            event("user_annotation", "somebody else's", 50, 5),
        ]}  # fmt: skip
        assert kernels.attributed(trace) == {
            1: "gap", 2: "embedding", 3: "residual", 4: "attn_norm", 5: "ffn", 6: "ffn", 7: "gap",
        }  # fmt: skip


class TestSeconds:
    def test_an_operator_lasts_from_the_previous_end_to_its_own(self):
        seen = line(("rms", 3000), ("gemm", 10000), ("rotary", 5000), ("rms", 4000), gap=500)
        times = kernels.end_to_end(seen, ["attn_norm", "qkv_proj", "qkv_proj", "attn_norm"])
        assert times["attn_norm"].seconds == pytest.approx(7.5e-6)
        assert times["attn_norm"].busy == pytest.approx(7e-6)
        assert times["qkv_proj"].seconds == pytest.approx(16e-6)
        assert sum(time.seconds for time in times.values()) == pytest.approx((seen[-1].end - seen[0].start) * 1e-9)

    def test_kernels_that_overlap_are_not_counted_twice(self):
        seen = [Kernel("a", 0, 10), Kernel("b", 5, 8), Kernel("c", 6, 14)]
        times = kernels.end_to_end(seen, ["ffn", "residual", "ffn"])
        assert times == {"ffn": Time(pytest.approx(14e-9), pytest.approx(14e-9)), "residual": Time()}

    def test_stamp_to_stamp_is_what_the_plugin_itself_times(self):
        times = kernels.timestamp_to_timestamp(TWIN, INTERVALS)
        assert {operator: round(1e6 * time.seconds, 6) for operator, time in times.items()} == {
            "attn_norm": 4.0, "qkv_proj": 16.0, "ffn_norm": 5.0,
        }  # fmt: skip

    def test_mean_counts_a_step_without_the_operator_as_none(self):
        assert kernels.mean([{"ffn": Time(2.0, 1.0)}, {}]) == {"ffn": Time(1.0, 0.5)}


class TestAttribution:
    def test_the_twin_says_which_kernel_is_which_operator(self):
        assert kernels.kernels_of_graph(TWIN, INTERVALS) == [
            ("rms", "attn_norm"), ("gemm", "qkv_proj"), ("rotary", "qkv_proj"), ("rms", "ffn_norm"),
        ]  # fmt: skip

    def test_a_lost_stamp_is_noticed(self):
        with pytest.raises(Mismatch, match="2 intervals between timestamps, the instrumented graph has 3"):
            kernels.kernels_of_graph([*TWIN[:3], *TWIN[4:]], INTERVALS)

    def test_a_plain_graph_with_another_kernel_is_noticed(self):
        names = [name for name, _ in kernels.kernels_of_graph(TWIN, INTERVALS)]
        assert [kernel.name for kernel in kernels.find(names, PLAIN)] == names
        fused = line(("copy_inputs", 700), ("rms", 3000), ("gemm_rotary", 15000), ("rms", 4000))
        with pytest.raises(Mismatch, match="the first 1 are in the step, then not gemm"):
            kernels.find(names, fused)

    def test_kernels_in_another_order_are_noticed(self):
        names = [name for name, _ in kernels.kernels_of_graph(TWIN, INTERVALS)]
        swapped = [PLAIN[0], PLAIN[1], PLAIN[3], PLAIN[2], *PLAIN[4:]]
        with pytest.raises(Mismatch):
            kernels.find(names, swapped)

    def test_a_sequence_that_fits_twice_is_no_match(self):
        with pytest.raises(Mismatch, match="2 times"):
            kernels.find(["rms"], PLAIN)


class TestGraphRows:
    def test_equal_times_are_no_error(self):
        *operators, case = rows_of()
        assert [row["operator"] for row in operators] == INTERVALS
        for row in operators:
            assert (row["error_us"], row["share_error_points"], row["raw_error_us"]) == (0.0, 0.0, 0.0)
            assert row["error_us_without_cupti"] == 0.0
        assert case["not_compared"] == ["gap"]
        assert (case["kernels"], case["stamps"]) == (4, 4)
        assert case["tokens_identical"]
        assert case["distortion_percent"] == 4.0
        assert case["gap_percent"] == pytest.approx(100 * 2 / 26, abs=1e-3)

    def test_a_boundary_in_the_wrong_place_is_an_error_of_both_operators(self):
        """The plugin ends qkv one kernel early and gives the rotary embedding to the next operator."""
        wrong = (("attn_norm", 3e-6), ("qkv_proj", 10e-6), ("ffn_norm", 9e-6), ("gap", 2e-6))
        *operators, case = rows_of(wrong)
        errors = {row["operator"]: row["error_us"] for row in operators}
        assert errors == {"attn_norm": 0.0, "qkv_proj": -5.0, "ffn_norm": 5.0}
        assert case["operators_error_percent"] == pytest.approx(0, abs=1e-3)  # the sum would not show it
        assert comparison.summarise([*operators, case])["max_share_error_points"] == pytest.approx(22.7273, abs=1e-3)

    def test_operators_that_are_swapped_do_not_agree(self):
        *operators, _ = rows_of(intervals=["qkv_proj", "attn_norm", "ffn_norm"])
        assert [row["error_us"] for row in operators] == [12.0, -12.0, 0.0]

    def test_calls_are_what_a_mean_is_over(self):
        twice = (("attn_norm", 3e-6), ("qkv_proj", 15e-6), ("attn_norm", 4e-6))
        rows = rows_of(twice, intervals=["attn_norm", "qkv_proj", "attn_norm"])
        norm = next(row for row in rows if row.get("operator") == "attn_norm")
        assert (norm["calls"], norm["ours_us"], norm["cupti_us"], norm["kernels"]) == (2.0, 3.5, 3.5, 2)
        assert norm["raw_cupti_us"] == 4.5

    def test_the_first_steps_of_each_kind_do_not_count(self):
        late = run()
        assert len(late.steps("twin")) == 1
        assert len(late.kernels_of("plain")) == 2


class TestEagerRows:
    def test_idle_time_is_published_beside_the_interval(self):
        seen = line(("index", 100), ("rms", 3000), ("gemm", 10000), ("Memcpy DtoH (Device -> Pageable)", 10), gap=2000)
        expected = [("index", "gap"), ("rms", "attn_norm"), ("gemm", "qkv_proj")]
        operators = (("attn_norm", 3e-6), ("qkv_proj", 12.5e-6))
        alone = passes.Pass(["eager"], [ring_step("eager", operators=operators)], [])
        under = passes.Pass(["eager"], [ring_step("eager", operators=operators)], [], [seen])
        norm, qkv, case = comparison.eager_rows(
            {"shape": "tiny", "batch": 1}, "eager", alone, under, expected, expected
        )
        assert (norm["cupti_us"], norm["cupti_idle_us"]) == (3.0, 0.0)
        assert (qkv["cupti_us"], qkv["cupti_busy_us"], qkv["cupti_idle_us"], qkv["error_us"]) == (12.0, 10.0, 2.0, 0.5)
        assert case["same_attribution_as_graph"]

    def test_stamps_and_launches_that_tell_another_story_are_reported(self):
        seen = line(("rms", 3000), ("gemm", 10000))
        expected = [("rms", "attn_norm"), ("gemm", "qkv_proj")]
        operators = (("attn_norm", 3e-6), ("qkv_proj", 10e-6))
        alone = passes.Pass(["eager"], [ring_step("eager", operators=operators)], [])
        under = passes.Pass(["eager"], [ring_step("eager", operators=operators)], [], [seen])
        graph = [("rms", "attn_norm"), ("gemm", "attn_norm")]
        *_, case = comparison.eager_rows({"shape": "tiny", "batch": 1}, "eager", alone, under, expected, graph)
        assert not case["same_attribution_as_graph"]


def reducing(seconds, cupti, layers=(-1, 0, 0)):
    """A rank's pass: one all_reduce of the embedding and two of a layer, ``seconds`` by the ring, ``cupti`` nanoseconds."""

    def kernels_of(*timestamps):
        timestamp = [(STAMP, 10)] if timestamps else []
        return line(
            *timestamp, *(each for took in cupti for each in (("gemm", 5000), *timestamp, ("nccl", took), *timestamp))
        )

    made = run([(operator, took) for took in seconds for operator, took in (("o_proj", 5e-6), ("all_reduce", took))],
               kernels_of(True), kernels_of())  # fmt: skip
    for _, intervals in made.ring:
        of_layer = intervals["operator"] == Operator.ALL_REDUCE.code
        if of_layer.sum() == len(layers):
            intervals["layer"][of_layer] = layers
    return made


class TestTransfer:
    OPERATORS = ("o_proj", "all_reduce") * 3

    def test_each_call_of_the_layers_is_compared_and_the_least_of_the_ranks_is_its_transfer(self):
        first, second = (
            reducing((9e-6, 7e-6, 8e-6), (9000, 6000, 8000)),
            reducing((9e-6, 6e-6, 9e-6), (9000, 7000, 5000)),
        )
        calls = [comparison.reduce_calls(each, each, self.OPERATORS) for each in (first, second)]
        assert calls[0]["cupti"] == [[pytest.approx(6e-6), pytest.approx(8e-6)]] * 2
        assert calls[0]["ours"] == [[pytest.approx(7e-6), pytest.approx(8e-6)]]
        calls = [{name: each[name][:1] for name in each} for each in calls]
        row = comparison.transfer_row({"shape": "tiny", "batch": 8}, calls)
        assert (row["ours_us"], row["cupti_us"], row["ours_under_cupti_us"]) == (7.0, 5.5, 7.0)
        assert (row["calls"], row["ranks"]) == (2, 2)
        found = comparison.summarise([row])["transfer"]["tiny, batch 8"]
        assert (found["cupti_us"], found["error_us"]) == (5.5, 1.5)

    def test_a_step_that_waited_for_a_host_does_not_move_it(self):
        calls = {name: [[7e-6], [80e-6], [7e-6]] for name in ("ours", "under", "cupti")}
        row = comparison.transfer_row({"shape": "tiny", "batch": 8}, [calls, calls])
        assert (row["ours_us"], row["by_step_us"]["ours"]) == (7.0, [7.0, 80.0, 7.0])

    def test_a_call_that_cupti_did_not_see_is_noticed(self):
        made = reducing((9e-6, 7e-6, 8e-6), (9000, 6000, 8000))
        fewer = reducing((9e-6, 7e-6), (9000, 6000), (-1, 0))
        with pytest.raises(Mismatch, match="all_reduce in a step: CUPTI saw 3 calls, the ring has 3, without CUPTI 2"):
            comparison.reduce_calls(fewer, made, self.OPERATORS)


class TestPass:
    def test_a_step_of_another_kind_than_meant_is_noticed(self):
        with pytest.raises(Mismatch, match="plain, not twin"):
            passes.Pass(["twin"], [ring_step("plain")], [])

    def test_a_step_that_is_missing_is_noticed(self):
        with pytest.raises(Mismatch, match="1 steps of 2"):
            passes.Pass(["plain", "plain"], [ring_step("plain")], [])
        with pytest.raises(Mismatch, match="CUPTI saw 0 steps of 1"):
            passes.Pass(["plain"], [ring_step("plain")], [], [])


class TestSummary:
    def test_a_case_without_comparison_is_a_problem_and_no_figure(self):
        summary = comparison.summarise(
            [{"shape": "tiny", "batch": 8, "mode": "decode graph", "problem": "names differ"}]
        )
        assert summary["problems"] == ["tiny, batch 8, decode graph: names differ"]
        assert summary["median_error_us"] is None
        assert summary["by_case"] == {}

    def test_the_worst_case_is_claimed(self):
        good, bad = rows_of(), rows_of()
        for row in bad:
            row["batch"] = 64
        bad[-1] |= {"closure_percent_without_cupti": 97.0, "gap_percent_without_cupti": 12.0}
        summary = comparison.summarise([*good, *bad])
        assert (summary["step_closure_percent"], summary["gap_percent_max"]) == (97.0, 12.0)
        assert list(summary["by_case"]) == ["tiny, batch 8", "tiny, batch 64"]
        assert summary["negative_intervals"] == 0


class TestGraphSizes:
    def test_every_batch_size_has_a_graph_of_its_own(self):
        sizes = graph_sizes_for([1, 8, 20, 64]).up_to(64)
        assert {1, 8, 20, 64} <= set(sizes)
        assert len(sizes) == 13

    def test_one_size_needs_no_more_than_the_host_always_captures(self):
        assert graph_sizes_for([8]).up_to(8) == [1, 8]


@pytest.mark.parametrize(
    ("tp", "way", "name"), [(1, "", "accuracy"), (2, "", "accuracy-tp2"), (2, "no-mixing", "accuracy-tp2-no-mixing")]
)
def test_each_way_to_join_ranks_has_a_file_of_its_own(tp, way, name):
    assert accuracy.file_of(Namespace(tp=tp, way=way)) == name
