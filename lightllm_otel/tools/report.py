"""``lightllm-otel report RUN``: show where the time of a recorded run went."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lightllm_otel.records.recording import BadRecording
from lightllm_otel.roofline import gpus, shape
from lightllm_otel.tools import inputs
from lightllm_otel.tools.analysis import perfetto
from lightllm_otel.tools.analysis.report import report as report_on
from lightllm_otel.tools.analysis.runs import Run
from lightllm_otel.tools.table import table
from lightllm_otel.tools.units import duration, percent, rate

_HEADS = ["", "share", "95 %", "step", "layer", "call", "computed", "moved", "bus", "of peak", "bound by"]
_WIDTHS = (17, 5, 13, 8, 8, 8, 12, 10, 10, 7)


def report(given: argparse.Namespace) -> int:
    """Print the report. Return exit status 0; 1 with one sentence if the run cannot be read; 4 if a part of it is missing."""
    try:
        run = inputs.run(given.run)
        data = report_on(run, inputs.model(given.model), gpus.find(given.gpu) if given.gpu else None)
        written = _write(given, run, data)
    except (BadRecording, shape.UnknownModel, gpus.UnknownGpu) as problem:
        print(f"lightllm-otel report: {problem}", file=sys.stderr)
        return 1
    print(json.dumps(data, indent=1) if given.json else render(data))
    if written and not given.json:
        print("\n" + "\n".join(f"wrote {path}" for path in written))
    return inputs.incomplete("report", run.notes)


def _write(given: argparse.Namespace, run: Run, data: dict[str, Any]) -> list[Path]:
    """Write the page and the trace that were requested, and return their paths. Raises BadRecording."""
    paths = inputs.write_page(given, data, f"{data['name']} · lightllm-otel")
    if given.perfetto is not None:
        inputs.write(given.perfetto, json.dumps(perfetto.trace(run.repeats[0]), separators=(",", ":")))
        paths.append(given.perfetto)
    return paths


def render(data: dict[str, Any]) -> str:
    """Return the report as text."""
    facts, whole = data["facts"], data["pace"]
    repeats = f"{data['repeats']} repeats" if data["repeats"] > 1 else "one recording"
    lines = [
        f"{data['name']}: {facts.get('model')} on {facts.get('tp', 1)} × {facts.get('gpu_name') or 'an unknown GPU'}, LightLLM "
        f"{facts.get('lightllm')}, {repeats}",
        f"{whole['seconds']:.3g} s: {percent(whole['busy'])} in steps, idle {percent(whole['host'])} (waiting for the host) and "
        f"{percent(whole['no_requests'])} (no requests); {whole['output_tokens_per_second']:.4g} output tokens/s",
        *(f"note: {note}" for note in data["notes"]),
    ]
    for phase in data["phases"]:
        lines += ["", *_phase(phase)]
    return "\n".join(lines)


def _phase(phase: dict[str, Any]) -> list[str]:
    step, used = phase["step"], phase["utilisation"]
    low, high = step["interval"]
    lines = [
        f"{phase['phase']} · {phase['mode']}: a step {duration(step['mean'])} ({duration(low)} … {duration(high)}), p99 "
        f"{duration(step['p99'])}, {step['tokens_per_second']:.4g} tokens/s, {step['sampled']} of {step['steps']} steps sampled"
        + ("" if used["mfu"] is None else f", MFU {percent(used['mfu'])}, MBU {percent(used['mbu'])}")
    ]
    if phase["operators"]:
        lines += table([_HEADS, *map(_operator, phase["operators"])], "<>>>>>>>>><", _WIDTHS)
    for calls in phase["collectives"]:
        lines.append(
            f"  {calls['operator']} after {calls['site']}: {calls['calls']} calls, p50 {duration(calls['p50'])}, p99 "
            f"{duration(calls['p99'])}, max {duration(calls['max'])}"
        )
    return lines


def _operator(row: dict[str, Any]) -> list[str]:
    low, high = row["interval"]
    layer = row["seconds_per_layer"]
    return [
        f"  {row['operator']}", f"{100 * row['share']:.1f}%", f"{100 * low:.1f} … {100 * high:.1f}%",
        duration(row["seconds_per_step"]), "–" if layer is None else duration(layer), duration(row["seconds_per_call"]),
        rate(row["flops_per_second"] or None, "FLOP"), rate(row["bytes_per_second"] or None, "B"),
        rate(row["bus_bytes_per_second"], "B"), percent(row["busy"], 0), row["bound"] or "–",
    ]  # fmt: skip
