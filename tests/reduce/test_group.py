"""Counters and histograms of a group, in exact values."""

import numpy as np
import pytest
import records

from lightllm_otel.records import layout
from lightllm_otel.records.batch import RecordBatch
from lightllm_otel.records.vocabulary import DropReason, ExporterStage, IdleReason, Mode, Operator, Phase, Stage
from lightllm_otel.reduce.group import Group
from lightllm_otel.roofline import shape, work

DECODE, PREFILL, EAGER, GRAPH = Phase.DECODE.code, Phase.PREFILL.code, Mode.EAGER.code, Mode.GRAPH.code
FFN, GAP = Operator.FFN.code, Operator.GAP.code


def group_of(*steps, rank=0):
    group = Group()
    group.add(rank, records.batch(*steps))
    return group


def test_every_call_is_an_observation_and_seconds_are_kept_per_rank():
    steps = [records.step(operators=[(Operator.FFN, 0.25), (Operator.FFN, 0.5), (Operator.GAP, 0.25)])] * 2
    group = group_of(*steps)
    group.add(1, records.batch(steps[0]))
    assert group.operators.histograms[FFN, DECODE, EAGER].count == 6
    assert group.operators.histograms[FFN, DECODE, EAGER].total == 3 * 0.75
    assert (group.operators.seconds[FFN, DECODE, 0], group.operators.seconds[FFN, DECODE, 1]) == (1.5, 0.75)


def test_eager_and_graph_are_never_mixed():
    group = group_of(records.step(operators=[(Operator.FFN, 1.0)]), records.step(mode=Mode.GRAPH, seconds=2.0))
    assert group.steps.histograms[DECODE, EAGER].total == 1.0
    assert group.steps.histograms[DECODE, GRAPH].total == 2.0


def test_starved_time_is_counted_apart_as_well():
    group = group_of(records.step(operators=[(Operator.FFN, 0.5, layout.STARVED), (Operator.FFN, 0.25)]))
    assert dict(group.operators.starved_seconds) == {(FFN, DECODE): 0.5}
    assert group.operators.seconds[FFN, DECODE, 0] == 0.75


def test_tokens_and_requests_are_counted_by_one_rank():
    group = Group()
    for rank in (0, 1):
        group.add(rank, records.batch(records.step(tokens=7, requests=3)))
    assert (dict(group.computed.tokens), dict(group.computed.requests)) == ({DECODE: 7}, {DECODE: 3})
    assert group.steps.histograms[DECODE, EAGER].count == 2


def test_idle_time_is_counted_by_reason():
    group = group_of(
        records.step(idle_reason=IdleReason.HOST, idle_seconds=0.25),
        records.step(idle_reason=IdleReason.NO_REQUESTS, idle_seconds=4.0),
        records.step(idle_reason=IdleReason.HOST, idle_seconds=0.5),
    )
    assert group.steps.idle_seconds == {(IdleReason.HOST.code, 0): 0.75, (IdleReason.NO_REQUESTS.code, 0): 4.0}


def test_estimates_sum_to_the_seconds_of_all_steps():
    sampled = records.step(seconds=4.0, operators=[(Operator.FFN, 3.0), (Operator.GAP, 1.0)])
    group = group_of(sampled, *[records.step(seconds=2.0)] * 10)
    estimated = group.estimate.seconds[DECODE]
    assert estimated.sum() == 24.0
    assert (estimated[FFN], estimated[GAP]) == (18.0, 6.0)


def test_steps_before_the_first_sample_are_unattributed_and_stay_so():
    group = group_of(*[records.step(seconds=2.0)] * 3)
    group.add(0, records.batch(records.step(seconds=2.0, operators=[(Operator.FFN, 2.0)])))
    assert (group.estimate.unattributed[DECODE], group.estimate.seconds[DECODE].sum()) == (6.0, 2.0)


def test_a_batch_size_that_was_never_sampled_takes_the_nearest_one_within_a_factor_of_four():
    group = group_of(
        records.step(padded=1, seconds=1.0, operators=[(Operator.FFN, 1.0)]),
        records.step(padded=64, seconds=1.0, operators=[(Operator.ATTENTION, 1.0)]),
        records.step(padded=32, seconds=8.0),
    )
    assert group.estimate.seconds[DECODE][Operator.ATTENTION.code] == 9.0


def header(**fields):
    made = np.zeros(1, layout.HEADER)
    for name, value in fields.items():
        made[name] = value
    return made[0]


def test_counters_do_not_go_down_when_a_rank_starts_again():
    group = Group()
    rank = group.ranks[0]
    rank.header = header(sampled_steps=5, dropped=[0, 2, 0, 0, 0, 0, 0, 0], errors=[1, 0, 0, 0, 0, 0, 0, 0])
    rank.restarted()
    assert group.counter("sampled_steps") == 5
    rank.header = header(sampled_steps=1, dropped=[0, 1, 0, 0, 0, 0, 0, 0])
    assert group.counter("sampled_steps") == 6
    assert group.dropped()[DropReason.PENDING_FULL] == 3
    assert group.errors()[Stage.ACTIVATE] == 1


def test_data_age_is_that_of_the_oldest_unread_step():
    group = Group()
    group.ranks[0].header, group.ranks[1].header = header(oldest_unread=90.0), header(oldest_unread=95.0)
    assert group.data_age(100.0) == 10.0
    group.ranks[0].header = group.ranks[1].header = header()
    assert group.data_age(100.0) == 0.0


def test_an_operator_that_one_rank_lacks_is_missing():
    group = Group()
    group.ranks[0].facts = {"slots": {"ffn": "installed", "kv_write": "installed"}}
    group.ranks[1].facts = {"slots": {"ffn": "installed", "kv_write": "missing"}}
    assert group.slots() == {"ffn": True, "kv_write": False}


