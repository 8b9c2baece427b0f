"""What bounds LightLLM's decode: the hidden size, the way of launching, the length of the context.

    python benchmarks/analyses/launching.py --source CHECKOUT --source-old FOLDER --out benchmarks/results

The original analysis had its launches block, on LightLLM 0.0.1, and found decode to reach little of what the GPU can do. Where
the host is what bounds a step, it takes as long at any hidden size, and longer when launches block. Needs a GPU, LightLLM's
packages, a checkout of the current LightLLM and an unpacked 0.0.1. Eight layers; each row is a start of ``bench --static``:

- hidden: 0.0.1, batch 20, 1024 tokens in, hidden sizes of 1024 to 8192, with launches as they are and CUDA_LAUNCH_BLOCKING=1.
- lengths: the current one with its CUDA graphs, LLaMA-7B's layers, 256 to 12,288 tokens in, batch 4.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import outcome
import workers
from _paths import ROOT
from run_rows import Rows, run_rows

from lightllm_otel.records.recording import BadRecording
from lightllm_otel.tools.analysis.runs import BENCH, load

OUTPUT, EVERY = 48, 4
BLOCKING = "CUDA_LAUNCH_BLOCKING"


@dataclasses.dataclass(frozen=True)
class Case:
    """One start. ``blocking``: launches wait for the GPU."""

    part: str
    version: str
    shape: str
    batch: int
    input_len: int
    blocking: bool = False

    def words(self, weights: Path, out: Path, cpu: bool) -> list[str]:
        words = [
            "-m", "lightllm_otel", "bench", "--static", "--model-dir", str(weights), "--out", str(out), "--batch-size",
            str(self.batch), "--input-len", str(self.input_len), "--output-len", str(4 if cpu else OUTPUT),
            "--repeats", "1", "--warmup", "0" if cpu else "1", "--every", str(EVERY),
        ]  # fmt: skip
        return words + (["--data-type", "float32", "--no-graphs"] if cpu else [])


def cases(cpu: bool) -> list[Case]:
    if cpu:
        return [Case("hidden", "old", "tiny", 2, 16, blocking) for blocking in (False, True)] + [
            Case("lengths", "new", "tiny", 2, length) for length in (16, 32)
        ]
    shapes = ("llama-1024", "llama-2048", "llama-8-layers", "llama-8192")
    hidden = [Case("hidden", "old", shape, 20, 1024, blocking) for shape in shapes for blocking in (False, True)]
    return hidden + [Case("lengths", "new", "llama-8-layers", 4, length) for length in (256, 1024, 4096, 12288)]


# What is claimed -------------------------------------------------------------------------------------------------------


def summarise(rows: Rows) -> dict[str, Any]:
    """Everything from the rows alone. ``hidden``: hidden size → way of launching → decode; ``lengths``: tokens in → decode."""
    graphs = any(row.get("mode") == "graph" for row in rows)  # there are none on a CPU
    decode = [
        row for row in rows
        if row.get("phase") == "decode" and (row["part"] == "hidden" or not graphs or row["mode"] == "graph")
    ]  # fmt: skip
    hidden: dict[str, dict[str, Any]] = {}
    for row in decode:
        if row["part"] == "hidden":
            way = "blocking" if row["blocking"] else "as it is"
            hidden.setdefault(str(row["hidden"]), {})[way] = {
                "step_ms": row["step_ms"], "mbu_percent": row["mbu_percent"], "mfu_percent": row["mfu_percent"],
            }  # fmt: skip
    lengths = {
        str(row["input_len"]): {"step_ms": row["step_ms"], "attention_ms": _of(row, "attention"),
                                "attention_percent": row["shares"].get("attention", {}).get("percent")}
        for row in decode if row["part"] == "lengths"
    }  # fmt: skip
    return {"hidden": hidden, "lengths": lengths, "problems": [row["problem"] for row in rows if row.get("problem")]}


def _of(row: dict[str, Any], operator: str) -> float | None:
    """Milliseconds of a step."""
    percent = row["shares"].get(operator, {}).get("percent")
    return None if percent is None else round(row["step_ms"] * percent / 100, 4)


# Running ---------------------------------------------------------------------------------------------------------------


def run_case(arguments: argparse.Namespace, case: Case) -> Rows:
    """Its rows; also those of one that did not come to its end, and why."""
    folder = Path(tempfile.mkdtemp(prefix=f"{case.part}-", dir=arguments.work))
    weights = workers.checkpoint_of(arguments.work, case.shape, arguments.cpu)
    source = arguments.source_old if case.version == "old" else arguments.source
    os.environ[BLOCKING] = str(int(case.blocking))
    problem = workers.run(
        case.words(weights, folder / "run", arguments.cpu), arguments.cpu, arguments.limit,
        [*([source.resolve()] if source else []), ROOT], case.version,
    )  # fmt: skip
    rows: Rows = []
    try:
        if (folder / "run" / BENCH).exists():
            rows = run_rows(load(folder / "run"))
    except (BadRecording, ValueError) as error:
        problem = "; ".join(filter(None, [problem, str(error)]))
    if problem:
        rows.append({"kind": "problem", "problem": f"{case.part}, {case.shape}, {case.input_len}: {problem}"})
    shutil.rmtree(folder, ignore_errors=True)
    config = json.loads((weights / "config.json").read_text())
    return [
        {**dataclasses.asdict(case), "hidden": config["hidden_size"], "layers": config["num_hidden_layers"], **row}
        for row in rows
    ]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    made.add_argument("--part", action="append", choices=("hidden", "lengths"), help="default: both")
    made.add_argument("--source", type=Path, help="a checkout of the current LightLLM")
    made.add_argument("--source-old", type=Path, help="a folder with lightllm 0.0.1; default: this Python's")
    made.add_argument("--cpu", action="store_true", help="only to try this script: times mean nothing")
    made.add_argument("--limit", type=float, default=60.0, help="seconds that one start may take")
    made.add_argument("--work", type=Path, default=Path("/dev/shm/launching"), help="checkpoints are kept here")
    made.add_argument("--out", type=Path, default=outcome.RESULTS)
    made.add_argument("--merge", nargs="*", type=Path, default=[], help="earlier partial results, of the other part")
    return made


def together(merged: Sequence[dict[str, Any]], wanted: Sequence[str]) -> Rows:
    """Rows of earlier files, of parts that are not measured now."""
    return [
        {"date": earlier["date"], "commit": earlier["commit"], **row}
        for earlier in merged for row in earlier["rows"] if row.get("part") not in (None, *wanted)
    ]  # fmt: skip


def main() -> None:
    arguments = parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what outlives this script keeps its GPU memory
    arguments.work.mkdir(parents=True, exist_ok=True)
    wanted = arguments.part or ["hidden", "lengths"]
    merged = [json.loads(path.read_text()) for path in arguments.merge]
    rows = together(merged, wanted)
    for case in cases(arguments.cpu):
        if case.part in wanted:
            rows += run_case(arguments, case)
            workers.say(f"{case}: {len(rows)} rows so far")
            outcome.write("launching", summarise(rows), rows, arguments.out, merged)
    summary = summarise(rows)
    print(json.dumps(summary, indent=1, default=float))
    sys.exit(bool(summary["problems"]))


if __name__ == "__main__":
    main()
