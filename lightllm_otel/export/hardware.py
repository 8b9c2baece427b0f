"""The state of each rank's GPU, once a second: clocks, heat, power, what holds the clock down, errors of its links."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Optional

from lightllm_otel.export.nvml import Nvml
from lightllm_otel.vocabulary import Throttle

EVERY_SECONDS = 1.0
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
    fields = [nvml.constant(name) for name in _NVLINK_ERRORS]
    values: list[Any] = nvml.ask([], "DeviceGetFieldValues", gpu, fields)
    counted = [int(value.value.ullVal) for value in values if value.nvmlReturn == 0]
    return sum(counted) if counted else None


class Hardware:
    """``states`` by rank, as last read; ``throttled``: (rank, reason) → seconds, as far as readings a second apart can tell."""

    def __init__(self) -> None:
        self.states: dict[int, State] = {}
        self.throttled: dict[tuple[int, Throttle], float] = defaultdict(float)
        self._last: Optional[float] = None

    def poll(self, nvml: Nvml, buses: Mapping[int, str], now: float) -> None:
        """``buses``: PCI address of each rank's GPU; ``now``: monotonic seconds."""
        if self._last is not None and now - self._last < EVERY_SECONDS:
            return
        states = {}
        for rank, bus in buses.items():
            gpu = nvml.gpu(bus)
            if gpu is None:
                self.states.pop(rank, None)
                continue
            states[rank] = read(nvml, gpu)
        self.keep(states, now)

    def keep(self, states: Mapping[int, State], now: float) -> None:
        """The states as they are at ``now``; what held a clock down has done so since the last time."""
        passed = 0.0 if self._last is None else min(now - self._last, _MOST_SECONDS)
        self._last = now
        for rank, state in states.items():
            self.states[rank] = state
            for reason in Throttle:
                self.throttled[rank, reason] += passed if reason in state.throttled else 0.0
