"""``lightllm-otel capture --kernels``: list the kernels of each operator, by torch.profiler in the running server."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import itertools
import json
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from lightllm_otel.exporter.control import Refused
from lightllm_otel.records import profile_request
from lightllm_otel.tools.analysis.kernels import OUTSIDE, Kernel
from lightllm_otel.tools.analysis.kernels import kernels as kernels_of
from lightllm_otel.tools.analysis.timestamped import from_its_start, ranges_in_graphs
from lightllm_otel.tools.benchmark.served import sampling
from lightllm_otel.tools.ctl import find
from lightllm_otel.tools.table import table
from lightllm_otel.tools.units import duration

DEFAULT_SECONDS = 2.0
PATIENCE_SECONDS = 60.0  # in addition to the capture: writing a trace takes time
_SHOWN = 4  # kernels of each operator


class NoTrace(RuntimeError):
    """Raised if the server did not write a trace; the message says why."""


def kernels(given: argparse.Namespace, out: Path) -> int:
    """Capture and print the kernels. Return exit status 0, or 1 with one sentence if the server did not answer."""
    seconds = given.seconds or DEFAULT_SECONDS
    path = (out / f"kernels-{datetime.datetime.now(datetime.timezone.utc):%Y%m%dT%H%M%SZ}.json").resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = find(given.group)
        with _timestamps_in_every_graph(folder):
            instrumented_graphs = capture(folder, path, seconds, PATIENCE_SECONDS)
        trace = with_operators(path, instrumented_graphs)
    except (NoTrace, Refused) as problem:
        print(f"lightllm-otel capture: {problem}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"lightllm-otel capture: {error.filename or 'the exporter'}: {error.strerror or error}", file=sys.stderr)
        return 1
    rows = kernels_of(trace)
    data = {"kind": "kernels", "path": str(path), "kernels": [dataclasses.asdict(row) for row in rows]}
    print(json.dumps(data, indent=1) if given.json else render(rows, path))
    return 0


@contextlib.contextmanager
def _timestamps_in_every_graph(folder: Path) -> Iterator[None]:
    """Sample every step inside the block, so that all CUDA graphs have timestamp kernels.

    Without the exporter's consent the block still runs, and captures the kernels outside graphs.
    """
    order = sampling(folder, 1)
    try:
        order.__enter__()
    except (OSError, Refused, IndexError) as problem:
        print(
            f"lightllm-otel capture: the exporter does not change the sampling ({problem}), so most graphs have no timestamps",
            file=sys.stderr,
        )
        yield
        return
    try:
        yield
    finally:
        try:
            order.__exit__(None, None, None)
        except (OSError, Refused) as problem:
            print(
                f"lightllm-otel capture: every step is still sampled ({problem}); run lightllm-otel ctl every N to change that",
                file=sys.stderr,
            )


def capture(folder: Path, path: Path, seconds: float, patience: float) -> list[list[str]]:
    """Send a profile request to the first rank, and wait for its trace at ``path``.

    ``seconds``: duration of the capture. ``patience``: further seconds to wait for. Return the operators of the intervals of each
    instrumented graph. Raises NoTrace and OSError.
    """
    profile_request.ask(folder, {"path": str(path), "seconds": seconds})
    end = time.monotonic() + seconds + patience
    while (answered := profile_request.answered(folder)) is None:
        if time.monotonic() > end:
            profile_request.withdraw(folder)
            raise NoTrace(
                "the server did not answer; it reads profile requests between steps, so send requests to it meanwhile"
            )
        time.sleep(0.1)
    if not answered.get("ok"):
        raise NoTrace(f"the server could not write a trace: {answered.get('text')}")
    instrumented_graphs: list[list[str]] = answered.get("instrumented_graphs", [])
    return instrumented_graphs


def with_operators(path: Path, instrumented_graphs: list[list[str]]) -> dict[str, Any]:
    """Read the trace. If there are instrumented graphs, add their operators to the trace and to its file.

    Raises NoTrace.
    """
    try:
        if not instrumented_graphs:
            plain: dict[str, Any] = json.loads(path.read_text())
            return plain
        trace = from_its_start(json.loads(path.read_text(), parse_float=Decimal))
        if ranges := ranges_in_graphs(trace, instrumented_graphs):
            trace["traceEvents"] += ranges
            new = path.with_suffix(".new")
            new.write_text(json.dumps(trace))
            new.replace(path)
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as problem:
        raise NoTrace(f"{path} is not a readable trace of torch.profiler ({problem!r})") from problem
    return trace


def render(rows: list[Kernel], path: Path) -> str:
    """Return the kernels as text, grouped by operator, longest operator first."""
    operators: dict[str, list[Kernel]] = {}
    for row in rows:
        operators.setdefault(row.operator, []).append(row)
    whole = sum(row.seconds for row in rows) or 1.0
    ordered = sorted(operators.items(), key=lambda item: -sum(row.seconds for row in item[1]))
    heads, shown = [], []
    for operator, own in ordered:
        seconds = sum(row.seconds for row in own)
        heads.append([operator, duration(seconds), f"{100 * seconds / whole:.1f} %"])
        shown += [[f"{row.calls} ×", duration(row.seconds / row.calls), row.name[:90]] for row in own[:_SHOWN]]
    left = iter(table(shown, ">><", (11, 7)))
    lines = []
    for head, (_, own) in zip(table(heads, "<>>", (18, 8, 7)), ordered):
        lines += [head, *itertools.islice(left, min(len(own), _SHOWN))]
        if len(own) > _SHOWN:
            lines.append(f"  and {len(own) - _SHOWN} more")
    if OUTSIDE in operators:
        lines += [
            "",
            f"{OUTSIDE}: kernels that no operator launched, and kernels of CUDA graphs without timestamps",
        ]
    return "\n".join([*lines, "", f"trace for ui.perfetto.dev: {path}"])
