"""Spans of one request, made from its note and from the prefill steps that computed its prompt.

The span of a request has children without a gap between them, so their durations add up to its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lightllm_otel.exporter.spans import NANO, Context, NewId, SpanData, random_id


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A prefill step in which tokens of a request's prompt were computed. ``entered``: Unix nanoseconds."""

    number: int
    entered: int
    cached: int
    tokens: int


def request_spans(
    note: Mapping[str, Any], chunks: Sequence[Chunk], gpu_seconds: Mapping[int, float], new_id: NewId = random_id
) -> list[SpanData]:
    """Return the span of a request that has ended, and its parts. ``gpu_seconds``: of prefill steps, by number."""
    state = str(note["ts"])
    own = Context(int(note["t"], 16), int(note["s"], 16), state)
    parent = Context(own.trace_id, int(note["p"], 16), state) if note["p"] else None
    began, _, first, last, ended = note["at"]
    attributes = {**note["a"], **_usage(note, chunks), "lightllm.request.id": str(note["id"])}
    if first:
        attributes["gen_ai.server.time_to_first_token"] = (first - began) / NANO
    if note["out"] > 1:
        attributes["gen_ai.server.time_per_output_token"] = (last - first) / NANO / (note["out"] - 1)
    if note["err"]:
        attributes["error.type"] = note["err"]
    name = f"{attributes['gen_ai.operation.name']} {attributes['gen_ai.request.model']}"
    whole = SpanData(name, own, parent, began, ended, attributes, server=True, error=note["err"])
    parts = [
        SpanData(f"lightllm.{part}", Context(own.trace_id, new_id(8), state), own, start, end, about)
        for part, start, end, about in request_parts(note["at"], chunks, gpu_seconds)
    ]
    return [whole, *parts]


def _usage(note: Mapping[str, Any], chunks: Sequence[Chunk]) -> dict[str, Any]:
    usage: dict[str, Any] = {"gen_ai.usage.output_tokens": note["out"]}
    if note["in"]:
        usage["gen_ai.usage.input_tokens"] = note["in"]
    if chunks:
        usage["gen_ai.usage.cache_read.input_tokens"] = chunks[0].cached
    if note["fin"]:
        usage["gen_ai.response.finish_reasons"] = tuple(note["fin"])
    return usage


def request_parts(
    times: Sequence[int], chunks: Sequence[Chunk], gpu_seconds: Mapping[int, float]
) -> list[tuple[str, int, int, dict[str, Any]]]:
    """Return ``(name, start, end, attributes)`` of each part, from the request's start to its end, without a gap.

    Without a first token the last part that was reached goes on to the end.
    """
    began, tokenised, first, last, ended = times
    begins: list[tuple[str, int, dict[str, Any]]] = [("tokenise", began, {})]
    if tokenised:
        begins.append(("queue", tokenised, {}))
    for chunk in chunks:
        about: dict[str, Any] = {"lightllm.step.number": chunk.number, "lightllm.prefill.tokens": chunk.tokens}
        if chunk.number in gpu_seconds:
            about["lightllm.gpu.duration"] = gpu_seconds[chunk.number]
        begins.append(("prefill", chunk.entered, about))
    if first:
        if last > first:
            begins.append(("decode", first, {}))
        begins.append(("tail", last, {}))
    limits = [began]
    for _, at, _ in begins[1:]:  # clocks of several processes are one, but nothing may go backwards
        limits.append(min(max(at, limits[-1]), ended))
    limits.append(ended)
    return [(name, limits[at], limits[at + 1], about) for at, (name, _, about) in enumerate(begins)]
