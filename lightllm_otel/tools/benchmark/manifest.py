"""``bench.json``: workload, machine and the result of each repeat, beside the recordings of the repeats."""

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
    """Workload of a benchmark.

    ``input_len`` and ``output_len``: tokens per request. ``warmup``: batches before the first repeat. ``every``: sample one
    decode step in so many; None keeps the server's setting.
    """

    batch_size: int
    input_len: int
    output_len: int
    repeats: int
    warmup: int
    every: int | None

    def check(self) -> None:
        """Raise ValueError if a number is out of range."""
        numbers = dataclasses.asdict(self)
        for name in ("batch_size", "input_len", "output_len", "repeats"):
            if numbers[name] < 1:
                raise ValueError(f"--{name.replace('_', '-')} {numbers[name]}: pass a whole number of at least 1")
        if self.warmup < 0 or (self.every is not None and self.every < 1):
            raise ValueError("--warmup must be at least 0 and --every at least 1")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Outcome of one repeat.

    ``recording``: its folder, relative to that of the benchmark. ``seconds``: from the first request to the last answer.
    ``hook_share``: the share of that time that the model's thread spent in the plugin.
    """

    recording: str
    seconds: float
    output_tokens: int
    lost_records: int = 0
    hook_share: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def output_tokens_per_second(self) -> float:
        """Output tokens per second of the whole batch."""
        return self.output_tokens / self.seconds


class Manifest:
    """Writer of ``bench.json``. It writes the file after every repeat, so that an interrupted benchmark can still be used."""

    def __init__(self, folder: Path, kind: str, workload: Workload, **more: Any) -> None:
        self._folder = folder
        self._content: dict[str, Any] = {
            "format": FORMAT, "version": VERSION, "plugin": __version__, "kind": kind,
            "began": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "plan": dataclasses.asdict(workload), **more, "machine": machine.facts(), "repeats": [],
        }  # fmt: skip

    def add(self, outcome: Outcome) -> None:
        """Add a repeat and write the file. Raises OSError."""
        row = {**dataclasses.asdict(outcome), "output_tokens_per_second": outcome.output_tokens_per_second}
        self._content["repeats"].append(row)
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / BENCH).write_text(json.dumps(self._content, indent=1) + "\n")

    @property
    def content(self) -> dict[str, Any]:
        """Content of the file, as JSON values."""
        return self._content
