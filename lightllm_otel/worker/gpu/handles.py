"""Pool of a clock's handles: events are created once and reused, and their number is limited."""

from __future__ import annotations

from lightllm_otel.worker.gpu.clock import Clock, Handle


class Pool:
    """Pool of at most ``limit`` blocks of ``size`` handles each; ``ready`` of them are created at once."""

    def __init__(self, clock: Clock, size: int, limit: int, ready: int) -> None:
        self.size = size
        self._clock = clock
        self._limit = limit
        self._made = ready
        self._free = [clock.handles(size) for _ in range(ready)]

    def take(self) -> list[Handle] | None:
        """Return a free block, or None if all blocks are in use."""
        if self._free:
            return self._free.pop()
        if self._made >= self._limit:
            return None
        self._made += 1
        return self._clock.handles(self.size)

    def give(self, block: list[Handle]) -> None:
        """Return a block to the pool."""
        self._free.append(block)
