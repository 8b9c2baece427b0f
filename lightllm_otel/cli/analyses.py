"""The commands that read recordings: their arguments, and where each is found when it is called."""

from __future__ import annotations

import argparse
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
    report.add_argument(
        "--html", type=Path, metavar="FILE", help="write one page with pictures, which needs nothing else"
    )
    report.add_argument("--json", action="store_true")

    compare = commands.add_parser(
        "compare", help="runs against the first of them, operator by operator, with intervals"
    )
    compare.add_argument("runs", nargs="+", metavar="RUN", help=_RUN + "; or a saved baseline")
    compare.add_argument("--model", help=_MODEL)
    compare.add_argument("--fail-if", action="append", default=[], metavar="OPERATOR:PHASE:+PERCENT%",
                         help="exit status 3 when the change is surely larger: all_reduce:decode:+5%%")  # fmt: skip
    compare.add_argument(
        "--save-baseline", type=Path, metavar="FILE", help="keep what comparisons need of the first run"
    )
    compare.add_argument(
        "--html", type=Path, metavar="FILE", help="write one page with pictures, which needs nothing else"
    )
    compare.add_argument("--json", action="store_true")


def _report(given: argparse.Namespace) -> int:
    from lightllm_otel.cli.report import report

    return report(given)


def _compare(given: argparse.Namespace) -> int:
    from lightllm_otel.cli.compare import compare

    return compare(given)


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {"report": _report, "compare": _compare}
