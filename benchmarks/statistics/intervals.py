"""How often intervals of five runs against five hold the truth: Welch's t on the runs' means, and bootstraps.

    python benchmarks/statistics/intervals.py --out benchmarks/results

Simulated runs, no GPU: each has a mean of its own around the same truth, and steps around that mean.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import _paths  # noqa: F401 - puts the other folders on sys.path
import outcome

from lightllm_otel.tools.analysis.student import welch

RUNS, STEPS, TRIALS, DRAWS = 5, 64, 2000, 400
RUN_NOISE, STEP_NOISE = 0.01, 0.03


def side(generator: np.random.Generator) -> np.ndarray:
    """Steps of each run, shape (RUNS, STEPS)."""
    means = 1 + RUN_NOISE * generator.standard_normal((RUNS, 1))
    return means * (1 + STEP_NOISE * generator.standard_normal((RUNS, STEPS)))


def bootstrap(one: np.ndarray, two: np.ndarray, generator: np.random.Generator) -> tuple[float, float]:
    """Percentiles of the difference of means; runs are drawn before steps."""

    def means(steps: np.ndarray) -> np.ndarray:
        runs = generator.integers(0, RUNS, (DRAWS, RUNS))
        drawn = generator.integers(0, STEPS, (DRAWS, RUNS, STEPS))
        return steps[runs[:, :, None], drawn].mean(axis=(1, 2))

    low, high = np.quantile(means(two) - means(one), [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=outcome.RESULTS, help="the folder for intervals.json")
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    wrong = {"Welch, runs": 0, "bootstrap, runs then steps": 0, "Welch, steps": 0}
    for _ in range(TRIALS):
        one, two = side(generator), side(generator)
        low, high = welch(one.mean(axis=1), two.mean(axis=1)).interval(0.95)
        wrong["Welch, runs"] += not low <= 0 <= high
        low, high = bootstrap(one, two, generator)
        wrong["bootstrap, runs then steps"] += not low <= 0 <= high
        low, high = welch(one.reshape(-1), two.reshape(-1)).interval(0.95)
        wrong["Welch, steps"] += not low <= 0 <= high
    summary = {name: {"called_different_percent": round(100 * count / TRIALS, 2)} for name, count in wrong.items()}
    rows = [{"name": name, "called_different": count, "trials": TRIALS, "runs": RUNS, "steps": STEPS,
             "run_noise": RUN_NOISE, "step_noise": STEP_NOISE} for name, count in wrong.items()]  # fmt: skip
    outcome.write("intervals", summary, rows, arguments.out)
    for name, count in wrong.items():
        print(f"{name:<28} {100 * count / TRIALS:5.1f} % of equal runs called different; stated: 5 %")


if __name__ == "__main__":
    main()
