"""The analyses on real runs: shares served and static, both versions, TP 1 and 2; what equal and slowed runs compare as.

    python benchmarks/analyses/analysis.py --source CHECKOUT --source-old FOLDER --out benchmarks/results

Needs one GPU, CuPy, LightLLM's packages, a checkout of the current LightLLM and an unpacked 0.0.1. Everything goes through the
project's own commands: bench, report, compare, calibrate. Each part is a process of its own with a limit of its own:

- machine: the matrix product and the copy that `calibrate` reaches.
- static_new, static_old, served_new, served_old, tp2: `bench`, and `report` on it; tp2 has both ranks on one GPU, joined by
  NCCL's sockets. The page of static_new is example-report.html.
- same: repeats in one process with one model, nothing changed between them, in random splits against each other; in between
  repeats whose feed-forward is longer by 3 and by 10 percent, through a kernel that spins. Repeats of one start differ less
  than fresh starts do; what is tested is the stated error, at whatever noise there is.
- speed: a million records, by the clock.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import outcome
import workers
from _paths import ROOT
from analysis_batches import BENCHES, PARTS, batch_of
from analysis_claims import summarise
from equal_repeats import same, same_rows
from run_rows import Rows, percent, run_rows

from lightllm_otel.page import render
from lightllm_otel.records.recording import BadRecording
from lightllm_otel.roofline import gpus
from lightllm_otel.tools.analysis.report import report
from lightllm_otel.tools.analysis.runs import BENCH, Run, load

EXAMPLE, EXAMPLE_PAGE = "static_new", "example-report.html"


# Runs ------------------------------------------------------------------------------------------------------------------


def bench(arguments: argparse.Namespace, part: str, out: Path) -> None:
    """The command itself, in the process that was started for it."""
    version = "old" if part.endswith("old") else "new"
    weights = workers.checkpoint_of(arguments.work, arguments.shape, arguments.cpu)
    words = ["bench", "--model-dir", str(weights), "--out", str(out), *batch_of(arguments, part).words()]
    if not part.startswith("served"):
        words += ["--static", *(["--tp", "2", "--share-gpu"] if part == "tp2" else [])]
        words += ["--data-type", "float32", "--no-graphs"] if arguments.cpu else []
        command(words)
        return
    from server import Server

    folder = out.parent / "otel"
    os.environ["LIGHTLLM_OTEL_DIR"] = str(folder)
    source = arguments.source_old if version == "old" else arguments.source
    server = Server(
        weights, version, cpu=arguments.cpu, source=source, log=out.parent / "server.log",
        env={"LIGHTLLM_OTEL": "1", "LIGHTLLM_OTEL_DIR": str(folder)},
        launcher=[sys.executable, "-m", "lightllm_otel", "run", "--"],
    )  # fmt: skip
    with server:
        workers.say("the server answers")
        command([*words, "--url", server.url])


def command(words: Sequence[str]) -> None:
    from lightllm_otel.tools import cli

    status = cli.main(list(words))
    if status:
        sys.exit(status)


# Speed and machine -----------------------------------------------------------------------------------------------------


def speed(work: Path, steps: int, rounds: int = 3) -> Rows:
    """``report`` and ``compare`` with their pages, in this process: what starting Python takes is not counted."""
    sys.path.insert(0, str(ROOT / "tests"))
    import simulated

    one, two = (simulated.write(work / name, seed=seed, steps=steps, layers=32) for seed, name in enumerate("ab"))
    records = {path: load(path).records for path in (one, two)}
    rows: Rows = []
    for _ in range(rounds):
        for name, paths in (("report", [one]), ("compare", [one, two])):
            words = [name, *map(str, paths), "--html", str(work / f"{name}.html"), "--json"]
            began, cpu_began = time.perf_counter(), time.process_time()
            with contextlib.redirect_stdout(io.StringIO()):
                command(words)
            seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
            rows.append({
                "kind": "speed", "command": name, "records": [records[path] for path in paths],
                "seconds": round(seconds, 4), "cpu_seconds": round(cpu_seconds, 4),
            })  # fmt: skip
    return rows


def machine_row(found: dict[str, Any]) -> dict[str, Any]:
    """What ``calibrate`` reached, and what of the data sheet that is; the sheet is None where the GPU is not in the table."""
    try:
        sheet = gpus.find(found["name"].removesuffix(" (measured)"))
    except gpus.UnknownGpu:
        sheet = None
    progress = {"flops": found["flops"], "memory_bytes_per_second": found["memory_bytes_per_second"]}
    peaks = {name: None if sheet is None else getattr(sheet, name) for name in progress}
    return {
        "kind": "machine", "name": found["name"], **progress, "sheet": None if sheet is None else sheet.name,
        **{f"{name}_of_sheet_percent": None if peaks[name] is None else percent(value / peaks[name])
           for name, value in progress.items()},
    }  # fmt: skip


# Running ---------------------------------------------------------------------------------------------------------------


def child(arguments: argparse.Namespace) -> None:
    """One part, in the process that was started for it."""
    folder: Path = arguments.folder
    keep = workers.RowsFile(folder / "rows.json").keep
    if arguments.child == "checkpoint":
        workers.checkpoint_of(arguments.work, arguments.shape, arguments.cpu)
    elif arguments.child == "machine":
        device = "cpu" if arguments.cpu else "cuda"
        command(["calibrate", "--device", device, "--out", str(folder / "machine.json"), "--json"])
        keep([machine_row(json.loads((folder / "machine.json").read_text()))])
    elif arguments.child == "speed":
        keep(speed(folder, 400 if arguments.cpu else 3900))
    elif arguments.child == "same":
        same(arguments, folder / "runs", keep)
    else:
        bench(arguments, arguments.child, folder / "runs")


def run_part(arguments: argparse.Namespace, part: str) -> Rows:
    """Its rows; also those of a part that did not come to its end, as far as it came, and why."""
    folder = Path(tempfile.mkdtemp(prefix=f"{part}-", dir=arguments.work))
    words = [__file__, "--child", part, "--folder", str(folder), *common(arguments)]
    old = part.endswith("old")
    source = arguments.source_old if old else arguments.source
    # A server's Server puts its LightLLM first itself; the model process of ``same`` does as well.
    first = [*([source.resolve()] if source else []), ROOT] if part in BENCHES else [ROOT]
    began = time.monotonic()
    problem = workers.run(words, arguments.cpu, arguments.limit, first, "old" if old else "new")
    rows_file = folder / "rows.json"
    rows: Rows = json.loads(rows_file.read_text()) if rows_file.exists() else []
    try:
        if part == "same":
            rows = same_rows(folder / "runs", rows)
        elif part in BENCHES and (folder / "runs" / BENCH).exists():
            run = load(folder / "runs")
            rows += run_rows(run)
            if part == EXAMPLE:
                write_page(run, arguments.out / EXAMPLE_PAGE)
    except (BadRecording, ValueError) as error:
        problem = "; ".join(filter(None, [problem, str(error)]))
    if problem:
        rows.append({"kind": "problem", "problem": problem})
        for log in sorted(folder.rglob("*.log")):
            print(log.name, log.read_text(errors="replace")[-3000:], flush=True)
    rows.append({"kind": "took", "seconds": round(time.monotonic() - began, 1)})
    shutil.rmtree(folder, ignore_errors=True)
    return [{"part": part, **row} for row in rows]


def together(merged: Sequence[dict[str, Any]], parts: Sequence[str]) -> Rows:
    """Rows of earlier files; the last that has a part counts for it, and none for a part that is measured now."""
    of_part: dict[str, Rows] = {}
    for earlier in merged:
        found = {row["part"] for row in earlier["rows"] if "part" in row}
        of_part |= {part: [row for row in earlier["rows"] if row.get("part") == part] for part in found}
    return [row for part in PARTS if part not in parts for row in of_part.get(part, [])]


def write_page(run: Run, path: Path) -> None:
    """As ``report --html`` does, under a name that says what it is."""
    data = {**report(run), "name": "LLaMA-7B's shape, static, batch 20, 1024 in, 1024 out"}
    path.write_text(render(data, f"{data['name']} · lightllm-otel"))


def common(arguments: argparse.Namespace) -> list[str]:
    words = ["--work", str(arguments.work), "--shape", arguments.shape, "--nccl-port", str(arguments.nccl_port)]
    for name in ("source", "source_old", "repeats", "output_len"):
        value = getattr(arguments, name)
        words += [f"--{name.replace('_', '-')}", str(value)] if value else []
    return words + (["--cpu"] if arguments.cpu else [])


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    made.add_argument("--part", action="append", choices=PARTS, help="default: all")
    made.add_argument("--source", type=Path, help="a checkout of the current LightLLM")
    made.add_argument("--source-old", type=Path, help="a folder with lightllm 0.0.1; default: this Python's")
    made.add_argument("--shape", default="llama-7b")
    made.add_argument("--cpu", action="store_true", help="only to try this script: times mean nothing")
    made.add_argument("--repeats", type=int, help="instead of each part's own number")
    made.add_argument("--output-len", type=int, help="instead of each part's own")
    made.add_argument("--limit", type=float, default=170.0, help="seconds that one part may take")
    made.add_argument("--nccl-port", type=int, default=28965)
    made.add_argument("--work", type=Path, default=Path("/dev/shm/analysis"), help="the checkpoint is kept here")
    made.add_argument("--out", type=Path, default=outcome.RESULTS, help=f"also for {EXAMPLE_PAGE}")
    made.add_argument("--merge", nargs="*", type=Path, default=[], help="earlier partial results, of other parts")
    made.add_argument("--nothing", action="store_true", help="measure nothing: put the results of --merge together")
    made.add_argument("--child", choices=("checkpoint", *PARTS), help=argparse.SUPPRESS)
    made.add_argument("--folder", type=Path, default=Path(), help=argparse.SUPPRESS)
    return made


def main() -> None:
    arguments = parser().parse_args()
    # What outlives this script keeps its GPU memory: end by unwinding, also when a time limit ends us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if arguments.cpu:
        arguments.shape = "tiny"
    if arguments.child:
        child(arguments)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    arguments.work.mkdir(parents=True, exist_ok=True)
    merged = [json.loads(path.read_text()) for path in arguments.merge]
    parts = () if arguments.nothing else tuple(arguments.part or PARTS)
    rows = together(merged, parts)
    if set(parts) & {*BENCHES, "same"}:
        words = [__file__, "--child", "checkpoint", *common(arguments)]
        if problem := workers.run(words, arguments.cpu, arguments.limit, [ROOT]):
            sys.exit(f"no checkpoint: {problem}")
        workers.say("checkpoint is there")
    for part in parts:
        rows += run_part(arguments, part)
        workers.say(f"{part}: {len(rows)} rows so far")
        outcome.write("analysis", summarise(rows), rows, arguments.out, merged)
    summary = summarise(rows)
    if arguments.nothing:
        outcome.write("analysis", summary, rows, arguments.out, merged, measured=False)
    print(json.dumps(summary, indent=1, default=float))
    sys.exit(bool(summary["problems"]))


if __name__ == "__main__":
    main()
