"""``lightllm-otel theory``: show the ideal time of a step on a machine, operator by operator, and what bounds it."""

from __future__ import annotations

import json
import sys
from typing import Any

from lightllm_otel.records.recording import BadRecording
from lightllm_otel.roofline import gpus, links, shape
from lightllm_otel.tools import inputs
from lightllm_otel.tools.answer import BadQuestion, Question, answer, answer_beside
from lightllm_otel.tools.table import table
from lightllm_otel.tools.units import amount, duration


def theory(question: Question, as_json: bool, run: str | None = None) -> int:
    """Print the answer. ``run``: a recording to compare with it.

    Return exit status 0, or 1 with one sentence if there is no answer.
    """
    try:
        answered = answer(question) if run is None else answer_beside(inputs.run(run), question)
    except (shape.UnknownModel, gpus.UnknownGpu, links.NoLink, BadRecording, BadQuestion) as problem:
        print(f"lightllm-otel theory: {problem}", file=sys.stderr)
        return 1
    print(json.dumps(answered, indent=1) if as_json else render(answered))
    return 0


def render(answered: dict[str, Any]) -> str:
    """Return the answer as text."""
    asked, gpu, link = answered["question"], answered["gpu"], answered["link"]
    size = (
        f"{asked['dtype']}, batch {asked['batch_size']}, {asked['input_len']} tokens in, {asked['output_len']} out"
        if "run" not in asked else f"at the mean sizes of {asked['run']}"
    )  # fmt: skip
    lines = [
        f"{asked['model']} on {asked['tp']} × {gpu['name']}, {size}; per rank, at peak rates from "
        f"{'data sheets' if gpu['source'].startswith('https:') else gpu['source']}",
        f"{gpu['flops'] / 1e12:.4g} TFLOP/s, {gpu['memory_bytes_per_second'] / 1e9:.4g} GB/s: bound by compute above "
        f"{gpu['ridge_flops_per_byte']:.0f} FLOPs per byte",
    ]
    if link is not None:
        lines.append(
            f"{link['kind']} {link['bytes_per_second'] / 1e9:.4g} GB/s both ways"
            + (
                f", {duration(link['alpha']['all_reduce'])} per call as measured"
                if "all_reduce" in link["alpha"]
                else ""
            )
            + f": bandwidth takes over latency at {amount(link['takeover_payload_bytes'])}"
            + (
                f"; one all_reduce of decode is {amount(link['decode_payload_bytes'])}{_decode_seconds(link)}"
                if "decode_payload_bytes" in link
                else ""
            )
        )
    lines += [f"note: {note}" for note in answered["notes"]]
    for name, phase in answered["phases"].items():
        lines += ["", *_phase(name, phase)]
        lines += [line for mode, seen in phase.get("measured", {}).items() for line in _measured(mode, seen, phase)]
    if "prefill_seconds" not in answered:
        return "\n".join(lines)
    lines += [
        "",
        f"prefill {duration(answered['prefill_seconds'])}, decode {duration(answered['decode_seconds'])}, "
        f"{answered['output_tokens_per_second']:.4g} output tokens per second at best",
    ]
    return "\n".join(lines)


def _phase(name: str, phase: dict[str, Any]) -> list[str]:
    ordered = sorted(phase["operators"].items(), key=lambda row: -row[1]["ideal_seconds"])
    cells = [
        [f"  {operator}", duration(row["ideal_seconds"]), f"{100 * row['share']:.1f}%", f"{row['flops'] / 1e12:.4g}",
         amount(row["memory_bytes"]) if row["memory_bytes"] else "–",
         amount(row["communication_bytes"]) if row["communication_bytes"] else "–", row["bound"]]
        for operator, row in ordered
    ]  # fmt: skip
    heads = [name, "ideal", "share", "TFLOP", "moved", "sent", "bound"]
    whole = ["  one step", duration(phase["step_seconds"])]
    return table([heads, *cells, whole], "<>>>>><", (18, 8, 6, 9, 9, 9))


def _decode_seconds(link: dict[str, Any]) -> str:
    seconds = link["decode_all_reduce_seconds"]
    custom = "" if seconds["one_shot"] is None else f", {duration(seconds['one_shot'])} by a one-shot custom kernel"
    return f", {duration(seconds['ring'])} by NCCL's ring{custom}"


def _measured(mode: str, seen: dict[str, Any], phase: dict[str, Any]) -> list[str]:
    """Return lines with the measured times of a run, its MFU and MBU, and the ideal time as a share of each measured time."""
    least = phase["operators"]
    shares = [
        f"{name} {duration(seconds)} ({100 * least[name]['ideal_seconds'] / seconds:.0f} %)"
        for name, seconds in seen["operators"].items()
        if name in least and seconds > 0
    ]
    return [
        f"  measured, {mode}: a step {duration(seen['step_seconds'])}, MFU {100 * seen['mfu']:.1f} %, MBU "
        f"{100 * seen['mbu']:.1f} %; ideal time in percent of the measured time: {', '.join(shares) or 'no step was sampled'}"
    ]
