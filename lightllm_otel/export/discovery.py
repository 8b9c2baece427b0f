"""A file per group that Prometheus' file_sd finds, and our own commands too."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from lightllm_otel.export.server import MetricsServer

TARGETS = "targets"
_ANY = ("0.0.0.0", "::", "")


def target_path(folder: Path) -> Path:
    """``DIR/targets/GROUP.json`` for the group's folder ``DIR/GROUP``."""
    return folder.parent / TARGETS / f"{folder.name}.json"


def publish(folder: Path, server: MetricsServer, facts: dict[str, Any]) -> str:
    """Write the group's file, whole or not at all; returns the address in it."""
    address = server.address if server.host not in _ANY else f"{socket.gethostname()}:{server.port}"
    # No job label: that is the name that the user gives in Prometheus' own configuration.
    labels = {"model": str(facts.get("model", "")), "lightllm_group": folder.name}
    path = target_path(folder)
    path.parent.mkdir(mode=0o755, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps([{"targets": [address], "labels": labels}]) + "\n")
    new.replace(path)
    return address


def withdraw(folder: Path) -> None:
    target_path(folder).unlink(missing_ok=True)


def targets(directory: Path) -> dict[str, str]:
    """Group → address of every exporter that has announced itself in this folder."""
    found = {}
    for path in sorted((directory / TARGETS).glob("*.json")):
        try:
            found[path.stem] = str(json.loads(path.read_text())[0]["targets"][0])
        except (OSError, ValueError, LookupError):
            continue  # being replaced, or not ours
    return found
