"""Sampling."""

from .infer_batch import VOCABULARY
from .machine import blend, empty, gpu


def sample(logits, reqs, eos_id=[2]):  # noqa: B006 - as the host has it
    assert logits.shape[0] == len(reqs)
    next_token_ids, next_token_logprobs = empty(len(reqs)), empty(len(reqs))
    gpu.run("sample", lambda rows: tuple(3 + row % VOCABULARY for row in rows), next_token_ids, logits)
    gpu.run("copy", lambda rows: tuple(blend("sample", row) for row in rows), next_token_logprobs, logits)
    return next_token_ids, next_token_logprobs
