"""``lightllm-otel top``: show the operators of a running server, live."""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any

from lightllm_otel.tools.operator_table import render, rows
from lightllm_otel.tools.scrape import NoExporter, Scrape, fetch, only_address
from lightllm_otel.tools.straggler import straggler

CLEAR = "\x1b[H\x1b[2J"


def top(url: str | None, once: bool, every: float, as_json: bool = False) -> int:
    """Print a table since the start of the exporter, then one for each period of ``every`` seconds.

    Return exit status 0, or 1 with one sentence if the exporter does not answer.
    """
    shown = line if as_json else page
    try:
        address = url or only_address()
        now = fetch(address)
        print(shown(now, None, None, address), flush=True)
        while not once:
            time.sleep(every)
            before, now = now, fetch(address)
            sys.stdout.write(CLEAR if sys.stdout.isatty() and not as_json else "")
            print(shown(now, before, every, address), flush=True)
    except NoExporter as problem:
        print(f"lightllm-otel top: {problem}", file=sys.stderr)
        return 1
    return 0


def page(now: Scrape, before: Scrape | None, seconds: float | None, address: str) -> str:
    """Return one table as text. ``seconds``: time since the scrape ``before``."""
    info = now.info("lightllm_server_info")
    steps = sum(now.samples.get("lightllm_gpu_step_duration_seconds_count", {}).values())
    head = f"{info.get('model', '?')} on {info.get('gpu') or 'the CPU'}, tp {info.get('tp', '?')} · {steps:.0f} steps · {address}"
    if now.info("lightllm_otel_state_info").get("clock") == "host":
        head += "\nThere is no GPU: times are measured with the clock of the host."
    table = render(rows(now, before), seconds)
    if not table:
        table = f"No operator was sampled {f'in the last {seconds:g} s' if seconds else 'yet'}."
    span = f"the last {seconds:g} s" if seconds else "since the exporter started"
    late = straggler(now, before)
    return f"{head}\n{span}\n\n{table}" + (f"\n{late}\n" if late else "")


def line(now: Scrape, before: Scrape | None, seconds: float | None, address: str) -> str:
    """Return one table as a line of JSON; times in seconds. Values that were not observed are null or missing."""
    phases = [
        {"phase": phase, "mode": mode, "operators": {
            operator: {"calls": row.count, "seconds": row.seconds, "mean": _finite(row.seconds / row.count),
                       "p50": _finite(row.quantile(0.5)), "p99": _finite(row.quantile(0.99))}
            for operator, row in sorted(operators.items(), key=lambda item: -item[1].seconds) if row.count
        }}
        for (phase, mode), operators in sorted(rows(now, before).items())
    ]  # fmt: skip
    said: dict[str, Any] = {
        "kind": "top", "address": address, "server": now.info("lightllm_server_info"),
        "state": now.info("lightllm_otel_state_info"), "span_seconds": seconds,
        "phases": phases, "verdict": straggler(now, before),
    }  # fmt: skip
    return json.dumps(said)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
