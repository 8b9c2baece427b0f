"""The clocks on a real GPU."""

import pytest

torch = pytest.importorskip("torch")

from lightllm_otel.worker.gpu import events as cuda  # noqa: E402
from lightllm_otel.worker.gpu.calibration import calibrate  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]


@pytest.fixture(params=["CupyEvents", "TorchEvents"])
def clock(request):
    if request.param == "CupyEvents":
        pytest.importorskip("cupy", reason="CuPy is not installed here")
    return getattr(cuda, request.param)()


def test_an_interval_is_the_time_of_the_work_in_it(clock):
    handles, stream = clock.handles(3), clock.stream()
    clock.occupy(1e-3)  # the first kernel of a process is loaded when it is launched
    torch.cuda.synchronize()
    clock.record(handles[0], stream)
    clock.occupy(2e-3)
    clock.record(handles[1], stream)
    clock.occupy(8e-3)
    clock.record(handles[2], stream)
    torch.cuda.synchronize()
    short, long = clock.intervals(handles)
    assert 3.5 < long / short < 4.5


def test_what_the_gpu_has_not_reached_is_not_done(clock):
    (handle,) = clock.handles(1)
    clock.occupy(0.2)
    clock.record(handle, clock.stream())
    assert not clock.done(handle)
    torch.cuda.synchronize()
    assert clock.done(handle)


def test_an_empty_interval_costs_some_microseconds_at_most(clock):
    calibration = calibrate(clock)
    assert 0 < calibration.boundary_cost < 10e-6
    assert 0 < calibration.quantum < 2e-6
