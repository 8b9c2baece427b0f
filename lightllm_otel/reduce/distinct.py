"""Distinct rows of columns of small integers."""

from __future__ import annotations

from typing import Any

import numpy as np


def distinct(*columns: np.ndarray) -> list[Any]:
    """Return the distinct rows of these columns, in ascending order, as tuples.

    ``columns``: integers of the same shape (n,), such as codes and buckets; each at least 0 and below 1024.
    """
    packed = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        packed = packed << 10 | column.astype(np.int64)
    found = np.unique(packed)
    shifts = range(10 * (len(columns) - 1), -1, -10)
    return list(zip(*((found >> shift & 1023).tolist() for shift in shifts)))
