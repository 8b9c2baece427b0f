"""Estimated operator seconds as somebody sees them who watches ``rate()``: over time, after a change, never as totals alone."""

import numpy as np
import pytest
import records
from simulated_serving import Serving

from lightllm_otel.records.vocabulary import UNATTRIBUTED, Mode, Operator, Phase
from lightllm_otel.reduce.estimate import FRESH_SECONDS

DAY, HOUR, MINUTE = 86_400.0, 3600.0, 60.0
ALL_REDUCE, FFN = Operator.ALL_REDUCE.value, Operator.FFN.value


def never_falls(server):
    series = [list(values.values()) for _, values in server.scrapes]
    return bool((np.diff(np.array(series), axis=0) >= 0).all())


def biggest_gain(server, name, since):
    seen = [values[name] for time, values in server.scrapes if time >= since]
    return max(np.diff(seen))


@pytest.mark.parametrize("ranks", [1, 2])
def test_after_a_day_at_ten_percent_a_rise_to_fifty_is_in_the_rate_within_five_minutes(ranks):
    server = Serving(ranks=ranks)
    server.run(DAY, all_reduce=0.1, step=15.0, poll=900.0)
    server.run(10 * MINUTE, all_reduce=0.1)
    assert server.share(ALL_REDUCE) == pytest.approx(0.1, abs=0.005)
    changed = server.now
    server.run(10 * MINUTE, all_reduce=0.5)
    assert server.share(ALL_REDUCE, at=changed + 5 * MINUTE) == pytest.approx(0.5, abs=0.03)
    assert server.share(ALL_REDUCE, window=60.0, at=changed + 120) == pytest.approx(0.5, abs=0.03)
    assert server.share(ALL_REDUCE) == pytest.approx(0.5, abs=0.005)


def test_the_incident_is_over_in_the_rate_when_it_is_over():
    server = Serving()
    server.run(30 * MINUTE, all_reduce=0.5)
    server.run(6 * MINUTE, all_reduce=0.1)
    assert server.share(ALL_REDUCE) == pytest.approx(0.1, abs=0.01)


def test_ten_hours_at_level_steps_are_unattributed_at_once_and_nothing_jumps_when_operators_come():
    server = Serving()
    server.run(10 * HOUR, every=0, step=5.0, poll=300.0)
    assert server.rate(UNATTRIBUTED, window=HOUR) == pytest.approx(1.0)
    assert server.estimated()[UNATTRIBUTED] == pytest.approx(10 * HOUR)
    began = server.now
    server.run(10 * MINUTE)
    assert server.rate(UNATTRIBUTED) == 0.0
    assert max(biggest_gain(server, name, began) for name in (ALL_REDUCE, FFN)) < 15.0 + 1.0
    assert never_falls(server)


def test_samples_of_long_ago_say_nothing_of_now():
    server = Serving()
    server.run(10 * MINUTE)
    server.run(FRESH_SECONDS + 10 * MINUTE, every=0)
    assert (server.rate(UNATTRIBUTED), server.rate(FFN)) == (pytest.approx(1.0), 0.0)


def test_sums_are_the_seconds_of_the_steps_at_every_moment():
    server = Serving()
    for every, padded in ((0, 1), (64, 1), (64, 256), (0, 2), (1, 8)):
        for _ in range(10):
            server.run(10.0, every=every, padded=padded)
            assert sum(server.estimated().values()) == pytest.approx(server.step_seconds())
    assert never_falls(server)


@pytest.mark.parametrize("every", [16, 64, 1024])
def test_however_seldom_samples_are_the_shares_are_right(every):
    server = Serving()
    server.run(20 * MINUTE, all_reduce=0.3, every=every)
    assert server.share(ALL_REDUCE) == pytest.approx(0.3, abs=1e-6)
    assert server.share(UNATTRIBUTED) == 0.0


def test_a_batch_that_has_no_samples_takes_those_of_a_near_one_and_not_those_of_a_far_one():
    server = Serving()
    server.run(60.0, padded=64, every=1)
    server.run(5.0, padded=16, every=0)
    assert server.estimated()[UNATTRIBUTED] == 0.0
    server.run(5.0, padded=8, every=0)
    assert server.estimated()[UNATTRIBUTED] == pytest.approx(5.0)


def test_small_prefills_are_not_taken_for_large_ones():
    """Every large prefill is sampled and one small one in four: together, large ones would count four times as much."""
    server = Serving(Phase.PREFILL, Mode.EAGER)
    for _ in range(80):
        server.run(5.0, all_reduce=0.8, step=0.5, tokens=4096)
        server.run(5.0, all_reduce=0.2, tokens=32)
    assert server.share(ALL_REDUCE) == pytest.approx(0.5, abs=0.01)


def test_a_rare_step_of_a_kind_of_its_own_keeps_its_own_operators():
    server = Serving(Phase.PREFILL, Mode.EAGER)
    server.run(60.0, all_reduce=0.1, tokens=600)
    server.run(20.0, all_reduce=0.9, step=20.0, poll=20.0, tokens=100_000)
    assert server.estimated()[ALL_REDUCE] == pytest.approx(0.1 * 60 + 0.9 * 20)


def test_a_sample_whose_operators_took_no_time_leaves_nothing_out():
    server = Serving()
    server.group.add(0, records.batch(records.step(mode=Mode.GRAPH, seconds=2.0, operators=[(Operator.FFN, 0.0)])))
    assert server.estimated()[UNATTRIBUTED] == 2.0
