"""The live page's JSON, from groups made by hand."""

import json

import numpy as np
import pytest
import records

from lightllm_otel.exporter.live import Live
from lightllm_otel.records import layout
from lightllm_otel.records.batch import RecordBatch
from lightllm_otel.records.vocabulary import Level, Mode, Operator, Phase, Site, Stage
from lightllm_otel.reduce.group import Group

WALL = 1000.0


def group_of(ranks, **facts):
    group = Group()
    for rank in range(ranks):
        group.set_facts(rank, {**records.FACTS, "tp": ranks, "rank": rank, **facts})
    return group


def live_of(group):
    live = Live(group, wall=lambda: WALL)
    live.poll(0.0)
    return live


def decode(number=0, ffn=0.75, gap=0.25, **fields):
    return records.cells(records.step(
        seconds=1.0, operators=[(Operator.FFN, ffn), (Operator.GAP, gap)], number=number, wall_time=WALL - 2, **fields
    ))  # fmt: skip


def test_nothing_is_made_while_nobody_watches():
    live = live_of(group_of(1))
    live.data = lambda now: pytest.fail("made for nobody")
    live.poll(20.0)


def test_whoever_watches_gets_a_text_a_second_and_not_more():
    live = live_of(group_of(1))
    with live.event_stream.listening() as serial:
        for now in np.arange(20.0, 25.0, 0.2):
            live.poll(float(now))
        assert live.event_stream.after(serial, 0).serial - serial == 5


def test_a_group_without_steps_says_so_and_is_finite():
    data = live_of(Group()).data(30.0)
    assert (data["name"], data["phases"], data["slowest"]) == ("LightLLM", [], [])
    assert data["freshness"]["last_step"] is None
    json.dumps(data, allow_nan=False)


def test_shares_are_of_the_sampled_steps_and_sum_to_one():
    group = group_of(1)
    live = live_of(group)
    group.add(0, RecordBatch.of_cells(decode(0)))
    group.add(0, RecordBatch.of_cells(decode(1, ffn=0.25, gap=0.75)))
    (phase,) = live.data(10.0)["phases"]
    assert (phase["phase"], phase["mode"], phase["of"]) == ("decode", "eager", "now")
    assert {row["operator"]: row["share"] for row in phase["operators"]} == {"ffn": 0.5, "gap": 0.5}
    assert {row["operator"]: row["seconds_per_step"] for row in phase["operators"]} == {"ffn": 0.5, "gap": 0.5}
    assert phase["step"]["steps"] == 2
    assert phase["example"]["number"] == 1


def test_a_minute_without_a_sampled_step_shows_the_hour_and_says_so():
    group = group_of(1)
    live = live_of(group)
    group.add(0, RecordBatch.of_cells(decode(0)))
    for now in range(10, 200, 10):
        live.poll(float(now))
    (phase,) = live.data(200.0)["phases"]
    assert phase["of"] == "hour"
    assert phase["step"]["steps"] == 0
    assert phase["step"]["mean"] is None
    assert phase["operators"][0]["share"] == 0.75


def test_graphs_without_twins_have_their_whole_time_and_the_reason():
    group = group_of(1, graphs={"state": "off", "reason": "outputs differed"})
    live = live_of(group)
    group.add(0, records.batch(records.step(mode=Mode.GRAPH, seconds=0.5)))
    data = live.data(10.0)
    assert data["phases"][0]["operators"] == []
    assert data["phases"][0]["step"]["mean"] == 0.5
    assert (data["coverage"]["instrumented_graphs"], data["coverage"]["graphs"]) == (0, "outputs differed")


def test_eager_and_graph_are_never_mixed():
    group = group_of(1)
    live = live_of(group)
    group.add(0, RecordBatch.of_cells(decode(0)))
    group.add(0, RecordBatch.of_cells(decode(1, mode=Mode.GRAPH)))
    assert [(each["phase"], each["mode"]) for each in live.data(10.0)["phases"]] == [
        ("decode", "eager"),
        ("decode", "graph"),
    ]


def test_what_is_left_of_the_time_is_lack_of_requests_even_if_no_step_has_said_so_yet():
    group = group_of(1)
    live = live_of(group)
    group.add(0, RecordBatch.of_cells(decode(0)))
    load = live.data(5.0)["load"]["now"]
    assert load == {"prefill": 0.0, "decode": 1.0, "mixed": 0.0, "host": 0.0, "no_requests": 4.0}


