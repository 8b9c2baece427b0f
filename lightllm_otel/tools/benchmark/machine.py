"""Facts about the machine of a benchmark: clocks, power, driver, links, versions."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from typing import Any

from lightllm_otel.exporter.link import address, joined
from lightllm_otel.exporter.nvml import Nvml

PACKAGES = (
    "torch",
    "triton",
    "lightllm",
    "lightllm-otel",
    "numpy",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "vllm",
    "sgl-kernel",
)
# Prefixes of variables that can change the speed of LightLLM. Other variables can hold private values (paths, tokens).
VARIABLES = (
    "CUDA_",
    "NCCL_",
    "TORCH_",
    "PYTORCH_",
    "TRITON_",
    "LIGHTLLM_",
    "OMP_",
    "DISABLE_",
    "ENABLE_",
    "MOE_",
    "GLOO_",
)
PRIVATE = ("TOKEN", "KEY", "SECRET", "PASSWORD", "DIR", "PATH", "HOME")


def facts() -> dict[str, Any]:
    """Return the facts as JSON values; the list of GPUs is empty if NVML finds none."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(), "kernel": platform.release(), "cpus": os.cpu_count(), "packages": versions,
        "environment": {
            name: value for name, value in sorted(os.environ.items())
            if name.startswith(VARIABLES) and not any(word in name for word in PRIVATE)
        },
        **_nvml(),
    }  # fmt: skip


def _nvml() -> dict[str, Any]:
    try:
        pynvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return {"gpus": []}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {"gpus": []}
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return {
            "driver": _text(pynvml.nvmlSystemGetDriverVersion()),
            "gpus": [_gpu(pynvml, handle) for handle in handles],
            "links": _links(pynvml, handles),
        }
    finally:
        pynvml.nvmlShutdown()


def _gpu(nvml: Any, handle: Any) -> dict[str, Any]:
    """Return the facts about one GPU, without those that NVML does not provide."""
    asked: dict[str, Any] = {
        "name": lambda: _text(nvml.nvmlDeviceGetName(handle)),
        "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "sm_clock_most_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "memory_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total,
        "power_limit_watts": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
        "temperature_celsius": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
    }
    found = {}
    for name, ask in asked.items():
        try:
            found[name] = ask()
        except nvml.NVMLError:
            continue
    return found


def _links(module: Any, handles: list[Any]) -> list[list[str]]:
    """Return the kind of connection between each pair of GPUs, as a matrix."""
    nvml = Nvml(module)
    places = [nvml.ask(None, "DeviceGetPciInfo", handle) for handle in handles]
    buses = ["" if place is None else address(place) for place in places]
    numbered = list(zip(handles, buses))
    return [
        ["X" if row == column else joined(nvml, (one, two), (first, second)) for column, (two, second) in enumerate(numbered)]
        for row, (one, first) in enumerate(numbered)
    ]  # fmt: skip


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
