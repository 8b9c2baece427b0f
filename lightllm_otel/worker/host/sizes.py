"""Which of the host's graph batch sizes get an instrumented graph beside them, within a budget."""

from __future__ import annotations

import math
from collections.abc import Iterable


def spread(sizes: Iterable[int], most: int) -> frozenset[int]:
    """Choose at most ``most`` of the sizes, about evenly by ratio, the largest and the smallest first.

    A server's batch moves between octaves, and what an operator takes changes by ratio; so 1, 2, 3, 4 and 240, 256 matter alike.
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
