"""Link between the GPUs of a group, from NVML: its kind, its bandwidth and its path."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from lightllm_otel.exporter.nvml import Nvml
from lightllm_otel.roofline import link_rates

NONE, NVLINK, PCIE, SAME_GPU, NETWORK, UNKNOWN = "none", "nvlink", "pcie", "same-gpu", "network", "unknown"
# Levels of NVML's topology by their names in nvidia-smi. A higher level is a longer path between two GPUs.
PATHS = {0: "X", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
MOST_NVLINKS = 36


@dataclasses.dataclass(frozen=True)
class Ports:
    """Ports of one GPU: NVLinks to the group or to a switch, and PCI Express. Unknown numbers are 0."""

    nvlinks: int = 0
    nvlink_generation: int = 0
    capability: tuple[int, int] = (0, 0)
    pcie_generation: int = 0
    pcie_width: int = 0

    @property
    def nvlink(self) -> str:
        return f"{self.nvlink_generation}x{self.nvlinks}" if self.nvlinks else NONE

    @property
    def pcie(self) -> str:
        return f"{self.pcie_generation}x{self.pcie_width}" if self.pcie_width else UNKNOWN

    @property
    def nvlink_bytes_per_second(self) -> float:
        return link_rates.nvlink_bytes_per_second(self.nvlink_generation, self.nvlinks, self.capability)

    @property
    def pcie_bytes_per_second(self) -> float:
        return link_rates.pcie_bytes_per_second(self.pcie_generation, self.pcie_width)


@dataclasses.dataclass(frozen=True)
class GroupLink:
    """Link of a group. ``name`` is a label such as ``nvlink4x18`` or ``pcie4x16-SYS``.

    ``bytes_per_second`` is that of the slowest GPU, both directions together, or 0 if unknown. ``path`` is the longest path
    between two of the GPUs. ``ports`` are by PCI address.
    """

    kind: str
    name: str
    bytes_per_second: float = 0.0
    path: str = UNKNOWN
    ports: Mapping[str, Ports] = dataclasses.field(default_factory=dict)


def link(facts: Sequence[Mapping[str, Any]], nvml: Optional[Nvml]) -> GroupLink:
    """Return the link of a group. ``facts`` are those of the known ranks: ``tp``, ``nodes`` and ``pci_bus_id`` are used."""
    buses = [str(rank["pci_bus_id"]) for rank in facts if rank.get("pci_bus_id")]
    handles = {bus: nvml.gpu(bus) for bus in sorted(set(buses))} if nvml is not None else {}
    if nvml is None or not handles or None in handles.values():
        kind = NONE if facts and int(facts[0].get("tp", 1)) == 1 else UNKNOWN
        return GroupLink(kind, kind)
    ports = {bus: _ports(nvml, handle, list(handles)) for bus, handle in handles.items()}
    path = _longest(nvml, list(handles.values()))
    kind = _kind(nvml, facts, buses, list(handles.values()))
    slowest = min(ports.values(), key=lambda each: (each.nvlink_bytes_per_second, each.pcie_bytes_per_second))
    if kind == NVLINK:
        return GroupLink(kind, f"nvlink{slowest.nvlink}", slowest.nvlink_bytes_per_second, path, ports)
    if kind == PCIE and all(each.pcie_width for each in ports.values()):
        slowest = min(ports.values(), key=lambda each: each.pcie_bytes_per_second)
        return GroupLink(kind, f"pcie{slowest.pcie}-{path}", slowest.pcie_bytes_per_second, path, ports)
    kind = UNKNOWN if kind == PCIE else kind
    return GroupLink(kind, kind, 0.0, path, ports)


def joined(nvml: Nvml, pair: tuple[Any, Any], buses: tuple[str, str]) -> str:
    """Return how two GPUs are joined, as in ``nvidia-smi topo --matrix``: NV18 for 18 NVLinks, otherwise PIX to SYS."""
    one, two = pair
    if _is_near(nvml, one, two):
        numbers = [number for number in range(MOST_NVLINKS) if nvml.ask(0, "DeviceGetNvLinkState", one, number)]
        return f"NV{sum(_leads_into(nvml, one, number, buses) for number in numbers)}"
    return {**PATHS, 0: "internal"}.get(nvml.ask(-1, "DeviceGetTopologyCommonAncestor", one, two), "?")


def _is_near(nvml: Nvml, one: Any, other: Any) -> bool:
    """Return True if NVLink joins two GPUs, directly or through a switch."""
    said: Any = nvml.ask(None, "DeviceGetP2PStatus", one, other, "P2P_CAPS_INDEX_NVLINK")
    return said is not None and bool(said == nvml.constant("P2P_STATUS_OK"))


def _kind(nvml: Nvml, facts: Sequence[Mapping[str, Any]], buses: Sequence[str], handles: Sequence[Any]) -> str:
    ranks = int(facts[0].get("tp", 1))
    if ranks == 1:
        return NONE
    if len(facts) < ranks:
        return NETWORK if int(facts[0].get("nodes", 1)) > 1 else UNKNOWN
    if len(set(buses)) < len(buses):
        return SAME_GPU
    return NVLINK if _has_ring(nvml, handles) else PCIE


def _ports(nvml: Nvml, handle: Any, group: Sequence[str]) -> Ports:
    links = [number for number in range(MOST_NVLINKS) if nvml.ask(0, "DeviceGetNvLinkState", handle, number)]
    links = [number for number in links if _leads_into(nvml, handle, number, group)]
    version = nvml.ask(0, "DeviceGetNvLinkVersion", handle, links[0]) if links else 0
    # The current generation drops while a GPU is idle, so the highest one is taken. The current width is that of the slot.
    width = nvml.ask(0, "DeviceGetCurrPcieLinkWidth", handle)
    major, minor = nvml.ask((0, 0), "DeviceGetCudaComputeCapability", handle)
    return Ports(
        nvlinks=len(links),
        nvlink_generation=link_rates.NVLINK_GENERATION.get(int(version), 0),
        capability=(major, minor),
        pcie_generation=nvml.ask(0, "DeviceGetMaxPcieLinkGeneration", handle),
        pcie_width=width or nvml.ask(0, "DeviceGetMaxPcieLinkWidth", handle),
    )


def _leads_into(nvml: Nvml, handle: Any, number: int, group: Sequence[str]) -> bool:
    """Return True if this NVLink ends at a switch or in the group, or if its end is unknown."""
    end: Any = nvml.ask(None, "DeviceGetNvLinkRemoteDeviceType", handle, number)
    if end is not None and end == nvml.constant("NVLINK_DEVICE_TYPE_SWITCH"):
        return True
    remote: Any = nvml.ask(None, "DeviceGetNvLinkRemotePciInfo", handle, number)
    if remote is None:
        return True
    return len(group) == 1 or address(remote) in group


def address(place: Any) -> str:
    """Return the PCI address in an ``nvmlPciInfo_t`` of NVML, as CUDA writes it."""
    return f"{place.domain:08X}:{place.bus:02X}:{place.device:02X}.0"


def _has_ring(nvml: Nvml, handles: Sequence[Any]) -> bool:
    """Return True if NVLink alone connects all GPUs in a ring. Four A40 are two pairs and have none."""
    near = {
        (one, other)
        for one, other in itertools.permutations(range(len(handles)), 2)
        if _is_near(nvml, handles[one], handles[other])
    }

    def goes_on(at: int, left: frozenset[int]) -> bool:
        if not left:
            return len(handles) == 2 or (at, 0) in near
        return any((at, each) in near and goes_on(each, left - {each}) for each in left)

    return goes_on(0, frozenset(range(1, len(handles))))


def _longest(nvml: Nvml, handles: Sequence[Any]) -> str:
    levels = [
        nvml.ask(-1, "DeviceGetTopologyCommonAncestor", one, other) for one, other in itertools.combinations(handles, 2)
    ]
    return NONE if not levels else PATHS.get(max(levels), UNKNOWN) if min(levels) >= 0 else UNKNOWN
