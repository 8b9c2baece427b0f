"""NVML's answers on machines with known links, in the place of pynvml.

Put together from NVIDIA's documentation and public outputs of ``nvidia-smi topo -m`` and ``nvidia-smi nvlink``; the one of
two H200 is the same by NVML's fields.
"""

from __future__ import annotations

import dataclasses
import types

BUSY = {
    "sm_mhz": 1980, "memory_mhz": 3201, "celsius": 61, "milliwatts": 655_250, "reasons": 0, "replays": 0,
    "nvlink_errors": {38: 0, 45: 0, 52: 0, 59: 0},
}  # fmt: skip


class NVMLError(Exception):
    pass


@dataclasses.dataclass
class FakeGpu:
    """``ends``: where each NVLink leads: another GPU's number, or ``switch``. ``state`` is what can change."""

    ends: tuple = ()
    version: int = 0
    capability: tuple = (8, 0)
    pcie: tuple = (4, 16)
    state: dict = dataclasses.field(default_factory=dict)


class FakeNvml:
    """``paths``: (lower number, higher number) → NVML's level of the topology; ``far`` for all others."""

    NVML_NVLINK_DEVICE_TYPE_SWITCH = 2
    NVML_P2P_CAPS_INDEX_NVLINK = 2
    NVML_P2P_STATUS_OK = 0
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL = 38
    NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL = 45
    NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL = 52
    NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL = 59

    def __init__(self, gpus, far=50, paths=None):
        self.gpus, self.far, self.paths = list(gpus), far, paths or {}

    def bus(self, number):
        return f"00000000:{0x10 + number:02X}:00.0"

    def facts(self, tp=None, numbers=None, **more):
        numbers = range(len(self.gpus)) if numbers is None else numbers
        return [{"tp": tp or len(self.gpus), "pci_bus_id": self.bus(number), **more} for number in numbers]

    def nvmlDeviceGetHandleByPciBusId(self, bus):
        number = int(bus.decode().split(":")[1], 16) - 0x10
        if not 0 <= number < len(self.gpus):
            raise NVMLError("not found")
        return number

    def nvmlDeviceGetNvLinkState(self, handle, link):
        if not self.gpus[handle].ends:
            raise NVMLError("not supported")
        if link >= len(self.gpus[handle].ends):
            raise NVMLError("invalid argument")
        return int(self.gpus[handle].ends[link] is not None)

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, handle, link):
        return 2 if self.gpus[handle].ends[link] == "switch" else 0

    def nvmlDeviceGetNvLinkRemotePciInfo(self, handle, link):
        return types.SimpleNamespace(domain=0, bus=0x10 + self.gpus[handle].ends[link], device=0)

    def nvmlDeviceGetNvLinkVersion(self, handle, link):
        return self.gpus[handle].version

    def nvmlDeviceGetCudaComputeCapability(self, handle):
        return self.gpus[handle].capability

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle):
        return self.gpus[handle].pcie[0]

    def nvmlDeviceGetCurrPcieLinkWidth(self, handle):
        return self.gpus[handle].pcie[1]

    def nvmlDeviceGetP2PStatus(self, one, other, index):
        ends = self.gpus[one].ends
        return 0 if other in ends or "switch" in ends else 5

    def nvmlDeviceGetTopologyCommonAncestor(self, one, other):
        return self.paths.get((min(one, other), max(one, other)), self.far)

    # State -----------------------------------------------------------------------------------------------------------

    def _state(self, handle, name):
        if name not in self.gpus[handle].state:
            raise NVMLError("not supported")
        return self.gpus[handle].state[name]

    def nvmlDeviceGetClockInfo(self, handle, clock):
        return self._state(handle, {1: "sm_mhz", 2: "memory_mhz"}[clock])

    def nvmlDeviceGetTemperature(self, handle, sensor):
        return self._state(handle, "celsius")

    def nvmlDeviceGetPowerUsage(self, handle):
        return self._state(handle, "milliwatts")

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return self._state(handle, "reasons")

    def nvmlDeviceGetPcieReplayCounter(self, handle):
        return self._state(handle, "replays")

    def nvmlDeviceGetFieldValues(self, handle, fields):
        counts = self._state(handle, "nvlink_errors")
        value = lambda number: types.SimpleNamespace(ullVal=number)  # noqa: E731
        return [
            types.SimpleNamespace(
                fieldId=field, nvmlReturn=0 if field in counts else 3, value=value(counts.get(field, 0))
            )
            for field in fields
        ]


def a100_sxm(count=8):
    return FakeNvml([FakeGpu(("switch",) * 12, version=4, capability=(8, 0))] * count)


def h200(count=8):
    return FakeNvml([FakeGpu(("switch",) * 18, version=6, capability=(9, 0), pcie=(5, 16))] * count)


def h800(count=8):
    return FakeNvml([FakeGpu(("switch",) * 8, version=6, capability=(9, 0), pcie=(5, 16))] * count)


def a40_pairs(count=4):
    """0–1 and 2–3 have a bridge of four links each; pairs share a socket."""
    paths = {(number, number + 1): 40 for number in range(0, count, 2)}
    return FakeNvml(
        [FakeGpu((number ^ 1,) * 4, version=5, capability=(8, 6)) for number in range(count)], far=50, paths=paths
    )


def v100_cube():
    """DGX-1V: each GPU has six links to four others, and some pairs have none."""
    ends = [
        (1, 2, 3, 3, 4, 4), (0, 2, 2, 3, 5, 5), (0, 1, 1, 3, 3, 6), (0, 0, 1, 2, 2, 7),
        (0, 0, 5, 6, 7, 7), (1, 1, 4, 6, 6, 7), (2, 4, 5, 5, 7, 7), (3, 4, 4, 5, 6, 6),
    ]  # fmt: skip
    return FakeNvml([FakeGpu(each, version=2, capability=(7, 0), pcie=(3, 16)) for each in ends])


def t4(count=4, path=30):
    return FakeNvml([FakeGpu(capability=(7, 5), pcie=(3, 16))] * count, far=path)
