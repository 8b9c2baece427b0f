"""Count of a model's completed forwards, and the choice of the sampled ones, on which all ranks must agree.

The choice depends on the count and on the rule alone, and no error of the plugin stops the counting. So a rank that has
stopped measuring still replays an instrumented graph when the others do.
"""

from __future__ import annotations

from lightllm_otel.records.vocabulary import Level, Phase
from lightllm_otel.worker.sampling import Sampling

SEARCH = 256
BLOCK = 256  # forwards that are decided at once


class Forwards:
    """Counter of forwards. ``completed``: forwards that have returned, without those that raised.

    The forward in progress has the number ``completed``.
    """

    def __init__(self, level: Level, sampling: Sampling) -> None:
        self.completed = 0
        self.follow(level, sampling)

    def follow(self, level: Level, sampling: Sampling) -> None:
        """Use this level and this sampling from the next forward on."""
        self.level = level
        self.sampling = sampling
        self._block, self._due = range(0), frozenset[int]()
        self._decide()

    def complete(self) -> None:
        """Count a forward that has returned."""
        self.completed += 1
        self._decide()

    def _decide(self) -> None:
        # Decide here, after the launch of a forward. At the start of the next one the GPU may be waiting.
        completed = self.completed
        if completed not in self._block:
            self._block = range(completed, completed + BLOCK)
            on = self.level is Level.OPERATORS
            self._due = self.sampling.decode_steps(self._block) if on else frozenset()
        self.decode_due = completed in self._due

    def quiet(self, first: int, level: Level, sampling: Sampling, margin: int) -> int:
        """Return the first forward from ``first`` on that has no sampled decode step within ``margin``, by either rule.

        The rules are the current one and the new one. Return ``first`` itself where samples are too dense.
        """
        rules = [rule for on, rule in ((self.level, self.sampling), (level, sampling)) if on is Level.OPERATORS]
        clear = 0
        for number in range(first - margin, first + SEARCH):
            clear = 0 if any(rule.due(number, Phase.DECODE, 0) for rule in rules) else clear + 1
            if clear > 2 * margin:
                return number - margin
        return first

    def due(self, phase: Phase, tokens: int) -> bool:
        """Tell whether the operators of the forward in progress are timed. ``tokens``: its new tokens."""
        if phase is Phase.PREFILL:
            return self.level is Level.OPERATORS and self.sampling.due(self.completed, phase, tokens)
        return self.decode_due
