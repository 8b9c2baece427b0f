"""State of each rank's GPU, read once a second: clocks, temperature, power, throttling and link errors."""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Optional

from lightllm_otel.exporter.nvml import Nvml
from lightllm_otel.records.vocabulary import Throttle

EVERY_SECONDS = 1.0
FRESH_SECONDS = 5.0  # an older reading is not shown
_MOST_SECONDS = 5.0  # counted between two readings; nothing is known about a longer pause
# Bits of NVML's clock event reasons, formerly throttle reasons (nvml.h).
_POWER_CAP, _SLOWDOWN, _SOFT_THERMAL, _HARD_THERMAL, _POWER_BRAKE = 0x4, 0x8, 0x20, 0x40, 0x80
# Sums over all NVLinks of a GPU. A generation may not have all of them.
_NVLINK_ERRORS = tuple(
    f"FI_DEV_NVLINK_{kind}_ERROR_COUNT_TOTAL" for kind in ("CRC_FLIT", "CRC_DATA", "REPLAY", "RECOVERY")
)


@dataclasses.dataclass(frozen=True)
class GpuState:
    """State of one GPU in hertz, degrees Celsius and watts. Errors count since the driver was loaded; None means unknown."""

    sm_hertz: Optional[float] = None
    memory_hertz: Optional[float] = None
    celsius: Optional[float] = None
    watts: Optional[float] = None
    throttled: tuple[Throttle, ...] = ()
    nvlink_errors: Optional[int] = None
    pcie_errors: Optional[int] = None


def read(nvml: Nvml, gpu: Any) -> GpuState:
    """Read the state of a GPU. ``gpu`` is NVML's handle."""
    return GpuState(
        _scaled(nvml.ask(None, "DeviceGetClockInfo", gpu, "CLOCK_SM"), 1e6),
        _scaled(nvml.ask(None, "DeviceGetClockInfo", gpu, "CLOCK_MEM"), 1e6),
        nvml.ask(None, "DeviceGetTemperature", gpu, "TEMPERATURE_GPU"),
        _scaled(nvml.ask(None, "DeviceGetPowerUsage", gpu), 1e-3),
        throttles(nvml.ask(0, "DeviceGetCurrentClocksThrottleReasons", gpu)),
        _nvlink_errors(nvml, gpu),
        nvml.ask(None, "DeviceGetPcieReplayCounter", gpu),
    )


def throttles(bits: int) -> tuple[Throttle, ...]:
    """Return what throttles the clock. An idle GPU, or a clock that a user has set, is not throttled."""
    found = []
    if bits & (_SOFT_THERMAL | _HARD_THERMAL):
        found.append(Throttle.THERMAL)
    if bits & (_POWER_CAP | _POWER_BRAKE):
        found.append(Throttle.POWER)
    if bits & _SLOWDOWN and not bits & (_HARD_THERMAL | _POWER_BRAKE):
        found.append(Throttle.HARDWARE)
    return tuple(found)


def _scaled(value: Optional[float], factor: float) -> Optional[float]:
    return None if value is None else value * factor


def _nvlink_errors(nvml: Nvml, gpu: Any) -> Optional[int]:
    fields = [field for field in map(nvml.constant, _NVLINK_ERRORS) if field is not None]
    values: list[Any] = nvml.ask([], "DeviceGetFieldValues", gpu, fields) if fields else []
    counted = [int(value.value.ullVal) for value in values if value.nvmlReturn == 0]
    return sum(counted) if counted else None


class Hardware:
    """Last reading of each rank's GPU. ``throttled`` is (rank, reason) → seconds, with a resolution of one second.

    ``now`` returns monotonic seconds. One thread reads, others show.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.throttled: dict[tuple[int, Throttle], float] = defaultdict(float)
        self._now = now
        self._read: tuple[Optional[float], dict[int, GpuState]] = None, {}

    @property
    def states(self) -> dict[int, GpuState]:
        """Return the last states by rank; empty if they are older than :data:`FRESH_SECONDS`."""
        last, states = self._read
        return states if last is not None and self._now() - last <= FRESH_SECONDS else {}

    def poll(self, nvml: Nvml, buses: Mapping[int, str], now: float) -> None:
        """Read all GPUs, at most once a second. ``buses`` is the PCI address of each rank's GPU, ``now`` monotonic seconds.

        GPUs that NVML does not know are left out.
        """
        last, _ = self._read
        if last is not None and now - last < EVERY_SECONDS:
            return
        gpus = {rank: nvml.gpu(bus) for rank, bus in buses.items()}
        self.keep({rank: read(nvml, gpu) for rank, gpu in gpus.items() if gpu is not None}, now)

    def keep(self, states: Mapping[int, GpuState], now: float) -> None:
        """Keep the states at ``now``. A reason that is set now is counted for the whole time since the last reading."""
        last, _ = self._read
        passed = 0.0 if last is None else min(now - last, _MOST_SECONDS)
        for rank, state in states.items():
            for reason in Throttle:
                self.throttled[rank, reason] += passed if reason in state.throttled else 0.0
        self._read = now, dict(states)
