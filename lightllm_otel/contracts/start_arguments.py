"""What the arguments that a server was started with say about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNNAMED = (None, "", "default_model_name")  # LightLLM's --model_name where the user gives none


def meeting_place(start: Mapping[str, Any]) -> tuple[str, int]:
    """Return host and port that name a server's group, by the arguments that it was started with.

    One server is named by its HTTP port: that is its own on a machine, and the same after a restart. A group of several
    servers is named by where its process group meets, which all of them are told. (Since July 2026 a server alone is told
    none, and since January 2026 it takes another free port at each start.)
    """
    nccl = int(start.get("nccl_port") or 0)
    if "nnodes" not in start and nccl:  # 0.0.1, whose model processes are told no HTTP port
        return "127.0.0.1", nccl
    if int(start.get("nnodes") or 1) > 1 and nccl:
        return str(start.get("nccl_host") or "127.0.0.1"), nccl
    return "127.0.0.1", int(start.get("port") or nccl)
