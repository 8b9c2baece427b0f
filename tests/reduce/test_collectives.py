"""The same collective on several ranks: what belongs together, and how its time is told apart. In exact values."""

import itertools

import numpy as np
import pytest
import records

from lightllm_otel.records import layout
from lightllm_otel.records.batch import RecordBatch
from lightllm_otel.records.recording import read_recording
from lightllm_otel.records.vocabulary import Implementation, Mode, Operator, Phase, Scope, Site
from lightllm_otel.reduce.collectives import (
    Collectives,
    Kinds,
    has_transfer,
    last_arrival,
    last_rank_known,
    noise_seconds,
    transfer_and_wait,
)
from lightllm_otel.reduce.group import Group
from lightllm_otel.reduce.matching import MOST_WAITING, Matched
from lightllm_otel.tools.demo import find

ATTENTION, FFN, EMBEDDING = Site.ATTENTION.code, Site.FFN.code, Site.EMBEDDING.code
DECODE, PREFILL = Phase.DECODE.code, Phase.PREFILL.code
LAYERS = 2


def group_of(ranks=2, **facts):
    group = Group()
    for rank in range(ranks):
        group.set_facts(rank, {**records.FACTS, "tp": ranks, "rank": rank, **facts})
    return group


def deliver(group, rank, *numbers, seconds=0.25, **fields):
    steps = [
        records.with_collectives(number, records.collectives(np.full((LAYERS, 2), seconds)), **fields)
        for number in numbers
    ]
    group.add(rank, records.batch(*steps))


def matched(group):
    """How many calls were compared."""
    return sum(histogram.count for histogram in group.collectives.transfer.values())


def unmatched(group):
    return {reason.value: count for reason, count in group.matching.unmatched.items() if count}


# Told apart -------------------------------------------------------------------------------------------------------------


def test_transfer_is_the_shortest_over_the_ranks_and_the_rest_is_waiting():
    transfer, wait = transfer_and_wait(np.array([[1.0, 4.0], [3.0, 2.0], [2.0, 2.5]]))
    assert transfer.tolist() == [1.0, 2.0]
    assert wait.tolist() == [[0.0, 2.0], [2.0, 0.0], [1.0, 0.5]]


def test_the_last_to_arrive_is_who_waits_least_if_all_others_clearly_waited():
    wait = np.array([[0.0, 0.0, 2.0, 0.0], [3.0, 0.1, 0.0, 0.0], [2.0, 3.0, 4.0, 0.0]])
    assert last_arrival(wait, noise=0.5).tolist() == [0, -1, 1, -1]


def test_a_single_rank_is_never_late():
    assert last_arrival(np.zeros((1, 3)), 0.0).tolist() == [-1, -1, -1]


def test_noise_is_four_quanta_and_a_boundary():
    assert noise_seconds(0.25, 1.0) == 2.0


def test_a_slow_rank_makes_the_others_wait_and_leaves_the_transfer_as_it_is():
    group = group_of(3)
    for rank in range(3):
        late = 0.0 if rank == 1 else 0.5
        deliver(group, rank, 7, seconds=0.25 + late)
    group.settle()
    found = group.collectives
    assert found.transfer[FFN, DECODE].total == LAYERS * 0.25
    assert found.wait[FFN, DECODE].total == LAYERS * 2 * 0.5
    assert found.wait[FFN, DECODE].count == LAYERS * 3
    assert [found.wait_seconds[ATTENTION, DECODE, rank] for rank in range(3)] == [1.0, 0.0, 1.0]
    assert [found.last_arrivals[FFN, DECODE, rank] for rank in range(3)] == [0, LAYERS, 0]


def with_starved(group, rank, seconds, starved, launching=2.0**-10):
    """``launching``: seconds; a whole octave of microseconds in the record."""
    intervals = records.collectives(np.full((LAYERS, 2), seconds))
    flags = layout.STARVED | layout.launching_bits(np.full(2 * LAYERS, launching))
    intervals["flags"] = np.where(starved, flags, 0)
    group.add(rank, records.batch(records.with_collectives(0, intervals, mode=Mode.EAGER)))


