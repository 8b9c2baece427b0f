"""``lightllm-otel plan``: choose machines for prefill and decode, and estimate the cost of a million tokens."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from typing import Any

from lightllm_otel.records.recording import BadRecording
from lightllm_otel.roofline import gpus, links, shape
from lightllm_otel.tools import inputs
from lightllm_otel.tools.analysis.plan import ASSUMED, USABLE, Choice, Demand, MachineOffer, MachinePlan, NoPlan
from lightllm_otel.tools.analysis.plan import plan as plan_for
from lightllm_otel.tools.answer import BadQuestion
from lightllm_otel.tools.table import table
from lightllm_otel.tools.units import duration


def plan(given: argparse.Namespace) -> int:
    """Print a plan. Return exit status 0, or 1 with one sentence if there is none."""
    try:
        sizes = (given.input_len, given.output_len, given.network, given.ttft, given.tpot)
        if not all(each > 0 for each in sizes):  # also refuses nan
            raise BadQuestion("--input-len, --output-len, --ttft, --tpot and --network must be above 0")
        load = Demand(
            shape.find(given.model), given.input_len, given.output_len, given.ttft, given.tpot,
            shape.DTYPE_BYTES[given.dtype], given.network * 1e9,
        )  # fmt: skip
        found = plan_for([machine(text) for text in given.machine], load, [inputs.run(name) for name in given.run])
    except (shape.UnknownModel, gpus.UnknownGpu, links.NoLink, BadRecording, NoPlan, BadQuestion) as problem:
        print(f"lightllm-otel plan: {problem}", file=sys.stderr)
        return 1
    data = as_json(found, load)
    print(json.dumps(data, indent=1) if given.json else render(found, load, data["assumptions"]))
    return 0


def machine(text: str) -> MachineOffer:
    """Parse ``GPU:CARDS:PRICE``, such as ``A100-SXM-40GB:8:12.5``; the price is per hour and machine.

    Raises BadQuestion and UnknownGpu.
    """
    words = text.rsplit(":", 2)
    try:
        name, cards, price = words[0], int(words[1]), float(words[2])
    except (IndexError, ValueError):
        raise BadQuestion(
            f"--machine {text!r} is not understood: pass GPU:CARDS:PRICE with the price per hour, like A40:8:4.0"
        ) from None
    if cards < 1 or not 0 < price < math.inf:
        raise BadQuestion(f"--machine {text!r}: cards and price must be above 0 and finite")
    return MachineOffer(gpus.find(name), cards, price)


def as_json(found: MachinePlan, load: Demand) -> dict[str, Any]:
    """Return the plan as JSON values; times in seconds."""
    return {
        "kind": "plan",
        "prefill": _choice(found.prefill),
        "decode": _choice(found.decode),
        "choices": [_choice(each) for each in found.choices],
        "cost_per_million_output_tokens": {"apart": found.apart, "together": found.together},
        "prefill_machines_per_decode_machine": found.prefill_per_decode,
        "transfer": {"bytes_per_request": load.transfer_bytes, "seconds": load.transfer_seconds},
        "refusals": list(found.refusals),
        "notes": list(found.notes),
        "assumptions": assumptions(found, load),
    }


def _choice(choice: Choice) -> dict[str, Any]:
    """Return one choice as JSON values. JSON has no infinity, so an open range ends with null."""
    low, high = choice.range
    return {**dataclasses.asdict(choice), "range": [low, None if math.isinf(high) else high]}


def assumptions(found: MachinePlan, load: Demand) -> list[str]:
    """Return the assumptions of the plan, one sentence each."""
    lines = []
    if any(not choice.measured for choice in found.choices):
        low, middle, high = (f"{100 * each:.0f}" for each in ASSUMED)
        lines.append(f"GPUs without a run reach {middle} % of their data sheets; ranges are for {low} to {high} %")
    if any(choice.measured for choice in found.choices):
        lines.append(
            "GPUs with a run reach the same share of their data sheets as that run; ranges are for the 95 % interval of its mean "
            "step (within a single recording, if there is only one), and ignore the effect of other sizes than those of the run"
        )
    return [
        *lines,
        f"{100 * USABLE:.0f} % of a GPU's memory is used for weights and cache; every request has {load.input_len} tokens in and "
        f"{load.output_len} out, and the batch is always full",
        "the cost of input tokens is part of the cost of output tokens; idle hours, the network and failures cost nothing",
    ]


def render(found: MachinePlan, load: Demand, assumed: list[str]) -> str:
    """Return the plan as text."""
    heads = ["", "phase", "tp", "requests", "step", "tokens/s", "cost per million", "bound by, limited by"]
    cells = [heads]
    for each in sorted(found.choices, key=lambda each: (each.phase == "decode", each.cost)):
        chosen = "→ " if each in (found.prefill, found.decode) else "  "
        high = "…" if math.isinf(each.range[1]) else f"{each.range[1]:.3g}"
        cells.append([
            f"{chosen}{each.cards} × {each.gpu}", each.phase, f"{each.tp}", f"{each.requests}",
            duration(each.step_seconds), f"{each.rate:.4g}", f"{each.cost:.3g} ({each.range[0]:.3g} to {high})",
            f"{each.bound}, {each.limited_by}",
        ])  # fmt: skip
    lines = table(cells, "<<>>>>><", (24, 8, 2, 8, 8, 9, 24))
    together = ", ".join(
        f"{cost:.3g} on {name}" for name, cost in sorted(found.together.items(), key=lambda item: item[1])
    )
    lines += [
        *(f"Not possible: {refusal}." for refusal in found.refusals),
        *(f"note: {note}" for note in found.notes),
        "",
        f"A million output tokens cost {found.apart:.3g} with prefill on {found.prefill.gpu} and decode on {found.decode.gpu}, "
        f"{found.prefill_per_decode:.2g} prefill machines for each decode machine; together: {together or 'not possible'}.",
        f"Keys and values of a request: {load.transfer_bytes / 1e6:.3g} MB; transfer: {duration(load.transfer_seconds)}.",
        *(f"Assumed: {line}." for line in assumed),
    ]
    return "\n".join(lines)
