"""When steps began on the GPU, by the host's clock, against a GPU whose true times are known."""

import numpy as np
import pytest
import records

from lightllm_otel.records import layout
from lightllm_otel.reduce.wallclock import DRIFT, WallClock

LATENCY = 8e-6


def step(number, entered, seconds, idle):
    record, _ = records.step(number=number, seconds=seconds, wall_time=entered, idle_seconds=idle)
    return np.frombuffer(record, layout.STEP)[0]


def test_a_step_that_the_gpu_waited_for_began_when_it_was_launched():
    clock = WallClock(LATENCY)
    clock.start(step(0, 1000.0, 0.01, 0.0))
    assert clock.start(step(1, 1000.5, 0.01, 0.49)).seconds == 1000.5
    assert clock.start(step(2, 1000.6, 0.01, 0.09)).error == LATENCY


def test_a_step_that_waited_for_the_gpu_follows_its_predecessor():
    clock = WallClock(LATENCY)
    clock.start(step(0, 1000.0, 0.010, 0.0))
    found = clock.start(step(1, 1000.002, 0.010, 2e-6))
    assert found.seconds == pytest.approx(1000.010002, abs=1e-9)
    assert found.error == pytest.approx(LATENCY + DRIFT * 0.010002)


def test_a_step_that_waited_for_other_work_on_the_gpu_begins_after_it():
    clock = WallClock(LATENCY)
    clock.start(step(0, 1000.0, 0.010, 0.0))
    found = clock.start(step(1, 1000.002, 0.010, 0.030))
    assert found.seconds == pytest.approx(1000.040, abs=1e-9)
    assert found.error == pytest.approx(LATENCY + DRIFT * 0.040)


def test_what_lies_within_the_errors_is_no_work_of_others():
    clock = WallClock(LATENCY)
    clock.start(step(0, 1000.0, 0.010, 0.0))
    assert clock.start(step(1, 1000.060, 0.010, 0.050 + 1.5 * LATENCY)).seconds == 1000.060


def test_a_chain_ends_where_a_step_is_missing():
    clock = WallClock(LATENCY)
    clock.start(step(0, 1000.0, 0.010, 0.0))
    assert clock.start(step(2, 1000.030, 0.010, 2e-6)).seconds == 1000.030


@pytest.mark.parametrize("pause", [0.99, 0.005])
def test_a_clock_that_is_set_back_is_believed_at_once(pause):
    clock, now = WallClock(LATENCY), 1000.0
    for number in range(10):
        clock.start(step(number, now, 0.010, pause if number else 0.0))
        now += 0.010 + pause
    now -= 0.5
    for number in range(10, 20):
        assert clock.start(step(number, now, 0.010, pause)).seconds == pytest.approx(now, abs=1e-4)
        now += 0.010 + pause


@pytest.mark.parametrize("pause", [0.99, 0.2, 0.005])
def test_a_clock_that_is_slowed_down_to_set_it_right_is_followed(pause):
    clock, began = WallClock(LATENCY), 0.0
    for number in range(1000):
        wall = 1000.0 + began * (1 - 500e-6)
        assert clock.start(step(number, wall, 0.010, pause if number else 0.0)).seconds == pytest.approx(wall, abs=1e-4)
        began += 0.010 + pause


def test_no_step_begins_before_it_was_launched():
    clock = WallClock(LATENCY)
    clock.start(step(0, 1000.0, 0.010, 0.0))
    assert clock.start(step(1, 1000.5, 0.010, 2e-6)).seconds == 1000.5


@pytest.mark.parametrize("drift", [0.0, 20e-6, -20e-6])
def test_true_starts_lie_within_the_stated_error(drift):
    """A GPU whose clock goes wrong by ``drift``, and a host that is ahead of it now and then."""
    random = np.random.default_rng(1)
    clock = WallClock(LATENCY)
    end, entered = 0.0, 1000.0
    for number in range(2000):
        seconds = float(random.uniform(1e-3, 20e-3))
        entered = max(entered, end - float(random.choice([0.0, 3e-3])))
        began = max(entered + float(random.uniform(0.0, LATENCY)), end + 2e-6)
        idle = began - end if number else 0.0
        found = clock.start(step(number, entered, seconds * (1 + drift), idle * (1 + drift)))
        assert abs(found.seconds - began) <= found.error + 1e-7, number  # and what a double has left of Unix time
        end = began + seconds
        entered = end + float(random.choice([0.0, 1e-3, 0.1]))
