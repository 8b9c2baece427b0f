"""Answers of ``lightllm-otel theory``: FLOPs, bytes, ideal time and bound of each operator, for given sizes or those of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from lightllm_otel.exporter.link import SAME_GPU
from lightllm_otel.records.vocabulary import Operator
from lightllm_otel.roofline import gpus, ideal, links, memory, shape
from lightllm_otel.roofline.gpus import Gpu
from lightllm_otel.roofline.ideal import Ideal
from lightllm_otel.roofline.links import Link
from lightllm_otel.roofline.shape import ModelShape
from lightllm_otel.roofline.work import Batch
from lightllm_otel.tools.analysis import expected
from lightllm_otel.tools.analysis.expected import Deployment
from lightllm_otel.tools.analysis.operators import spent, utilisation
from lightllm_otel.tools.analysis.pace import pace
from lightllm_otel.tools.analysis.runs import Run
from lightllm_otel.tools.units import amount

_SHARED = (
    "the ranks shared a GPU, so no link connected them, and their collectives have no ideal time; --link assumes a link"
)


@dataclasses.dataclass(frozen=True)
class Question:
    """Question to the roofline model.

    ``input_len`` and ``output_len``: tokens per request. ``link``: ``nvlink``, ``pcie``, or None for the fastest shared link.
    """

    model: str
    gpu: str
    tp: int = 1
    batch_size: int = 20
    input_len: int = 1024
    output_len: int = 1024
    link: str | None = None
    dtype: str = "float16"


class BadQuestion(ValueError):
    """Raised for a question that has no answer; the message says what to pass instead."""


def answer(question: Question) -> dict[str, Any]:
    """Return the answer as JSON values, all per rank; times in seconds.

    Raises UnknownModel, UnknownGpu, NoLink and BadQuestion.
    """
    model, gpu = shape.find(question.model), gpus.find(question.gpu)
    if question.tp < 1 or question.batch_size < 1 or question.input_len < 1 or question.output_len < 1:
        raise BadQuestion("--tp, --batch-size, --input-len and --output-len must be whole numbers of at least 1")
    if model.heads % question.tp:
        raise BadQuestion(
            f"{model.name} has {model.heads} heads, which cannot be divided evenly among {question.tp} ranks"
        )
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
            **_decode_all_reduce(question.batch_size * model.hidden * element, question.tp, link),
        },
        "memory": _memory(model, question, element),
        "notes": [*_notes(question.dtype, element), *_impossible(model, gpu, question, element)],
        "phases": phases,
        "prefill_seconds": prefill_seconds,
        "decode_seconds": decode_seconds,
        "output_tokens_per_second": question.batch_size * question.output_len / (prefill_seconds + decode_seconds),
    }  # fmt: skip


def answer_beside(run: Run, question: Question) -> dict[str, Any]:
    """Return the answer for the run's own sizes, with the measured times in ``phases.<phase>.measured.<mode>``.

    Empty fields of the question are taken from the run. Raises the errors of :func:`answer`.
    """
    on = expected.machine(
        run.facts,
        shape.find(question.model) if question.model else None,
        gpus.find(question.gpu) if question.gpu else None,
    )
    if why := expected.unlike(run.facts, on.shape):
        raise BadQuestion(f"{run.name} cannot be compared with this model: {why}; pass the model of the run")
    if on.shape is None or on.gpu is None:
        raise BadQuestion(f"{run.name} does not name {'its model' if on.shape is None else 'a known GPU'}; pass "
                         f"{'--model' if on.shape is None else '--gpu'}")  # fmt: skip
    link = _link_beside(run, on, question)
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
        "notes": [*_notes(str(run.facts.get("dtype")), on.element), *([_SHARED] if on.ranks > 1 and link is None else [])],
        "phases": phases,
    }  # fmt: skip


def _link_beside(run: Run, on: Deployment, question: Question) -> Link | None:
    """Return the link of the question, else that of the run. Raises NoLink."""
    if question.link is None and run.facts.get("link") == SAME_GPU:
        return None
    if question.link is None and on.link is not None:
        return on.link
    assert on.gpu is not None
    return links.link_of(on.gpu, on.ranks, question.link)


def _notes(dtype: str, element: float) -> list[str]:
    if element == 2:
        return []
    what = "compute more" if element < 2 else "compute less"
    return [
        f"bytes are for {dtype}, but peak FLOP/s are for 16-bit types: most GPUs {what} per second in {dtype}, so times that "
        "are bound by compute are not exact"
    ]


def _decode_all_reduce(payload: float, ranks: int, link: Link) -> dict[str, Any]:
    return {
        "decode_payload_bytes": payload,
        "decode_all_reduce_seconds": {
            "ring": links.ring_seconds("all_reduce", payload, ranks, link),
            "one_shot": links.one_shot_seconds(payload, ranks, link),
        },
    }


def _memory(model: ModelShape, question: Question, element: float) -> dict[str, float]:
    """Return the bytes of weights and KV cache in one rank, when all requests have all of their tokens."""
    tokens = question.batch_size * (question.input_len + question.output_len)
    return {
        "weight_bytes": memory.weight_bytes(model, question.tp, element),
        "cache_bytes": memory.cache_bytes(model, question.tp, element) * tokens,
    }


def _impossible(model: ModelShape, gpu: Gpu, question: Question, element: float) -> Iterator[str]:
    """Yield a note for each assumption of the answer that this machine does not meet."""
    needed = _memory(model, question, element)
    if sum(needed.values()) > gpu.memory_bytes:
        yield (
            f"each rank needs {amount(needed['weight_bytes'])} for weights and {amount(needed['cache_bytes'])} for keys and "
            f"values, which do not fit into the {amount(gpu.memory_bytes)} of {gpu.name}; use more ranks or fewer requests"
        )
    if question.link == "nvlink" and 1 < gpu.nvlink_group < question.tp:
        yield (
            f"NVLink connects {gpu.nvlink_group} {gpu.name}, so {question.tp} of them use PCI Express; these times assume that "
            "NVLink connects all of them"
        )


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
