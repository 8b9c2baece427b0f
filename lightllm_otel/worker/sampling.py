"""Choice of the steps whose operators are timed: a pure function of the step's number, so that all ranks agree."""

from __future__ import annotations

import dataclasses

import numpy as np

from lightllm_otel.records.vocabulary import Phase

LARGE_PREFILL_TOKENS = 512
SMALL_PREFILL_EVERY = 4
_MASK = (1 << 64) - 1


def mix(number: int) -> int:
    """Spread consecutive numbers over 64 bits (the finaliser of splitmix64, Steele et al. 2014).

    A fixed stride could fall into step with LightLLM's rhythm of prefill and decode steps. A hash cannot.
    """
    number = (number + 0x9E3779B97F4A7C15) & _MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _MASK
    return number ^ (number >> 31)


def mix_all(numbers: np.ndarray) -> np.ndarray:
    """Apply :func:`mix` to an array of uint64, shape (n,); return uint64, shape (n,)."""
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Rule that samples one decode step in ``every``, all prefill steps of 512 tokens or more, and one smaller one in 4.

    If ``every`` is below 4, one smaller prefill step in ``every`` is sampled.
    """

    every: int

    def due(self, number: int, phase: Phase, tokens: int) -> bool:
        """Tell whether step ``number`` is sampled. ``number``: completed forwards before it. ``tokens``: its new tokens."""
        every = self.every
        if phase is Phase.PREFILL:
            if tokens >= LARGE_PREFILL_TOKENS:
                return True
            every = min(every, SMALL_PREFILL_EVERY)
        return mix(number) % every == 0

    def decode_steps(self, numbers: range) -> frozenset[int]:
        """Return the numbers whose decode steps are sampled."""
        mixed = mix_all(np.arange(numbers.start, numbers.stop, dtype=np.uint64))
        return frozenset((numbers.start + np.flatnonzero(mixed % np.uint64(self.every) == 0)).tolist())
