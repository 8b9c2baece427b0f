"""How the GPUs of a group are connected, from NVML; never needed, never fatal."""

from __future__ import annotations

from typing import Any


def link(facts: list[dict[str, Any]]) -> str:
    """``none`` for one GPU, ``nvlink`` or ``pcie`` for several, ``unknown`` where NVML does not say.

    ``facts``: of each rank; uses ``tp`` and ``pci_bus_id``.
    """
    buses = sorted({str(rank["pci_bus_id"]) for rank in facts if rank.get("pci_bus_id")})
    if facts and int(facts[0].get("tp", 1)) == 1:
        return "none"
    if len(buses) < 2:
        return "unknown"
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - no driver, no library, no permission: all the same to us
        return "unknown"
    try:
        handles = [pynvml.nvmlDeviceGetHandleByPciBusId(bus.encode()) for bus in buses]
        first, second = handles[0], handles[1]
        status = pynvml.nvmlDeviceGetP2PStatus(first, second, pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
        return "nvlink" if status == pynvml.NVML_P2P_STATUS_OK else "pcie"
    except Exception:  # noqa: BLE001 - as above
        return "unknown"
    finally:
        pynvml.nvmlShutdown()
