"""One run against another: what is equal is not called different, what differs is found, what cannot be judged is said."""

import dataclasses
import json

import numpy as np
import pytest
import records
import simulated

from lightllm_otel.records.batch import RecordBatch
from lightllm_otel.records.recording import BadRecording
from lightllm_otel.records.vocabulary import Mode, Operator, Phase
from lightllm_otel.tools.analysis import baseline, gates
from lightllm_otel.tools.analysis.baseline import Side
from lightllm_otel.tools.analysis.compare import ERROR, STEP, CannotCompare, compare
from lightllm_otel.tools.analysis.runs import load
from lightllm_otel.tools.analysis.strata import match, tabulate

PER_SIDE = 5


def tables(generator, count=PER_SIDE, **options):
    return [tabulate(simulated.repeat(generator, **options)) for _ in range(count)]


def side(name, tables, facts=None):
    return Side(name, {**records.FACTS, **(facts or {})}, tuple(tables))


def row(comparison, operator):
    (found,) = (row for row in comparison.rows if row.operator == operator.value)
    return found


class TestError:
    def test_five_repeats_against_five_of_the_same_run_differ_no_more_often_than_stated(self):
        """200 random splits, of ever new runs: a split in which any operator at all is significant counts."""
        generator = np.random.default_rng(7)
        wrong = 0
        for _ in range(10):
            pool = tables(generator, 2 * PER_SIDE, steps=24, layers=2, run_noise=0.02)
            for _ in range(20):
                order = generator.permutation(2 * PER_SIDE)
                halves = [[pool[place] for place in part] for part in (order[:PER_SIDE], order[PER_SIDE:])]
                wrong += any(each.p < ERROR for each in compare(side("a", halves[0]), side("b", halves[1])).rows)
        # 200 · 5 % and two standard deviations of a count of 200 such events
        assert wrong <= 200 * ERROR + 2 * (200 * ERROR * (1 - ERROR)) ** 0.5

    def test_a_step_as_the_unit_would_call_nearly_everything_different(self):
        """Why runs are the unit: the same two runs, and Welch's t over their steps."""
        from lightllm_otel.tools.analysis.student import welch

        generator = np.random.default_rng(3)
        wrong = 0
        for _ in range(20):
            one, two = (simulated.repeat(generator, steps=400, run_noise=0.01).steps["seconds"] for _ in range(2))
            wrong += welch(one, two).p < ERROR
        assert wrong > 10

    def test_the_intervals_hold_the_truth_as_often_as_stated(self):
        generator = np.random.default_rng(5)
        held = 0
        for _ in range(100):
            first = side("a", tables(generator, steps=24, layers=2))
            second = side("b", tables(generator, steps=24, layers=2, slower={Operator.FFN: 1.05}))
            low, high = row(compare(first, second), Operator.FFN).interval
            held += low <= 0.05 <= high
        assert held >= 90


