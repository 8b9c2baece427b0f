"""Which requests ran in a step: noted for the exporter when the step's work has been launched, never before."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from lightllm_otel.records.notes import NotesWriter
from lightllm_otel.records.vocabulary import Phase
from lightllm_otel.worker.gpu.step import Step
from lightllm_otel.worker.host.inputs import new_tokens


class StepNotes:
    """Of the first rank alone: the ranks of a group compute the same requests."""

    def __init__(self, writer: NotesWriter) -> None:
        self._writer = writer

    @staticmethod
    def begins(step: Step, requests: Sequence[Any]) -> bool:
        """Whether prompts are computed in the step: chunks of a prompt are its request's own spans.

        NEW begins a request with a decode step where all of its prompt but one token is cached; LightLLM appends, so the
        last request of a batch is the newest.
        """
        return step.work.phase is not Phase.DECODE or (bool(requests) and _is_new(requests[-1]))

    def step(self, step: Step, requests: Sequence[Any], sampled: bool) -> None:
        """``requests``: what LightLLM sampled for, as it gave it; its health checks are left out. ``sampled``: whether the
        step's operators are timed; otherwise only those are noted that begin in it.
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
    """No token of its answer has been computed before this step; only NEW's requests say so."""
    return getattr(request, "cur_output_len", 1) == 0


def _entry(request: Any, prefill: bool) -> list[Any] | None:
    """``[number of the request]``, and where the step computes some of its prompt: how many tokens were there, how many are
    new. None for a health check.
    """
    number = getattr(request, "group_req_id", None)
    if number is None:
        number = getattr(getattr(request, "shm_req", None), "group_req_id", None)
    if number is None:
        number = getattr(request, "req_id", None)
    if number is None or (isinstance(number, int) and number < 0):
        return None
    if not hasattr(request, "cur_kv_len"):  # OLD's beam search and diverse mode pass groups of requests
        return [number]
    if prefill:
        return [number, int(request.cur_kv_len), new_tokens(request)]
    return [number, int(request.cur_kv_len), 1] if _is_new(request) else [number]
