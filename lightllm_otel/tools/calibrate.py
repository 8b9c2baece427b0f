"""``lightllm-otel calibrate``: measure what this machine reaches, as a file for ``theory --gpu`` in place of data sheets."""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from lightllm_otel.roofline import links
from lightllm_otel.tools.analysis import latency
from lightllm_otel.tools.benchmark import machine
from lightllm_otel.tools.table import table
from lightllm_otel.tools.units import duration, rate

LIMIT_SECONDS = 900.0
LARGEST = {"cuda": 1 << 30, "cpu": 1 << 22}
MATRIX = {"cuda": 8192, "cpu": 512}
COPY = {"cuda": 1 << 30, "cpu": 1 << 24}


class CannotMeasure(RuntimeError):
    """Raised if a rank fails; the message has the last line that it printed."""


def calibrate(given: argparse.Namespace) -> int:
    """Measure this machine. Return exit status 0, or 1 with one sentence if it cannot be measured."""
    try:
        if given.ranks < 1:
            raise CannotMeasure(f"--ranks {given.ranks}: pass a whole number of at least 1")
        data = described(measure(given.device, given.ranks), given.device, given.ranks)
        if given.out is not None:
            given.out.write_text(json.dumps(data, indent=1) + "\n")
    except CannotMeasure as problem:
        print(f"lightllm-otel calibrate: {problem}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"lightllm-otel calibrate: {given.out} cannot be written ({error.strerror})", file=sys.stderr)
        return 1
    print(json.dumps(data, indent=1) if given.json else render(data, given.out))
    return 0


def sizes(device: str) -> list[int]:
    """Return the payloads in bytes: 1 KiB to 1 GiB by factors of four (to 4 MiB on a CPU)."""
    return [1024 * 4**power for power in range(11) if 1024 * 4**power <= LARGEST[device]]


def measure(device: str, ranks: int) -> dict[str, Any]:
    """Start the ranks, and return the measurements of rank 0. Raises CannotMeasure."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LIGHTLLM_OTEL": "0"}
    command = [
        sys.executable, "-m", "lightllm_otel.tools.benchmark.peaks", "--device", device, "--ranks", str(ranks), "--matrix",
        str(MATRIX[device]), "--copy", str(COPY[device]), "--sizes", *map(str, sizes(device)), "--rank",
    ]  # fmt: skip
    processes = [
        subprocess.Popen(
            [*command, str(rank)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(ranks)
    ]
    try:
        said = [process.communicate(timeout=LIMIT_SECONDS) for process in processes]
    except subprocess.TimeoutExpired as error:
        raise CannotMeasure(f"the ranks have not finished within {LIMIT_SECONDS:.0f} s") from error
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, (_, problem) in zip(processes, said):
        if process.returncode:
            last = next((line for line in reversed(problem.splitlines()) if line.strip()), "it printed nothing")
            raise CannotMeasure(f"a rank ended with status {process.returncode}: {last.strip()[:300]}")
    found: dict[str, Any] = json.loads(said[0][0].strip().splitlines()[-1])
    return found


def described(found: dict[str, Any], device: str, ranks: int) -> dict[str, Any]:
    """Return the measurements and what follows from them, in the format of ``theory --gpu FILE``.

    The bandwidth of a link counts both directions, in bytes per second.
    """
    fits = {name: _fit(name, rows, ranks) for name, rows in found.get("collectives", {}).items()}
    both_ways = 2 * fits["all_reduce"]["beta_bytes_per_second"] if "all_reduce" in fits else 0.0
    about = machine.facts()
    on_nvlink = device == "cuda" and _joined_by_nvlink(found, both_ways)
    return {
        "kind": "calibrate", "name": f"{found['name']} (measured)", "device": device, "ranks": ranks,
        "flops": found["flops"], "memory_bytes_per_second": found["memory_bytes_per_second"],
        "memory_bytes": found["memory_bytes"],
        "nvlink_bytes_per_second": both_ways if on_nvlink else 0.0, "nvlink_group": ranks if on_nvlink else 1,
        "pcie_bytes_per_second": both_ways,
        "collectives": fits, "pairs": found.get("pairs", []), "links": about.get("links", []), "machine": about,
    }  # fmt: skip


def _joined_by_nvlink(found: dict[str, Any], both_ways: float) -> bool:
    """Return whether NVLink connects the ranks: they reach more than the 64 GB/s one way of PCI Express 5.0 x16."""
    slowest = min((pair["bytes_per_second"] for pair in found.get("pairs", [])), default=0.0)
    return max(slowest, both_ways / 2) > 70e9


def _fit(name: str, rows: list[dict[str, float]], ranks: int) -> dict[str, Any]:
    moved = [links.traffic(name, row["payload_bytes"], ranks) for row in rows]
    fit = latency.fit(moved, [row["seconds"] for row in rows])
    return {
        "alpha_seconds": fit.alpha, "beta_bytes_per_second": _finite(fit.beta), "worst_relative_error": fit.worst,
        "takeover_payload_bytes": _finite(fit.takeover_bytes / links.traffic(name, 1.0, ranks)),
        "rows": [
            {**row, "bus_bytes_per_second": sent / row["seconds"]} for row, sent in zip(rows, moved)
        ],
    }  # fmt: skip


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def render(data: dict[str, Any], out: Path | None) -> str:
    """Return the measurements as text. ``out``: the file to which they were written."""
    lines = [
        f"{data['name']}, {data['ranks']} rank{'s' if data['ranks'] > 1 else ''}: matrix product {rate(data['flops'], 'FLOP')}, "
        f"copy {rate(data['memory_bytes_per_second'], 'B')} read and written",
    ]
    for name, fit in data["collectives"].items():
        beta, worst = rate(fit["beta_bytes_per_second"], "B"), 100 * fit["worst_relative_error"]
        lines.append(
            f"{name}: α {duration(fit['alpha_seconds'])}, β {beta} one way; bandwidth takes over at "
            f"{fit['takeover_payload_bytes'] / 1e3:.3g} kB; largest error of the fit {worst:.0f} %"
        )
        cells = [
            [f"{row['payload_bytes']:.0f} B", duration(row["seconds"]), f"{rate(row['bus_bytes_per_second'], 'B')} bus"]
            for row in fit["rows"]
        ]
        lines += table(cells, ">>>", (16, 9, 16))
    if data["pairs"]:
        lines += [
            "pairs of GPUs, one way: latency of a small message (below the diagonal) and bandwidth (above)",
            *_matrix(data),
        ]
    if any(len(row) > 1 for row in data["links"]):
        lines += [
            "connections according to NVML",
            *table(data["links"], ">" * len(data["links"]), (8, *(6 for _ in data["links"][1:])), gap=1),
        ]
    if out is not None:
        lines.append(f"next: lightllm-otel theory --gpu {out} --tp {data['ranks']} --model …")
    return "\n".join(lines)


def _matrix(data: dict[str, Any]) -> list[str]:
    """Return a matrix of GPUs: bandwidth above the diagonal, latency below it."""
    ranks = range(data["ranks"])
    cells = {(pair["ranks"][0], pair["ranks"][1]): pair for pair in data["pairs"]}
    rows = [["", *(f"GPU {rank}" for rank in ranks)]]
    for one in ranks:
        row = [f"  GPU {one}"]
        for two in ranks:
            if one == two:
                row.append("·")
            elif one < two:
                row.append(rate(cells[one, two]["bytes_per_second"], "B"))
            else:
                row.append(duration(cells[two, one]["latency_seconds"]))
        rows.append(row)
    return table(rows, "<" + ">" * len(ranks), (8, *(12 for _ in ranks)))
