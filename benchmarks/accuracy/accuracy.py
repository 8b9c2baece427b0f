"""Operator times of lightllm-otel beside NVIDIA's CUPTI: the same model, the same steps, kernel by kernel.

    python benchmarks/accuracy/accuracy.py --source CHECKOUT --out benchmarks/results
    python benchmarks/accuracy/accuracy.py --merge benchmarks/results/accuracy.json FOLDER/accuracy-*.json

Needs a GPU, lightllm-otel in this Python, LightLLM's packages and a checkout of the current LightLLM. Every shape runs in
a process of its own. In it each batch size is run twice from the same prompts: first, before CUPTI is loaded, with the
plugin alone, then under torch.profiler. In both, decode steps that replay the plugin's instrumented graph (the instrumented
graph) alternate with steps that replay LightLLM's own (plain), followed by decode steps without graphs.

What CUPTI saw becomes time per operator like this. In an instrumented graph the plugin's timestamps lie between the operators'
kernels. Without the timestamps its kernels must be those of the plain graph, by name and position; so they tell which kernel of
the plain graph is which operator. Without graphs, a last pass with an annotation around every slot tells that, and again
names and positions must be equal. An operator lasts from the end of the previous operator's last kernel to the end of
its own. Where names differ nothing is compared, and the row says so.

With --tp each rank is a process, on a GPU of its own, joined by NCCL (--way says with which setting) or by LightLLM's own
all_reduce (--way own, which needs sgl_kernel). All do the same; what is compared is decode in graphs: operators of rank 0, and of
each all_reduce the least of the ranks' times, which is the exporter's transfer.

This drives the LightLLM of July 2025. A later one is measured while it serves, by served.py; --merge takes its rows in, which
stand apart by host.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import _paths
import outcome
from comparison import Calls, eager_rows, graph_rows, reduce_calls, summarise, transfer_row
from kernels import Mismatch, kernels_in, kernels_of_graphs, read_trace, steps_between_markers
from observed import EAGER_STEPS, INPUT_TOKENS, Plugin, Runner, annotated_kernels, markers
from passes import DROPPED_STEPS, EAGER, PREFILL, TWIN, Pass
from profiler import profiled
from workers import end, wait_for

SHAPES = ("llama-7b", "llama-13b", "llama-8b-gqa", "qwen3-moe")
ALL_LAYERS = ("llama-7b",)  # the shape whose every layer is run, unless --layers says otherwise
CUT_LAYERS = 8
BATCHES = (1, 8, 20, 64)
MAX_LENGTH = 4096  # what LightLLM's graphs are captured for
HOST = "fc72ffab"  # the LightLLM that this script drives itself
OWN = "own"
WAYS = {  # --way: what is set for it
    OWN: {},
    "no-mixing": {"NCCL_GRAPH_MIXING_SUPPORT": "0"},  # nothing of NCCL's in a graph but its kernels
    "no-p2p": {"NCCL_P2P_DISABLE": "1"},  # through the host's memory
}


def measure_shape(arguments: argparse.Namespace, folder: Path, rows: list[dict[str, Any]]) -> None:
    """Append all rows of one shape. In a process of its own: a process can have one model, and loads CUPTI once."""
    began = time.perf_counter()
    plugin = Plugin(folder / "otel", arguments.batches, arguments.rank)
    import checkpoint
    import torch
    from static_model import SPARE, StaticModel

    shape = checkpoint.SHAPES[arguments.shape]
    layers = arguments.layers or (shape.layers if arguments.shape in ALL_LAYERS else min(CUT_LAYERS, shape.layers))
    shape = dataclasses.replace(shape, layers=layers)
    weights = folder / "checkpoint"
    if arguments.rank == 0:
        checkpoint.write(folder / "being-written", shape, "float16").rename(weights)
        torch.cuda.empty_cache()
    while not weights.exists():
        time.sleep(0.2)
    _say(arguments.shape, f"checkpoint written, {time.perf_counter() - began:.1f} s")
    outputs = 2 + 2 * (DROPPED_STEPS + arguments.steps) + EAGER_STEPS
    total = max(max(arguments.batches) * (INPUT_TOKENS + outputs + 1), MAX_LENGTH + SPARE)
    model = StaticModel(
        weights, arguments.source, total, max(arguments.batches), True, nccl_port=arguments.nccl_port,
        max_length=MAX_LENGTH, graph_batches=arguments.batches, tp=arguments.tp, rank=arguments.rank,
        arguments=() if arguments.way == OWN else ("--disable_custom_allreduce",),
    )  # fmt: skip
    if arguments.rank == 0:  # no rank has a whole graph before all have their weights
        shutil.rmtree(weights)
    instrumented_graphs = plugin.session.instrumented_graphs.facts()
    _say(
        arguments.shape,
        f"model built, {time.perf_counter() - began:.1f} s; instrumented graphs "
        f"{instrumented_graphs['state']} {instrumented_graphs['reason']}",
    )
    with model:
        runner = Runner(model, plugin, arguments.steps)
        case = {"shape": arguments.shape, "layers": layers, "host": arguments.host}
        case |= {"tp": arguments.tp} if arguments.tp > 1 else {}
        measure_batches(runner, case, arguments, folder, rows)
        rows.append({"shape": arguments.shape, "host": arguments.host, **plugin.facts()})
        left(folder, arguments.rank).write_text(json.dumps(rows, default=float))  # leaving a group can take for ever
    _say(arguments.shape, f"done, {time.perf_counter() - began:.1f} s")


def measure_batches(
    runner: Runner, shape: dict[str, Any], arguments: argparse.Namespace, folder: Path, rows: list[dict[str, Any]]
) -> None:
    """Every batch size without CUPTI; then, when it will stay loaded, every batch size with it."""
    batches = arguments.batches
    for batch in batches:
        runner.run(batch, 1, 1, 2)  # kernels are compiled and tuned in the first step of each kind
    runner.plugin.read()
    alone: dict[int, Pass] = {}
    for batch in batches:
        with _reported(rows, {**shape, "batch": batch, "mode": "without CUPTI"}), markers(runner.model.model):
            tokens = runner.whole(batch)
            alone[batch] = Pass(runner.labels, runner.plugin.read(), tokens)
    for batch, earlier in alone.items():
        case = {**shape, "batch": batch}
        with _reported(rows, {**case, "mode": "under CUPTI"}):
            trace = folder / f"trace-{arguments.rank}.json"
            if arguments.tp == 1:
                compare(runner, case, earlier, trace, rows)
            else:
                calls = folder / f"calls-{arguments.rank}-{batch}.json"
                calls.write_text(json.dumps(compare_graphs(runner, case, earlier, trace, rows)))
        _say(shape["shape"], f"batch {batch} compared")


def under_cupti(runner: Runner, batch: int, trace: Path) -> Pass:
    with markers(runner.model.model), profiled(trace):
        tokens = runner.whole(batch)
    kernels = steps_between_markers(kernels_in(read_trace(trace)))
    return Pass(runner.labels, runner.plugin.read(), tokens, kernels)


def compare_graphs(runner: Runner, case: dict[str, Any], alone: Pass, trace: Path, rows: list[dict[str, Any]]) -> Calls:
    """One batch size of a rank in a group, decode in graphs. Returns its calls of all_reduce."""
    under = under_cupti(runner, case["batch"], trace)
    operators = runner.plugin.operators(case["batch"])
    rows += graph_rows(case, alone, under, operators, runner.plugin.boundary_cost())
    return reduce_calls(alone, under, operators)


def compare(runner: Runner, case: dict[str, Any], alone: Pass, trace: Path, rows: list[dict[str, Any]]) -> None:
    """One batch size under CUPTI, beside what it was ``alone``."""
    plugin, batch = runner.plugin, case["batch"]
    under = under_cupti(runner, batch, trace)
    graph = None
    with _reported(rows, {**case, "mode": "decode graph"}):
        operators = plugin.operators(batch)
        rows += graph_rows(case, alone, under, operators, plugin.boundary_cost())
        rows[-1]["distortion_percent_live"] = plugin.live_distortion(alone.ring)
        graph = kernels_of_graphs(under.kernels_of(TWIN), operators)
    expected = annotated_kernels(runner, batch, trace)
    with _reported(rows, {**case, "mode": "decode eager"}):
        rows += eager_rows(case, EAGER, alone, under, expected[EAGER], graph)
    with _reported(rows, {**case, "mode": "prefill eager"}):
        rows += eager_rows(case, PREFILL, alone, under, expected[PREFILL])


@contextlib.contextmanager
def _reported(rows: list[dict[str, Any]], case: dict[str, Any]) -> Iterator[None]:
    """A comparison that is not possible becomes a row that says why; the others go on."""
    try:
        yield
    except Mismatch as problem:
        rows.append({**case, "problem": str(problem)})


def _say(shape: str, what: str) -> None:
    print(f"{shape}: {what}", flush=True)


def left(folder: Path, rank: int) -> Path:
    return folder / f"rows-{rank}.json"


def ranks(arguments: argparse.Namespace, shape: str, folder: Path) -> list[dict[str, Any]]:
    """One shape: each rank in a process of its own, with nothing of the plugin switched on before it wants to."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LIGHTLLM_OTEL")}
    # CUPTI stays loaded once it is: taking it down and up again is not safe with graphs that exist already.
    environ |= {"DISABLE_CUPTI_LAZY_REINIT": "1", "TEARDOWN_CUPTI": "0", "TOKENIZERS_PARALLELISM": "false"}
    environ |= {"NCCL_NVLS_ENABLE": "0"} if arguments.tp > 1 else {}
    environ |= WAYS.get(arguments.way, {})
    environ.setdefault("LOADWORKER", "8")
    if importlib.util.find_spec("torchvision") is None:  # LightLLM imports it; text needs none of it
        paths = [str(_paths.DEMO / "stand_in"), environ.get("PYTHONPATH", "")]
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command = [sys.executable, __file__, "--shape", shape, "--source", str(arguments.source), "--tp", str(arguments.tp)]
    command += ["--batches", *map(str, arguments.batches), "--steps", str(arguments.steps)]
    command += ["--work", str(arguments.work), "--nccl-port", str(arguments.nccl_port), "--host", arguments.host]
    command += ["--layers", str(arguments.layers)] if arguments.layers else []
    command += ["--way", arguments.way] if arguments.way else []
    processes = [
        subprocess.Popen([*command, "--rank", str(rank)], env=environ, start_new_session=True)
        for rank in range(arguments.tp)
    ]
    try:
        problem = wait_for(processes, arguments.limit)
    finally:
        end(processes)
    paths = [left(folder, rank) for rank in range(arguments.tp)]
    of_rank: list[list[dict[str, Any]]] = [json.loads(path.read_text()) if path.exists() else [] for path in paths]
    lost = [{**row, "rank": rank} for rank, own in enumerate(of_rank) for row in own if rank and row.get("problem")]
    rows = of_rank[0] + lost
    for batch in arguments.batches if arguments.tp > 1 else ():
        calls = [path for rank in range(arguments.tp) if (path := folder / f"calls-{rank}-{batch}.json").exists()]
        if len(calls) == arguments.tp:
            case = {"shape": shape, "batch": batch, "tp": arguments.tp, "host": arguments.host}
            rows.append(transfer_row(case, [json.loads(path.read_text()) for path in calls]))
    return [*rows, *([{"shape": shape, "host": arguments.host, "mode": "all", "problem": problem}] if problem else [])]


