"""The report on a run: exact sums from hand-made records, honest gaps, one page that needs nothing else."""

import json
import random
import re

import numpy as np
import pytest
import records
import simulated

from lightllm_otel.page import render
from lightllm_otel.records import layout
from lightllm_otel.records.recording import BadRecording, RecordingWriter
from lightllm_otel.records.vocabulary import IdleReason, Mode, Operator, Phase
from lightllm_otel.roofline import gpus, ideal, links, shape
from lightllm_otel.tools.analysis import expected, pace, perfetto, pictures
from lightllm_otel.tools.analysis.operators import spent, utilisation
from lightllm_otel.tools.analysis.report import report
from lightllm_otel.tools.analysis.runs import load

LLAMA = shape.find("llama2-7b")


def write(folder, ranks, facts=None):
    """``ranks``: the steps of each."""
    writer = RecordingWriter(folder, "test", 1 << 24)
    writer.describe({rank: {**records.FACTS, "tp": len(ranks), **(facts or {})} for rank in range(len(ranks))})
    for rank, steps in enumerate(ranks):
        writer.append(rank, records.cells(*steps))
    writer.close()
    return load(writer.path)


def manifest(path, **content):
    (path / "manifest.json").write_text(json.dumps(content))


def decode(*operators, **fields):
    seconds = sum(each[1] for each in operators)
    return records.step(
        operators=operators, **{"seconds": seconds, "batch": 20, "tokens": 20, "context": 20480, **fields}
    )


@pytest.fixture
def run(tmp_path):
    """Two steps: 3 ms and 1 ms of ffn, 1 ms of attention each."""
    steps = [decode((Operator.FFN, ffn), (Operator.ATTENTION, 1e-3)) for ffn in (3e-3, 1e-3)]
    return write(tmp_path, [steps])


class TestOperators:
    def test_shares_and_times_are_sums_over_the_sampled_steps(self, run):
        first, second = spent(run, Phase.DECODE, Mode.EAGER, expected.machine({}))
        assert (first.operator, second.operator) == ("ffn", "attention")
        assert first.share == pytest.approx(4 / 6)
        assert first.seconds_per_step == pytest.approx(2e-3)
        assert first.seconds_per_call == pytest.approx(2e-3)
        assert first.calls_per_step == 1

    def test_the_interval_of_a_share_holds_it_and_is_nothing_where_all_steps_are_alike(self, run, tmp_path):
        first, *_ = spent(run, Phase.DECODE, Mode.EAGER, expected.machine({}))
        assert first.interval == pytest.approx((0.5, 0.75))  # only the one step, or only the other
        same = write(tmp_path / "same", [[decode((Operator.FFN, 3e-3), (Operator.ATTENTION, 1e-3))] * 5])
        assert spent(same, Phase.DECODE, Mode.EAGER, expected.machine({}))[0].interval == pytest.approx((0.75, 0.75))

    def test_achieved_rates_are_the_models_work_over_the_measured_time(self, run):
        on = expected.machine(run.facts, LLAMA)
        (ffn,) = (row for row in spent(run, Phase.DECODE, Mode.EAGER, on) if row.operator == "ffn")
        flops = 2 * 20 * 3 * 4096 * 11008 * 32
        assert ffn.flops_per_second == pytest.approx(flops / 2e-3)
        assert ffn.bound == "memory"
        assert ffn.busy == pytest.approx(ffn.bytes_per_second / 4.8e12)
        assert ffn.ideal_seconds == pytest.approx(ffn.busy * 2e-3)

    def test_steps_that_no_such_gpu_can_make_are_said_to_be_mistaken(self, tmp_path):
        run = write(tmp_path, [[decode((Operator.FFN, 2e-4))]])
        assert any("shorter than the GPU could make them" in note for note in report(run)["notes"])
        slow = write(tmp_path / "slow", [[decode((Operator.FFN, 2e-2))]])
        assert not any("shorter" in note for note in report(slow)["notes"])

    def test_without_a_shape_or_a_gpu_nothing_is_made_up(self, tmp_path):
        run = write(tmp_path, [[decode((Operator.FFN, 1e-3))]], {"config": {}, "gpu_name": "NVIDIA X1"})
        data = report(run)
        (row,) = data["phases"][0]["operators"]
        assert {row[name] for name in ("flops_per_second", "bytes_per_second", "busy", "bound", "ideal_seconds")} == {
            None
        }
        assert data["phases"][0]["utilisation"] == {"mfu": None, "mbu": None}
        assert data["machine"] is None
        assert sum("give --model" in note or "give --gpu" in note for note in data["notes"]) == 2

    def test_an_operator_that_waits_for_the_host_is_bound_by_it_unless_the_hardware_is_busy(self, tmp_path):
        """The ffn of 7B moves 8.7 GB in a decode step, which an H200 does in 1.8 ms."""
        slow, fast = (
            write(tmp_path / name, [[decode((Operator.FFN, seconds, layout.STARVED))]])
            for name, seconds in (("slow", 20e-3), ("fast", 2e-3))
        )
        bounds = [spent(run, Phase.DECODE, Mode.EAGER, expected.machine(run.facts))[0].bound for run in (slow, fast)]
        assert bounds == ["host", "memory"]

    def test_bus_bandwidth_is_the_ring_traffic_over_the_time(self, tmp_path):
        run = load(simulated.write(tmp_path, steps=10, ranks=4, facts={"gpu_name": "NVIDIA A100-SXM4-80GB"}))
        on = expected.machine(run.facts)
        (row,) = (row for row in spent(run, Phase.DECODE, Mode.GRAPH, on) if row.operator == "all_reduce")
        payload = 20 * 4096 * 2
        assert row.bus_bytes_per_second == pytest.approx(links.traffic("all_reduce", payload, 4) / row.seconds_per_call)
        assert row.bound == "link"
        assert row.busy == pytest.approx(row.bus_bytes_per_second / 300e9)

    def test_time_per_layer_is_over_the_layers_that_have_the_operator(self, tmp_path):
        run = load(simulated.write(tmp_path, steps=10, layers=6))
        rows = {row.operator: row for row in spent(run, Phase.DECODE, Mode.GRAPH, expected.machine({}))}
        assert rows["ffn"].seconds_per_layer == pytest.approx(rows["ffn"].seconds_per_step / 6)
        assert rows["lm_head"].seconds_per_layer is None

    def test_mfu_and_mbu_are_of_all_steps_sampled_or_not(self, tmp_path):
        run = load(simulated.write(tmp_path, steps=64, every=8))
        on = expected.machine(run.facts)
        found = utilisation(run, Phase.PREFILL, Mode.EAGER, on)
        table = ideal.step(on.shape, ideal.prefill(20, 1024), on.gpu, 1, None)
        steps = run.repeats[0].steps[run.repeats[0].chosen(Phase.PREFILL, Mode.EAGER)]
        assert found.mfu == pytest.approx(
            sum(each.work.flops for each in table.values()) / 989.4e12 / steps["seconds"].mean(), rel=1e-6
        )


