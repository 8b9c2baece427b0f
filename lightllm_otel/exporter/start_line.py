"""The line in the server's log that says where to find the metrics."""

from __future__ import annotations

from typing import Any

from lightllm_otel import __version__
from lightllm_otel.reduce.group import Group


def start_line(group: Group, address: str) -> str:
    """Return the line: addresses, operators, level, CUDA graphs and the next command."""
    facts, slots = group.facts(), group.slots()
    missing = [operator for operator, found in slots.items() if not found]
    parts = [
        f"lightllm-otel {__version__}: http://{address}/metrics, live page http://{address}/",
        f"{len(slots) - len(missing)} operators, missing: {', '.join(missing) or 'none'}",
        f"level {facts.get('level')}, 1 decode step in {facts.get('sample_every')}",
        f"CUDA graphs: {graphs_line(facts.get('graphs') or {})}",
        "next: lightllm-otel top",
    ]
    return " · ".join(parts)


def graphs_line(graphs: dict[str, Any]) -> str:
    """Return the state of the instrumented graphs in words."""
    if graphs.get("state") == "armed":
        return (
            f"{len(graphs['sizes'])} instrumented graphs ({graphs['bytes'] / 2**20:.0f} MiB, {graphs['seconds']:.1f} s)"
        )
    return f"step-level only ({graphs.get('reason') or 'no graphs'})"
