"""NVML that hangs, fails or is another package: nothing waits for it, and nothing false is served."""

import dataclasses
import importlib.util
import logging
import subprocess
import sys
import threading
import time
import types
import urllib.request

import nvml_answers
import pytest
import records
from nvml_answers import FakeGpu, FakeNvml
from prometheus_client.parser import text_string_to_metric_families

from lightllm_otel.exporter.exporter import Exporter
from lightllm_otel.exporter.hardware import FRESH_SECONDS, GpuState, Hardware, read
from lightllm_otel.exporter.link import link
from lightllm_otel.exporter.nvml import Nvml
from lightllm_otel.exporter.nvml_thread import DEADLINE_SECONDS, NvmlThread
from lightllm_otel.parts import Parts
from lightllm_otel.records.folder import group_folder, ring_path
from lightllm_otel.records.vocabulary import ExporterStage, Operator
from lightllm_otel.records.writer import RingWriter
from lightllm_otel.settings import Settings

GPU_METRICS = ("lightllm_gpu_clock_hertz", "lightllm_gpu_temperature_celsius", "lightllm_gpu_power_watts",
               "lightllm_gpu_link_errors_total")  # fmt: skip


def until(condition):
    for _ in range(500):
        if condition():
            return True
        time.sleep(0.02)
    return False


class HangingNvml(FakeNvml):
    """Answers until ``lost`` is set; then the call ``hangs_in`` does not return before ``found`` is."""

    def __init__(self, hangs_in="nvmlDeviceGetTemperature", ranks=1):
        super().__init__([FakeGpu(state=dict(nvml_answers.BUSY))] * ranks)
        self.lost, self.found, self.hanging = threading.Event(), threading.Event(), threading.Event()
        real = getattr(self, hangs_in)

        def call(*arguments):
            if self.lost.is_set():
                self.hanging.set()
                self.found.wait(60)
            return real(*arguments)

        setattr(self, hangs_in, call)


@pytest.fixture
def nvml():
    made = []

    def make(**how):
        made.append(HangingNvml(**how))
        return made[-1]

    yield make
    for each in made:
        each.found.set()