def test_a_call_whose_last_rank_was_late_by_its_host_says_who_was_late_and_nothing_of_the_link():
    group = group_of()
    with_starved(group, 0, 0.25, [False, False, True, True])
    with_starved(group, 1, 0.5, [True] * 2 * LAYERS, launching=0.002)
    group.settle()
    found = group.collectives
    assert found.transfer[ATTENTION, DECODE].count == found.transfer[FFN, DECODE].count == 1
    assert sum(found.payload_bytes.values()) == 2 << 20
    assert found.bus_bytes[FFN, DECODE] == 1 << 20
    assert found.wait[FFN, DECODE].count == 2 * LAYERS
    launching = found.wait_seconds[FFN, DECODE, 1] / LAYERS - 0.25
    assert -0.0023 < launching < -0.002  # launching, and starting, are not waiting
    assert found.last_arrivals[FFN, DECODE, 0] == LAYERS


@pytest.mark.parametrize(("launching", "transfers"), [(490e-6, 0), (64e-6, LAYERS)])
def test_a_rank_that_may_have_been_launching_until_the_others_were_there_leaves_the_transfer_unknown(
    launching, transfers
):
    """It may have come last although it took longer than the other, which then waited for it."""
    group = group_of()
    with_starved(group, 0, 30e-6, [False] * 2 * LAYERS)
    with_starved(group, 1, 500e-6, [True] * 2 * LAYERS, launching)
    group.settle()
    found = group.collectives
    assert (found.transfer[FFN, DECODE].count if found.transfer else 0) == transfers
    assert found.last_arrivals[FFN, DECODE, 0] == transfers
    assert (found.wait_seconds[FFN, DECODE, 1] > 0) == bool(transfers)
    assert sum(found.payload_bytes.values()) == 2 * transfers << 20


def test_a_rank_that_launched_quickly_and_waited_long_names_the_one_whose_host_was_late():
    """Both GPUs wait for their hosts: the other's was on its way all the time."""
    group = group_of()
    with_starved(group, 0, 70e-6, [True] * 2 * LAYERS, launching=60e-6)
    with_starved(group, 1, 500e-6, [True] * 2 * LAYERS, launching=60e-6)
    group.settle()
    found = group.collectives
    assert found.last_arrivals[FFN, DECODE, 0] == LAYERS
    assert 0 < found.wait_seconds[FFN, DECODE, 1] < LAYERS * (500e-6 - 60e-6 - 70e-6)
    assert not found.transfer


def test_steps_that_only_wait_for_their_hosts_have_no_transfer():
    group = group_of()
    for rank in range(2):
        with_starved(group, rank, 0.25 + rank, [True] * 2 * LAYERS)
    group.settle()
    assert not group.collectives.transfer
    assert group.collectives.last_arrivals[FFN, DECODE, 0] == LAYERS


def test_waits_within_the_noise_are_in_the_histogram_and_in_no_counter():
    group = group_of()
    header = np.zeros(1, layout.HEADER)[0]
    header["timestamp_quantum"], header["timestamp_cost"] = 2.0**-5, 0.125  # a quarter of a second in all
    group.ranks[0].header = header
    deliver(group, 0, 0, seconds=0.5)
    deliver(group, 1, 0, seconds=0.5 + 0.25)
    group.settle()
    assert group.collectives.wait[FFN, DECODE].total == LAYERS * 0.25
    assert not any(group.collectives.wait_seconds.values())
    assert not any(group.collectives.last_arrivals.values())


def test_the_embedding_waits_for_the_host_and_names_nobody():
    group = group_of()
    for rank, late in ((0, 0.0), (1, 0.5)):
        intervals = records.collectives(np.full((1, 2), 0.25), embedding=0.25 + late)
        group.add(rank, records.batch(records.with_collectives(3, intervals)))
    group.settle()
    assert group.collectives.wait_seconds[EMBEDDING, DECODE, 1] == 0.5
    assert not any(group.collectives.last_arrivals.values())