class TestFinding:
    @pytest.mark.parametrize("percent", [3, 10])
    def test_one_operator_that_got_slower_is_found_and_no_other(self, percent):
        generator = np.random.default_rng(percent)
        first = side("a", tables(generator, run_noise=0.004))
        second = side("b", tables(generator, run_noise=0.004, slower={Operator.ALL_REDUCE: 1 + percent / 100}))
        comparison = compare(first, second)
        found = row(comparison, Operator.ALL_REDUCE)
        assert found.verdict == "slower"
        assert found.change == pytest.approx(percent / 100, abs=0.015)
        assert {each.operator for each in comparison.rows if each.verdict == "slower"} <= {"all_reduce", STEP}

    def test_what_is_smaller_than_the_least_effect_is_no_difference_however_sure(self):
        generator = np.random.default_rng(1)
        first = side("a", tables(generator, run_noise=0.0001))
        second = side("b", tables(generator, run_noise=0.0001, slower={Operator.FFN: 1.005}))
        found = row(compare(first, second), Operator.FFN)
        assert found.p < ERROR
        assert found.verdict == "no difference found"

    def test_what_is_said_to_be_detectable_is_found_four_times_in_five(self):
        generator = np.random.default_rng(15)
        options = {"steps": 24, "layers": 2, "run_noise": 0.01}
        known = [row(compare(side("a", tables(generator, **options)), side("b", tables(generator, **options))), Operator.FFN)
                 for _ in range(20)]  # fmt: skip
        detectable = float(np.median([each.detectable for each in known]))
        found = 0
        for _ in range(60):
            second = side("b", tables(generator, **options, slower={Operator.FFN: 1 + detectable}))
            found += row(compare(side("a", tables(generator, **options)), second), Operator.FFN).verdict == "slower"
        assert 0.65 < found / 60 < 0.95

    def test_rows_stand_in_the_order_of_what_they_cost_the_step(self):
        generator = np.random.default_rng(2)
        first = side("a", tables(generator, run_noise=0.001))
        slower = {Operator.ATTN_NORM: 1.5, Operator.FFN: 1.1}  # 50 % of little, 10 % of much
        rows = compare(first, side("b", tables(generator, run_noise=0.001, slower=slower))).rows
        assert [each.operator for each in rows[:3]] == [STEP, "ffn", "attn_norm"]

    def test_another_batch_or_context_on_one_side_does_not_look_like_a_change(self):
        """The second run has the first one's steps and longer ones besides: only those of a size are compared."""
        generator = np.random.default_rng(4)
        long = {Operator.ATTENTION: 3.0}
        first = side("a", tables(generator, run_noise=0.002))
        mixed = []
        for _ in range(PER_SIDE):
            short = simulated.repeat(generator, run_noise=0.002)
            more = simulated.repeat(generator, run_noise=0.002, context=8192, slower=long)
            both = RecordBatch.joined([short.records, more.records])
            mixed.append(tabulate(dataclasses.replace(short, batches={0: both})))
        found = row(compare(first, side("b", mixed)), Operator.ATTENTION)
        assert found.verdict == "no difference found"
        assert found.change == pytest.approx(0, abs=0.02)

    def test_theory_stands_beside_the_measured_change(self):
        generator = np.random.default_rng(6)
        both = tables(generator)
        first, second = side("h200", both), side("a100", both, {"gpu_name": "NVIDIA A100-SXM4-80GB"})
        comparison = compare(first, second)
        assert row(comparison, Operator.ATTENTION).expected == pytest.approx(4.8 / 2.039)
        assert "GPU: NVIDIA H200 against NVIDIA A100-SXM4-80GB" in comparison.notes

    def test_different_implementations_of_a_slot_are_named(self):
        both = tables(np.random.default_rng(8))
        first = side("a", both, {"implementations": {"attention": "token_attention_v1", "ffn": "silu"}})
        second = side("b", both, {"implementations": {"attention": "token_attention_v2", "ffn": "silu"}})
        named = [note for note in compare(first, second).notes if "another implementation" in note]
        assert named == ["attention is another implementation: token_attention_v1 against token_attention_v2"]


class TestWhatCannotBeJudged:
    def test_with_two_repeats_there_is_no_interval_and_that_is_said(self):
        generator = np.random.default_rng(0)
        comparison = compare(side("a", tables(generator, 2)), side("b", tables(generator)))
        assert {(each.interval, each.p, each.verdict) for each in comparison.rows} == {(None, None, "not judged")}
        assert any("no interval and no verdict" in note for note in comparison.notes)

    @pytest.mark.parametrize(
        ("facts", "options", "said"),
        [
            ({"model": "other-7b"}, {}, "different models"),
            ({"config": {"hidden_size": 8}}, {}, "different models"),
            ({}, {"mode": Mode.EAGER}, "eager and graph are not mixed"),
            ({}, {"batch": 3}, "run both with the same batch and lengths"),
            ({}, {"context": 64}, "run both with the same batch and lengths"),
        ],
    )
    def test_what_has_no_counterpart_is_refused_with_its_reason(self, facts, options, said):
        generator = np.random.default_rng(0)
        with pytest.raises(CannotCompare, match=said):
            compare(side("a", tables(generator, 3)), side("b", tables(generator, 3, **options), facts))

    def test_a_kind_that_one_side_lacks_is_named_and_the_rest_compared(self):
        generator = np.random.default_rng(0)
        both = tables(generator, 3)
        prefill = tabulate(simulated.repeat(generator, phase=Phase.PREFILL, mode=Mode.EAGER))
        lengthened = [dataclasses.replace(both[0], **{
            field.name: np.concatenate([getattr(both[0], field.name), getattr(prefill, field.name)])
            for field in dataclasses.fields(prefill)
        })]  # fmt: skip
        comparison = compare(side("a", both), side("b", lengthened * 3))
        assert {each.phase for each in comparison.rows} == {"decode"}
        assert any(note.startswith("prefill · eager: a has no sampled steps") for note in comparison.notes)


