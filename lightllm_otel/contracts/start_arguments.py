"""Start arguments of a LightLLM server: its name, and the address that identifies its group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNNAMED = (None, "", "default_model_name")  # LightLLM's --model_name where the user gives none


def meeting_place(start: Mapping[str, Any]) -> tuple[str, int]:
    """Return the host and port that identify a server's group, from its start arguments.

    A single server is identified by its HTTP port, which is unique on a machine and stays the same after a restart. A group of
    several servers is identified by the address of its process group, which all of them have. (Since July 2026 a single server
    has no such address, and since January 2026 it uses another free port at each start.)
    """
    nccl = int(start.get("nccl_port") or 0)
    if "nnodes" not in start and nccl:  # model processes of 0.0.1 do not know the HTTP port
        return "127.0.0.1", nccl
    if int(start.get("nnodes") or 1) > 1 and nccl:
        return str(start.get("nccl_host") or "127.0.0.1"), nccl
    return "127.0.0.1", int(start.get("port") or nccl)
