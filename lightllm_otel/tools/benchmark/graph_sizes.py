"""Arguments that make LightLLM capture CUDA graphs for given batch sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class GraphSizes:
    """Rule of LightLLM: capture sizes 1, 2, … ``split``, then every ``step``-th size, then the largest."""

    split: int
    step: int

    def up_to(self, largest: int) -> list[int]:
        """Return the batch sizes that LightLLM captures if ``largest`` is the largest."""
        sizes = [*range(1, self.split + 1), *range(self.split + self.step, largest, self.step)]
        return sorted({size for size in sizes if size < largest} | {largest})


def graph_sizes_for(batches: Sequence[int]) -> GraphSizes:
    """Return the arguments with the fewest graphs that still include each of ``batches``. Each capture costs start-up time."""
    largest = max(batches)
    choices = [GraphSizes(split, step) for split in range(1, largest + 1) for step in range(1, largest + 1)]
    fitting = [choice for choice in choices if set(batches) <= set(choice.up_to(largest))]
    return min(fitting, key=lambda choice: len(choice.up_to(largest)))
