"""Programmatic dependencies in a graph that is being captured: counted by CUDA's driver, here a made-up one."""

import ctypes

import pytest

from lightllm_otel.worker.gpu.boundary_recorder import CaptureRecorder
from lightllm_otel.worker.gpu.programmatic_edges import ProgrammaticEdges

STREAM, GRAPH = 0x51, 0xABCDEF0123
ACTIVE, NONE = 1, 0


class Driver:
    """Fake libcuda, for a stream that captures a graph with edges of these types."""

    def __init__(self, types=(), status=ACTIVE, fails=()):
        self.types, self.status, self.fails = types, status, fails

    def cuStreamGetCaptureInfo_v3(self, stream, status, number, graph, nodes, edges, count):
        assert stream.value == STREAM
        assert number is None
        status._obj.value, graph._obj.value, count._obj.value = self.status, GRAPH, 1
        return 700 if "info" in self.fails else 0

    def cuGraphGetEdges_v2(self, graph, begins, ends, data, count):
        assert graph.value == GRAPH
        if data is None:
            count._obj.value = len(self.types)
            return 700 if "number" in self.fails else 0
        assert len(begins) == len(ends) == count._obj.value == len(self.types)
        places = (ctypes.c_uint8 * (8 * len(self.types))).from_address(data.value)
        for at, kind in enumerate(self.types):
            places[8 * at + 2] = kind
        return 700 if "edges" in self.fails else 0


def test_programmatic_dependencies_are_counted_among_all():
    assert ProgrammaticEdges(Driver((0, 1, 0, 0, 1, 1))).count(STREAM) == 3
    assert ProgrammaticEdges(Driver((0, 0))).count(STREAM) == 0
    assert ProgrammaticEdges(Driver()).count(STREAM) == 0


@pytest.mark.parametrize("driver", [
    Driver((1,), status=NONE), Driver((1,), fails=("info",)), Driver((1,), fails=("number",)), Driver((1,), fails=("edges",)),
])  # fmt: skip
def test_what_the_driver_does_not_say_is_not_known(driver):
    assert ProgrammaticEdges(driver).count(STREAM) == -1


def test_a_driver_before_cuda_12_3_is_refused_once():
    with pytest.raises(AttributeError):
        ProgrammaticEdges(object())


class Timestamps:
    capacity = 8

    def timestamp(self, at, chained):
        pass


def test_each_interval_of_a_capture_knows_its_own():
    counts = iter([0, 2, 2, 3])
    recorder = CaptureRecorder(Timestamps(), True, lambda: next(counts))
    for code in range(4):
        recorder.record(code)
    assert recorder.programmatic() == (2, 0, 1)


def test_one_count_that_failed_leaves_all_intervals_unknown():
    counts = iter([0, -1, 2])
    recorder = CaptureRecorder(Timestamps(), True, lambda: next(counts))
    for code in range(3):
        recorder.record(code)
    assert recorder.programmatic() == ()
    assert CaptureRecorder(Timestamps()).programmatic() == ()
