"""Student's t, Welch's comparison of two means, and Holm's correction, with nothing but the standard library.

The t distribution through the regularised incomplete beta function, by its continued fraction (NIST Digital Library of
Mathematical Functions, 8.17.22), evaluated by Lentz's method; tested against tabulated quantiles.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

_TINY = 1e-300
_MOST_TERMS = 400


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b)."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1.0 - _incomplete_beta(b, a, 1.0 - x)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    ) / a  # fmt: skip
    value, upper, lower = 1.0, 1.0, 0.0
    for number in range(_MOST_TERMS):
        m = number // 2
        if number == 0:
            term = 1.0
        elif number % 2 == 0:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        lower = 1.0 / ((1.0 + term * lower) or _TINY)
        upper = (1.0 + term / upper) or _TINY
        value *= upper * lower
        if abs(1.0 - upper * lower) < 1e-12 and number:
            break
    return front * (value - 1.0)


def two_sided(t: float, freedom: float) -> float:
    """Return the probability of a t at least as far from 0, with ``freedom`` degrees of freedom."""
    if math.isinf(t):
        return 0.0
    return _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


def quantile(probability: float, freedom: float) -> float:
    """Return the t below which ``probability`` lies, by bisection."""
    if probability < 0.5:
        return -quantile(1 - probability, freedom)
    low, high = 0.0, 1.0
    while 1 - two_sided(high, freedom) / 2 < probability and high < 1e12:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - two_sided(middle, freedom) / 2 < probability else (low, middle)
    return (low + high) / 2


@dataclasses.dataclass(frozen=True)
class Difference:
    """Difference of two means, second less first, with its standard error and Welch-Satterthwaite's degrees of freedom."""

    mean: float
    error: float
    freedom: float

    @property
    def p(self) -> float:
        if self.error == 0:
            return 1.0 if self.mean == 0 else 0.0
        return two_sided(self.mean / self.error, self.freedom)

    def interval(self, confidence: float) -> tuple[float, float]:
        reach = quantile((1 + confidence) / 2, self.freedom) * self.error
        return self.mean - reach, self.mean + reach

    def detectable(self, error: float, power: float) -> float:
        """Return the smallest difference that a test at ``error`` finds with probability ``power``."""
        return (quantile(1 - error / 2, self.freedom) + quantile(power, self.freedom)) * self.error


def welch(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare two means of at least two values each (B. L. Welch, Biometrika 34, 1947)."""
    variances = [float(np.var(values, ddof=1)) / len(values) for values in (first, second)]
    whole = sum(variances)
    parts = sum(part**2 / (len(values) - 1) for part, values in zip(variances, (first, second)))
    # Without any scatter the formula is 0/0; the smaller sample is the cautious choice.
    freedom = whole**2 / parts if parts else float(min(len(first), len(second)) - 1)
    return Difference(float(np.mean(second) - np.mean(first)), math.sqrt(whole), freedom)


def holm(ps: Sequence[float]) -> list[float]:
    """Return adjusted p values: below e means significant while the whole family errs with at most e (S. Holm, 1979)."""
    order = sorted(range(len(ps)), key=lambda index: ps[index])
    adjusted, most = [0.0] * len(ps), 0.0
    for position, index in enumerate(order):
        most = max(most, min(1.0, (len(ps) - position) * ps[index]))
        adjusted[index] = most
    return adjusted
