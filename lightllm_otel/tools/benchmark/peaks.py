"""Process of one rank of ``lightllm-otel calibrate``: ``python -m lightllm_otel.tools.benchmark.peaks``.

It times matrix products, copies, collectives and pairs of ranks, and rank 0 prints JSON. Each figure is the best of several
rounds. A round is many calls between two synchronisations, so launch time counts only for the smallest payloads.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

ROUNDS = 5
ROUND_SECONDS = 0.05  # approximate duration of a round
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter")


class PeakBenchmark:
    """Benchmark of one device, with the collectives of torch. ``device``: ``cuda``, or ``cpu`` for tests."""

    def __init__(self, device: str, rank: int, ranks: int) -> None:
        self.torch: Any = importlib.import_module("torch")
        self.device = f"cuda:{rank % self.torch.cuda.device_count()}" if device == "cuda" else "cpu"
        self.rank, self.ranks = rank, ranks
        if device == "cuda":
            self.torch.cuda.set_device(self.device)
        self.dist: Any = None
        if ranks > 1:
            self.dist = importlib.import_module("torch.distributed")
            self.dist.init_process_group("nccl" if device == "cuda" else "gloo", rank=rank, world_size=ranks)

    def seconds(self, call: Callable[[], Any], together: bool = False) -> float:
        """Return the seconds of one call, in the best round. ``together``: make the same number of calls on all ranks."""
        for _ in range(3):
            call()
        once = self._round(call, 3) / 3
        calls = max(1, min(1000, int(ROUND_SECONDS / max(once, 1e-7))))
        if together:
            said = self.torch.tensor([calls], device=self.device)
            self.dist.broadcast(said, 0)
            calls = int(said.item())
        return min(self._round(call, calls) for _ in range(ROUNDS)) / calls

    def _round(self, call: Callable[[], Any], calls: int) -> float:
        self._wait()
        began = time.perf_counter()
        for _ in range(calls):
            call()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.device != "cpu":
            self.torch.cuda.synchronize()

    def flops(self, size: int) -> float:
        """Return the FLOP/s of a product of two square fp16 matrices (fp32 on a CPU)."""
        kind = self.torch.float32 if self.device == "cpu" else self.torch.float16
        one, two = (self.torch.randn(size, size, device=self.device).to(kind) for _ in range(2))
        out = self.torch.empty(size, size, device=self.device, dtype=kind)
        return 2 * size**3 / self.seconds(lambda: self.torch.mm(one, two, out=out))

    def copied(self, size: int) -> float:
        """Return the bytes per second, read and written, of a copy of ``size`` bytes in memory."""
        source, target = (self.torch.zeros(size, dtype=self.torch.uint8, device=self.device) for _ in range(2))
        return 2 * size / self.seconds(lambda: target.copy_(source))

    def collective(self, name: str, size: int) -> float:
        """Return the seconds of one call with a payload of ``size`` bytes.

        The payload is the data of all ranks together, except for all_reduce.
        """
        count = max(size // 2, self.ranks) // self.ranks * self.ranks
        kind = self.torch.float32 if self.device == "cpu" else self.torch.float16
        whole = self.torch.zeros(count, dtype=kind, device=self.device)
        part = self.torch.zeros(count // self.ranks, dtype=kind, device=self.device)
        calls: dict[str, Callable[[], Any]] = {
            "all_reduce": lambda: self.dist.all_reduce(whole),
            "all_gather": lambda: self.dist.all_gather_into_tensor(whole, part),
            "reduce_scatter": lambda: self.dist.reduce_scatter_tensor(part, whole),
        }
        return self.seconds(calls[name], together=True)

    def pair(self, one: int, two: int, size: int) -> float | None:
        """Return the seconds of a transfer of ``size`` bytes between two ranks, as half of a round trip; None on other ranks."""
        self.dist.barrier()
        if self.rank not in (one, two):
            return None
        there = self.torch.zeros(size, dtype=self.torch.uint8, device=self.device)

        def round_trip() -> None:
            for first, second in ((one, two), (two, one)):
                if self.rank == first:
                    self.dist.send(there, second)
                else:
                    self.dist.recv(there, first)

        calls = 20
        for _ in range(3):
            round_trip()
        return min(self._round(round_trip, calls) for _ in range(ROUNDS)) / calls / 2


def measure(bench: PeakBenchmark, sizes: list[int], matrix: int, copy: int) -> dict[str, Any]:
    """Return all measurements as JSON values. ``sizes``: payloads in bytes. ``matrix``: rows. ``copy``: bytes."""
    kind = 4 if bench.device == "cpu" else 2
    found: dict[str, Any] = {"flops": bench.flops(matrix), "memory_bytes_per_second": bench.copied(copy)}
    if bench.ranks == 1:
        return found
    found["collectives"] = {
        name: [{"payload_bytes": size // 2 // bench.ranks * bench.ranks * kind, "seconds": bench.collective(name, size)}
               for size in sizes]
        for name in COLLECTIVES
        # Gloo, which is used on a CPU, has no reduce_scatter_tensor.
        if bench.device != "cpu" or name == "all_reduce"
    }  # fmt: skip
    pairs = [(one, two) for one in range(bench.ranks) for two in range(one + 1, bench.ranks)]
    small, large = sizes[0], sizes[-1]
    mine = {(one, two): (bench.pair(one, two, small), bench.pair(one, two, large)) for one, two in pairs}
    everyones: list[Any] = [None] * bench.ranks
    bench.dist.all_gather_object(everyones, mine)
    found["pairs"] = [
        {"ranks": [one, two], "latency_seconds": everyones[one][one, two][0],
         "bytes_per_second": large / everyones[one][one, two][1]}
        for one, two in pairs
    ]  # fmt: skip
    return found


def main() -> None:
    """Measure, and print JSON in rank 0."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    for name in ("rank", "ranks", "matrix", "copy"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", required=True)
    given = parser.parse_args()
    if given.device == "cuda" and not importlib.import_module("torch").cuda.is_available():
        sys.exit("torch finds no GPU on this machine; use --device cpu for a test without one")
    bench = PeakBenchmark(given.device, given.rank, given.ranks)
    found = measure(bench, given.sizes, given.matrix, given.copy)
    if bench.device != "cpu":
        properties = bench.torch.cuda.get_device_properties(bench.device)
        found |= {"name": properties.name, "memory_bytes": properties.total_memory}
    else:
        found |= {"name": "CPU", "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}
    if bench.dist is not None:
        bench.dist.destroy_process_group()
    if given.rank == 0:
        sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
