"""The observation that the project began with: all_reduce in decode differs from run to run, the rest does not."""

import numpy as np
import pytest

from lightllm_otel.reduce.window import LEAST_ALIKE, SAMPLES, Window, stability
from lightllm_otel.tools.analysis.stability import LEAST_CALLS, trust, variation

CALLS = 640  # of ten steps with two in each of 32 layers
OPERATORS = {"qkv_proj": 40e-6, "attention": 80e-6, "o_proj": 15e-6, "ffn": 110e-6, "all_reduce": 60e-6}


def run(random, all_reduce=1.0, scatter=0.03, drift=0.0):
    """Calls scatter by three percent, those of all_reduce by thirty; ``drift``: of all operators, slowly, over the run."""
    slow = 1 + drift * np.sin(np.linspace(0, 3, CALLS))
    scatters = {"all_reduce": 0.3}
    made = {
        name: seconds * slow * random.normal(1.0, scatters.get(name, scatter), CALLS).clip(0.2)
        for name, seconds in OPERATORS.items()
    }
    made["all_reduce"] = made["all_reduce"] * all_reduce
    return made


@pytest.fixture
def random():
    return np.random.default_rng(5)


def test_all_reduce_differs_from_run_to_run_and_the_rest_does_not(random):
    found = trust([run(random, all_reduce=factor) for factor in (1.0, 1.45, 0.8, 1.2, 1.0)])
    assert not found.trusted
    assert found.blame == ("all_reduce",)
    assert found.sentence.startswith("all_reduce differs from run to run")
    assert found.operators["ffn"].between < 0.01
    assert found.operators["all_reduce"].between > 0.2


def test_scatter_inside_runs_is_no_difference_between_them(random):
    found = trust([run(random) for _ in range(5)])
    assert (found.trusted, found.blame) == (True, ())
    assert found.operators["all_reduce"].inside > 0.25


def test_a_slow_drift_inside_every_run_is_no_difference_between_them(random):
    assert trust([run(random, drift=0.05) for _ in range(5)]).trusted


def test_a_certain_difference_that_is_too_small_to_matter_is_none(random):
    runs = [{"ffn": random.normal(factor, 1e-4, 10_000)} for factor in (1.0, 1.002, 0.998)]
    assert trust(runs).trusted
    assert trust(runs).operators["ffn"].ratio > 100


def test_the_dearest_difference_is_blamed_first(random):
    runs = [{"ffn": factor * random.normal(100, 1, CALLS), "o_proj": factor**2 * random.normal(10, 0.1, CALLS)}
            for factor in (1.0, 1.1, 1.2)]  # fmt: skip
    assert trust(runs).blame == ("ffn", "o_proj")


def test_steady_calls_that_differ_are_found_too():
    assert variation([np.full(CALLS, seconds) for seconds in (1.0, 1.0, 1.1)]).differs
    assert not variation([np.full(CALLS, 1.0)] * 3).differs


def test_too_few_runs_and_too_few_calls_are_said(random):
    with pytest.raises(ValueError, match="at least 3 times"):
        trust([run(random)] * 2)
    found = trust([{"ffn": np.ones(LEAST_CALLS - 1)}] * 3)
    assert (found.trusted, "nothing can be said" in found.sentence) == (False, True)


# A window, as the exporter has it ---------------------------------------------------------------------------------------


def test_a_window_says_variation_and_tail_of_the_last_values_only():
    window = Window()
    window.add(np.zeros(SAMPLES, int), np.full(SAMPLES, 99.0))
    for _ in range(SAMPLES // 100 + 1):
        window.add(np.zeros(100, int), np.array([2.0] * 98 + [4.0] * 2))
    found = window.stability
    assert (found.count, found.tail) == (SAMPLES, 2.0)
    assert found.variation == pytest.approx(0.137, abs=0.002)


def test_a_change_of_load_is_no_variation():
    kinds = np.repeat([1, 64], 100)
    found = stability(kinds, np.where(kinds == 1, 1.0, 7.0))
    assert (found.variation, found.tail) == (0.0, 1.0)


def test_a_kind_that_is_rare_is_left_out():
    few = LEAST_ALIKE - 1
    assert stability(np.zeros(few, int), np.ones(few)) is None
    assert stability(np.repeat([1, 2], [100, few]), np.repeat([1.0, 50.0], [100, few])).count == 100


def test_an_array_larger_than_the_window_fits():
    window = Window()
    window.add(np.zeros(3 * SAMPLES, int), np.arange(3 * SAMPLES) + 1.0)
    assert window.stability.count == SAMPLES
