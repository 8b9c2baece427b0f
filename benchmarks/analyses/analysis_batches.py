"""What each part of ``analysis.py`` runs."""

from __future__ import annotations

import argparse
import dataclasses

from lightllm_otel.tools.benchmark.manifest import Workload

BENCHES = ("static_new", "static_old", "served_new", "served_old", "tp2")
PARTS = ("machine", "static_new", "same", "static_old", "served_new", "served_old", "tp2", "speed")


@dataclasses.dataclass(frozen=True)
class Batch:
    """What a part runs. ``every``: one decode step in so many has its operators timed; ``prefills``: in a repeat of ``same``."""

    size: int
    input_len: int
    output_len: int
    repeats: int
    warmup: int = 1
    every: int = 16
    prefills: int = 1

    def words(self) -> list[str]:
        return [
            "--batch-size", str(self.size), "--input-len", str(self.input_len), "--output-len", str(self.output_len),
            "--repeats", str(self.repeats), "--warmup", str(self.warmup), "--every", str(self.every),
        ]  # fmt: skip

    def workload(self) -> Workload:
        return Workload(self.size, self.input_len, self.output_len, self.repeats, self.warmup, self.every)


# A repeat of static_* is a start of its own. Over sockets a decode step of TP 2 takes a third of a second.
BATCHES = {
    "static_new": Batch(20, 1024, 1024, 3),
    "same": Batch(20, 1024, 256, 10, prefills=4),
    "static_old": Batch(20, 1024, 1024, 2),
    "served_new": Batch(20, 1024, 1024, 3),
    "served_old": Batch(20, 1024, 1024, 2),
    "tp2": Batch(20, 1024, 24, 1, every=2),
}
TINY = {
    **{part: Batch(2, 16, 4, 1, warmup=0, every=1) for part in BENCHES},
    "static_new": Batch(2, 16, 4, 2, warmup=0, every=1),
    "same": Batch(2, 16, 4, 6, warmup=1, every=1),
}


def batch_of(arguments: argparse.Namespace, part: str) -> Batch:
    found = (TINY if arguments.cpu else BATCHES)[part]
    given = {"repeats": arguments.repeats, "output_len": arguments.output_len}
    return dataclasses.replace(found, **{name: value for name, value in given.items() if value})