class TestPace:
    def test_tokens_per_second_are_those_of_one_rank_in_its_own_time(self, tmp_path):
        run = write(tmp_path, [[decode((Operator.FFN, 2e-3))] * 4] * 2)
        assert pace.pace(run, Phase.DECODE, Mode.EAGER).tokens_per_second == pytest.approx(20 / 2e-3)

    def test_health_checks_are_no_steps(self, tmp_path):
        run = write(tmp_path, [[decode((Operator.FFN, 2e-3)), decode((Operator.FFN, 9.0), tokens=0)]])
        found = pace.pace(run, Phase.DECODE, Mode.EAGER)
        assert (found.steps, found.mean) == (1, pytest.approx(2e-3))

    def test_idle_time_is_by_its_reason_and_not_from_before_the_run(self, tmp_path):
        steps = [
            decode((Operator.FFN, 1.0), wall_time=100.0, idle_seconds=50.0, idle_reason=IdleReason.NO_REQUESTS),
            decode((Operator.FFN, 1.0), wall_time=102.0, idle_seconds=1.0, idle_reason=IdleReason.HOST),
            decode((Operator.FFN, 1.0), wall_time=105.0, idle_seconds=2.0, idle_reason=IdleReason.NO_REQUESTS),
        ]
        found = pace.idle(write(tmp_path, [steps]))
        assert found.seconds == pytest.approx(6.0)
        assert (found.busy, found.host, found.no_requests) == (
            pytest.approx(3 / 6),
            pytest.approx(1 / 6),
            pytest.approx(2 / 6),
        )
        assert found.output_tokens_per_second == pytest.approx(60 / 6)


