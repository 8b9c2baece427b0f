"""The commands that read recordings: their arguments, and where each is found when it is called."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

_MODEL = (
    "the model's shape, where the recording does not say it: a name (llama2-70b), a config.json, or a folder with one"
)
_RUN = (
    "a recording's folder, a folder with several of the same (repeats), or the name of one that comes with the package"
)


def add(commands: Any) -> None:
    """Add the parsers of all of them."""
    report = commands.add_parser("report", help="where the time of a recorded run went, and what bounds it")
    report.add_argument("run", help=_RUN)
    report.add_argument("--model", help=_MODEL)
    report.add_argument("--gpu", help="a name (A100-SXM-40GB), or a .json file that describes one")
    _add_page(report)
    report.add_argument(
        "--perfetto", type=Path, metavar="FILE", help="write a trace for ui.perfetto.dev, of the first repeat"
    )
    report.add_argument("--json", action="store_true")

    compare = commands.add_parser(
        "compare", help="runs against the first of them, operator by operator, with intervals"
    )
    compare.add_argument("runs", nargs="+", metavar="RUN", help=_RUN + "; or a saved baseline")
    compare.add_argument("--repeats", action="store_true",
                         help="all are repeats of the same: do they agree? exit status 3 where an operator does not")  # fmt: skip
    compare.add_argument("--model", help=_MODEL)
    compare.add_argument("--fail-if", action="append", default=[], metavar="OPERATOR:PHASE:+PERCENT%",
                         help="exit status 3 when the change is surely larger: all_reduce:decode:+5%%")  # fmt: skip
    compare.add_argument("--save-baseline", type=Path, metavar="FILE",
                         help="keep the first run, for comparisons and for servers with LIGHTLLM_OTEL_BASELINE=FILE")  # fmt: skip
    _add_page(compare)
    compare.add_argument("--json", action="store_true")

    _add_bench(commands)
    capture = commands.add_parser("capture", help="every step of a running server for a moment, as a recording")
    capture.add_argument("--steps", type=int, default=200, metavar="N", help="how many to wait for")
    capture.add_argument(
        "--seconds", type=float, help="give up after so long, default: 60; with --kernels: for how long, default: 2"
    )
    capture.add_argument(
        "--kernels", action="store_true", help="torch.profiler on the first rank, which it slows: kernels by operator"
    )
    capture.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where the recording's folder is made; default: here"
    )
    capture.add_argument("--group", help="the server's name as doctor shows it, where several run")
    capture.add_argument("--json", action="store_true")

    plan = commands.add_parser("plan", help="which machine for prefill, which for decode, and what tokens cost")
    plan.add_argument("--model", required=True, help="a name (llama2-70b), a config.json, or a folder with one")
    plan.add_argument("--machine", action="append", required=True, metavar="GPU:CARDS:PRICE",
                      help="with the price of the whole machine an hour; again for each kind")  # fmt: skip
    plan.add_argument(
        "--run", action="append", default=[], help="a recording: how near one of these GPUs came to theory"
    )
    plan.add_argument("--input-len", type=int, default=1024, metavar="N", help="tokens of each prompt; default: 1024")
    plan.add_argument(
        "--output-len", type=int, default=1024, metavar="N", help="new tokens of each request; default: 1024"
    )
    plan.add_argument("--ttft", type=float, default=math.inf, metavar="SECONDS", help="the most to the first token")
    plan.add_argument("--tpot", type=float, default=math.inf, metavar="SECONDS", help="the most per further token")
    plan.add_argument("--network", type=float, default=25.0, metavar="GB/S", help="between machines; default: 25")
    plan.add_argument("--dtype", choices=("float16", "bfloat16", "float32", "float8", "int8"), default="float16",
                      help="of weights; default: float16")  # fmt: skip
    plan.add_argument("--json", action="store_true")

    calibrate = commands.add_parser(
        "calibrate", help="what this machine really reaches, for theory instead of data sheets"
    )
    calibrate.add_argument("--ranks", type=int, default=1, metavar="N", help="GPUs whose collectives are measured")
    calibrate.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is for trying it out")
    calibrate.add_argument("--out", type=Path, metavar="FILE.json", help="write a description for theory --gpu")
    calibrate.add_argument("--json", action="store_true")


def _add_page(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--html", type=Path, metavar="FILE", help="write one page with pictures, which needs nothing else"
    )


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser("bench", help="the same batch again and again, each repeat recorded")
    bench.add_argument(
        "--url", action="append", help="of a running server on this machine; twice: turn about, as a and b"
    )
    bench.add_argument(
        "--serve", metavar="COMMAND", help="start a server with this command, a fresh one for every repeat, and end it"
    )
    bench.add_argument("--group", action="append", help="each server's name as doctor shows it, where several run")
    bench.add_argument("--static", action="store_true", help="without a server: the model class, one process per rank")
    bench.add_argument("--model-dir", type=Path, help="the model's folder")
    for option, default, words in (
        ("--batch-size", 20, "requests at once"), ("--input-len", 1024, "tokens of each prompt"),
        ("--output-len", 1024, "new tokens of each request"), ("--repeats", 5, "at least 3 for an interval"),
        ("--warmup", 1, "batches before the first repeat"), ("--tp", 1, "ranks, with --static"),
    ):  # fmt: skip
        bench.add_argument(option, type=int, default=default, metavar="N", help=f"{words}; default: {default}")
    bench.add_argument("--every", type=int, metavar="N", help="time the operators of one decode step in N meanwhile")
    bench.add_argument("--data-type", help="as LightLLM's --data_type, with --static")
    bench.add_argument("--no-graphs", action="store_true", help="without CUDA graphs, with --static")
    bench.add_argument(
        "--share-gpu", action="store_true", help="all ranks of --tp on one GPU, joined by sockets: slow, to try it out"
    )
    bench.add_argument(
        "--ab", nargs=2, metavar="ENV", help="with --serve or --static: two environments, turn about: 'A=1 B=2' ''"
    )
    bench.add_argument("--out", type=Path, metavar="FOLDER", help="default: bench- and the time")
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
