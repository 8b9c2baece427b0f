"""What the GPUs say of themselves, and what becomes of it."""

import dataclasses
import time

import nvml_answers
import pytest
import records
from nvml_answers import FakeGpu, FakeNvml

from lightllm_otel.exporter.exporter import Exporter
from lightllm_otel.exporter.hardware import GpuState, Hardware, read, throttles
from lightllm_otel.exporter.nvml import Nvml
from lightllm_otel.records.folder import group_folder, ring_path
from lightllm_otel.records.vocabulary import Throttle
from lightllm_otel.records.writer import RingWriter
from lightllm_otel.settings import Settings


def machine(**state):
    return FakeNvml([FakeGpu(state={**nvml_answers.BUSY, **state})])


@pytest.mark.parametrize(
    ("bits", "reasons"),
    [
        (0x0, ()),
        (0x1 | 0x2, ()),  # idle, and a clock that its user has set
        (0x4, (Throttle.POWER,)),
        (0x20, (Throttle.THERMAL,)),
        (0x8 | 0x40, (Throttle.THERMAL,)),
        (0x8 | 0x80, (Throttle.POWER,)),
        (0x8, (Throttle.HARDWARE,)),
        (0x20 | 0x4, (Throttle.THERMAL, Throttle.POWER)),
    ],
)
def test_throttling_is_what_the_user_did_not_ask_for(bits, reasons):
    assert throttles(bits) == reasons


def test_a_gpu_is_read_in_plain_units():
    nvml = Nvml(machine(reasons=0x40, replays=3, nvlink_errors={38: 5, 52: 2}))
    assert read(nvml, 0) == GpuState(1980e6, 3201e6, 61, 655.25, (Throttle.THERMAL,), 7, 3)


def test_what_a_gpu_does_not_say_is_left_out():
    assert read(Nvml(FakeNvml([FakeGpu()])), 0) == GpuState()


def test_throttled_time_adds_up_between_readings_a_second_apart():
    gpus, hardware = machine(reasons=0x4), Hardware()
    for now in (0.0, 0.4, 1.0, 1.9, 2.0):
        hardware.poll(Nvml(gpus), {0: gpus.bus(0)}, now)
    gpus.gpus[0].state["reasons"] = 0
    hardware.poll(Nvml(gpus), {0: gpus.bus(0)}, 3.0)
    assert hardware.throttled == {(0, Throttle.POWER): 2.0, (0, Throttle.THERMAL): 0.0, (0, Throttle.HARDWARE): 0.0}


def test_a_long_pause_between_readings_is_not_all_throttled():
    gpus, hardware = machine(reasons=0x4), Hardware()
    for now in (0.0, 3600.0):
        hardware.poll(Nvml(gpus), {0: gpus.bus(0)}, now)
    assert hardware.throttled[0, Throttle.POWER] == 5.0


def test_a_gpu_that_fell_off_the_bus_is_no_longer_shown():
    gpus, hardware = machine(), Hardware(now=lambda: 1.0)
    hardware.poll(Nvml(gpus), {0: gpus.bus(0)}, 0.0)
    assert set(hardware.states) == {0}
    bus = gpus.bus(0)
    gpus.gpus.clear()
    hardware.poll(Nvml(gpus), {0: bus}, 1.0)
    assert hardware.states == {}


@pytest.mark.parametrize(("setting", "shown"), [("on", True), ("off", False)])
def test_the_exporter_reads_the_gpus_unless_it_is_told_not_to(tmp_path, setting, shown):
    gpus = machine()
    folder = group_folder(tmp_path, "group")
    settings = dataclasses.replace(Settings.from_env({"LIGHTLLM_OTEL_NVML": setting}), state=None)
    assert settings.problems == ()
    exporter = Exporter(folder, settings, load_nvml=lambda: Nvml(gpus))
    ring = RingWriter(ring_path(folder, 0), 1)
    ring.describe({**records.FACTS, "pci_bus_id": gpus.bus(0)})
    for _ in range(50):  # NVML is asked on a thread of its own
        exporter.poll()
        time.sleep(0.02)
    try:
        value = exporter._registry.get_sample_value("lightllm_gpu_temperature_celsius", {"rank": "0"})
        info = {"rank": "0", "uuid": "GPU-1", "name": "NVIDIA H200", "nvlink": "none", "pcie": "4x16", "path": "none"}
        assert exporter._registry.get_sample_value("lightllm_gpu_info", info) == 1.0
    finally:
        exporter.close()
    assert value == (61.0 if shown else None)
