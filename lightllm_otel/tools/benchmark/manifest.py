"""``bench.json``: what was asked for, what it ran on, and what each repeat took, beside the recordings of the repeats."""

from __future__ import annotations

import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

from lightllm_otel import __version__
from lightllm_otel.tools.analysis.runs import BENCH
from lightllm_otel.tools.benchmark import machine

FORMAT, VERSION = "lightllm-otel bench", 1


@dataclasses.dataclass(frozen=True)
class Workload:
    """Lengths in tokens, of each request. ``every``: one decode step in so many is sampled; None leaves it as it is."""

    batch_size: int
    input_len: int
    output_len: int
    repeats: int
    warmup: int
    every: int | None

    def check(self) -> None:
        """Raises ValueError."""
        numbers = dataclasses.asdict(self)
        for name in ("batch_size", "input_len", "output_len", "repeats"):
            if numbers[name] < 1:
                raise ValueError(f"--{name.replace('_', '-')} {numbers[name]}: give a whole number of at least 1")
        if self.warmup < 0 or (self.every is not None and self.every < 1):
            raise ValueError("--warmup is at least 0 and --every at least 1")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of one repeat. ``recording``: its folder, below the benchmark's; ``seconds``: from the first request to the last answer.
    ``hook_share``: of that time, what the model's thread spent in the plugin.
    """

    recording: str
    seconds: float
    output_tokens: int
    lost_records: int = 0
    hook_share: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def output_tokens_per_second(self) -> float:
        return self.output_tokens / self.seconds


class Manifest:
    """Written again after every repeat, so that a benchmark that is broken off is still one."""

    def __init__(self, folder: Path, kind: str, workload: Workload, **more: Any) -> None:
        self._folder = folder
        self._content: dict[str, Any] = {
            "format": FORMAT, "version": VERSION, "plugin": __version__, "kind": kind,
            "began": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "plan": dataclasses.asdict(workload), **more, "machine": machine.facts(), "repeats": [],
        }  # fmt: skip

    def add(self, outcome: Outcome) -> None:
        row = {**dataclasses.asdict(outcome), "output_tokens_per_second": outcome.output_tokens_per_second}
        self._content["repeats"].append(row)
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / BENCH).write_text(json.dumps(self._content, indent=1) + "\n")

    @property
    def content(self) -> dict[str, Any]:
        return self._content
