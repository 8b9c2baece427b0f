"""The last hour, on a manual clock."""

import numpy as np
import pytest
import records

from lightllm_otel.records.vocabulary import Mode, Operator, Phase
from lightllm_otel.reduce.group import Group
from lightllm_otel.reduce.recent import EVERY_SECONDS, MOST_SLOW, ROWS, Recent

DECODE = Phase.DECODE.code * len(Mode) + Mode.EAGER.code


@pytest.fixture
def group():
    group = Group()
    group.set_facts(0, {**records.FACTS, "tp": 2})
    group.set_facts(1, {**records.FACTS, "tp": 2})
    return group


def run(group, number, seconds=1.0, rank=0, sampled=True, **fields):
    operators = [(Operator.FFN, 0.7 * seconds), (Operator.GAP, 0.3 * seconds)] if sampled else []
    group.add(rank, records.batch(records.step(seconds=seconds, operators=operators, number=number, **fields)))


def pass_time(recent, start, seconds):
    """Every ten seconds, as the exporter does."""
    for now in np.arange(start, start + seconds, EVERY_SECONDS):
        recent.keep(float(now))
    return start + seconds


def test_a_window_has_what_came_in_it_and_the_hour_has_all(group):
    recent = group.recent
    recent.keep(0.0)
    run(group, 1, seconds=1.0)
    now = pass_time(recent, 10.0, 600.0)
    run(group, 2, seconds=2.0)
    minute, covered = recent.over(60.0, now)
    hour, _ = recent.over(3600.0, now)
    assert (minute["steps"][DECODE], minute["seconds"][DECODE]) == (1, 2.0)
    assert (hour["steps"][DECODE], hour["seconds"][DECODE]) == (2, 3.0)
    assert hour["operator_seconds"][DECODE, Operator.FFN.code] == pytest.approx(0.7 * 3.0)
    assert 60.0 <= covered <= 70.0


def test_what_is_older_than_an_hour_is_gone(group):
    recent = group.recent
    recent.keep(0.0)
    run(group, 1)
    now = pass_time(recent, 10.0, 3700.0)
    hour, covered = recent.over(3600.0, now)
    assert hour["steps"].sum() == 0
    assert 3600.0 <= covered <= 3610.0


def test_after_a_start_a_window_is_as_long_as_it_can_be(group):
    assert group.recent.over(60.0, 5.0)[1] == 0.0
    group.recent.keep(5.0)
    assert group.recent.over(3600.0, 12.0)[1] == 7.0


def test_minutes_come_oldest_first_and_sum_to_the_hour(group):
    recent = group.recent
    recent.keep(0.0)
    for minute in range(3):
        for second in range(10, 70, 10):
            run(group, minute * 10 + second, seconds=float(minute + 1))
            recent.keep(60.0 * minute + second)
    assert [float(column["seconds"].sum()) for column in recent.columns()] == [6.0, 12.0, 18.0]


def test_a_machine_that_slept_leaves_empty_minutes_and_not_a_longer_one(group):
    recent = group.recent
    recent.keep(0.0)
    run(group, 1)
    recent.keep(600.0)
    assert recent.over(60.0, 600.0)[1] == 60.0
    assert len(recent.columns()) == 10


def test_size_does_not_grow_with_time_or_load(group):
    recent = group.recent
    now = 0.0
    for number in range(3 * ROWS):
        run(group, number, seconds=0.001 * (number % 97))
        now = pass_time(recent, now, EVERY_SECONDS)
    assert recent._rows.shape[0] == ROWS
    assert len(recent._times) == ROWS
    assert len(recent.slowest(Phase.DECODE)) <= MOST_SLOW
    assert len(recent.columns()) == 60


class TestSlowest:
    def test_the_slowest_first_with_their_operators(self, group):
        for number, seconds in enumerate([0.1, 0.9, 0.5]):
            run(group, number, seconds=seconds)
        found = group.recent.slowest(Phase.DECODE)
        assert [each.step["number"] for each in found] == [1, 2, 0]
        assert found[0].operators[Operator.FFN.code] == pytest.approx(0.63)
        assert group.recent.slowest(Phase.PREFILL) == []

    def test_a_step_of_two_ranks_is_one_step_as_its_slower_rank_had_it(self, group):
        run(group, 7, seconds=0.5, rank=0, wall_time=100.0)
        run(group, 7, seconds=0.6, rank=1, wall_time=100.001)
        (found,) = group.recent.slowest(Phase.DECODE)
        assert (found.rank, found.seconds) == (1, pytest.approx(0.6))

    def test_a_number_that_comes_again_after_a_restart_is_another_step(self, group):
        run(group, 7, seconds=0.5, wall_time=100.0)
        run(group, 7, seconds=0.6, wall_time=500.0)
        assert len(group.recent.slowest(Phase.DECODE)) == 2

    def test_a_slow_step_is_forgotten_after_ten_minutes(self, group):
        group.recent.keep(0.0)
        run(group, 1, seconds=9.0)
        now = pass_time(group.recent, 10.0, 500.0)
        assert group.recent.slowest(Phase.DECODE)
        pass_time(group.recent, now, 200.0)
        assert group.recent.slowest(Phase.DECODE) == []
        assert group.recent.longest(Phase.DECODE) is None

    def test_the_longest_is_told_even_if_it_was_not_sampled(self, group):
        run(group, 1, seconds=9.0, sampled=False)
        run(group, 2, seconds=1.0)
        assert group.recent.longest(Phase.DECODE).step["number"] == 1
        assert [each.step["number"] for each in group.recent.slowest(Phase.DECODE)] == [2]


def test_an_empty_hour_has_no_columns():
    assert Recent().columns() == []
