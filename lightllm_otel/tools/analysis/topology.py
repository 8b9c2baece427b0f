"""Link between the GPUs of a recorded run, as far as its ranks and its benchmark say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightllm_otel.exporter.link import NVLINK, PCIE, SAME_GPU


def link_of(facts: Mapping[int, Mapping[str, Any]], machine: Any) -> str:
    """Return ``same-gpu``, ``nvlink`` or ``pcie``; empty if it is unknown. ``machine``: of ``bench.json``.

    A benchmark has noted all GPUs of its machine, not which of them it used: it counts where all pairs are joined alike.
    """
    buses = [str(rank["pci_bus_id"]) for rank in facts.values() if rank.get("pci_bus_id")]
    if len(set(buses)) < len(buses):
        return SAME_GPU
    if len(buses) < 2 or not isinstance(machine, dict):
        return ""
    environment = machine.get("environment")
    if isinstance(environment, dict) and environment.get("NCCL_P2P_DISABLE") == "1":
        return PCIE
    rows = machine.get("links")
    rows = rows if isinstance(rows, list) and all(isinstance(row, list) for row in rows) else []
    pairs = {str(word).startswith("NV") for row in rows for word in row if word not in ("X", "?")}
    return "" if len(pairs) != 1 else NVLINK if pairs.pop() else PCIE
