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
import dataclasses
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import outcome
import workers
from _paths import ROOT

from lightllm_otel.page import render
from lightllm_otel.records.recording import BadRecording, RecordingWriter
from lightllm_otel.records.vocabulary import Mode, Operator, Phase
from lightllm_otel.roofline import gpus
from lightllm_otel.tools.analysis import baseline
from lightllm_otel.tools.analysis.baseline import Side
from lightllm_otel.tools.analysis.compare import ERROR, Comparison, compare
from lightllm_otel.tools.analysis.report import report
from lightllm_otel.tools.analysis.runs import BENCH, Run, load
from lightllm_otel.tools.benchmark.manifest import Manifest, Outcome, Workload

BENCHES = ("static_new", "static_old", "served_new", "served_old", "tp2")
PARTS = ("machine", "static_new", "same", "static_old", "served_new", "served_old", "tp2", "speed")
EXAMPLE, EXAMPLE_PAGE = "static_new", "example-report.html"
SLOWED = (3, 10)  # percent
SPLITS = 200
TRAILING_STEPS = 3  # what a step leaves is read when the next ones run
PLAIN = "plain"
Rows = list[dict[str, Any]]


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


# Runs ------------------------------------------------------------------------------------------------------------------


def run_rows(run: Run, problem: str = "") -> Rows:
    """Of one benchmark: what was asked for, and per phase the step and each operator's share with its interval."""
    data = report(run)
    bench = run.bench
    rates = [round(float(each["output_tokens_per_second"]), 2) for each in bench.get("repeats", [])]
    rows: Rows = [
        {
            "kind": "run", "plan": bench.get("plan"), "repeats": len(run.repeats), "records": run.records, "tp": run.ranks,
            "graphs": bench.get("graphs"), "output_tokens_per_second": rates,
            "output_tokens_per_second_mean": round(float(np.mean(rates)), 2) if rates else None,
            "busy_percent": _percent(data["pace"]["busy"]), "host_idle_percent": _percent(data["pace"]["host"]),
            "hook_percent": [_percent(each["hook_share"]) for each in bench.get("repeats", [])],
            "lost_records": sum(each["lost_records"] for each in bench.get("repeats", [])),
            "facts": data["facts"], "notes": [*data["notes"], *_notes(bench)],
        }
    ]  # fmt: skip
    for phase in data["phases"]:
        step = phase["step"]
        rows.append({
            "kind": "phase", "phase": phase["phase"], "mode": phase["mode"], "steps": step["steps"],
            "sampled": step["sampled"], "step_ms": round(1e3 * step["mean"], 4),
            "step_ms_ci95": [round(1e3 * value, 4) for value in step["interval"]],
            "tokens_per_second": round(step["tokens_per_second"], 1),
            "mfu_percent": _percent(phase["utilisation"]["mfu"]), "mbu_percent": _percent(phase["utilisation"]["mbu"]),
            "shares": {
                each["operator"]: {
                    "percent": _percent(each["share"]), "ci95": [_percent(value) for value in each["interval"]],
                    "call_us": round(1e6 * each["seconds_per_call"], 3),
                    "of_peak_percent": _percent(each["busy"]), "bound": each["bound"],
                }
                for each in phase["operators"]
            },
        })  # fmt: skip
    return [*rows, *([{"kind": "problem", "problem": problem}] if problem else [])]


def _notes(bench: dict[str, Any]) -> list[str]:
    return [note for each in bench.get("repeats", []) for note in each["notes"]]


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * float(share), 3)


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


# Equal and slowed repeats ----------------------------------------------------------------------------------------------


class Recorder:
    """The plugin in this process, and a recording of each repeat as ``bench`` would leave it."""

    def __init__(self, folder: Path, every: int) -> None:
        self._folder = folder
        os.environ |= {
            "LIGHTLLM_OTEL": "1", "LIGHTLLM_OTEL_DIR": str(folder / "otel"), "LIGHTLLM_OTEL_RING_MIB": "64",
            "LIGHTLLM_OTEL_SAMPLE_EVERY": str(every), "LIGHTLLM_OTEL_STATE": str(folder / "state"),
        }  # fmt: skip
        from lightllm_otel.inject import bootstrap

        self._hooks: Any = bootstrap.activate()
        self._reader: Any = None

    def begin(self) -> None:
        """What came before is of no repeat."""
        self._settle()
        if self._reader is None:
            from lightllm_otel.records.reader import RingReader

            # Once: opening it frees this process's own lock on it, and the exporter takes the ring of the dead away.
            self._reader = RingReader(next((self._folder / "otel").glob("*/rank-0.ring")))
        self._reader.read()
        self._lost = int(self._reader.overwrites)
        self._hook_seconds = float(self._reader.header["hook_seconds"])

    def end(self, run: Path, number: int) -> tuple[Path, int, float]:
        """``(recording, overwritten steps, seconds in the plugin)``."""
        self._settle()
        writer = RecordingWriter(run / f"repeat-{number:02d}", "static", 1 << 30)
        writer.describe({0: self._reader.facts()})
        writer.append(0, self._reader.read())
        writer.close()
        hooks = float(self._reader.header["hook_seconds"]) - self._hook_seconds
        return writer.path, int(self._reader.overwrites) - self._lost, hooks

    def _settle(self) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._hooks.session().timer.tick()