def test_a_coarse_clock_is_added_up_over_the_layers_before_the_shortest_is_taken():
    """Rounded to whole quanta, each call is 0 or 1; the shortest of two of them is 0, and that of their sums is right."""
    group = group_of()
    seconds = {0: [[1, 0], [0, 1], [1, 0], [0, 1]], 1: [[0, 1], [1, 0], [0, 1], [1, 0]]}
    header = np.zeros(1, layout.HEADER)[0]
    header["timestamp_quantum"] = 1.0
    group.ranks[0].header = header
    for rank, of_rank in seconds.items():
        group.add(rank, records.batch(records.with_collectives(0, records.collectives(of_rank))))
    group.settle()
    assert [group.collectives.transfer[site, DECODE].total for site in (ATTENTION, FFN)] == [2.0, 2.0]
    assert group.collectives.transfer[FFN, DECODE].count == 4
    assert group.collectives.wait[FFN, DECODE].total == 0.0


def test_layers_are_added_up_by_operator_and_site():
    group, seen = group_of(), []
    group.matching._sink = seen.append
    for rank in range(2):
        group.add(rank, records.batch(records.with_collectives(0, records.collectives([[1, 2], [3, 4]]))))
    group.settle()
    kinds = Kinds(seen[0], coarse=True)
    assert seen[0].calls["site"][kinds.rows].tolist() == [ATTENTION, FFN]
    assert (kinds.mean(seen[0].seconds).tolist(), kinds.count.tolist()) == ([[2.0, 3.0]] * 2, [2, 2])


# Bound by the hosts -----------------------------------------------------------------------------------------------------


def calls_of(seconds, launching, scope=Scope.GROUP):
    """All of one site: microseconds of each rank, shape (ranks, calls)."""
    seconds, launching = (1e-6 * np.array(each, float) for each in (seconds, launching))
    calls = records.collectives(np.zeros((seconds.shape[1], 1)))
    step = np.void(np.zeros(1, layout.STEP)[0])
    return Matched(step, tuple(range(len(seconds))), calls, seconds, launching, scope, len(seconds))


@pytest.mark.parametrize(
    ("seconds", "launching", "is_sure", "is_told"),
    [
        ([30, 500], [0, 0], True, True),
        ([30, 500], [0, 459], True, True),
        ([30, 500], [0, 461], False, False),
        ([30, 500], [0, np.inf], False, False),
        ([30, 500], [20, 0], True, False),
        ([30, 500, 600], [0, 100, 100], True, True),
        ([30, 500, 600], [0, 100, 580], False, False),
        ([30, 500, 600], [0, 480, 100], False, False),
        ([30], [20], True, False),
    ],
)
def test_who_was_last_is_known_where_one_took_no_longer_than_each_other_did_at_least(
    seconds, launching, is_sure, is_told
):
    for order in itertools.permutations(range(len(seconds))):  # the order of the ranks is no reason
        matched = calls_of([[seconds[rank]] for rank in order], [[launching[rank]] for rank in order])
        assert last_rank_known(matched).tolist() == [is_sure]
        assert has_transfer(matched).tolist() == [is_told]


@pytest.mark.parametrize("launching", [(0, 60), (60, 0)])
def test_of_two_equal_times_the_one_that_was_launching_may_be_the_shorter(launching):
    """It came last, or both came at once."""
    matched = calls_of([[50], [50]], [[each] for each in launching])
    assert (last_rank_known(matched).tolist(), has_transfer(matched).tolist()) == ([True], [False])


def counted(matched, quantum=0.0):
    found = Collectives()
    found.add(matched, quantum, 0.0)
    return found


