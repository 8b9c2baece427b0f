"""Where steps of a real GPU lie in a trace, against events of the test's own around what lies between them."""

import time

import pytest

torch = pytest.importorskip("torch")

import fakes  # noqa: E402

from lightllm_otel.exporter.spans import Context  # noqa: E402
from lightllm_otel.exporter.step_spans import step_span  # noqa: E402
from lightllm_otel.records.vocabulary import Phase  # noqa: E402
from lightllm_otel.reduce.wallclock import BEHIND_SECONDS, WallClock  # noqa: E402
from lightllm_otel.worker.gpu import events as cuda  # noqa: E402
from lightllm_otel.worker.gpu.calibration import calibrate  # noqa: E402
from lightllm_otel.worker.gpu.step import Work  # noqa: E402
from lightllm_otel.worker.gpu.timer import Timer  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]
WORK = Work(Phase.DECODE, 1, 1, 1)
LAUNCHED = 100e-6  # from the launch of an event of the test's to that of a step
BESIDE = 5e-6  # between an event of ours and one of the test's, with nothing in between


@pytest.fixture(params=["CupyEvents", "TorchEvents"])
def steps(request):
    if request.param == "CupyEvents":
        pytest.importorskip("cupy", reason="CuPy is not installed here")
    return Steps(getattr(cuda, request.param)())


class Steps:
    """Runs steps of some milliseconds, and what lies between them."""

    def __init__(self, clock):
        self.clock, self._kept = clock, fakes.Kept()
        self._timer = Timer(clock, self._kept)
        self._timer.step_reader.calibration = calibrate(clock)
        self._number = 0
        for _ in range(3):  # the first launches of a process load what they launch
            self.run()
        self.event()
        self.spans()

    def run(self, seconds=2e-3):
        step = self._timer.enter(WORK, self._number, due=False)
        self.clock.occupy(seconds)
        self._timer.leave(step)
        self._number += 1

    def event(self):
        made = torch.cuda.Event(enable_timing=True)
        made.record()
        return made

    def spans(self):
        """Of the steps since the last call: ``(start, end, stated error)``, in seconds."""
        torch.cuda.synchronize()
        self._timer.tick()
        clock = WallClock(self._timer.step_reader.calibration.start_latency)
        found = []
        for step, intervals in self._kept.steps:
            start = clock.start(step)
            span = step_span(step, intervals, start, Context(1, 1), ())
            found.append((span.start * 1e-9, span.end * 1e-9, span.attributes["lightllm.clock.error"]))
        self._kept.steps.clear()
        return found


def test_a_known_delay_between_two_kernels_is_in_the_trace_within_its_stated_error(steps):
    for delay in (1e-3, 30e-3):
        steps.run()
        before = steps.event()
        steps.clock.occupy(delay)
        after = steps.event()
        steps.run()
        (_, end, error), (start, _, later_error) = steps.spans()
        known = before.elapsed_time(after) * 1e-3
        assert known > 0.5 * delay
        assert abs(start - end - known) <= error + later_error + BESIDE


def test_steps_that_are_tied_to_the_host_one_by_one_are_as_far_apart_as_the_gpu_says(steps):
    events = []
    for _ in range(2):
        torch.cuda.synchronize()
        time.sleep(2 * BEHIND_SECONDS)
        events.append(steps.event())
        steps.run()
    (start, _, error), (later, _, later_error) = steps.spans()
    known = events[0].elapsed_time(events[1]) * 1e-3
    assert abs(later - start - known) <= error + later_error + LAUNCHED
    assert error < 1e-3


def test_steps_without_anything_between_them_follow_each_other(steps):
    for _ in range(5):
        steps.run()
    spans = steps.spans()
    for (_, end, error), (start, _, later_error) in zip(spans, spans[1:]):
        assert abs(start - end) <= error + later_error + BESIDE


def test_a_step_that_the_gpu_waited_for_begins_when_it_was_launched(steps):
    steps.run()
    torch.cuda.synchronize()
    time.sleep(0.05)
    earliest = time.time()
    steps.run()
    latest = time.time()
    _, (start, _, error) = steps.spans()
    assert earliest - error <= start <= latest + error
    assert error < 1e-3
