"""Histograms: one layout per metric, and the same observations as classic and as exponential buckets."""

import numpy as np
import pytest

from lightllm_otel.reduce.histogram import (
    GRID,
    OPERATOR_BOUNDS,
    SCALE,
    STEP_BOUNDS,
    TRANSFER_BOUNDS,
    WAIT_BOUNDS,
    Exemplar,
    Histogram,
)

LAYOUTS = {"operator": OPERATOR_BOUNDS, "transfer": TRANSFER_BOUNDS, "wait": WAIT_BOUNDS, "step": STEP_BOUNDS}
SCALES = range(SCALE, -5, -1)


def observed(bounds, *seconds):
    histogram = Histogram(bounds)
    histogram.observe(np.array(seconds))
    return histogram


def reference(seconds, scale):
    """Count each value by the specification's definition: bucket i is (base ** i, base ** (i + 1)]."""
    found = {}
    for value in seconds:
        if value > 0:
            index = int(np.ceil(np.log2(value) * 2.0**scale)) - 1
            found[index] = found.get(index, 0) + 1
    return found


def test_an_observation_equal_to_a_bound_is_at_most_that_bound():
    histogram = observed(np.array([1.0, 2.0]), 0.5, 1.0, 1.5, 2.0, 9.0)
    assert histogram.cumulative() == [("1", 2), ("2", 4), ("+Inf", 5)]
    assert (histogram.counts.tolist(), histogram.count, histogram.total) == ([2, 2, 1], 5, 14.0)


def test_a_bound_that_is_not_on_the_grid_is_refused():
    with pytest.raises(ValueError, match=r"power of 2"):
        Histogram(np.array([1e-6]))
    with pytest.raises(ValueError, match=r"power of 2"):
        Histogram(np.array([2.0**11]))


@pytest.mark.parametrize(
    ("name", "ends", "factors"),
    [
        ("operator", "1.907349e-06 0.0625", [2**0.5] * 4 + [2.0] * 7 + [4.0] * 3),
        ("transfer", "3.814697e-06 0.015625", [2.0] * 12),
        ("wait", "9.536743e-07 0.03125", [8.0] * 5),
        ("step", "0.0004882812 8", [2.0] * 14),
    ],
)
def test_bounds_cover_the_documented_ranges(name, ends, factors):
    bounds = LAYOUTS[name]
    assert f"{bounds[0]:.7g} {bounds[-1]:.7g}" == ends
    assert (bounds[1:] / bounds[:-1]).round(9).tolist() == np.round(factors, 9).tolist()


def test_a_short_call_is_shown_within_a_factor_of_the_square_root_of_two():
    """kv_write takes 2.03 µs, in prefill as in decode."""
    cumulative = observed(OPERATOR_BOUNDS, *[2.03e-6] * 100).cumulative()
    assert [count for _, count in cumulative[:2]] == [0, 100]
    assert float(cumulative[1][0]) < 2.03e-6 * 1.42


@pytest.mark.parametrize("name", LAYOUTS)
def test_labels_of_bounds_tell_nanoseconds_apart(name):
    for text, _ in Histogram(LAYOUTS[name]).cumulative()[:-1]:
        (bound,) = GRID[np.isclose(GRID, float(text), rtol=1e-6)]
        assert abs(float(text) - bound) < 0.5e-9


class TestExponential:
    @pytest.mark.parametrize("most", [160, 40, 20, 7, 2])
    def test_each_observation_is_in_the_bucket_of_the_specification(self, most):
        seconds = np.round(10 ** np.random.default_rng(1).uniform(-6, 0, 2000), 9)
        found = observed(OPERATOR_BOUNDS, *seconds).exponential(most)
        assert {found.offset + at: n for at, n in enumerate(found.counts) if n} == reference(seconds, found.scale)
        assert len(found.counts) <= most

    @pytest.mark.parametrize("scale", SCALES)
    def test_a_value_equal_to_a_bound_is_in_the_bucket_below_it(self, scale):
        values = [2.0**power for power in range(-20, 4)]
        most = next(n for n in range(2, 400) if observed(STEP_BOUNDS, *values).exponential(n).scale == scale)
        found = observed(STEP_BOUNDS, *values).exponential(most)
        assert {found.offset + at: n for at, n in enumerate(found.counts) if n} == reference(values, scale)

    def test_the_scale_is_the_largest_at_which_the_buckets_suffice(self):
        octaves = 160 // 8
        assert observed(STEP_BOUNDS, 2.0**-18, 2.0 ** (-18 + octaves - 1 / 8)).exponential().scale == 3
        assert observed(STEP_BOUNDS, 2.0**-18, 2.0 ** (-18 + octaves)).exponential().scale == 2

    def test_zeros_are_counted_apart(self):
        found = observed(WAIT_BOUNDS, 0.0, 0.0, 1.0).exponential()
        assert (found.zeros, found.counts, found.offset, found.scale) == (2, [1], -1, 3)

    def test_without_observations_there_are_no_buckets(self):
        found = Histogram(WAIT_BOUNDS).exponential()
        assert (found.zeros, found.counts) == (0, [])

    def test_classic_buckets_are_sums_of_exponential_ones(self):
        seconds = 10 ** np.random.default_rng(2).uniform(-7, 0, 3000)
        histogram = observed(OPERATOR_BOUNDS, 0.0, *seconds)
        fine = histogram.exponential(1000)
        upper = 2.0 ** ((fine.offset + 1 + np.arange(len(fine.counts))) / 2.0**fine.scale)
        for bound, (_, at_most) in zip(OPERATOR_BOUNDS, histogram.cumulative()):
            assert at_most == fine.zeros + int(np.array(fine.counts)[upper <= bound].sum())

    def test_what_the_grid_does_not_reach_is_counted_in_its_ends(self):
        found = observed(STEP_BOUNDS, 1e-12, 1e9).exponential(1000)
        assert (found.counts[0], found.counts[-1], sum(found.counts)) == (1, 1, 2)
        assert len(found.counts) == len(GRID)


def test_what_came_after_a_snapshot():
    histogram = observed(STEP_BOUNDS, 0.0, 0.5)
    before = histogram.snapshot()
    histogram.observe(np.array([0.0, 4.0]))
    histogram.show(Exemplar(4.0, 0.0, 1, 1))
    later = histogram.since(before)
    assert (later.count, later.total, later.exponential().zeros) == (2, 4.0, 1)
    assert (before.count, before.exemplars, histogram.count) == (2, {}, 4)
    assert [exemplar.value for exemplar in later.exemplars.values()] == [4.0]
