"""``lightllm-otel``: the command line. Each command is in a file of its own, which is imported when it is called."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from lightllm_otel import __version__
from lightllm_otel.tools import analyses, grafana


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = argparse.ArgumentParser(prog="lightllm-otel", description="GPU time of every operator of a LightLLM server.")
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="start a LightLLM server with the plugin, without a .pth file")
    run.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND …")

    doctor = commands.add_parser(
        "doctor", help="show what is active on this machine, what is missing, and how to fix it"
    )
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.add_argument("--contracts", action="store_true",
                        help="print every place where the plugin hooks or reads LightLLM, with its state")  # fmt: skip
    doctor.add_argument("--stuck", nargs="?", type=_patience, const=10.0, metavar="SECONDS",
                        help="show where each rank is, and for which rank the others wait; a step of more than "
                             "SECONDS counts as stuck (default: 10)")  # fmt: skip
    doctor.add_argument(
        "--remote",
        action="store_true",
        help="Prometheus runs on another machine, so an exporter on the loopback address is wrong",
    )

    live = commands.add_parser("top", help="show a live table of operators by phase")
    live.add_argument("--once", action="store_true", help="print one table and exit")
    live.add_argument("--url", help="address of an exporter; default: the exporter on this machine")
    live.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="refresh interval; default: 2")
    live.add_argument("--json", action="store_true", help="print a line of JSON for each table")

    control = commands.add_parser("ctl", help="change what a running server measures, without a restart")
    control.add_argument("words", nargs="+", metavar="off|steps|operators|every N")
    control.add_argument("--group", help="name of the server as doctor shows it, if several run")
    control.add_argument("--json", action="store_true")

    ideal = commands.add_parser("theory", help="show the ideal time of a step on a machine, and what bounds it")
    ideal.add_argument("--model", help="name of a model (llama2-70b), a config.json, or a folder with one")
    ideal.add_argument("--gpu", help="name of a GPU (A100-SXM-40GB), or a .json file that describes one")
    ideal.add_argument("--run", help="recording to compare with theory, at its own sizes, with MFU and MBU")
    for option, words in (
        ("--tp", "ranks; default: 1"), ("--batch-size", "concurrent requests; default: 20"),
        ("--input-len", "tokens of each prompt; default: 1024"), ("--output-len", "new tokens of each request; default: 1024"),
    ):  # fmt: skip
        ideal.add_argument(option, type=int, metavar="N", help=words)
    ideal.add_argument("--link", choices=("nvlink", "pcie"), help="default: the fastest link that all ranks share")
    ideal.add_argument(
        "--dtype",
        choices=("float16", "bfloat16", "float32", "float8", "int8"),
        help="type of the weights; default: float16",
    )
    ideal.add_argument("--json", action="store_true")

    analyses.add(commands)

    demo = commands.add_parser("demo", help="replay a recording through the exporter, without a GPU")
    demo.add_argument(
        "recording", nargs="?", help="folder of a recording, or name of a recording that the package contains"
    )
    demo.add_argument("--seconds", type=float, help="stop after this time")
    demo.add_argument("--port", type=int, help="default: the first free port in 9464–9479")
    demo.add_argument(
        "--fleet",
        action="store_true",
        help="simulate three servers instead: one healthy, one with a slow link, one with a slow GPU",
    )
    demo.add_argument("--prometheus", nargs="?", type=int, const=9090, metavar="PORT",
                      help="start a Prometheus that scrapes them (only with --fleet; default: 9090)")  # fmt: skip
    demo.add_argument("--speed", type=float, default=1.0, help="factor on the speed of the recording; default: 1")

    grafana.add(commands)

    exporter = commands.add_parser(
        "exporter", help="run the process that serves /metrics (servers start it themselves)"
    )
    exporter.add_argument("--folder", type=Path, required=True, help="folder of the group in LIGHTLLM_OTEL_DIR")
    exporter.add_argument("--detach", action="store_true", help="run in the background")
    exporter.add_argument("--detached", action="store_true", help=argparse.SUPPRESS)
    return top


def _patience(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: pass seconds, more than 0")
    return seconds


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Return its exit status: 0 for success, 1 for a problem (with one sentence), 2 for wrong usage."""
    given = parser().parse_args(arguments)
    try:
        return _command(given)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0


def _command(given: argparse.Namespace) -> int:
    return _COMMANDS[given.command](given)


def _run(given: argparse.Namespace) -> int:
    from lightllm_otel.inject.run import run

    words = given.words[1:] if given.words[:1] == ["--"] else given.words
    if not words:
        print("lightllm-otel run: pass the command to run: lightllm-otel run -- python -m lightllm.server.api_server …",
              file=sys.stderr)  # fmt: skip
        return 2
    return run(words)


def _exporter(given: argparse.Namespace) -> int:
    from lightllm_otel.tools.exporter import exporter

    return exporter(given.folder, given.detach, given.detached)


def _top(given: argparse.Namespace) -> int:
    from lightllm_otel.tools.top import top

    return top(given.url, given.once, given.every, given.json)


def _ctl(given: argparse.Namespace) -> int:
    from lightllm_otel.tools.ctl import ctl

    return ctl(given.words, given.group, given.json)


def _theory(given: argparse.Namespace) -> int:
    from lightllm_otel.tools.answer import Question
    from lightllm_otel.tools.theory import theory

    if given.run is None and not (given.model and given.gpu):
        print("lightllm-otel theory: pass --model and --gpu, or --run with a recording", file=sys.stderr)
        return 2
    sizes = {
        name: value for name in ("tp", "batch_size", "input_len", "output_len", "dtype")
        if (value := getattr(given, name)) is not None
    }  # fmt: skip
    if given.run is not None and sizes:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in sizes)
        print(f"lightllm-otel theory: a recording has its own sizes; remove {options}, or --run", file=sys.stderr)
        return 2
    return theory(Question(given.model or "", given.gpu or "", link=given.link, **sizes), given.json, given.run)


def _demo(given: argparse.Namespace) -> int:
    if given.fleet:
        from lightllm_otel.tools.fleet import fleet

        return fleet(given.seconds, given.port, given.prometheus)
    from lightllm_otel.tools.demo import demo

    return demo(given.recording, given.seconds, given.port, given.speed)


def _doctor(given: argparse.Namespace) -> int:
    from lightllm_otel.tools.contract_table import contract_table
    from lightllm_otel.tools.doctor import doctor
    from lightllm_otel.tools.stuck import stuck

    if given.contracts:
        return contract_table()
    if given.stuck is not None:
        return stuck(given.json, given.stuck)
    return doctor(given.json, given.remote)


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run, "doctor": _doctor, "top": _top, "ctl": _ctl, "theory": _theory, "demo": _demo, "exporter": _exporter,
    "grafana": grafana.grafana, **analyses.COMMANDS,
}  # fmt: skip
