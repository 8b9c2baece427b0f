"""How noisy a decode step is: fitted to the recorded H200 runs that come with the package."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import _paths
import numpy as np

from lightllm_otel.records import layout
from lightllm_otel.records.recording import read_recording
from lightllm_otel.records.vocabulary import COLLECTIVES, Phase

RECORDINGS = _paths.ROOT / "lightllm_otel" / "recordings"
TWO_RANKS, LONG = "h200-llama-tp2", "h200-llama-7b-tp1"
_CODES = [operator.code for operator in COLLECTIVES]
_LAGS = (1, 20)
_LEAST_ALIKE = 8  # steps of one batch size


@dataclasses.dataclass(frozen=True)
class Noise:
    """Of one step. ``deviation``: relative, of the collectives' seconds; ``freedom``: of Student's distribution with
    that kurtosis; ``correlation`` of the next step's whole time, and in how many ``steps`` it has gone to 1/e.
    """

    deviation: float
    freedom: float
    correlation: float
    steps: float

    def effective(self, sampled: np.ndarray, every: int) -> np.ndarray:
        """How many independent ones as many sampled steps are worth, when one in ``every`` is sampled."""
        left = self.correlation * np.exp(-(every - 1) / self.steps)
        worth: np.ndarray = np.maximum(sampled * (1 - left) / (1 + left), 1.0)
        return worth


def fit() -> Noise:
    ratios = np.concatenate([_to_median(seconds) for seconds in _collectives(RECORDINGS / TWO_RANKS)])
    centred = ratios - ratios.mean()
    kurtosis = float((centred**4).mean() / centred.var() ** 2)
    near, far = (_autocorrelation(_whole_steps(RECORDINGS / LONG), lag) for lag in _LAGS)
    return Noise(
        deviation=float(ratios.std()),
        freedom=4 + 6 / max(kurtosis - 3, 0.1),
        correlation=near,
        steps=(_LAGS[1] - _LAGS[0]) / float(np.log(near / far)),
    )


def _collectives(path: Path) -> list[np.ndarray]:
    """Seconds of all collectives of each sampled decode step, for each rank."""
    return [
        np.array(
            [
                intervals["seconds"][np.isin(intervals["operator"], _CODES)].sum()
                for step, intervals in layout.steps_in(cells)
                if len(intervals) and step["phase"] == Phase.DECODE.code
            ]
        )
        for cells in read_recording(path).cells.values()
    ]


def _whole_steps(path: Path) -> np.ndarray:
    """Decode steps against the median of their batch size, on a log scale; outliers clipped, which would hide correlation."""
    steps = [step for step, _ in layout.steps_in(read_recording(path).cells[0]) if step["phase"] == Phase.DECODE.code]
    seconds, sizes = (np.array([float(step[name]) for step in steps]) for name in ("seconds", "padded"))
    often = [size for size in np.unique(sizes) if (sizes == size).sum() >= _LEAST_ALIKE]
    left = np.full(len(seconds), np.nan)
    for size in often:
        left[sizes == size] = np.log(_to_median(seconds[sizes == size]))
    return np.clip(left[np.isfinite(left)], -0.15, 0.15)


def _to_median(values: np.ndarray) -> np.ndarray:
    ratios: np.ndarray = values / np.median(values)
    return ratios


def _autocorrelation(values: np.ndarray, lag: int) -> float:
    centred = values - values.mean()
    return float((centred[:-lag] * centred[lag:]).mean() / centred.var())