class TestPictures:
    def test_the_heat_map_has_each_layers_seconds(self, tmp_path):
        run = load(simulated.write(tmp_path, steps=10, layers=3, step_noise=0, run_noise=0))
        found = pictures.layers(run, Phase.DECODE, Mode.GRAPH)
        assert found["layers"] == 3
        assert found["operators"][0] == "ffn"
        assert found["seconds"][0] == pytest.approx([80e-6] * 3, rel=1e-3)

    def test_the_distribution_has_every_call_between_its_edges(self, tmp_path):
        run = load(simulated.write(tmp_path, steps=10, ranks=2))
        (found,) = pictures.collectives(run, Phase.DECODE, Mode.GRAPH)
        assert (found["operator"], found["site"]) == ("all_reduce", "ffn")
        assert sum(found["counts"]) == found["calls"] == 10 * 4 * 2
        assert len(found["counts"]) <= pictures.MOST_BINS + 2
        assert found["edges"][0] <= found["p1"] <= found["p50"] <= found["p99"] <= found["edges"][-1]

    def test_the_timeline_is_bounded(self, tmp_path):
        found = pictures.timeline(load(simulated.write(tmp_path, steps=5000, every=5000)))
        assert found["steps"] == 5004
        assert len(found["points"]) <= 2 * pictures.MOST_POINTS

    def test_the_example_is_one_step_in_the_order_of_the_gpu(self, tmp_path):
        run = load(simulated.write(tmp_path, steps=9, layers=2))
        found = pictures.example(run, Phase.DECODE, Mode.GRAPH)
        assert [each["operator"] for each in found["slices"]] == [
            operator.value for operator in simulated.LAYER
        ] * 2 + ["lm_head"]