def test_a_wait_counts_as_far_as_it_is_certain_also_where_the_last_one_is_not_known():
    found = counted(calls_of([[100], [2000], [115]], [[0], [50], [30]]))
    assert not found.transfer
    assert not any(found.last_arrivals.values())
    waits = [found.wait_seconds[ATTENTION, PREFILL, rank] for rank in range(3)]
    assert waits == [0.0, pytest.approx(1840e-6), 0.0]
    assert found.wait[ATTENTION, PREFILL].total == pytest.approx(1840e-6), "no observation is negative"


def test_of_a_group_that_spans_hosts_doubtful_calls_are_no_local_minimum():
    found = counted(calls_of([[30, 30], [500, 500]], [[0, 0], [100, 480]], scope=Scope.NODE))
    assert found.local_calls[ATTENTION, PREFILL] == 1
    assert found.local_seconds[ATTENTION, PREFILL] == pytest.approx(30e-6)
    assert not found.wait


@pytest.mark.parametrize("quantum", [0.0, 0.5e-6])
def test_one_call_of_a_host_that_hung_does_not_hide_what_the_others_say(quantum):
    """Also of a coarse clock, whose calls are added up: 63 of 64 waits remain."""
    seconds = [[1050.0] * 63 + [60_000.0], [50.0] * 63 + [61_000.0]]
    launching = [[0.0] * 63 + [np.inf], [0.0] * 64]
    found = counted(calls_of(seconds, launching), quantum)
    assert found.wait_seconds[ATTENTION, PREFILL, 0] == pytest.approx(63 * 1000e-6, rel=0.04)
    assert found.last_arrivals[ATTENTION, PREFILL, 1] >= 63


# Volumes ----------------------------------------------------------------------------------------------------------------


def test_payload_is_counted_once_for_the_group_and_bus_bytes_by_the_factors_of_nccl_tests():
    group = group_of(4)
    for rank in range(4):
        deliver(group, rank, 0)
    group.settle()
    key = (Operator.ALL_REDUCE.code, FFN, DECODE, Implementation.NCCL.code)
    assert group.collectives.payload_bytes[key] == LAYERS << 20
    assert group.collectives.bus_bytes[FFN, DECODE] == LAYERS * 2**20 * 2 * 3 / 4


# What belongs together --------------------------------------------------------------------------------------------------


def test_a_step_waits_for_the_last_rank():
    group = group_of()
    deliver(group, 0, 1)
    group.settle()
    assert (matched(group), unmatched(group)) == (0, {})
    deliver(group, 1, 1)
    group.settle()
    assert (matched(group), unmatched(group)) == (2 * LAYERS, {})


def test_a_step_that_a_rank_has_gone_past_without_operators_is_missing():
    group = group_of()
    deliver(group, 0, 1, 2)
    group.add(1, records.batch(records.step(number=1)))
    deliver(group, 1, 2)
    group.settle()
    assert (matched(group), unmatched(group)) == (2 * LAYERS, {"missing": 1})


def test_steps_of_a_rank_without_the_others_are_bounded_and_counted_as_late():
    group = group_of()
    deliver(group, 0, *range(MOST_WAITING + 3))
    group.settle()
    assert unmatched(group) == {"late": 3}
    deliver(group, 1, *range(MOST_WAITING + 3))
    group.settle()
    assert matched(group) == 2 * LAYERS * MOST_WAITING


def test_a_rank_that_has_not_shown_up_is_waited_for():
    group = Group()
    group.set_facts(0, {**records.FACTS, "tp": 2})
    deliver(group, 0, 1)
    group.settle()
    group.set_facts(1, {**records.FACTS, "tp": 2})
    deliver(group, 1, 1)
    group.settle()
    assert (matched(group), unmatched(group)) == (2 * LAYERS, {})


def test_steps_from_before_a_restart_are_not_compared_with_those_after_it():
    group = group_of(started=100.0)
    deliver(group, 0, 5, wall_time=150.0)
    group.restarted(1)
    group.set_facts(1, {**records.FACTS, "tp": 2, "started": 200.0})
    deliver(group, 1, 5, wall_time=250.0)
    deliver(group, 0, 6, wall_time=151.0)  # written by the old process, read late
    group.settle()
    assert (matched(group), unmatched(group)) == (0, {"restarted": 2})
    group.restarted(0)
    group.set_facts(0, {**records.FACTS, "tp": 2, "started": 201.0})
    deliver(group, 0, 5, wall_time=251.0)
    group.settle()
    assert matched(group) == 2 * LAYERS


