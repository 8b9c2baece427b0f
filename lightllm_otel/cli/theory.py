"""``lightllm-otel theory``: what a step must cost on a machine, operator by operator, and what bounds it."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

from lightllm_otel.analyze import expected
from lightllm_otel.analyze.operators import spent, utilisation
from lightllm_otel.analyze.pace import pace
from lightllm_otel.analyze.runs import Run
from lightllm_otel.cli import inputs
from lightllm_otel.cli.table import duration
from lightllm_otel.export.recording import BadRecording
from lightllm_otel.theory import gpus, ideal, links, shape
from lightllm_otel.theory.ideal import Ideal
from lightllm_otel.theory.work import Batch
from lightllm_otel.vocabulary import Operator


@dataclasses.dataclass(frozen=True)
class Question:
    """Lengths in tokens of each request; ``link``: ``nvlink``, ``pcie``, or None for the fastest that all ranks share."""

    model: str
    gpu: str
    tp: int
    batch_size: int
    input_len: int
    output_len: int
    link: str | None
    dtype: str


class BadQuestion(ValueError):
    """It has no answer; the message says what to give instead."""


def theory(question: Question, as_json: bool, run: str | None = None) -> int:
    """``run``: a recording to set beside it. Exit status 1 and one sentence for an unknown model or GPU, or a link that is
    not there.
    """
    try:
        answered = answer(question) if run is None else answer_beside(inputs.run(run), question)
    except (shape.UnknownModel, gpus.UnknownGpu, links.NoLink, BadRecording, BadQuestion) as problem:
        print(f"lightllm-otel theory: {problem}", file=sys.stderr)
        return 1
    print(json.dumps(answered, indent=1) if as_json else render(answered))
    return 0


def answer(question: Question) -> dict[str, Any]:
    """Everything per rank. Raises UnknownModel, UnknownGpu, NoLink and BadQuestion."""
    model, gpu = shape.find(question.model), gpus.find(question.gpu)
    if question.tp < 1 or question.batch_size < 1 or question.input_len < 1 or question.output_len < 1:
        raise BadQuestion("--tp, --batch-size, --input-len and --output-len are whole numbers of at least 1")
    if model.heads % question.tp:
        raise BadQuestion(f"{model.name} has {model.heads} heads, which {question.tp} ranks cannot share evenly")
    link = links.link_of(gpu, question.tp, question.link)
    element = shape.DTYPE_BYTES[question.dtype]
    batches = {
        "prefill": ideal.prefill(question.batch_size, question.input_len),
        "decode": ideal.decode(question.batch_size, question.input_len, question.output_len),
    }
    phases = {
        name: _phase(batch, ideal.step(model, batch, gpu, question.tp, link, element))
        for name, batch in batches.items()
    }
    prefill_seconds = phases["prefill"]["step_seconds"]
    decode_seconds = phases["decode"]["step_seconds"] * (question.output_len - 1)
    return {
        "question": dataclasses.asdict(question),
        "gpu": {**dataclasses.asdict(gpu), "ridge_flops_per_byte": ideal.ridge(gpu)},
        "link": None if link is None else {
            **dataclasses.asdict(link),
            "takeover_payload_bytes": links.takeover_payload("all_reduce", question.tp, link),
            "decode_payload_bytes": question.batch_size * model.hidden * element,
        },
        "notes": _notes(question.dtype, element),
        "phases": phases,
        "prefill_seconds": prefill_seconds,
        "decode_seconds": decode_seconds,
        "output_tokens_per_second": question.batch_size * question.output_len / (prefill_seconds + decode_seconds),
    }  # fmt: skip


def answer_beside(run: Run, question: Question) -> dict[str, Any]:
    """At the run's own sizes, with what was measured at ``phases.<phase>.measured.<mode>``. Raises as :func:`answer` does.

    Of the question only what is not empty counts; the rest is what the run says of itself.
    """
    on = expected.machine(
        run.facts,
        shape.find(question.model) if question.model else None,
        gpus.find(question.gpu) if question.gpu else None,
    )
    if why := expected.unlike(run.facts, on.shape):
        raise BadQuestion(f"{run.name} cannot be set beside that: {why}; give the model that was run")
    if on.shape is None or on.gpu is None:
        raise BadQuestion(f"{run.name} does not say {'its model' if on.shape is None else 'a known GPU'}; give "
                         f"{'--model' if on.shape is None else '--gpu'}")  # fmt: skip
    link = links.link_of(on.gpu, on.ranks, question.link)
    phases: dict[str, Any] = {}
    for phase, mode in run.kinds():
        found, used = pace(run, phase, mode), utilisation(run, phase, mode, on)
        size = expected.batch(phase, found.batch, found.tokens, found.context * found.batch)
        if phase.value not in phases:
            phases[phase.value] = _phase(size, ideal.step(on.shape, size, on.gpu, on.ranks, link, on.element))
        phases[phase.value].setdefault("measured", {})[mode.value] = {
            "step_seconds": found.mean, "mfu": used.mfu, "mbu": used.mbu,
            "operators": {row.operator: row.seconds_per_step for row in spent(run, phase, mode, on)},
        }  # fmt: skip
    return {
        "question": {**dataclasses.asdict(question), "model": on.shape.name, "gpu": on.gpu.name, "tp": on.ranks, "run": run.name},
        "gpu": {**dataclasses.asdict(on.gpu), "ridge_flops_per_byte": ideal.ridge(on.gpu)},
        "link": None if link is None else {
            **dataclasses.asdict(link), "takeover_payload_bytes": links.takeover_payload("all_reduce", on.ranks, link),
        },
        "notes": _notes(str(run.facts.get("dtype")), on.element),
        "phases": phases,
    }  # fmt: skip


def _notes(dtype: str, element: float) -> list[str]:
    if element == 2:
        return []
    what = "compute more" if element < 2 else "compute less"
    return [
        f"bytes are those of {dtype}, but the peak of FLOP/s is that of 16-bit types: most GPUs {what} a second in {dtype}, "
        "so times that are bound by compute are not its own"
    ]


def _phase(batch: Batch, table: dict[Operator, Ideal]) -> dict[str, Any]:
    seconds = sum(each.seconds for each in table.values())
    return {
        "step_seconds": seconds,
        "tokens": batch.tokens,
        "operators": {
            operator.value: {
                "flops": each.work.flops, "memory_bytes": each.work.memory_bytes,
                "communication_bytes": each.work.communication_bytes, "calls": each.work.calls,
                "ideal_seconds": each.seconds, "share": each.seconds / seconds, "bound": each.bound,
            }
            for operator, each in table.items()
        },
    }  # fmt: skip


def render(answered: dict[str, Any]) -> str:
    asked, gpu, link = answered["question"], answered["gpu"], answered["link"]
    size = (
        f"{asked['dtype']}, batch {asked['batch_size']}, {asked['input_len']} tokens in, {asked['output_len']} out"
        if "run" not in asked else f"at the mean sizes of {asked['run']}"
    )  # fmt: skip
    lines = [
        f"{asked['model']} on {asked['tp']} × {gpu['name']}, {size}; per rank, at the peaks of "
        f"{'data sheets' if gpu['source'].startswith('https:') else gpu['source']}",
        f"{gpu['flops'] / 1e12:.4g} TFLOP/s, {gpu['memory_bytes_per_second'] / 1e9:.4g} GB/s: bound by compute above "
        f"{gpu['ridge_flops_per_byte']:.0f} FLOPs per byte",
    ]
    if link is not None:
        lines.append(
            f"{link['kind']} {link['bytes_per_second'] / 1e9:.4g} GB/s both ways"
            + (f", {duration(link['alpha']['all_reduce'])} a call as measured" if "all_reduce" in link["alpha"] else "")
            + f": bandwidth takes over latency at {_bytes(link['takeover_payload_bytes'])}"
            + (
                f"; one all_reduce of decode is {_bytes(link['decode_payload_bytes'])}"
                if "decode_payload_bytes" in link
                else ""
            )
        )
    lines += [f"note: {note}" for note in answered["notes"]]
    for name, phase in answered["phases"].items():
        lines += ["", f"{name:<18}{'ideal':>10}{'share':>8}{'TFLOP':>11}{'moved':>11}{'sent':>11}  bound"]
        ordered = sorted(phase["operators"].items(), key=lambda row: -row[1]["ideal_seconds"])
        for operator, row in ordered:
            sent = _bytes(row["communication_bytes"]) if row["communication_bytes"] else "–"
            moved = _bytes(row["memory_bytes"]) if row["memory_bytes"] else "–"
            lines.append(
                f"  {operator:<16}{duration(row['ideal_seconds']):>10}{100 * row['share']:>7.1f}%"
                f"{row['flops'] / 1e12:>11.4g}{moved:>11}{sent:>11}  {row['bound']}"
            )
        lines.append(f"  {'one step':<16}{duration(phase['step_seconds']):>10}")
        lines += [line for mode, seen in phase.get("measured", {}).items() for line in _measured(mode, seen, phase)]
    if "prefill_seconds" not in answered:
        return "\n".join(lines)
    lines += [
        "",
        f"prefill {duration(answered['prefill_seconds'])}, decode {duration(answered['decode_seconds'])}, "
        f"{answered['output_tokens_per_second']:.4g} output tokens a second at best",
    ]
    return "\n".join(lines)


def _measured(mode: str, seen: dict[str, Any], phase: dict[str, Any]) -> list[str]:
    """What a run took beside the least time, and how much of the GPU's peaks its steps needed."""
    least = phase["operators"]
    shares = [
        f"{name} {duration(seconds)} ({100 * least[name]['ideal_seconds'] / seconds:.0f} %)"
        for name, seconds in seen["operators"].items()
        if name in least and seconds > 0
    ]
    return [
        f"  measured, {mode}: a step {duration(seen['step_seconds'])}, MFU {100 * seen['mfu']:.1f} %, MBU "
        f"{100 * seen['mbu']:.1f} %; and in brackets how near to the least time: {', '.join(shares) or 'no step was sampled'}"
    ]


def _bytes(number: float) -> str:
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:.0f} B"
