"""What a forward is asked to do, by the names that each LightLLM version gives it: one reader per entry point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightllm_otel.measure.step import Work
from lightllm_otel.vocabulary import Phase


def new_forward(arguments: Mapping[str, Any]) -> Work:
    """NEW: ``forward(model_input)``."""
    return model_input(arguments["model_input"])


def model_input(given: Any) -> Work:
    """NEW's one argument."""
    phase = Phase.PREFILL if given.is_prefill else Phase.DECODE
    return Work(phase, given.batch_size, given.input_ids.shape[0], given.total_token_num)


def new_overlap(arguments: Mapping[str, Any]) -> Work:
    """NEW: ``microbatch_overlap_prefill/decode(model_input0, model_input1)``."""
    return _model_inputs(arguments["model_input0"], arguments["model_input1"])


def _model_inputs(*inputs: Any) -> Work:
    return Work(
        phase=Phase.PREFILL if inputs[0].is_prefill else Phase.DECODE,
        batch=sum(each.batch_size for each in inputs),
        tokens=sum(each.input_ids.shape[0] for each in inputs),
        context=sum(each.total_token_num for each in inputs),
    )


def old_forward(arguments: Mapping[str, Any]) -> Work:
    """OLD: ``forward(batch_size, total_token_num, …, is_prefill=True)``; its prefill synchronises in every layer."""
    prefill = arguments.get("is_prefill", True)
    return Work(
        phase=Phase.PREFILL if prefill else Phase.DECODE,
        batch=arguments["batch_size"],
        tokens=arguments["input_ids"].shape[0],
        context=arguments["total_token_num"],
        pairs=bool(prefill),
    )


def old_splitfuse(arguments: Mapping[str, Any]) -> Work:
    """OLD: ``splitfuse_forward``: some requests decode, others prefill. What the prefills attend to is on the GPU."""
    tokens = len(arguments["input_ids"])
    return Work(
        phase=Phase.MIXED,
        batch=arguments["decode_req_num"] + arguments["prefill_req_num"],
        tokens=tokens,
        context=arguments["decode_total_token_num"] + tokens - arguments["decode_req_num"],
    )


Reader = Callable[[Mapping[str, Any]], Work]


def reader(name: str, parameters: Mapping[str, Any]) -> Reader:
    """The reader for the model's method ``name`` with these parameters. Raises LookupError for an unknown signature."""
    table: dict[tuple[str, str], Reader] = {
        ("forward", "model_input"): new_forward,
        ("forward", "total_token_num"): old_forward,
        ("splitfuse_forward", "decode_req_num"): old_splitfuse,
        ("microbatch_overlap_prefill", "model_input0"): new_overlap,
        ("microbatch_overlap_decode", "model_input0"): new_overlap,
    }
    for (method, parameter), read in table.items():
        if method == name and parameter in parameters:
            return read
    raise LookupError(f"{name}({', '.join(parameters)}) is not a signature of a known LightLLM version")


ENTRY_POINTS = ("forward", "splitfuse_forward", "microbatch_overlap_prefill", "microbatch_overlap_decode")
# Two batches interleave on one stream there: the step can be timed, its operators cannot.
WHOLE_STEP_ONLY = ("microbatch_overlap_prefill", "microbatch_overlap_decode")


def new_tokens(request: Any) -> int:
    """How many tokens of this request the prefill computes; both versions still have the old length while sampling."""
    length = request.get_chuncked_input_token_len if hasattr(request, "get_chuncked_input_token_len") else None
    return int((length() if length else len(request.input_token_ids)) - request.cur_kv_len)
