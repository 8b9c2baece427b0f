"""LightLLM's rule for which batch sizes get a CUDA graph, the other way round: arguments for the sizes that are wanted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class GraphSizes:
    """LightLLM captures 1, 2, … ``split``, then every ``step``-th size, then the largest."""

    split: int
    step: int

    def up_to(self, largest: int) -> list[int]:
        sizes = [*range(1, self.split + 1), *range(self.split + self.step, largest, self.step)]
        return sorted({size for size in sizes if size < largest} | {largest})


def graph_sizes_for(batches: Sequence[int]) -> GraphSizes:
    """The fewest graphs among which each of ``batches`` has its own: every capture costs start-up time."""
    largest = max(batches)
    choices = [GraphSizes(split, step) for split in range(1, largest + 1) for step in range(1, largest + 1)]
    fitting = [choice for choice in choices if set(batches) <= set(choice.up_to(largest))]
    return min(fitting, key=lambda choice: len(choice.up_to(largest)))