def test_a_rank_that_counts_from_the_beginning_again_has_restarted_whatever_else_is_known():
    group = group_of()
    deliver(group, 0, 8, 3)
    deliver(group, 1, 3)
    group.settle()
    assert (matched(group), unmatched(group)) == (2 * LAYERS, {"restarted": 1})


@pytest.mark.parametrize("difference", [{"batch": 9}, {"context": 77}, {"phase": Phase.PREFILL}, {"padded": 4}])
def test_ranks_at_different_steps_are_not_compared(difference):
    group = group_of()
    deliver(group, 0, 1)
    deliver(group, 1, 1, **difference)
    group.settle()
    assert (matched(group), unmatched(group)) == (0, {"different": 1})


@pytest.mark.parametrize("field", ["site", "layer", "occurrence", "payload_bytes", "operator"])
def test_calls_that_differ_are_not_compared(field):
    group = group_of()
    for rank in range(2):
        intervals = records.collectives(np.full((LAYERS, 2), 0.25))
        intervals[field][1] += rank
        group.add(rank, records.batch(records.with_collectives(1, intervals)))
    group.settle()
    assert (matched(group), unmatched(group)) == (0, {"different": 1})


def test_where_a_group_spans_hosts_the_local_minimum_is_no_transfer():
    group = Group()
    for rank in (2, 3):
        group.set_facts(rank, {**records.FACTS, "tp": 4, "nodes": 2})
        deliver(group, rank, 0, seconds=0.25 * rank)
    group.settle()
    assert group.matching.scope is Scope.NODE
    assert (group.collectives.transfer, group.collectives.wait, dict(group.collectives.last_arrivals)) == ({}, {}, {})
    assert group.collectives.local_seconds[FFN, DECODE] == LAYERS * 0.5
    assert group.collectives.local_calls[FFN, DECODE] == LAYERS


def test_two_nodes_of_one_group_on_one_host_are_a_whole_group():
    group = group_of(nodes=2)
    for rank in range(2):
        deliver(group, rank, 0)
    group.settle()
    assert (group.matching.scope, matched(group)) == (Scope.GROUP, 2 * LAYERS)


def test_two_real_ranks_match_in_every_step():
    """The packaged recording: real NCCL on one GPU, through loopback."""
    recording = read_recording(find("h200-llama-tp2"))
    group = Group()
    for rank, facts in recording.facts.items():
        group.set_facts(rank, facts)
    for rank, cells in recording.cells.items():
        group.add(rank, RecordBatch.of_cells(cells))
    group.settle()
    assert unmatched(group) == {}
    sampled = [len(intervals) > 0 for _, intervals in recording.steps(0)]
    layers = int(recording.facts[0]["layers"])
    assert group.collectives.transfer[FFN, DECODE].count + group.collectives.transfer[
        FFN, Phase.PREFILL.code
    ].count == (sum(sampled) * layers)
    # Both ranks share a GPU, so neither is the slower one; what a call takes is the link.
    transfer, wait = group.collectives.transfer[FFN, DECODE], group.collectives.wait[FFN, DECODE]
    assert wait.total / wait.count < 0.01 * transfer.total / transfer.count
    assert group.collectives.windows[FFN, DECODE].stability.variation < 0.01


def test_memory_does_not_grow_with_the_number_of_steps():
    group = group_of()
    for number in range(0, 3000, 300):
        for rank in range(2):
            deliver(group, rank, *range(number, number + 300))
        group.settle()
    assert not group.matching._waiting
    assert len(group.collectives.transfer) == 2
    assert matched(group) == 3000 * 2 * LAYERS