def test_transfer_and_wait_are_told_apart_for_each_rank():
    group = group_of(2)
    live = live_of(group)
    for rank, seconds in enumerate([[[3e-4, 1e-4]], [[1e-4, 1e-4]]]):
        group.add(
            rank, records.batch(records.with_collectives(1, records.collectives(np.array(seconds)), wall_time=WALL))
        )
    group.settle()
    live.poll(10.0)
    data = live.data(10.0)["collectives"]
    attention = next(row for row in data["rows"] if row["site"] == "attention")
    assert (data["tp"], data["ranks"], attention["operator"]) == (2, [0, 1], "all_reduce")
    assert attention["transfer"] == pytest.approx(1e-4, rel=1e-3)
    assert attention["waits"] == [pytest.approx(2e-4, rel=1e-3), 0.0]
    assert attention["last"] == [0, 1]


def test_where_hosts_were_waited_for_the_transfer_is_unknown_and_waits_are_those_of_all_calls():
    group = group_of(2)
    live = live_of(group)
    for rank, seconds in enumerate([3e-4, 1e-4]):
        for number in (1, 2):
            intervals = records.collectives(np.full((1, 2), seconds))
            starved = intervals["site"] == (Site.ATTENTION.code if number == 1 else -1)
            intervals["flags"] = layout.STARVED * (starved | (intervals["site"] == Site.FFN.code))
            group.add(rank, records.batch(records.with_collectives(number, intervals, wall_time=WALL)))
    group.settle()
    live.poll(10.0)
    rows = {row["site"]: row for row in live.data(10.0)["collectives"]["rows"]}
    assert rows["ffn"]["transfer"] is None
    assert rows["attention"]["transfer"] == pytest.approx(1e-4, rel=1e-3)
    assert [rows[site]["calls"] for site in ("attention", "ffn")] == [2, 2]
    assert [rows[site]["known"] for site in ("attention", "ffn")] == [2, 2]
    # Of a starved call the time that launching may have taken, 0.11 ms, is not taken for waiting.
    assert rows["attention"]["waits"] == [pytest.approx((2e-4 + 0.9e-4) / 2, rel=1e-3), 0.0]
    assert rows["ffn"]["waits"] == [pytest.approx(0.9e-4, rel=1e-3), 0.0]


def test_calls_that_leave_open_who_came_last_are_no_part_of_who_did():
    group = group_of(2)
    live = live_of(group)
    for rank, seconds in enumerate([3e-4, 2.5e-4]):
        intervals = records.collectives(np.full((2, 2), seconds))
        intervals["flags"] = layout.STARVED * (intervals["layer"] == 0)
        group.add(rank, records.batch(records.with_collectives(1, intervals, wall_time=WALL)))
    group.settle()
    live.poll(10.0)
    row = next(row for row in live.data(10.0)["collectives"]["rows"] if row["site"] == "ffn")
    assert (row["calls"], row["known"], row["last"]) == (2, 1, [0, 1])


def test_a_step_that_does_not_end_is_seen():
    group = group_of(1)
    header = np.zeros(1, layout.HEADER)[0]
    header["in_flight"], header["in_flight_since"], header["in_flight_number"] = 1, WALL - 42, 7
    header["level"], header["errors"][Stage.RING.code] = Level.OPERATORS.code, 3
    group.ranks[0].header = header
    data = live_of(group).data(10.0)
    assert data["freshness"]["ranks"] == [{"rank": 0, "step": 7, "in_flight": 42.0}]
    assert data["level"] == "operators"
    assert data["cost"]["errors"] == {"ring": 3}


def test_a_step_with_a_time_that_is_no_number_is_left_out_and_does_not_end_the_page():
    group = group_of(1)
    live = live_of(group)
    group.add(0, RecordBatch.of_cells(decode(0, ffn=float("nan"))))
    assert live.data(10.0)["cost"]["errors"] == {"aggregate": 1}
    group.add(0, RecordBatch.of_cells(decode(1)))
    data = live.data(10.0)
    json.dumps(data, allow_nan=False)
    assert {row["seconds_per_call"] for row in data["phases"][0]["operators"] if row["operator"] == "ffn"} == {0.75}


def test_slow_steps_have_their_age_and_operators():
    group = group_of(1)
    live = live_of(group)
    group.add(0, RecordBatch.of_cells(decode(5)))
    (slowest,) = live.data(10.0)["slowest"]
    assert slowest["phase"] == Phase.DECODE.value
    assert slowest["steps"][0]["operators"] == {"gap": 0.25, "ffn": 0.75}
    assert slowest["steps"][0]["age"] == 2.0
