"""Report on a run as one value, for ``--json``, the table and the page."""

from __future__ import annotations

import dataclasses
from typing import Any

from lightllm_otel.exporter.link import SAME_GPU
from lightllm_otel.records.recording import BadRecording
from lightllm_otel.records.vocabulary import Mode, Phase
from lightllm_otel.roofline import ideal
from lightllm_otel.roofline.gpus import Gpu
from lightllm_otel.roofline.shape import ModelShape
from lightllm_otel.tools.analysis import expected, pace, pictures
from lightllm_otel.tools.analysis.expected import Deployment
from lightllm_otel.tools.analysis.operators import Spent, spent, utilisation
from lightllm_otel.tools.analysis.runs import Run

VERSION = 1
KNOWN = (
    "model",
    "gpu_name",
    "tp",
    "dtype",
    "lightllm",
    "torch",
    "cuda",
    "clock",
    "level",
    "sample_every",
    "plugin",
    "driver",
    "link",
    "sm_clock_mhz",
)


def report(run: Run, shape: ModelShape | None = None, gpu: Gpu | None = None) -> dict[str, Any]:
    """Return the report. ``shape`` and ``gpu`` replace those of the recording, or supply them where it has none."""
    on = expected.machine(run.facts, shape, gpu)
    if why := expected.unlike(run.facts, shape):
        raise BadRecording(f"{run.path} cannot be reported as that model: {why}; give the model that was run")
    kinds = list(run.kinds())
    return {
        "kind": "report",
        "version": VERSION,
        "name": run.name,
        "repeats": len(run.repeats),
        "ranks": run.ranks,
        "records": run.records,
        "bench": {"plan": run.bench.get("plan"), "repeats": run.bench.get("repeats")} if run.bench else None,
        "facts": {fact: run.facts[fact] for fact in KNOWN if run.facts.get(fact) not in (None, "")},
        "machine": _machine(on),
        "notes": [*run.notes, *_notes(run, on, kinds)],
        "pace": dataclasses.asdict(pace.idle(run)),
        "phases": [_phase(run, phase, mode, on) for phase, mode in kinds],
        "timeline": pictures.timeline(run),
    }


def _machine(on: Deployment) -> dict[str, Any] | None:
    """Return peaks of data sheets, for the roofline."""
    if on.gpu is None:
        return None
    return {
        "gpu": on.gpu.name,
        "flops": on.gpu.flops,
        "memory_bytes_per_second": on.gpu.memory_bytes_per_second,
        "ridge_flops_per_byte": ideal.ridge(on.gpu),
        "link": None if on.link is None else {"kind": on.link.kind, "one_way_bytes_per_second": on.link.one_way},
        "source": on.gpu.source,
    }


def _notes(run: Run, on: Deployment, kinds: list[tuple[Phase, Mode]]) -> list[str]:
    notes = []
    if len(run.repeats) == 1:
        notes.append("one recording: intervals say how sure it is of itself, not what the next run would show")
    if on.shape is None:
        notes.append("the recording does not say the model's shape, so there are no FLOPs and bytes; give --model")
    if on.gpu is None:
        notes.append("the GPU is not in the table, so nothing is said about peaks and bounds; give --gpu")
    if run.facts.get("link") == SAME_GPU:
        notes.append("the ranks share a GPU, so no link joins them, and each has a part of its peaks")
    for phase, mode in kinds:
        if not any(repeat.chosen(phase, mode, sampled=True).any() for repeat in run.repeats):
            notes.append(f"{phase} · {mode}: no step was sampled, so there are whole-step times only")
        used = utilisation(run, phase, mode, on)
        if used.mfu is not None and used.mbu is not None and max(used.mfu, used.mbu) > 1:
            notes.append(
                f"{phase} · {mode}: the steps are shorter than the GPU could make them, so the model, the data type or "
                "the GPU is not what it is taken for; give --model or --gpu"
            )
    return notes


def _phase(run: Run, phase: Phase, mode: Mode, on: Deployment) -> dict[str, Any]:
    rows = spent(run, phase, mode, on)
    return {
        "phase": phase.value,
        "mode": mode.value,
        "step": dataclasses.asdict(pace.pace(run, phase, mode)),
        "utilisation": dataclasses.asdict(utilisation(run, phase, mode, on)),
        "operators": [_operator(row) for row in rows],
        "layers": pictures.layers(run, phase, mode),
        "collectives": pictures.collectives(run, phase, mode),
        "example": pictures.example(run, phase, mode),
    }


def _operator(row: Spent) -> dict[str, Any]:
    return {**dataclasses.asdict(row), "seconds_per_layer": row.seconds_per_layer}
