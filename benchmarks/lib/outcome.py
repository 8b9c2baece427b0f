"""The one outer form of every file in benchmarks/results: what was run, on what, all repetitions, and what is claimed."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _paths import RESULTS

PACKAGES = ("torch", "triton", "cupy-cuda13x", "cupy-cuda12x", "numpy", "lightllm", "lightllm-otel")


def write(
    benchmark: str,
    summary: dict[str, Any],
    rows: list[dict[str, Any]],
    folder: Path | None = None,
    merged: list[dict[str, Any]] | None = None,
    measured: bool = True,
) -> Path:
    """Write ``<folder>/<benchmark>.json``. ``summary`` holds the figures that are claimed, ``rows`` every repetition.

    ``merged``: earlier files of this benchmark whose rows are among these; a row says where each came from.
    ``measured``: whether there are rows of now as well; if not, date, machine and commit are the last merged file's.
    """
    content = {
        "benchmark": benchmark,
        "date": today(),
        "gpu": gpu(),
        "software": software(),
        "commit": commit(),
        "command": " ".join(["python", *(Path(word).name if Path(word).exists() else word for word in sys.argv)]),
        "summary": summary,
        "rows": [*sources(merged or ()), *(row for row in rows if "merged" not in row)],
    }
    if not measured and merged:
        content |= {key: merged[-1][key] for key in ("date", "gpu", "software", "commit")}
    path = (folder or RESULTS) / f"{benchmark}.json"
    path.parent.mkdir(parents=True, exist_ok=True)  # what took hours to measure does not fail on that
    text = json.dumps(content, indent=1, default=lambda value: value.item())  # numpy's numbers
    path.write_text(text + "\n")
    return path


def today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")


def sources(merged: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was put together: each of these files, and what it was put together from itself; once each."""
    found: dict[str, dict[str, Any]] = {}
    for part in merged:
        own = {"merged": {key: part[key] for key in ("date", "commit", "command", "gpu", "software")}}
        for row in (*(row for row in part["rows"] if "merged" in row), own):
            found.setdefault(json.dumps(row, sort_keys=True), row)
    return [*found.values()]


def gpu() -> dict[str, Any]:
    """Name, driver and clocks as nvidia-smi says; empty where there is none."""
    fields = ("name", "driver_version", "memory.total", "clocks.max.sm", "clocks.max.memory", "power.limit")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"count": len(lines), **dict(zip(fields, (word.strip() for word in lines[0].split(","))))}


def software() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    versions["lightllm NEW"] = os.environ.get("LIGHTLLM_SRC_COMMIT", "")
    return {name: version for name, version in versions.items() if version}


def commit() -> str:
    """The commit that was measured: from git, or from BENCHMARK_COMMIT where the copy has no history."""
    if "BENCHMARK_COMMIT" in os.environ:
        return os.environ["BENCHMARK_COMMIT"]
    answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return answer.stdout.strip()
