"""Timestamps inside CUDA graphs of a real GPU, through each way to load them."""

import json
from decimal import Decimal

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lightllm_otel.tools.analysis.kernels import OUTSIDE, kernels  # noqa: E402
from lightllm_otel.tools.analysis.timestamped import from_its_start, ranges_in_graphs  # noqa: E402
from lightllm_otel.worker.gpu.calibration import PAIRS, cost_of_timestamps, quantum_of_timestamps, tail_of_graph  # noqa: E402
from lightllm_otel.worker.gpu.graphs import TorchGraphs  # noqa: E402
from lightllm_otel.worker.gpu.timestamp_kernels import _WAYS, KEPT, Overwritten  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]
CALLS = 40


@pytest.fixture(params=range(len(_WAYS)), ids=[name for name, _ in _WAYS])
def timestamps(request):
    name, make = _WAYS[request.param]
    if "CuPy" in name:
        pytest.importorskip("cupy", reason="CuPy is not installed here")
    return make(CALLS + 1)


@pytest.fixture
def work():
    """Two matrix products that take turns, one twice as long as the other."""
    left = torch.randn(64, 4096, device="cuda", dtype=torch.float16)
    small, large = (torch.randn(4096, size, device="cuda", dtype=torch.float16) for size in (8192, 16384))
    outputs = [torch.empty(64, each.shape[1], device="cuda", dtype=torch.float16) for each in (small, large)]

    def body(mark=lambda: None):
        for call in range(CALLS):
            torch.mm(left, (small, large)[call % 2], out=outputs[call % 2])
            mark()

    body()
    return body


class Pair:
    """The same work as a plain graph and as one with timestamps, those from ``chained_from`` on its chain."""

    def __init__(self, work, timestamps, chained_from=CALLS + 1):
        self.graphs = TorchGraphs()
        self.plain = self.graphs.capture(None, work)
        self.timestamps = timestamps
        self.chained_from = chained_from
        self.last = -1
        self._graph_layout = self.graphs.capture(None, lambda: self._body(work))

    def _body(self, work):
        at = 0

        def mark():
            nonlocal at
            self.timestamps.timestamp(at, at >= self.chained_from)
            at += 1

        mark()
        work(mark)
        self.timestamps.publish(at)

    def replay(self):
        self.last = self.timestamps.launched()
        self._graph_layout.replay()

    def read(self):
        torch.cuda.synchronize()
        return self.timestamps.intervals(self.last, CALLS + 1)


@pytest.mark.parametrize("chained_from", [CALLS + 1, CALLS // 2, 1], ids=["branch", "half", "chain"])
def test_intervals_are_those_of_the_work_and_add_up_to_the_graph(timestamps, work, chained_from):
    pair = Pair(work, timestamps, chained_from)
    for _ in range(3):
        seconds = pair.graphs.seconds(pair)
    intervals = pair.read()
    assert intervals.min() > 0
    assert 0.9 * seconds < intervals.sum() <= seconds
    short, long = np.median(intervals[::2]), np.median(intervals[1::2])
    assert 1.4 < long / short < 2.6


def test_a_graph_with_stamps_is_hardly_slower(timestamps, work):
    pair = Pair(work, timestamps)
    pairs = [[pair.graphs.seconds(graph) for graph in (pair.plain, pair)] for _ in range(PAIRS)]
    cost = cost_of_timestamps(np.array(pairs), CALLS + 1) or 0.0
    assert cost < (4e-6 if timestamps.source == "event_node" else 1.5e-6)


def test_replays_in_flight_keep_their_stamps_apart(timestamps, work):
    if timestamps.source == "event_node":
        pytest.skip("events are one set: a later replay overwrites an earlier one, and that is told")
    pair = Pair(work, timestamps)
    replays = []
    for _ in range(KEPT):
        pair.replay()
        replays.append(pair.last)
    torch.cuda.synchronize()
    sums = [timestamps.intervals(replay, CALLS + 1).sum() for replay in replays]
    assert max(sums) < 1.5 * min(sums)
    pair.replay()
    torch.cuda.synchronize()
    with pytest.raises(Overwritten):
        timestamps.intervals(replays[0], CALLS + 1)


def test_an_overwritten_replay_is_told(timestamps, work):
    pair = Pair(work, timestamps)
    pair.replay()
    first = pair.last
    for _ in range(KEPT):
        pair.replay()
    torch.cuda.synchronize()
    with pytest.raises(Overwritten):
        timestamps.intervals(first, CALLS + 1)


def test_the_quantum_is_found(timestamps):
    assert 0 < quantum_of_timestamps(timestamps, TorchGraphs()) < 2e-6


@pytest.mark.parametrize("delivered", [True, False])
def test_what_a_twin_does_behind_its_last_stamp_takes_some_microseconds(timestamps, delivered):
    output = torch.zeros(20, 32000, device="cuda")
    tail = tail_of_graph(timestamps, TorchGraphs(), CALLS, [output], delivered)
    assert 0 <= tail < 40e-6
    graph = TorchGraphs().capture(
        None, lambda: (timestamps.timestamp(0), timestamps.timestamp(1), timestamps.publish(2))
    )
    replay = timestamps.launched()
    graph.replay()
    torch.cuda.synchronize()
    assert timestamps.intervals(replay, 2).shape == (1,)  # the host's count of replays is still the GPU's


def test_a_profiler_sees_stamps_and_kernels_so_that_each_kernel_finds_its_operator(timestamps, work, tmp_path):
    if timestamps.source != "globaltimer":
        pytest.skip("event nodes are no kernels: a trace cannot show them")
    operators = [f"call-{call % 2}" for call in range(CALLS)]
    pair = Pair(work, timestamps)
    pair.replay()
    pair.read()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(3):
            pair.replay()
        pair.plain.replay()
        torch.cuda.synchronize()
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    trace = from_its_start(json.loads((tmp_path / "trace.json").read_text(), parse_float=Decimal))
    ranges = ranges_in_graphs(trace, [operators])
    assert len(ranges) == 3 * CALLS
    trace["traceEvents"] += ranges
    rows = kernels(trace)
    calls = {name: sum(row.calls for row in rows if row.operator == name) for name in ("call-0", "call-1", OUTSIDE)}
    assert min(calls["call-0"], calls["call-1"]) >= 3 * CALLS // 2  # a product may take more than one kernel
    assert 3 * calls[OUTSIDE] == calls["call-0"] + calls["call-1"]  # the plain graph
    seconds = {name: sum(row.seconds for row in rows if row.operator == name) for name in ("call-0", "call-1")}
    assert 1.5 < seconds["call-1"] / seconds["call-0"] < 2.5  # twice the work
