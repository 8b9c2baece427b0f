"""Commands that make or read recordings: their arguments, and the module of each, which is imported on its first use."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

_MODEL = (
    "shape of the model, if the recording does not have it: a name (llama2-70b), a config.json, or a folder with one"
)
_RUN = "folder of a recording, folder with several repeats of one run, or name of a recording that the package contains"


def add(commands: Any) -> None:
    """Add the parsers of these commands."""
    report = commands.add_parser("report", help="show where the time of a recorded run went, and what bounds it")
    report.add_argument("run", help=_RUN)
    report.add_argument("--model", help=_MODEL)
    report.add_argument("--gpu", help="name of a GPU (A100-SXM-40GB), or a .json file that describes one")
    _add_page(report)
    report.add_argument(
        "--perfetto", type=Path, metavar="FILE", help="write a trace of the first repeat for ui.perfetto.dev"
    )
    report.add_argument("--json", action="store_true")

    compare = commands.add_parser(
        "compare", help="compare runs with the first one, operator by operator, with confidence intervals"
    )
    compare.add_argument("runs", nargs="+", metavar="RUN", help=_RUN + "; or a saved baseline")
    compare.add_argument("--repeats", action="store_true",
                         help="check whether these repeats of one run agree; exit status 3 if an operator does not")  # fmt: skip
    compare.add_argument("--model", help=_MODEL)
    compare.add_argument("--fail-if", action="append", default=[], metavar="OPERATOR:PHASE:+PERCENT%",
                         help="exit status 3 if the change is significantly larger, e.g. all_reduce:decode:+5%%")  # fmt: skip
    compare.add_argument("--save-baseline", type=Path, metavar="FILE",
                         help="save the first run for comparisons, and for servers with LIGHTLLM_OTEL_BASELINE=FILE")  # fmt: skip
    _add_page(compare)
    compare.add_argument("--json", action="store_true")

    _add_bench(commands)
    capture = commands.add_parser("capture", help="record every step of a running server for a short time")
    capture.add_argument("--steps", type=int, default=200, metavar="N", help="number of steps; default: 200")
    capture.add_argument("--seconds", type=float, help="timeout, default: 60; with --kernels, the duration, default: 2")
    capture.add_argument(
        "--kernels",
        action="store_true",
        help="list the kernels of each operator, by torch.profiler on the first rank, which slows it down",
    )
    capture.add_argument(
        "--out", type=Path, metavar="FOLDER", help="parent folder of the recording; default: the current folder"
    )
    capture.add_argument("--group", help="name of the server as doctor shows it, if several run")
    capture.add_argument("--json", action="store_true")

    plan = commands.add_parser("plan", help="choose machines for prefill and decode, and estimate the cost of tokens")
    plan.add_argument(
        "--model", required=True, help="name of a model (llama2-70b), a config.json, or a folder with one"
    )
    plan.add_argument("--machine", action="append", required=True, metavar="GPU:CARDS:PRICE",
                      help="a kind of machine, with its price per hour; repeat the option for each kind")  # fmt: skip
    plan.add_argument(
        "--run",
        action="append",
        default=[],
        help="recording that shows how close one of these GPUs comes to its roofline",
    )
    plan.add_argument("--input-len", type=int, default=1024, metavar="N", help="tokens of each prompt; default: 1024")
    plan.add_argument(
        "--output-len", type=int, default=1024, metavar="N", help="new tokens of each request; default: 1024"
    )
    plan.add_argument("--ttft", type=float, default=math.inf, metavar="SECONDS", help="longest time to the first token")
    plan.add_argument("--tpot", type=float, default=math.inf, metavar="SECONDS", help="longest time per further token")
    plan.add_argument(
        "--network", type=float, default=25.0, metavar="GB/S", help="bandwidth between machines; default: 25"
    )
    plan.add_argument("--dtype", choices=("float16", "bfloat16", "float32", "float8", "int8"), default="float16",
                      help="type of the weights; default: float16")  # fmt: skip
    plan.add_argument("--json", action="store_true")

    calibrate = commands.add_parser(
        "calibrate", help="measure what this machine reaches, for theory in place of data sheets"
    )
    calibrate.add_argument(
        "--ranks", type=int, default=1, metavar="N", help="number of GPUs whose collectives are measured; default: 1"
    )
    calibrate.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda; cpu is for tests")
    calibrate.add_argument("--out", type=Path, metavar="FILE.json", help="write a file for theory --gpu")
    calibrate.add_argument("--json", action="store_true")


def _add_page(command: argparse.ArgumentParser) -> None:
    command.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained page with charts")


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser("bench", help="run the same batch several times, and record each repeat")
    bench.add_argument(
        "--url",
        action="append",
        help="URL of a running server on this machine; give it twice to alternate between two servers, a and b",
    )
    bench.add_argument(
        "--serve",
        metavar="COMMAND",
        help="start a new server with this command for every repeat, and stop it afterwards",
    )
    bench.add_argument("--group", action="append", help="name of each server as doctor shows it, if several run")
    bench.add_argument(
        "--static", action="store_true", help="run the model class without a server, in one process per rank"
    )
    bench.add_argument("--model-dir", type=Path, help="folder of the model")
    for option, default, words in (
        ("--batch-size", 20, "concurrent requests"), ("--input-len", 1024, "tokens of each prompt"),
        ("--output-len", 1024, "new tokens of each request"), ("--repeats", 5, "repeats; at least 3 give a confidence interval"),
        ("--warmup", 1, "batches before the first repeat"), ("--tp", 1, "ranks (only with --static)"),
    ):  # fmt: skip
        bench.add_argument(option, type=int, default=default, metavar="N", help=f"{words}; default: {default}")
    bench.add_argument("--every", type=int, metavar="N", help="sample one decode step in N during the benchmark")
    bench.add_argument("--data-type", help="LightLLM's --data_type (only with --static)")
    bench.add_argument("--no-graphs", action="store_true", help="disable CUDA graphs (only with --static)")
    bench.add_argument(
        "--share-gpu",
        action="store_true",
        help="run all ranks of --tp on one GPU, connected by sockets; slow, for tests",
    )
    bench.add_argument(
        "--ab",
        nargs=2,
        metavar="ENV",
        help="alternate between two environments, e.g. 'A=1 B=2' '' (only with --serve or --static)",
    )
    bench.add_argument("--out", type=Path, metavar="FOLDER", help="output folder; default: bench-TIME")
    bench.add_argument("--json", action="store_true")


def _report(given: argparse.Namespace) -> int:
    from lightllm_otel.tools.report import report

    return report(given)


def _compare(given: argparse.Namespace) -> int:
    from lightllm_otel.tools.compare import compare

    return compare(given)


def _bench(given: argparse.Namespace) -> int:
    from lightllm_otel.tools.bench import bench

    return bench(given)


def _capture(given: argparse.Namespace) -> int:
    from lightllm_otel.tools.capture import capture

    return capture(given)


def _plan(given: argparse.Namespace) -> int:
    from lightllm_otel.tools.plan import plan

    return plan(given)


def _calibrate(given: argparse.Namespace) -> int:
    from lightllm_otel.tools.calibrate import calibrate

    return calibrate(given)


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "report": _report, "compare": _compare, "bench": _bench, "capture": _capture, "plan": _plan,
    "calibrate": _calibrate,
}  # fmt: skip