class TestWhatOneSideLacks:
    """Tensor parallelism against none, or a fused kernel against two: the operator that is gone is what matters."""

    @pytest.fixture
    def with_and_without(self):
        generator = np.random.default_rng(13)
        return tables(generator, 3), tables(generator, 3, slower={Operator.ALL_REDUCE: 0.0})

    @pytest.mark.parametrize("turned", [False, True])
    def test_an_operator_that_only_one_side_has_is_named_with_its_share(self, with_and_without, turned):
        sides = [side(name, own) for name, own in zip("ab", with_and_without)]
        comparison = compare(*(reversed(sides) if turned else sides))
        assert all(each.operator != "all_reduce" for each in comparison.rows)
        (note,) = (each for each in comparison.notes if "all_reduce" in each)
        share = 100 * 4 * 20e-6 / (1.01 * (4 * sum(simulated.LAYER.values()) + 1e-4))
        assert note.startswith("decode · graph: all_reduce occurs only in a, ")
        assert float(note.split()[-5]) == pytest.approx(share, rel=0.05)

    def test_an_operator_that_some_repeats_lack_is_named_with_their_number(self, with_and_without):
        whole, without = with_and_without
        comparison = compare(side("a", whole), side("b", [*whole[:2], *without[:1]]))
        (note,) = (each for each in comparison.notes if "all_reduce" in each)
        assert "occurs in 3 of 3 repeats of a" in note
        assert "in 2 of 3 repeats of b" in note

    def test_a_condition_on_it_never_passes(self, with_and_without):
        whole, without = with_and_without
        found = compare(side("a", whole), side("b", without))
        with pytest.raises(gates.BadCondition, match=r"cannot be judged: decode · graph: all_reduce occurs only in a"):
            gates.met(gates.parse("all_reduce:decode:+5%"), found.rows, found.lacking)
        assert not gates.met(gates.parse("ffn:decode:+5%"), found.rows, found.lacking)

    def test_nor_where_another_mode_has_it(self, with_and_without):
        """Eager steps of both sides have it, graphs of one side: what the eager ones say is not enough."""
        whole, without = with_and_without
        eager = tables(np.random.default_rng(14), 3, mode=Mode.EAGER)
        found = compare(*(side(name, list(map(joined, own, eager))) for name, own in (("a", whole), ("b", without))))
        assert {each.mode for each in found.rows if each.operator == "all_reduce"} == {"eager"}
        with pytest.raises(gates.BadCondition, match="cannot be judged"):
            gates.met(gates.parse("all_reduce:decode:+900%"), found.rows, found.lacking)


def joined(one, two):
    """Tables of steps of different kinds as one."""
    names = [field.name for field in dataclasses.fields(one)]
    return dataclasses.replace(
        one, **{name: np.concatenate([getattr(one, name), getattr(two, name)]) for name in names}
    )


def test_strata_are_widened_where_the_fine_ones_leave_too_much_out():
    generator = np.random.default_rng(0)
    near = [tabulate(simulated.repeat(generator, steps=8, context=context)) for context in (1030, 1300)]
    matched = match(near, Phase.DECODE.code, Mode.GRAPH.code)
    assert matched.width == 0.5  # 1030 and 1300 lie within half an octave, not within a quarter
    assert matched.coverage == 1.0