class World:
    """An exporter on a manual clock, both of them: ``now`` is also the time of day."""

    def __init__(self, tmp_path, load, bus, **settings):
        self.now = 1000.0
        folder = group_folder(tmp_path, "group")
        self.ring = RingWriter(ring_path(folder, 0), 1)
        self.ring.describe({**records.FACTS, "pci_bus_id": bus})
        chosen = dataclasses.replace(Settings.from_env({}), port=None, state=None, **settings)
        self.exporter = Exporter(folder, chosen, now=lambda: self.now, load_nvml=load)
        self.exporter._collector._now = lambda: self.now
        self.number = 0

    def step(self, seconds=0.5):
        """One that begins and ends, and is written."""
        self.ring.enter(self.number, 1, self.now)
        self.now += seconds
        self.ring.write(*records.step(number=self.number, seconds=seconds, operators=[(Operator.FFN, seconds)],
                                      wall_time=self.now - seconds))  # fmt: skip
        self.ring.leave()
        self.number += 1

    def scrape(self):
        with urllib.request.urlopen(f"http://{self.exporter.server.address}/metrics", timeout=10) as answer:
            return {(s.name, *sorted(s.labels.values())): s.value
                    for f in text_string_to_metric_families(answer.read().decode()) for s in f.samples}  # fmt: skip

    def gpu_values(self):
        return {key[0] for key in self.scrape() if key[0] in GPU_METRICS}

    def close(self):
        if self.exporter.server is not None:
            self.exporter.server.close()


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr("lightllm_otel.exporter.http_server.LOOK_SECONDS", 0.02)  # else each end takes half a second
    made = []

    def make(gpus, load=None, **settings):
        made.append(World(tmp_path, load or (lambda: Nvml(gpus)), gpus.bus(0), **settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize(
    "hangs_in",
    ["nvmlDeviceGetTemperature", "nvmlDeviceGetHandleByPciBusId", "nvmlDeviceGetFieldValues", "nvmlDeviceGetClockInfo"],
)
def test_a_gpu_that_hangs_nvml_costs_its_own_values_and_nothing_else(world, nvml, hangs_in, caplog):
    gpus = nvml(hangs_in=hangs_in)
    server = world(gpus)
    server.exporter.poll()
    assert until(lambda: server.gpu_values() == {*GPU_METRICS})
    gpus.lost.set()

    def hangs():
        server.now += 1.0  # it asks once a second
        return gpus.hanging.is_set()

    assert until(hangs)
    for _ in range(100):
        server.step(0.2)
        server.exporter.poll()
    found = server.scrape()
    assert found["lightllm_gpu_step_duration_seconds_count", "decode", "eager"] == server.number
    assert found["lightllm_gpu_step_in_flight_seconds", "0"] == 0.0
    assert found["lightllm_otel_data_age_seconds",] == 0.0
    assert found["lightllm_otel_errors_total", "nvml"] == 1.0
    assert server.gpu_values() == set()
    assert ["NVML has not answered" in record.message for record in caplog.records] == [True]
    caplog.set_level(logging.INFO, "lightllm_otel")
    gpus.lost.clear()
    gpus.found.set()

    def back():
        server.now += 1.0
        server.exporter.poll()
        return server.gpu_values() == {*GPU_METRICS}

    assert until(back)
    assert any("NVML answers again" in record.message for record in caplog.records)


def test_nvml_that_hangs_at_its_start_keeps_nothing_from_being_read_and_learned(world, nvml):
    gpus, free = nvml(), threading.Event()

    def load():
        free.wait(60)
        return Nvml(gpus)

    server = world(gpus, load)
    server.step()
    server.exporter.poll()
    assert not server.exporter.group.expectation.begun  # its file has the link in its name
    server.now += DEADLINE_SECONDS + 1.0
    server.exporter.poll()
    assert server.exporter.group.expectation.begun
    assert server.scrape()["lightllm_otel_errors_total", "nvml"] == 1.0
    free.set()


def test_what_is_in_flight_is_asked_of_the_ring_when_somebody_asks_and_not_when_it_was_polled(world, nvml):
    """A poll that takes long must not make a step of it that takes long: it would page somebody."""
    server = world(nvml(), nvml=False)
    server.step()
    server.ring.enter(server.number, 1, server.now)  # the poll sees this step in flight, and no poll comes after it
    server.exporter.poll()
    server.now += 0.1
    assert server.scrape()["lightllm_gpu_step_in_flight_seconds", "0"] == pytest.approx(0.1)
    for _ in range(60):
        server.step()
    found = server.scrape()
    assert found["lightllm_gpu_step_in_flight_seconds", "0"] == 0.0
    assert found["lightllm_gpu_steps_total", "0"] == server.number - 1
    server.ring.enter(server.number, 1, server.now)
    server.now += 34.0
    assert server.scrape()["lightllm_gpu_step_in_flight_seconds", "0"] == pytest.approx(34.0)


def test_the_age_of_the_data_grows_while_polls_do_not_come(world, nvml):
    server = world(nvml(), nvml=False)
    server.step()
    server.exporter.poll()
    assert server.scrape()["lightllm_otel_data_age_seconds",] == 0.0
    server.now += 60.0  # an idle server's data is not old
    assert server.scrape()["lightllm_otel_data_age_seconds",] == 0.0
    for _ in range(10):
        server.step()
    server.now += 25.0
    assert server.scrape()["lightllm_otel_data_age_seconds",] == pytest.approx(25.0 + 9 * 0.5)
    server.exporter.poll()
    assert server.scrape()["lightllm_otel_data_age_seconds",] == 0.0


def test_a_reading_is_shown_while_it_is_fresh_and_not_longer():
    now = [100.0]
    hardware = Hardware(now=lambda: now[0])
    hardware.keep({0: GpuState(celsius=60)}, now[0])
    now[0] += FRESH_SECONDS
    assert hardware.states == {0: GpuState(celsius=60)}
    now[0] += 0.1
    assert hardware.states == {}


def test_the_link_is_found_out_anew_when_more_ranks_are_known(nvml):
    gpus = nvml_answers.h200(2)
    thread = NvmlThread(lambda: Nvml(gpus), Hardware(), Parts(), states=False)
    facts = gpus.facts(tp=2)
    thread.ask({0: facts[0]})
    thread.ask(dict(enumerate(facts)))
    assert until(lambda: thread.settled)
    assert thread.link.name == "nvlink4x18"


def test_a_module_that_raises_what_nobody_expects_is_counted_and_the_thread_goes_on(lenient):
    gpus, parts, hardware = FakeNvml([FakeGpu(state=dict(nvml_answers.BUSY))]), Parts(), Hardware()
    gpus.nvmlDeviceGetFieldValues = lambda handle, fields: [types.SimpleNamespace(nvmlReturn=0, value=None)]
    thread = NvmlThread(lambda: Nvml(gpus), hardware, parts)
    thread.ask({0: {"pci_bus_id": gpus.bus(0), "tp": 1}})
    assert until(lambda: parts.errors[ExporterStage.NVML] >= 1)
    del gpus.nvmlDeviceGetFieldValues
    assert until(lambda: hardware.states)


# Another package's pynvml --------------------------------------------------------------------------------------------


class Library:
    """Stands for libnvidia-ml: every function of it succeeds and leaves what it was given."""

    def __getattr__(self, name):
        return lambda *arguments: 0


@pytest.fixture(scope="module")
def another_pynvml(tmp_path_factory):
    """The pynvml of nvidia-ml-py3, which many servers have: no constant of it is younger than 2018."""
    folder = tmp_path_factory.mktemp("nvidia-ml-py3")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder),
               "nvidia-ml-py3==7.352.0"]  # fmt: skip
    done = subprocess.run(install, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        pytest.skip(f"nvidia-ml-py3 is not to be had: {done.stderr.strip()[-200:]}")
    spec = importlib.util.spec_from_file_location("another_pynvml", folder / "pynvml.py")
    module = sys.modules["another_pynvml"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.nvmlLib = Library()
    yield module
    del sys.modules["another_pynvml"]


def test_the_pynvml_of_another_package_says_what_it_can(another_pynvml):
    assert not hasattr(another_pynvml, "NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL")
    nvml = Nvml(another_pynvml)
    gpu = nvml.gpu("00000000:18:00.0")
    assert read(nvml, gpu) == GpuState(0.0, 0.0, 0, 0.0, (), None, 0)
    pair = [{"tp": 2, "pci_bus_id": f"00000000:{bus}:00.0"} for bus in ("18", "2A")]
    assert link(pair, nvml).kind in ("pcie", "unknown")


def test_an_exporter_beside_the_pynvml_of_another_package_has_no_error(world, nvml, another_pynvml):
    server = world(nvml(), lambda: Nvml(another_pynvml))
    server.step()
    server.exporter.poll()
    assert until(lambda: "lightllm_gpu_temperature_celsius" in server.gpu_values())
    found = server.scrape()
    assert ("lightllm_otel_errors_total", "nvml") not in found
    assert found["lightllm_gpu_step_duration_seconds_count", "decode", "eager"] == 1.0
