"""Step notes: which requests ran in a step, written for the exporter after the step's work has been launched."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from lightllm_otel.records.notes import NotesWriter
from lightllm_otel.records.vocabulary import Phase
from lightllm_otel.worker.gpu.step import Step
from lightllm_otel.worker.host.inputs import new_tokens


class StepNotes:
    """Notes of the first rank. The other ranks of a group compute the same requests, so they write none."""

    def __init__(self, writer: NotesWriter) -> None:
        self._writer = writer

    @staticmethod
    def begins(step: Step, requests: Sequence[Any]) -> bool:
        """Tell whether the step computes prompts, whose chunks become spans of their requests.

        Since July 2025 a request may begin with a decode step, if its prompt is cached except for one token. LightLLM appends
        requests, so the last one of a batch is the newest.
        """
        return step.work.phase is not Phase.DECODE or (bool(requests) and _is_new(requests[-1]))

    def step(self, step: Step, requests: Sequence[Any], sampled: bool) -> None:
        """Write which requests ran in a step, without health checks. ``requests``: the ones that LightLLM sampled for.

        ``sampled``: the step's operators are timed. Otherwise only the requests that begin in it are written.
        """
        prefill = step.work.phase is not Phase.DECODE
        if not prefill and not sampled:
            requests = list(itertools.takewhile(_is_new, reversed(requests)))
        noted = [entry for entry in (_entry(request, prefill) for request in requests) if entry is not None]
        if noted:
            self._writer.write(
                {"k": "s", "n": step.number & 0xFFFFFFFF, "w": step.wall_time, "p": step.work.phase.code, "r": noted}
            )


def _is_new(request: Any) -> bool:
    """Tell whether this step computes the first token of the request's answer. Requests of 0.0.1 do not say so."""
    return getattr(request, "cur_output_len", 1) == 0


def _entry(request: Any, prefill: bool) -> list[Any] | None:
    """Return ``[number of the request]``, or None for a health check.

    If the step computes some of its prompt, the list continues with its cached tokens and its new tokens.
    """
    number = getattr(request, "group_req_id", None)
    if number is None:
        number = getattr(getattr(request, "shm_req", None), "group_req_id", None)
    if number is None:
        number = getattr(request, "req_id", None)
    if number is None or (isinstance(number, int) and number < 0):
        return None
    if not hasattr(request, "cur_kv_len"):  # beam search and diverse mode of 0.0.1 pass groups of requests
        return [number]
    if prefill:
        return [number, int(request.cur_kv_len), new_tokens(request)]
    return [number, int(request.cur_kv_len), 1] if _is_new(request) else [number]