class TestBaseline:
    def test_a_saved_baseline_compares_like_its_run(self, tmp_path):
        first, second = (
            load(simulated.write(tmp_path / name, seed, repeats=3, steps=20)) for name, seed in (("a", 1), ("b", 2))
        )
        baseline.save(tmp_path / "a.json", baseline.side(first))
        kept = compare(baseline.read(tmp_path / "a.json"), baseline.side(second))
        assert kept.rows == compare(baseline.side(first), baseline.side(second)).rows

    def test_what_is_to_be_said_of_a_run_is_kept_with_it(self, tmp_path):
        path = simulated.write(tmp_path / "a", ranks=2, steps=20)
        (path / "rank-1.records").unlink()
        baseline.save(tmp_path / "a.json", baseline.side(load(path)))
        assert any("rank 1 has no steps" in note for note in baseline.read(tmp_path / "a.json").notes)

    @pytest.mark.parametrize(
        "damage",
        [
            lambda content: content.update(facts=[]),
            lambda content: content["facts"].update(tp="many"),
            lambda content: content["facts"].update(tp=0),
            lambda content: content.update(name=3),
            lambda content: content.update(notes=[1]),
            lambda content: content.update(repeats=[]),
            lambda content: content.update(repeats=["x"]),
            lambda content: content["repeats"][0].update(keys=[]),
            lambda content: content["repeats"][0]["keys"][0].__setitem__(2, float("inf")),
            lambda content: content["repeats"][0]["keys"][0].__setitem__(2, -1),
            *(
                lambda content, name=name, value=value: content["repeats"][0][name].__setitem__(0, value)
                for name, value in (("steps", 0), ("steps", -1), ("seconds", 0), ("sampled", float("nan")), ("batch", "x"))
            ),
            lambda content: content["repeats"][0]["operators"][0].__setitem__(0, float("inf")),
        ],
    )  # fmt: skip
    def test_a_damaged_one_is_refused_in_one_sentence(self, tmp_path, damage):
        path = tmp_path / "a.json"
        baseline.save(path, baseline.side(load(simulated.write(tmp_path / "a", steps=20))))
        content = json.loads(path.read_text())
        damage(content)
        path.write_text(json.dumps(content).replace("Infinity", "1e400"))
        with pytest.raises(BadRecording, match="is damaged") as refusal:
            baseline.read(path)
        assert "\n" not in str(refusal.value)

    @pytest.mark.parametrize(
        "facts", [{"implementations": ["x"]}, {"config": [1]}, {"config": {"hidden_size": "wide"}}]
    )
    def test_facts_that_say_nothing_are_passed_over(self, tmp_path, facts):
        path = simulated.write(tmp_path / "a", steps=20, facts=facts)
        baseline.save(tmp_path / "a.json", baseline.side(load(path)))
        kept = baseline.read(tmp_path / "a.json")
        assert {each.expected for each in compare(kept, kept).rows} <= {1.0, None}

    @pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": "lightllm-otel baseline", "version": 1}'])
    def test_what_is_none_is_refused_in_one_sentence(self, tmp_path, content):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(BadRecording) as refusal:
            baseline.read(tmp_path / "a.json")
        assert "\n" not in str(refusal.value)


class TestGates:
    @pytest.mark.parametrize("text", ["all_reduce:decode:+5%", "step:prefill:+2.5%", "ffn:decode:-3"])
    def test_a_condition_is_read_and_written_alike(self, text):
        assert gates.parse(str(gates.parse(text))) == gates.parse(text)

    @pytest.mark.parametrize("text", ["", "all_reduce", "all_reduce:decode:5%", "nothing:decode:+5%", "ffn:never:+5%"])
    def test_what_is_not_understood_is_said(self, text):
        with pytest.raises(gates.BadCondition, match="write OPERATOR:PHASE"):
            gates.parse(text)

    def test_the_lower_bound_decides(self):
        generator = np.random.default_rng(9)
        first = side("a", tables(generator, run_noise=0.004))
        rows = compare(first, side("b", tables(generator, run_noise=0.004, slower={Operator.FFN: 1.10}))).rows
        (low, _), change = next((each.interval, each.change) for each in rows if each.operator == "ffn")
        just = (low + change) / 2
        assert gates.met(gates.Condition("ffn", "decode", low - 1e-6), rows)
        assert not gates.met(gates.Condition("ffn", "decode", just), rows)

    def test_a_gain_can_be_forbidden_as_well(self):
        generator = np.random.default_rng(10)
        first = side("a", tables(generator, run_noise=0.004, slower={Operator.FFN: 1.2}))
        rows = compare(first, side("b", tables(generator, run_noise=0.004))).rows
        assert gates.met(gates.parse("ffn:decode:-5%"), rows)
        assert not gates.met(gates.parse("ffn:decode:+5%"), rows)

    def test_what_cannot_be_judged_never_passes_in_silence(self):
        generator = np.random.default_rng(11)
        rows = compare(side("a", tables(generator, 1)), side("b", tables(generator, 1))).rows
        with pytest.raises(gates.BadCondition, match="so few repeats"):
            gates.met(gates.parse("ffn:decode:+5%"), rows)
        with pytest.raises(gates.BadCondition, match="no such operator"):
            gates.met(gates.parse("moe_gate:decode:+5%"), rows)
