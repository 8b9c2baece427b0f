"""Events are made once and used again; how many there can be is bounded."""

from __future__ import annotations

from lightllm_otel.worker.gpu.clock import Clock, Handle


class Pool:
    """Blocks of ``size`` handles each, ``limit`` at most."""

    def __init__(self, clock: Clock, size: int, limit: int, ready: int) -> None:
        self.size = size
        self._clock = clock
        self._limit = limit
        self._made = ready
        self._free = [clock.handles(size) for _ in range(ready)]

    def take(self) -> list[Handle] | None:
        """A block, or None when all are in use."""
        if self._free:
            return self._free.pop()
        if self._made >= self._limit:
            return None
        self._made += 1
        return self._clock.handles(self.size)

    def give(self, block: list[Handle]) -> None:
        self._free.append(block)
