"""What doctor --stuck reads of a rank whose GPU does not come to an end: the ring's header while a kernel spins, and after it."""

import time

import pytest

torch = pytest.importorskip("torch")

from lightllm_otel.measure import cuda  # noqa: E402
from lightllm_otel.measure.marks import Mark  # noqa: E402
from lightllm_otel.measure.step import Work  # noqa: E402
from lightllm_otel.measure.timer import Timer  # noqa: E402
from lightllm_otel.ring.reader import RingReader  # noqa: E402
from lightllm_otel.ring.writer import RingWriter  # noqa: E402
from lightllm_otel.vocabulary import Operator, Phase  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]
WORK = Work(Phase.DECODE, 1, 1, 1)
NUMBER = 7
SPIN = 3.0  # seconds, by a guess of the GPU's frequency
EVERY = 0.05


@pytest.fixture(params=["CupyEvents", "TorchEvents"])
def clock(request):
    if request.param == "CupyEvents":
        pytest.importorskip("cupy", reason="CuPy is not installed here")
    return getattr(cuda, request.param)()


@pytest.fixture
def ring(tmp_path):
    path = tmp_path / "rank-0.ring"
    writer = RingWriter(path, 1)
    reader = RingReader(path)
    yield writer, reader
    del reader
    writer.close()


def run(timer, clock, number, seconds, due):
    """Returns an event of the test's own behind the step's last kernel."""
    step = timer.enter(WORK, number, due)
    clock.occupy(seconds)
    if timer.armed is not None:
        timer.armed.mark(timer.marks.code(Mark(Operator.FFN, 0)))
    timer.leave(step)
    end = torch.cuda.Event()
    end.record()
    timer.tick()
    return end


@pytest.mark.parametrize("due", [False, True], ids=["whole", "with operators"])
def test_a_step_is_in_flight_for_as_long_as_its_kernel_spins(clock, ring, due):
    writer, reader = ring
    timer = Timer(clock, writer)
    run(timer, clock, NUMBER - 1, 1e-3, due)  # the first kernel of a process is loaded when it is launched
    torch.cuda.synchronize()
    timer.tick()
    assert reader.header["in_flight"] == 0

    earliest = time.time()
    end = run(timer, clock, NUMBER, SPIN, due)
    launched = time.time()
    assert launched - earliest < SPIN / 4  # nothing waited for the GPU
    seen = 0
    while True:
        timer.tick()
        header = reader.header
        if end.query():  # it may have ended between the two
            break
        assert (header["in_flight"], header["in_flight_number"]) == (1, NUMBER)
        assert header["in_flight_phase"] == Phase.DECODE.code
        assert earliest <= header["in_flight_since"] <= launched
        assert header["steps"] == 1  # the one before
        seen += 1
        time.sleep(EVERY)
    assert seen >= SPIN / EVERY / 4
    assert time.time() - header["in_flight_since"] > SPIN / 4

    timer.tick()
    assert (reader.header["in_flight"], reader.header["steps"]) == (0, 2)
