"""Selection of batch sizes: which of the host's graphs get an instrumented graph if not all can have one."""

from __future__ import annotations

import math
from collections.abc import Iterable


def spread(sizes: Iterable[int], most: int) -> frozenset[int]:
    """Return at most ``most`` of the sizes, spread about evenly by ratio. The largest and the smallest come first.

    Both a server's batch and the time of an operator change by ratio, so 1 and 2 matter as much as 128 and 256.
    """
    left = sorted(set(sizes))
    if len(left) <= most:
        return frozenset(left)
    if most < 2:
        return frozenset(left[len(left) - most :])
    chosen = [left[0], left[-1]]
    while len(chosen) < most:
        chosen.sort()
        gaps = [
            (high / low, low, high) for low, high in zip(chosen, chosen[1:]) if any(low < each < high for each in left)
        ]
        _, low, high = max(gaps)
        middle = math.sqrt(low * high)
        chosen.append(min((each for each in left if low < each < high), key=lambda each: abs(math.log(each / middle))))
    return frozenset(chosen)
