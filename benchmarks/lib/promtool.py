"""Rules over series, as Prometheus evaluates them: one file for ``promtool test rules``, and which alerts fired when."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import _paths
import numpy as np
from days import Days

RULES = _paths.ROOT / "grafana" / "rules"
FILES = ("recording.yml", "alerts.yml")
GROUPS = (
    "lightllm-rates",
    "lightllm-collectives",
    "lightllm-usual",
    "lightllm-limits",
    "lightllm-stuck",
    "lightllm-alerts",
)
OFFLINE = 4  # scrapes without an answer at a deploy
FIRING = 'ALERTS{alertstate="firing"}'
_TIME = re.compile(r'expr: "ALERTS.*", time: (\S+),')
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}


def promtool() -> str:
    return os.environ.get("PROMTOOL", "promtool")


def version() -> str:
    answer = subprocess.run([promtool(), "--version"], capture_output=True, text=True, check=True)
    return " ".join((answer.stdout or answer.stderr).split()[:3]).rstrip(",")


def labelled(series: str, labels: dict[str, str]) -> str:
    """The series with more labels."""
    more = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return f"{series[:-1]},{more}}}" if series.endswith("}") else f"{series}{{{more}}}"


def scraped(days: Days, server: str) -> Iterable[tuple[str, str]]:
    """Series and values in promtool's notation. At a deploy the pod has a new name, and its counters begin anew."""
    starts = [0, *(int(np.searchsorted(days.times, at)) for at in days.deploys), len(days.times)]
    for number, (first, end) in enumerate(zip(starts[:-1], starts[1:])):
        begin = first + (OFFLINE if number else 0)
        if begin >= end:
            continue
        pod = {"job": "lightllm-otel", "instance": f"{server}-{number}:9464"}
        before = f"_x{begin} " if begin else ""
        after = " stale" if end < len(days.times) else ""
        info = {**pod, "server": server, "model": "llama", "gpu": "H200", "tp": "4",
                "lightllm": f"version-{number}", "torch": "2", "cuda": "13", "plugin": "0.1.0"}  # fmt: skip
        yield labelled("lightllm_server_info", info), f"{before}1x{end - begin - 1}{after}"
        for name, values in days.columns.items():
            counts = "_total" in name or name.partition("{")[0].endswith(("_sum", "_count"))
            part = values[begin:end] - (values[begin] if counts else 0.0)
            yield labelled(name, pod), before + " ".join(f"{value:.9g}" for value in part.tolist()) + after


def write(path: Path, fleet: dict[str, Days], every: int, look: Iterable[float]) -> None:
    """A test that expects no alert to fire at any of the times ``look`` (seconds): promtool says which did.

    ``every``: seconds between two evaluations. promtool evaluates all groups that often, whatever their own interval is.
    """
    lines = ["rule_files:", *(f"- {RULES / name}" for name in FILES), f"evaluation_interval: {every}s"]
    lines += ["group_eval_order:", *(f"- {name}" for name in GROUPS), "tests:"]
    lines += [f"- interval: {next(iter(fleet.values())).grid}s", "  input_series:"]
    for server, days in fleet.items():
        for series, values in scraped(days, server):
            lines += [f"  - series: '{series}'", f"    values: '{values}'"]
    lines.append("  promql_expr_test:")
    for at in look:
        lines += [f"  - expr: '{FIRING}'", f"    eval_time: {int(at)}s"]
    path.write_text("\n".join(lines) + "\n")


def run(path: Path) -> list[tuple[float, dict[str, str]]]:
    """``(seconds, labels)`` of every alert that fired at a time that was looked at."""
    answer = subprocess.run([promtool(), "test", "rules", str(path)], capture_output=True, text=True, check=False)
    return parse(answer.stdout + answer.stderr)


def parse(text: str) -> list[tuple[float, dict[str, str]]]:
    """What promtool says of expressions that were to have no result. Raises RuntimeError for what is no such answer."""
    if "SUCCESS" in text:
        return []
    found: list[tuple[float, dict[str, str]]] = []
    for part in re.split(r'(?=expr: "ALERTS)', text):
        when = _TIME.match(part)
        if when is None:
            if "FAILED" not in part and part.strip() and not part.startswith("Unit Testing"):
                raise RuntimeError(part[:500])
            continue
        got = part.partition("got:")[2]
        found += [(seconds(when[1]), dict(_LABEL.findall(labels))) for labels in re.findall(r"\{(.*?)\}(?:,| )", got)]
    if not found:
        raise RuntimeError(text[:500])
    return found


def seconds(duration: str) -> float:
    """``1d2h3m0s`` as seconds."""
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)([dhms])", duration))
