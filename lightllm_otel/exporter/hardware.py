"""The state of each rank's GPU, once a second: clocks, heat, power, what holds the clock down, errors of its links."""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Optional

from lightllm_otel.exporter.nvml import Nvml
from lightllm_otel.records.vocabulary import Throttle

EVERY_SECONDS = 1.0
FRESH_SECONDS = 5.0  # a reading that is older is not shown
_MOST_SECONDS = 5.0  # between two readings; after a longer pause nobody knows what was in between
# NVML's bits of clocks' event (formerly throttle) reasons.
_POWER_CAP, _SLOWDOWN, _SOFT_THERMAL, _HARD_THERMAL, _POWER_BRAKE = 0x4, 0x8, 0x20, 0x40, 0x80
# Sums over all NVLinks of a GPU; what a generation does not count is left out.
_NVLINK_ERRORS = tuple(
    f"FI_DEV_NVLINK_{kind}_ERROR_COUNT_TOTAL" for kind in ("CRC_FLIT", "CRC_DATA", "REPLAY", "RECOVERY")
)


@dataclasses.dataclass(frozen=True)
class State:
    """Of one GPU; None for what it does not say. Hertz, degrees Celsius, watts; errors since the driver was loaded."""

    sm_hertz: Optional[float] = None
    memory_hertz: Optional[float] = None
    celsius: Optional[float] = None
    watts: Optional[float] = None
    throttled: tuple[Throttle, ...] = ()
    nvlink_errors: Optional[int] = None
    pcie_errors: Optional[int] = None


def read(nvml: Nvml, gpu: Any) -> State:
    """``gpu``: a handle."""
    return State(
        _scaled(nvml.ask(None, "DeviceGetClockInfo", gpu, "CLOCK_SM"), 1e6),
        _scaled(nvml.ask(None, "DeviceGetClockInfo", gpu, "CLOCK_MEM"), 1e6),
        nvml.ask(None, "DeviceGetTemperature", gpu, "TEMPERATURE_GPU"),
        _scaled(nvml.ask(None, "DeviceGetPowerUsage", gpu), 1e-3),
        throttles(nvml.ask(0, "DeviceGetCurrentClocksThrottleReasons", gpu)),
        _nvlink_errors(nvml, gpu),
        nvml.ask(None, "DeviceGetPcieReplayCounter", gpu),
    )


def throttles(bits: int) -> tuple[Throttle, ...]:
    """What holds the clock down. That it is idle, or that its user set it, is no throttling."""
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
    """The last reading of each rank's GPU. ``throttled``: (rank, reason) → seconds, as far as readings a second apart can tell.

    ``now``: monotonic seconds. Read by one thread, shown by others.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.throttled: dict[tuple[int, Throttle], float] = defaultdict(float)
        self._now = now
        self._read: tuple[Optional[float], dict[int, State]] = None, {}

    @property
    def states(self) -> dict[int, State]:
        """The states by rank, as last read; empty when that was too long ago."""
        last, states = self._read
        return states if last is not None and self._now() - last <= FRESH_SECONDS else {}

    def poll(self, nvml: Nvml, buses: Mapping[int, str], now: float) -> None:
        """Read all GPUs, once a second at most. ``buses``: PCI address of each rank's GPU; ``now``: monotonic seconds.

        A GPU that is not there is left out.
        """
        last, _ = self._read
        if last is not None and now - last < EVERY_SECONDS:
            return
        gpus = {rank: nvml.gpu(bus) for rank, bus in buses.items()}
        self.keep({rank: read(nvml, gpu) for rank, gpu in gpus.items() if gpu is not None}, now)

    def keep(self, states: Mapping[int, State], now: float) -> None:
        """Take the states as they were at ``now``; what held a clock down has done so since the last time."""
        last, _ = self._read
        passed = 0.0 if last is None else min(now - last, _MOST_SECONDS)
        for rank, state in states.items():
            for reason in Throttle:
                self.throttled[rank, reason] += passed if reason in state.throttled else 0.0
        self._read = now, dict(states)
