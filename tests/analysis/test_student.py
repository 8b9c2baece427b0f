"""Statistics against published tables and worked examples."""

import pytest

from lightllm_otel.tools.analysis.student import holm, quantile, two_sided, welch


@pytest.mark.parametrize(
    ("probability", "freedom", "tabulated"),
    [(0.975, 1, 12.706), (0.975, 4, 2.776), (0.975, 8, 2.306), (0.995, 2, 9.925), (0.95, 30, 1.697), (0.975, 1e6, 1.960),
     (0.025, 8, -2.306)],
)  # fmt: skip
def test_quantiles_are_those_of_the_tables(probability, freedom, tabulated):
    assert quantile(probability, freedom) == pytest.approx(tabulated, abs=6e-4)


def test_a_quantile_and_its_probability_are_inverse():
    for freedom in (1.5, 3, 7.7, 40):
        assert two_sided(quantile(0.99, freedom), freedom) == pytest.approx(0.02, rel=1e-6)


def test_welch_by_hand():
    """Means 2 and 5, variances 1 and 4, three values each: error² = 1/3 + 4/3, freedom = (5/3)² / (1/18 + 16/18)."""
    found = welch([1, 2, 3], [3, 5, 7])
    assert found.mean == 3
    assert found.error == pytest.approx((5 / 3) ** 0.5)
    assert found.freedom == pytest.approx((25 / 9) / (17 / 18))
    low, high = found.interval(1 - found.p)
    assert min(abs(low), abs(high)) == pytest.approx(0, abs=1e-9)  # at its own p the interval just touches nothing


def test_runs_without_any_scatter_are_equal_or_differ_for_sure():
    assert welch([1.0] * 3, [1.0] * 3).p == 1.0
    assert welch([1.0] * 3, [2.0] * 3).p == 0.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_what_is_detectable_is_found_four_times_in_five():
    import numpy as np

    generator = np.random.default_rng(0)
    detectable = welch([0.0, 1.0, -1.0, 0.5, -0.5], [0.0, 1.0, -1.0, 0.5, -0.5]).detectable(0.05, 0.8)
    scatter = np.std([0.0, 1.0, -1.0, 0.5, -0.5], ddof=1)
    found = sum(
        welch(generator.normal(0, scatter, 5), generator.normal(detectable, scatter, 5)).p < 0.05 for _ in range(400)
    )
    assert 0.7 < found / 400 < 0.9