def graph_steps(*kinds):
    """``t`` is a sampled step (with the instrumented graph) of 11 s, ``p`` a plain one of 10 s, ``b`` one of another batch."""
    made = {
        "t": lambda: records.step(Phase.DECODE, Mode.GRAPH, 11.0, [(Operator.FFN, 1.0)]),
        "p": lambda: records.step(Phase.DECODE, Mode.GRAPH, 10.0),
        "b": lambda: records.step(Phase.DECODE, Mode.GRAPH, 99.0, batch=7),
        "e": lambda: records.step(Phase.PREFILL, Mode.EAGER, 50.0),
    }
    return records.cells(*(made[kind]() for kind in kinds))


def test_distortion_is_a_twin_against_its_plain_neighbours():
    group = Group()
    group.add(0, RecordBatch.of_cells(graph_steps(*"ptppptp")))
    assert group.distortion.ratio == pytest.approx(1.1)


def test_distortion_compares_only_what_is_alike():
    group = Group()
    group.add(0, RecordBatch.of_cells(graph_steps(*"btpptbettpet")))
    assert group.distortion.ratio is None


def test_twins_are_those_that_every_rank_has():
    group = Group()
    for rank, sizes in ((0, [1, 2, 4]), (1, [1, 4])):
        group.ranks[rank].facts = {**records.FACTS, "graphs": {"state": "armed", "sizes": sizes}}
    assert group.instrumented_graphs() == 2


def test_what_steps_had_to_do_is_added_up_over_all_of_them_and_all_ranks():
    group = Group()
    group.ranks[0], group.ranks[1] = group.ranks[0], group.ranks[1]
    group.analytic.set_facts({**records.FACTS, "tp": 2})
    steps = [
        records.step(Phase.DECODE, Mode.GRAPH, batch=20, tokens=20, context=20 * context) for context in (500, 700)
    ]
    for rank in range(2):
        group.add(rank, records.batch(*steps, records.step(Phase.PREFILL, batch=4, tokens=4000, context=4000)))
    own = shape.from_config(records.FACTS["config"])
    decode = work.step(own, work.Batch(Phase.DECODE, 20, 1, 600), 2)
    prefill = work.step(own, work.Batch(Phase.PREFILL, 4, 1000, 1000), 2)
    for operator in (Operator.ATTENTION, Operator.FFN, Operator.LM_HEAD):
        for phase, each, times in ((Phase.DECODE, decode, 2), (Phase.PREFILL, prefill, 1)):
            key = (operator.code, phase.code)
            assert group.analytic.flops[key] == pytest.approx(each[operator].flops * times * 2)
            assert group.analytic.memory_bytes[key] == pytest.approx(each[operator].memory_bytes * times * 2)


def test_a_model_or_gpu_that_is_not_known_leaves_its_part_out():
    group = Group()
    group.analytic.set_facts({**records.FACTS, "gpu_name": "CPU", "config": {"model_type": "riddle"}})
    group.add(0, records.batch(records.step(batch=1, tokens=1, context=9)))
    assert (dict(group.analytic.flops), group.analytic.gpu) == ({}, None)


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        ({"phase": 77}, 1), ({"mode": 9}, 1), ({"idle_reason": 200}, 1), ({"seconds": np.nan}, 1), ({"seconds": -1.0}, 1),
        ({"idle_seconds": np.inf}, 1), ({"wall_time": np.nan}, 1), ({}, 2),
    ],
)  # fmt: skip
def test_a_step_that_cannot_be_is_left_out_and_counted(damage, kept):
    step, intervals = records.step()
    damaged = np.frombuffer(step, layout.STEP).copy()
    for name, value in damage.items():
        damaged[name] = value
    group = group_of((damaged.tobytes(), intervals), records.step(), rank=3)
    assert sum(histogram.count for histogram in group.steps.histograms.values()) == kept
    assert group.errors()[ExporterStage.AGGREGATE] == (kept == 1)
    assert np.isfinite(list(group.steps.idle_seconds.values())).all()


@pytest.mark.parametrize(
    ("field", "value"), [("operator", 200), ("site", 99), ("implementation", 50), ("seconds", np.nan)]
)
def test_a_step_with_an_operator_that_cannot_be_is_left_out_and_counted(field, value):
    step, intervals = records.step(operators=[(Operator.FFN, 1.0)] * 2)
    intervals[field][1] = value
    group = group_of((step, intervals), records.step(operators=[(Operator.FFN, 1.0)]))
    assert group.operators.histograms[FFN, DECODE, EAGER].count == 1
    assert group.errors()[ExporterStage.AGGREGATE] == 1


@pytest.mark.parametrize("part", ["distortion", "matching", "analytic", "expectation", "recent"])
def test_figures_that_fail_keep_no_others_from_being_counted(part, lenient, monkeypatch, caplog):
    group = Group()
    for name in ("add", "add_sampled"):
        if hasattr(getattr(group, part), name):
            monkeypatch.setattr(getattr(group, part), name, lambda *_: 1 / 0)
    for _ in range(3):
        group.add(0, records.batch(records.step(seconds=2.0, operators=[(Operator.FFN, 2.0)])))
        group.settle()
    assert (group.steps.histograms[DECODE, EAGER].total, group.estimate.seconds[DECODE][FFN]) == (6.0, 6.0)
    assert group.operators.seconds[FFN, DECODE, 0] == 6.0
    assert group.errors()[ExporterStage.AGGREGATE] == 3
    assert [part in record.message for record in caplog.records] == [True]
