"""Repeats with one model in one process: equal ones, and ones whose feed-forward is longer by a known time."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import workers
from analysis_batches import Batch, batch_of
from run_rows import Rows, run_rows
from run_rows import percent as in_percent

from lightllm_otel.records.recording import RecordingWriter
from lightllm_otel.records.vocabulary import Mode, Operator, Phase
from lightllm_otel.tools.analysis import baseline
from lightllm_otel.tools.analysis.baseline import Side
from lightllm_otel.tools.analysis.compare import ERROR, Comparison, compare
from lightllm_otel.tools.analysis.runs import Run, load
from lightllm_otel.tools.benchmark.manifest import Manifest, Outcome

SLOWED = (3, 10)  # percent
SPLITS = 200
TRAILING_STEPS = 3  # what a step leaves is read when the next ones run
PLAIN = "plain"


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
        "detectable_percent_median": in_percent(widths[len(widths) // 2]) if widths else None,
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
            "estimate_percent": in_percent(row.change), "ci95": [in_percent(value) for value in row.interval or ()],
            "p": row.p, "verdict": row.verdict, "found": row.verdict == "slower",
            "detectable_percent": in_percent(row.detectable),
            "others": [
                {"operator": other.operator, "estimate_percent": in_percent(other.change), "p": other.p}
                for other in comparison.rows
                if other.phase == row.phase and other.operator not in ("step", row.operator)
                and other.verdict in ("slower", "faster")
            ],
        })  # fmt: skip
    return rows
