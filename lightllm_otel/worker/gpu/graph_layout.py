"""Graph layout: the boundaries and collectives that an instrumented graph contains."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class GraphLayout:
    """Contents of an instrumented graph for ``batch`` requests.

    ``codes``: the boundaries of its timestamps, in order. ``payloads``: (position, packed payload) of its collectives.
    ``chained_from``: the first timestamp on the chain, for which the host's kernels wait, or -1. ``programmatic``: the number
    of programmatic dependencies in each interval; empty where it is unknown.
    """

    batch: int
    codes: tuple[int, ...]
    payloads: tuple[tuple[int, int], ...] = ()
    chained_from: int = -1
    programmatic: tuple[int, ...] = ()

    @property
    def chained(self) -> bool:
        """Tell whether most of its timestamps lie on the chain."""
        return 0 <= self.chained_from < len(self.codes) / 2
