"""Programmatic dependencies in a graph that is being captured: such a kernel may start before its predecessor ends.

cuBLAS uses CUDA's programmatic dependent launch for the second kernel of a split matrix product. In a graph with branches,
such as an instrumented graph, such a kernel starts sooner than in a graph without branches (docs/decisions/0023).
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

_ACTIVE = 1  # CU_STREAM_CAPTURE_STATUS_ACTIVE
_EDGE = np.dtype([("from_port", "u1"), ("to_port", "u1"), ("type", "u1"), ("reserved", "u1", (5,))])
_PROGRAMMATIC = 1  # CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC


class ProgrammaticEdges:
    """Counter of programmatic dependencies. ``driver``: libcuda.

    Raises OSError where libcuda is missing, and AttributeError where it is older than CUDA 12.3.
    """

    def __init__(self, driver: Any = None) -> None:
        driver = ctypes.CDLL("libcuda.so.1") if driver is None else driver
        self._capture_info = driver.cuStreamGetCaptureInfo_v3
        self._edges = driver.cuGraphGetEdges_v2

    def count(self, stream: int) -> int:
        """Return the number so far in the graph that ``stream`` captures; -1 where it is unknown."""
        graph, number = self._graph(stream), ctypes.c_size_t()
        if graph is None or self._edges(graph, None, None, None, ctypes.byref(number)):
            return -1
        if not number.value:
            return 0
        edges = np.zeros(number.value, _EDGE)
        ends = [(ctypes.c_void_p * number.value)() for _ in range(2)]
        if self._edges(graph, *ends, ctypes.c_void_p(edges.ctypes.data), ctypes.byref(number)):
            return -1
        return int((edges["type"][: number.value] == _PROGRAMMATIC).sum())

    def _graph(self, stream: int) -> Any:
        status, graph, count = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_size_t()
        # CUDA refuses to answer without a place for the edges' data.
        places = (ctypes.c_void_p(), ctypes.c_void_p())
        failed = self._capture_info(
            ctypes.c_void_p(stream), ctypes.byref(status), None, ctypes.byref(graph), *map(ctypes.byref, places),
            ctypes.byref(count),
        )  # fmt: skip
        return graph if not failed and status.value == _ACTIVE else None
