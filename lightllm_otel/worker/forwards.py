"""The count of a model's completed forwards, and which of them are sampled: the one thing that all ranks must agree on.

Nothing but the count and the rule goes into the decision, and no failure of ours stops the counting: a rank on which
reading has ended still replays an instrumented graph when the others do.
"""

from __future__ import annotations

from lightllm_otel.records.vocabulary import Level, Phase
from lightllm_otel.worker.sampling import Sampling

SEARCH = 256
BLOCK = 256  # forwards about which is decided in one go


class Forwards:
    """``completed``: forwards that have returned; the number of the one in progress. One that raised is not counted."""

    def __init__(self, level: Level, sampling: Sampling) -> None:
        self.completed = 0
        self.follow(level, sampling)

    def follow(self, level: Level, sampling: Sampling) -> None:
        """From the next forward on this is the rule."""
        self.level = level
        self.sampling = sampling
        self._block, self._due = range(0), frozenset[int]()
        self._decide()

    def complete(self) -> None:
        self.completed += 1
        self._decide()

    def _decide(self) -> None:
        # Here, behind the launch of a forward, and not at the start of the next one, where the GPU waits for us.
        completed = self.completed
        if completed not in self._block:
            self._block = range(completed, completed + BLOCK)
            on = self.level is Level.OPERATORS
            self._due = self.sampling.decode_steps(self._block) if on else frozenset()
        self.decode_due = completed in self._due

    def quiet(self, first: int, level: Level, sampling: Sampling, margin: int) -> int:
        """The first forward from ``first`` on with no decode step sampled within ``margin`` of it, then or now.

        Where samples are too dense for that, ``first`` itself.
        """
        rules = [rule for on, rule in ((self.level, self.sampling), (level, sampling)) if on is Level.OPERATORS]
        clear = 0
        for number in range(first - margin, first + SEARCH):
            clear = 0 if any(rule.due(number, Phase.DECODE, 0) for rule in rules) else clear + 1
            if clear > 2 * margin:
                return number - margin
        return first

    def due(self, phase: Phase, tokens: int) -> bool:
        """Whether the operators of the forward in progress are timed."""
        if phase is Phase.PREFILL:
            return self.level is Level.OPERATORS and self.sampling.due(self.completed, phase, tokens)
        return self.decode_due