def schedule(repeats: int) -> list[str]:
    """Equal repeats, and among them half as many of each slowed kind; what drifts with time falls on all alike."""
    block = [PLAIN, *map(str, SLOWED), PLAIN]
    return [kind for number in range(repeats // 2) for kind in (block if number % 2 else reversed(block))]


def same(arguments: argparse.Namespace, out: Path, keep: Callable[[Rows], None]) -> None:
    """``out/plain``, ``out/3`` and ``out/10``: a benchmark each, whose repeats were taken in turns."""
    import slowdown

    batch = batch_of(arguments, "same")
    recorder = Recorder(out.parent, batch.every)
    later = slowdown.Later(slowdown.Sleep if arguments.cpu else slowdown.Spin)
    slowdown.patch_layers(later, ("_ffn",))
    length = batch.input_len + batch.output_len + TRAILING_STEPS
    model = build(arguments, batch, length)
    workers.say("model is there")
    manifests: dict[str, Manifest] = {}

    def repeat(kind: str, number: int, delays: dict[Phase, float]) -> Path:
        recorder.begin()
        later.real.set(delays.get(Phase.PREFILL, 0.0))
        began = time.perf_counter()
        for prefill in range(batch.prefills):
            if prefill:
                model.release()
            model.prefill(batch.size, batch.input_len, 1000 + 10 * number + prefill)
        spent = time.perf_counter() - began
        later.real.set(delays.get(Phase.DECODE, 0.0))
        began = time.perf_counter()
        for _ in range(batch.output_len - 1):
            model.decode()
        spent += time.perf_counter() - began
        for _ in range(TRAILING_STEPS):
            model.decode()
        path, lost, hooks = recorder.end(out / kind, number)
        model.release()
        made = manifests.setdefault(
            kind, Manifest(out / kind, "static", batch.workload(), tp=1, graphs=not arguments.cpu, starts=1)
        )
        made.add(Outcome(str(path.relative_to(out / kind)), spent, batch.size * batch.output_len, lost, hooks / spent))
        return path

    for number in range(batch.warmup):
        repeat("warm", number, {})
    means = ffn_means(load(out / "warm"))
    delays = {
        str(percent): {phase: percent / 100 * mean for phase, mean in means.items()} for percent in SLOWED
    }  # fmt: skip
    for number, kind in enumerate(schedule(batch.repeats)):
        repeat(kind, batch.warmup + number, delays.get(kind, {}))
    workers.say(f"{number + 1} repeats")
    for kind, of_phase in delays.items():
        for phase, seconds in of_phase.items():
            keep([{
                "kind": "injected", "percent": int(kind), "phase": phase.value, "ffn_us": round(1e6 * means[phase], 4),
                "asked_us": round(1e6 * seconds, 4), "spun_us": None if arguments.cpu else spun_us(later.real, seconds),
            }])  # fmt: skip
    model.close()


def build(arguments: argparse.Namespace, batch: Batch, length: int) -> Any:
    """As ``bench --static`` builds it."""
    weights = workers.checkpoint_of(arguments.work, arguments.shape, arguments.cpu)
    from lightllm_otel.tools.benchmark.static_v1 import SPARE, StaticModel

    room = max(batch.size * (length + 1), length + SPARE) + SPARE
    words = ["--batch_max_tokens", str(batch.size * batch.input_len), "--running_max_req_size", str(batch.size)]
    return StaticModel(
        weights, arguments.source, room, batch.size, not arguments.cpu, nccl_port=arguments.nccl_port, max_length=length,
        graph_batches=[batch.size], arguments=[*words, *(["--data_type", "float32"] if arguments.cpu else [])],
    )  # fmt: skip


def ffn_means(run: Run) -> dict[Phase, float]:
    """Seconds of a call of the feed-forward, by phase."""
    found = {}
    for phase in (Phase.PREFILL, Phase.DECODE):
        seconds = [
            repeat.intervals["seconds"][
                repeat.chosen(phase, mode, sampled=True)[repeat.of] & (repeat.intervals["operator"] == Operator.FFN.code)
            ]
            for repeat in run.repeats for mode in Mode
        ]  # fmt: skip
        if len(all_of_them := np.concatenate(seconds)):
            found[phase] = float(all_of_them.mean())
    return found


def spun_us(spin: Any, seconds: float, calls: int = 200) -> float | None:
    """What the kernel really adds when it is asked for so much: in a graph of many, against the same without a delay."""
    import torch

    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for _ in range(calls):
                spin.wait()
    except RuntimeError as error:  # the delay that was asked for then stands for it
        print(f"the spinning kernel cannot be captured: {error}", flush=True)
        return None
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def once(wanted: float) -> float:
        spin.set(wanted)
        took = []
        for _ in range(5):
            began.record()
            graph.replay()
            ended.record()
            torch.cuda.synchronize()
            took.append(began.elapsed_time(ended))
        return min(took)

    added = 1e3 * (once(seconds) - once(0.0)) / calls
    spin.set(0.0)
    return round(added, 4)


def same_rows(folder: Path, extra: Rows, splits: int = SPLITS) -> Rows:
    """What ``compare`` says of equal repeats in random halves, and of the slowed ones against half of the equal ones."""
    rows: Rows = list(extra)
    equal = baseline.side(load(folder / PLAIN))
    half = len(equal.tables) // 2
    rows.append(splits_row(equal, half, splits))
    # One of the two in each block of the schedule, in turns: on average as early as the slowed ones.
    beside = Side(PLAIN, equal.facts, tuple(equal.tables[2 * block + block % 2] for block in range(half)))
    for percent in SLOWED:
        slow = baseline.side(load(folder / str(percent)))
        comparison = compare(beside, slow)
        rows += slowed_rows(comparison, percent, extra)
    rows += [row for row in run_rows(load(folder / PLAIN)) if row["kind"] == "run"]
    return rows


def splits_row(equal: Side, half: int, splits: int, seed: int = 0) -> dict[str, Any]:
    """``significant``: some operator at the stated error; ``verdict``: called slower or faster, so at least 1 % as well."""
    generator = np.random.default_rng(seed)
    significant = verdict = 0
    named: dict[str, int] = {}
    operators = 0
    for _ in range(splits):
        order = generator.permutation(len(equal.tables))
        one, two = (
            Side(name, equal.facts, tuple(equal.tables[place] for place in places))
            for name, places in (("one", order[:half]), ("two", order[half : 2 * half]))
        )
        rows = compare(one, two).rows
        operators = len(rows)
        found = [row for row in rows if row.p is not None and row.p < ERROR]
        significant += bool(found)
        verdict += any(row.verdict in ("slower", "faster") for row in rows)
        for row in found:
            name = f"{row.phase} {row.operator}"
            named[name] = named.get(name, 0) + 1
    widths = sorted(row.detectable for row in rows if row.detectable is not None)
    return {
        "kind": "splits", "splits": splits, "half": half, "starts": 1, "compared": operators, "significant": significant,
        "verdict": verdict, "stated_error_percent": 100 * ERROR, "by_operator": named,
        "detectable_percent_median": _percent(widths[len(widths) // 2]) if widths else None,
    }  # fmt: skip


def slowed_rows(comparison: Comparison, percent: int, extra: Rows) -> Rows:
    """The feed-forward's row of each phase, and which others were called different."""
    rows: Rows = []
    for row in comparison.rows:
        if row.operator != Operator.FFN.value:
            continue
        injected = next(
            (each for each in extra if each["kind"] == "injected" and each["percent"] == percent and each["phase"] == row.phase),
            {},
        )  # fmt: skip
        added = injected.get("spun_us") or injected.get("asked_us")
        rows.append({
            "kind": "slowed", "percent": percent, "phase": row.phase, "mode": row.mode,
            "repeats": [len(comparison.first.tables), len(comparison.second.tables)],
            "injected_percent": round(100 * added / injected["ffn_us"], 3) if added else None,
            "estimate_percent": _percent(row.change), "ci95": [_percent(value) for value in row.interval or ()],
            "p": row.p, "verdict": row.verdict, "found": row.verdict == "slower",
            "detectable_percent": _percent(row.detectable),
            "others": [
                {"operator": other.operator, "estimate_percent": _percent(other.change), "p": other.p}
                for other in comparison.rows
                if other.phase == row.phase and other.operator not in ("step", row.operator)
                and other.verdict in ("slower", "faster")
            ],
        })  # fmt: skip
    return rows


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
        **{f"{name}_of_sheet_percent": None if peaks[name] is None else _percent(value / peaks[name])
           for name, value in progress.items()},
    }  # fmt: skip


# What is claimed -------------------------------------------------------------------------------------------------------


def summarise(rows: Rows) -> dict[str, Any]:
    """Everything from the rows alone."""
    runs = {row["part"]: row for row in rows if row["kind"] == "run" and row["part"] in BENCHES}
    splits = next((row for row in rows if row["kind"] == "splits"), None)
    machine = next((row for row in rows if row["kind"] == "machine"), None)
    return {
        "shares": shares(rows),
        "leads": {part: {phase: leader(found) for phase, found in phases.items()} for part, phases in shares(rows).items()},
        "output_tokens_per_second": {part: row["output_tokens_per_second_mean"] for part, row in runs.items()},
        "repeats": {part: row["repeats"] for part, row in runs.items()},
        "step_ms": {part: _of_phases(part, rows, "step_ms") for part in runs},
        "mfu_percent": {part: _of_phases(part, rows, "mfu_percent") for part in runs},
        "mbu_percent": {part: _of_phases(part, rows, "mbu_percent") for part in runs},
        "host_idle_percent": {part: row["host_idle_percent"] for part, row in runs.items()},
        "decode_old_over_new": {
            how: ratio for how in ("static", "served") if (ratio := _decode_ratio(how, rows)) is not None
        },
        "aa_significant_percent": _percent(splits["significant"] / splits["splits"]) if splits else None,
        "aa_verdict_percent": _percent(splits["verdict"] / splits["splits"]) if splits else None,
        "aa_stated_error_percent": splits["stated_error_percent"] if splits else None,
        "aa_splits": splits["splits"] if splits else None,
        "slowed": slowed(rows),
        "seconds_report_1m": _median(rows, "report"),
        "seconds_compare_1m": _median(rows, "compare"),
        "machine": {name: value for name, value in machine.items() if name not in ("kind", "part")} if machine else None,
        "lost_records": sum(row["lost_records"] for row in runs.values()),
        "problems": [f"{row['part']}: {row['problem']}" for row in rows if row["kind"] == "problem"],
    }  # fmt: skip


def shares(rows: Rows) -> dict[str, dict[str, dict[str, list[float]]]]:
    """part → phase → operator → percent of the step, and its 95 % interval's ends; the largest first."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for row in rows:
        if row["kind"] == "phase" and row["shares"]:
            of_part = found.setdefault(row["part"], {})
            if row["phase"] in of_part:  # an eager step among those in graphs: the larger number of steps counts
                continue
            of_part[row["phase"]] = {
                name: [each["percent"], *each["ci95"]] for name, each in _most_steps(row, rows)["shares"].items()
            }
    return found


def _most_steps(row: dict[str, Any], rows: Rows) -> dict[str, Any]:
    alike = [
        each for each in rows
        if each["kind"] == "phase" and (each["part"], each["phase"]) == (row["part"], row["phase"]) and each["shares"]
    ]  # fmt: skip
    return max(alike, key=lambda each: int(each["sampled"]))


def leader(found: dict[str, list[float]]) -> str:
    """The dearest operator; gap is none."""
    return next((name for name in found if name != Operator.GAP.value), Operator.GAP.value)


def _of_phases(part: str, rows: Rows, name: str) -> dict[str, Any]:
    return {
        f"{row['phase']} {row['mode']}": row[name] for row in rows if row["kind"] == "phase" and row["part"] == part
    }


def _decode_ratio(how: str, rows: Rows) -> float | None:
    """How much longer a decode step of the old version is."""
    steps = []
    for version in ("old", "new"):
        found = [
            row for row in rows
            if row["kind"] == "phase" and row["part"] == f"{how}_{version}" and row["phase"] == Phase.DECODE.value
        ]  # fmt: skip
        if not found:
            return None
        steps.append(max(found, key=lambda row: int(row["steps"]))["step_ms"])
    return round(steps[0] / steps[1], 3)


def slowed(rows: Rows) -> dict[str, dict[str, Any]]:
    """percent → phase → whether it was found, and what was estimated."""
    found: dict[str, dict[str, Any]] = {}
    kept = ("found", "injected_percent", "estimate_percent", "ci95", "p", "detectable_percent", "others")
    for row in rows:
        if row["kind"] == "slowed":
            found.setdefault(str(row["percent"]), {})[row["phase"]] = {name: row[name] for name in kept}
    return found


def _median(rows: Rows, command: str) -> float | None:
    """Of the process's own seconds: other processes' are not ours."""
    seconds = [row["cpu_seconds"] for row in rows if row["kind"] == "speed" and row["command"] == command]
    return round(float(np.median(seconds)), 3) if seconds else None


# Running ---------------------------------------------------------------------------------------------------------------


def batch_of(arguments: argparse.Namespace, part: str) -> Batch:
    found = (TINY if arguments.cpu else BATCHES)[part]
    given = {"repeats": arguments.repeats, "output_len": arguments.output_len}
    return dataclasses.replace(found, **{name: value for name, value in given.items() if value})


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
