"""What doctor --stuck reads of a rank whose GPU does not come to an end: the ring's header while a kernel spins, and after it."""

import json
import os
import subprocess
import sys
import time

import pytest

torch = pytest.importorskip("torch")

from lightllm_otel.records.reader import RingReader  # noqa: E402
from lightllm_otel.records.vocabulary import Operator, Phase  # noqa: E402
from lightllm_otel.records.writer import RingWriter  # noqa: E402
from lightllm_otel.worker.gpu import events as cuda  # noqa: E402
from lightllm_otel.worker.gpu.boundaries import Boundary  # noqa: E402
from lightllm_otel.worker.gpu.step import Work  # noqa: E402
from lightllm_otel.worker.gpu.timer import Timer  # noqa: E402

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
    if timer.recorder is not None:
        timer.recorder.record(timer.boundary_codes.code(Boundary(Operator.FFN, 0)))
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


SPINNING = """
import pathlib, sys, time
import torch
from lightllm_otel.worker.gpu.events import TorchEvents
from lightllm_otel.worker.gpu.boundaries import Boundary
from lightllm_otel.worker.gpu.step import Work
from lightllm_otel.worker.gpu.timer import Timer
from lightllm_otel.records.writer import RingWriter
from lightllm_otel.records.vocabulary import Operator, Phase

clock = TorchEvents()
first, last = clock.handles(2)
clock.occupy(0.5)
clock.record(first, clock.stream())
clock.occupy(0.5)
clock.record(last, clock.stream())
torch.cuda.synchronize()
factor = 0.5 / clock.seconds(first, last)  # of the guess that occupy makes of the frequency

timer = Timer(clock, RingWriter(pathlib.Path(sys.argv[1]), 1))
step = timer.enter(Work(Phase.PREFILL, 1, 512, 512), 7, True)
clock.record(first, clock.stream())
clock.occupy(float(sys.argv[2]) * factor)
clock.record(last, clock.stream())
timer.recorder.record(timer.boundary_codes.code(Boundary(Operator.FFN, 0)))
timer.leave(step)
print("launched", flush=True)
torch.cuda.synchronize()
print(clock.seconds(first, last), flush=True)
timer.tick()
sys.stdin.readline()
"""
MINUTE, FOUND_WITHIN = 60.0, 30.0


def test_a_kernel_that_spins_for_a_minute_is_found_by_doctor_within_half_of_it(tmp_path):
    (tmp_path / "group").mkdir()
    environment = {**os.environ, "LIGHTLLM_OTEL_DIR": str(tmp_path)}

    def asked():
        command = [sys.executable, "-m", "lightllm_otel", "doctor", "--stuck", "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, next(each for each in json.loads(done.stdout) if each["server"] == "group")

    command = [sys.executable, "-c", SPINNING, str(tmp_path / "group" / "rank-0.ring"), str(MINUTE)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as spinning:
        try:
            assert spinning.stdout.readline() == "launched\n"
            began = time.monotonic()
            assert asked()[0] == 0  # not yet
            while (found := asked())[0] == 0:
                time.sleep(0.5)
            took = time.monotonic() - began
            assert took < FOUND_WITHIN
            (position,) = found[1]["positions"]
            assert (position["phase"], position["number"], position["progress"]["everything"]) == ("prefill", 7, True)
            assert found[1]["sentence"].startswith("rank 0 has been in one step for 1")
            assert float(spinning.stdout.readline()) > 0.8 * MINUTE
            while asked()[1]["positions"][0]["on_gpu"] is not None and time.monotonic() < began + 2 * MINUTE:
                time.sleep(0.1)
            assert asked()[0] == 0
        finally:
            spinning.kill()
