"""Matrix products in two kernels, of which the second is a programmatic dependent, with timestamp kernels in their CUDA graph.

    python benchmarks/accuracy/programmatic.py --out benchmarks/results

Needs a GPU, torch, CuPy and lightllm-otel in this Python; half a minute. Chains of 48 matrix products and additions (or of
additions alone) are captured plain, with a timestamp kernel on a branch behind each kernel, and with those on the chain. All are
replayed in turn: before CUPTI is loaded, under CUPTI, and after.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import _paths  # noqa: F401 - puts the other folders on sys.path
import outcome
from kernels import Kernel, kernels_in, read_trace

from lightllm_otel.worker.gpu.graphs import TorchGraphs
from lightllm_otel.worker.gpu.timestamp_kernels import CupyKernels, KernelTimestamps

LINKS, WIDTH = 48, 4096
KINDS = (("additions", 1), ("products", 1), ("products", 20))
PLAIN, BRANCH, CHAIN = "plain", "branch", "chain"
REPLAYS, WARM_UP, TRACED = 150, 20, 40


class Links:
    """The kernels of one chain. ``replay``: of the graph that was captured in the way of that name."""

    def __init__(self, kind: str, rows: int, timestamps: KernelTimestamps) -> None:
        import torch

        self.kind, self.rows, self._timestamps, self._graphs = kind, rows, timestamps, TorchGraphs()
        self._first = torch.randn(rows, WIDTH, device="cuda", dtype=torch.float16)
        self._weights = [
            torch.randn(WIDTH, WIDTH, device="cuda", dtype=torch.float16) * 0.01
            for _ in range(LINKS if kind == "products" else 0)
        ]
        for _ in range(3):
            self._run(lambda: None)
        self.edges: dict[str, int] = {}
        self.graphs = {way: self._capture(way) for way in (PLAIN, BRANCH, CHAIN)}

    def _run(self, mark: Callable[[], None]) -> None:
        import torch

        value = self._first
        mark()
        for at in range(LINKS):
            value = torch.nn.functional.linear(value, self._weights[at]) if self._weights else value * 1.0001
            mark()
            value = value + self._first
            mark()
        self._kept = value

    def _capture(self, way: str) -> Any:
        boundary_codes = 0

        def mark() -> None:
            nonlocal boundary_codes
            self.edges[way] = self._graphs.programmatic_edges()
            if way != PLAIN:
                self._timestamps.timestamp(boundary_codes, chained=way == CHAIN and boundary_codes > 0)
            boundary_codes += 1

        def body() -> None:
            self._run(mark)
            if way != PLAIN:
                self._timestamps.publish(boundary_codes)

        return self._graphs.capture(None, body)

    def microseconds(self, replays: int) -> dict[str, float]:
        """Median of a replay in each way, in turn and one behind the other, so that the GPU waits for no launch."""
        import torch

        event_class: Any = torch.cuda.Event
        events: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
        for _ in range(replays):
            for way, graph in self.graphs.items():
                events[way].append((event_class(enable_timing=True), event_class(enable_timing=True)))
                events[way][-1][0].record()
                graph.replay()
                events[way][-1][1].record()
        torch.cuda.synchronize()
        return {
            way: round(1e3 * statistics.median(begin.elapsed_time(end) for begin, end in each[WARM_UP:]), 2)
            for way, each in events.items()
        }


def between_kernels(trace: list[Kernel]) -> dict[str, dict[str, dict[str, float]]]:
    """By way and kernel: microseconds from the end of the kernel before it, and of itself; means."""
    replays: dict[int, list[Kernel]] = defaultdict(list)
    for kernel in trace:
        replays[kernel.launch].append(kernel)
    found: dict[str, dict[str, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    for kernels in replays.values():
        own = [kernel for kernel in kernels if not kernel.ours]
        if len(own) < LINKS:
            continue
        overlapping = sum(one.ours and other.start < one.end for one, other in zip(kernels, kernels[1:]))
        way = PLAIN if len(own) == len(kernels) else BRANCH if overlapping > LINKS / 2 else CHAIN
        for before, kernel in zip(own[10:], own[11:]):
            found[way][kernel.name[:40]].append((kernel.start - before.end, kernel.end - kernel.start))
    return {
        way: {
            name: {"before_us": round(statistics.fmean(gap for gap, _ in each) * 1e-3, 3),
                   "own_us": round(statistics.fmean(own for _, own in each) * 1e-3, 3), "seen": len(each)}
            for name, each in kernels.items() if len(each) > 100
        }
        for way, kernels in found.items()
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=None, help="folder of programmatic.json")
    out = parser.parse_args().out
    from torch.profiler import ProfilerActivity, profile

    timestamps = KernelTimestamps(CupyKernels(), 2 * LINKS + 1)
    chains = [Links(kind, rows, timestamps) for kind, rows in KINDS]
    rows: list[dict[str, Any]] = []

    def keep(links: Links, when: str, **more: Any) -> None:
        rows.append({"kernels": links.kind, "rows": links.rows, "when": when, **more})
        print(json.dumps(rows[-1]), flush=True)

    for again in range(2):
        for links in chains:
            keep(links, "before CUPTI", repetition=again, us=links.microseconds(REPLAYS), edges=links.edges)
    for links in chains:
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            us = links.microseconds(TRACED)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(path))
            keep(links, "under CUPTI", us=us, kernels_seen=between_kernels(kernels_in(read_trace(path))))
        keep(links, "after CUPTI", us=links.microseconds(REPLAYS))
    summary = {f"{row['kernels']}, {row['rows']} rows": row["us"] for row in rows if row["when"] == "before CUPTI"}
    print(outcome.write("programmatic", summary, rows, out))


if __name__ == "__main__":
    main()
