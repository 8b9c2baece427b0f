"""Intervals of ratios of sums, by resampling: first whole repeats, then steps within each.

Of a single repeat only steps can be drawn, so its intervals say how sure this one recording is, not what the next run
would show. Percentile intervals (B. Efron, 1979); the seed is fixed, so the same recording gives the same report.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DRAWS = 400
_SEED = 1
_MOST_STEPS = 4096  # beyond, an interval is narrower than anyone reads; the first steps of each block stand for it


def shares(repeats: Sequence[np.ndarray], confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Return bounds of each column's share of the whole, shape (columns,) each.

    ``repeats``: for each the values of its steps, shape (steps, columns); steps may be of very different length, so a share is
    a ratio of sums and not a mean of ratios.
    """
    generator = np.random.default_rng(_SEED)
    sums = np.stack([_sums(_thin(steps), generator) for steps in repeats])  # repeats × draws × columns
    if len(repeats) > 1:
        drawn = generator.integers(0, len(repeats), (DRAWS, len(repeats)))
        sums = np.stack([sums[drawn[:, place], np.arange(DRAWS)] for place in range(len(repeats))])
    total = sums.sum(axis=0)
    ratios = total / total.sum(axis=1, keepdims=True)
    edge = (1 - confidence) / 2
    low, high = np.quantile(ratios, [edge, 1 - edge], axis=0)
    return low, high


def _sums(steps: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return sums over as many steps as there are, drawn with replacement, again and again."""
    weights = generator.multinomial(len(steps), np.full(len(steps), 1 / len(steps)), DRAWS)
    found: np.ndarray = weights @ steps
    return found


def _thin(steps: np.ndarray) -> np.ndarray:
    """Return at most ``most`` rows, sums of neighbours: drawing blocks of neighbours is also what keeps their likeness."""
    block = -(-len(steps) // _MOST_STEPS)
    return np.add.reduceat(steps, np.arange(0, len(steps), block)) if block > 1 else steps