class TestRuns:
    def test_repeats_are_read_from_a_folder_of_them(self, tmp_path):
        run = load(simulated.write(tmp_path / "run", repeats=3, steps=10))
        assert (run.name, len(run.repeats)) == ("run", 3)
        assert all("one recording" not in note for note in report(run)["notes"])

    def test_reading_by_columns_gives_what_reading_step_by_step_does(self, tmp_path):
        path = simulated.write(tmp_path, steps=30, every=3, ranks=2)
        run = load(path)
        (repeat,) = run.repeats
        for rank in range(2):
            cells = np.fromfile(path / f"rank-{rank}.records", np.uint8).reshape(-1, layout.CELL_BYTES)
            slow = layout.steps_in(cells)
            mine = np.flatnonzero(repeat.rank == rank)
            assert [step["number"] for step, _ in slow] == repeat.steps["number"][mine].tolist()
            for place, (_, intervals) in zip(mine, slow):
                assert (repeat.intervals[repeat.of == place] == intervals).all()

    def test_a_torn_recording_is_reported_and_says_what_is_left_out(self, tmp_path):
        path = simulated.write(tmp_path, steps=10)
        with (path / "rank-0.records").open("r+b") as file:
            file.truncate((path / "rank-0.records").stat().st_size - 20)
        assert any("ends in the middle of a step" in note for note in report(load(path))["notes"])

    @pytest.mark.parametrize("rank", [0, 1])
    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            (lambda file: file.unlink(), "is empty or missing"),
            (lambda file: file.write_bytes(b""), "is empty or missing"),
            (lambda file: file.write_bytes(file.read_bytes()[:100]), "is empty or missing"),
            (lambda file: file.write_bytes(records.cells(decode(tokens=0)).tobytes()), "has health checks only"),
        ],
        ids=["gone", "empty", "torn in its first step", "without a request"],
    )
    def test_a_rank_without_steps_is_said_and_the_others_are_reported(self, tmp_path, rank, damage, said):
        path = simulated.write(tmp_path, steps=4, ranks=2)
        damage(path / f"rank-{rank}.records")
        run = load(path)
        assert set(run.repeats[0].rank) == {1 - rank}
        data = report(run)
        assert any(f"rank {rank} has no steps (rank-{rank}.records {said})" in note for note in data["notes"])
        assert data["timeline"]["steps"] == 8
        assert json.loads(json.dumps(perfetto.trace(run.repeats[0])))["traceEvents"]

    def test_a_manifest_that_lacks_a_rank_is_said_but_for_those_of_other_nodes(self, tmp_path):
        one = load(simulated.write(tmp_path / "one", steps=4, facts={"tp": 4}))
        assert any("names 1 of 4 ranks" in note for note in report(one)["notes"])
        node = load(simulated.write(tmp_path / "node", steps=4, ranks=2, facts={"tp": 4, "nodes": 2}))
        assert not any("ranks, so all of this" in note for note in report(node)["notes"])

    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            (lambda path: (path / "manifest.json").unlink(), "is not a recording"),
            (lambda path: (path / "manifest.json").write_text("{"), "is damaged"),
            (lambda path: (path / "manifest.json").write_text("[]"), "is damaged"),
            (lambda path: manifest(path, format="lightllm-otel recording", version=1), "is damaged"),
            (lambda path: manifest(path, format="lightllm-otel recording", version=99), "use the lightllm-otel that"),
            (lambda path: (path / "rank-0.records").write_bytes(b""), "has no steps"),
            (lambda path: (path / "rank-0.records").unlink(), "has no steps"),
            (lambda path: (path / "rank-0.records").write_bytes(b"\0" * 4096), "has no steps"),
        ],
    )  # fmt: skip
    def test_a_bad_recording_is_one_sentence(self, tmp_path, damage, said):
        path = simulated.write(tmp_path, steps=4)
        damage(path)
        with pytest.raises(BadRecording, match=said) as refusal:
            load(path)
        assert "\n" not in str(refusal.value)

    def test_whatever_bytes_are_damaged_there_is_a_report_or_one_sentence(self, tmp_path):
        path = simulated.write(tmp_path, steps=8, ranks=2)
        files = [path / "rank-0.records", path / "manifest.json"]
        whole = [file.read_bytes() for file in files]
        chance, refusals = random.Random(0), []
        for _ in range(150):
            for file, content in zip(files, whole):
                damaged = bytearray(content)
                for _ in range(chance.choice((0, 1, 3, 20))):
                    damaged[chance.randrange(len(damaged))] = chance.randrange(256)
                file.write_bytes(bytes(damaged[: chance.choice((len(damaged), chance.randrange(len(damaged))))]))
            try:
                run = load(path)
            except BadRecording as refusal:
                refusals.append(str(refusal))
            else:
                render(report(run), "damaged")
        assert 0 < len(refusals) < 150
        assert [refusal for refusal in refusals if "\n" in refusal] == []

    def test_a_manifest_that_lacks_what_it_must_say_is_one_sentence(self, tmp_path):
        path = simulated.write(tmp_path, steps=4, facts={"tp": "many"})
        with pytest.raises(BadRecording, match="does not say of rank 0 what it must"):
            load(path)

    def test_an_operator_of_a_newer_version_is_no_traceback(self, tmp_path):
        writer = RecordingWriter(tmp_path, "test", 1 << 20)
        writer.describe({0: records.FACTS})
        step, intervals = records.step(operators=[(Operator.FFN, 1e-3)])
        intervals["operator"] = 200
        writer.append(0, records.cells((step, intervals)))
        writer.close()
        with pytest.raises(
            BadRecording, match=r"has an operator with code 200.*; the file is damaged, or of another version"
        ):
            load(writer.path)

    def test_what_a_benchmark_ran_on_is_part_of_its_report(self, tmp_path):
        path = simulated.write(tmp_path / "run", repeats=2, steps=4)
        machine = {"driver": "570.1", "gpus": [{"sm_clock_most_mhz": 1980}]}
        (path / "bench.json").write_text(json.dumps({"machine": machine, "plan": {"batch_size": 20}, "repeats": []}))
        data = report(load(path))
        assert (data["facts"]["driver"], data["facts"]["sm_clock_mhz"]) == ("570.1", "1980")
        assert data["bench"]["plan"]["batch_size"] == 20
        (path / "bench.json").write_text("{")
        assert report(load(path))["bench"] is None

    @pytest.mark.parametrize(
        "machine",
        [
            "x",
            [],
            {"gpus": None},
            {"gpus": [1]},
            {"gpus": {"a": 1}},
            {"driver": 5, "gpus": [{"sm_clock_most_mhz": []}]},
        ],
    )
    def test_a_machine_that_no_benchmark_wrote_says_nothing(self, tmp_path, machine):
        path = simulated.write(tmp_path / "run", repeats=2, steps=4)
        (path / "bench.json").write_text(json.dumps({"machine": machine}))
        assert not {"driver", "sm_clock_mhz"} & set(report(load(path))["facts"])

    def test_recordings_of_different_models_are_no_repeats(self, tmp_path):
        simulated.write(tmp_path / "run" / "one", steps=4)
        simulated.write(tmp_path / "run" / "two", steps=4, facts={"model": "other-7b"})
        with pytest.raises(BadRecording, match="no repeats of one run, their model differs"):
            load(tmp_path / "run")


class TestPage:
    @pytest.fixture
    def page(self, tmp_path):
        run = load(simulated.write(tmp_path / "run", steps=20, ranks=2, facts={"model": "</script><b>bold</b>"}))
        return render(report(run), "a <title>")

    def test_it_needs_nothing_from_outside(self, page):
        assert (
            re.findall(
                r"""(?:src|href)=(?!"data:,")|@import|url\(|https?://(?!www\.w3\.org/)""", page.split('id="data"')[0]
            )
            == []
        )
        assert "default-src 'none'" in page

    def test_its_data_can_be_read_back_and_ends_no_script(self, page):
        (embedded,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
        assert json.loads(embedded)["facts"]["model"] == "</script><b>bold</b>"
        assert page.count("</script>") == 2
        assert "<title>a &lt;title&gt;</title>" in page

    def test_a_report_has_no_number_that_json_does_not_know(self, tmp_path):
        json.dumps(report(load(simulated.write(tmp_path, steps=5))), allow_nan=False)


def test_gpu_can_be_given(tmp_path):
    run = load(simulated.write(tmp_path, steps=5, facts={"gpu_name": "unknown"}))
    assert report(run, None, gpus.find("A40"))["machine"]["gpu"] == "A40"