def by_host(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is claimed of the LightLLM that this script drives itself, and below ``hosts`` of each other one."""
    hosts = list(dict.fromkeys(row.get("host", HOST) for row in rows if "merged" not in row))
    of_host = {host: [row for row in rows if row.get("host", HOST) == host and "merged" not in row] for host in hosts}
    own = summarise(of_host.pop(HOST, []))
    return {**own, "hosts": {host: summarise(each) for host, each in of_host.items()}} if of_host else own


def merge(files: list[dict[str, Any]], out: Path) -> None:
    """Put results together: for each host and shape the rows of the last file that has them."""
    kept: dict[tuple[str, str | None], list[dict[str, Any]]] = {}
    for content in files:
        own: dict[tuple[str, str | None], list[dict[str, Any]]] = {}
        for row in content["rows"]:
            if "merged" not in row:
                own.setdefault((row.get("host", HOST), row.get("shape")), []).append(row)
        kept |= own
    rows = [row for each in kept.values() for row in each]
    # Date and machine of the file are those of the first, whose figures stand on top; a row has its own.
    outcome.write("accuracy", by_host(rows), rows, out, [*files[1:], files[0]], measured=False)


def file_of(arguments: argparse.Namespace) -> str:
    """``accuracy``, with the ranks and the way behind it where there are several."""
    return "-".join(["accuracy", *([f"tp{arguments.tp}"] if arguments.tp > 1 else []), *filter(None, [arguments.way])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, help="a checkout of LightLLM, of July 2025")
    parser.add_argument("--host", default=HOST, help="what every row calls it")
    parser.add_argument("--merge", nargs="+", type=Path, default=[], help="only put these results together")
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--steps", type=int, default=24, help="decode steps with an instrumented graph that count")
    parser.add_argument("--layers", type=int, help=f"default: all of {', '.join(ALL_LAYERS)}, {CUT_LAYERS} of others")
    parser.add_argument("--out", type=Path, default=outcome.RESULTS)
    parser.add_argument("--work", type=Path, default=Path("/dev/shm/accuracy"), help="checkpoints, one at a time")
    parser.add_argument("--nccl-port", type=int, default=28765)
    parser.add_argument(
        "--tp", type=int, default=1, help="ranks, each on a GPU of its own; results are accuracy-tpN.json"
    )
    parser.add_argument(
        "--way", choices=tuple(WAYS), default="", help="with --tp: not NCCL as it is; results are accuracy-tpN-WAY.json"
    )
    parser.add_argument("--limit", type=float, default=1200.0, help="seconds that one shape may take")
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.merge:
        merge([json.loads(path.read_text()) for path in arguments.merge], arguments.out)
        return
    if arguments.source is None:
        parser.error("--source: give a checkout of LightLLM, or --merge")
    if arguments.way and arguments.tp == 1:
        parser.error("--way: one rank reduces nothing; give --tp")
    if arguments.shape:
        folder = arguments.work / arguments.shape
        folder.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, Any]] = []
        try:
            measure_shape(arguments, folder, rows)
        finally:  # GPU time is dear: what was compared before something went wrong counts
            left(folder, arguments.rank).write_text(json.dumps(rows, default=float))
        return
    rows = []
    for shape in arguments.shapes:
        folder = arguments.work / shape
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            rows += ranks(arguments, shape, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        outcome.write(file_of(arguments), summarise(rows), rows, arguments.out)
    summary = summarise(rows)
    print(json.dumps(summary, indent=1))
    sys.exit(bool(summary["problems"]))


if __name__ == "__main__":
    main()
