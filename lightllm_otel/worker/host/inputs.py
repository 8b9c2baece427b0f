"""Inputs of a forward: its size, read by name from what the host has on the CPU. A missing value is unknown, not an error.

Nothing here reads a tensor from the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Optional

from lightllm_otel.contracts.binding import Arguments
from lightllm_otel.contracts.fits import ABSENT, FITS, Fits
from lightllm_otel.records.vocabulary import Phase
from lightllm_otel.worker.gpu.step import Work

Reader = Callable[[tuple[Any, ...], Mapping[str, Any]], Optional[Work]]


def decode_input(given: Any) -> Work | None:
    """Return the size of a decode step. The model may have added tensors to its input, or removed some."""
    try:
        batch, context = given.batch_size, given.total_token_num
        if type(batch) is type(context) is int:
            return Work(Phase.DECODE, batch, batch, context)
    except AttributeError:
        pass
    batch = _integer(given, "batch_size")
    return Work(Phase.DECODE, batch, batch, _integer(given, "total_token_num"))


def model_input(given: Any) -> Work | None:
    """Return the size of LightLLM's ``ModelInput`` (since July 2025), or None if even its phase is unknown."""
    prefill = getattr(given, "is_prefill", None)
    if prefill is None:
        return None
    if not prefill:
        return decode_input(given)
    phase = Phase.MIXED if decodes_too(given) else Phase.PREFILL
    return Work(phase, _integer(given, "batch_size"), prefill_tokens(given), _integer(given, "total_token_num"))


def prefill_tokens(given: Any) -> int:
    """Return the new tokens of a prefill: all tokens minus cached ones (v1.2.0), else the number of ids; 0 if unknown."""
    total, cached = getattr(given, "total_token_num", None), getattr(given, "prefix_total_token_num", None)
    if isinstance(total, int) and isinstance(cached, int):
        return max(total - cached, 0)
    return rows(given)


def decodes_too(given: Any) -> bool:
    """Tell whether some requests of a prefill decode (``--enable_prefill_decode_mixed``).

    It works only before the host's own code has run. Afterwards the mask is on the GPU, where nothing is read.
    """
    mask = getattr(given, "b_is_decode_req", None)
    return mask is not None and getattr(mask, "is_cuda", True) is False and bool(mask.any())


def rows(given: Any) -> int:
    """Return the number of ids in an input tensor, or in ``given.input_ids``; 0 if it is unknown."""
    shape = getattr(given, "shape", None) or getattr(getattr(given, "input_ids", None), "shape", None)
    return int(shape[0]) if shape else 0


def graph_rows(graph: Any, given: Any) -> int:
    """Return the batch of the decode graph that the host will replay for this input; 0 if it will replay none.

    It reads the host's attributes and calls nothing. If they are unknown, a graph of the input's own batch is assumed.
    """
    if graph is None:
        return 0
    batch, longest = _integer(given, "batch_size"), getattr(given, "max_kv_seq_len", None)
    longest = getattr(given, "max_len_in_batch", None) if longest is None else longest
    sizes, limit = getattr(graph, "cuda_graph_batch_sizes", None), getattr(graph, "graph_max_len_in_batch", None)
    if not isinstance(sizes, list) or not all(isinstance(size, int) for size in sizes):
        return max(batch, 1)
    if isinstance(longest, int) and isinstance(limit, int) and longest > limit:
        return 0
    return min((size for size in sizes if size >= batch), default=0)


def _integer(given: Any, name: str) -> int:
    value = getattr(given, name, None)
    return value if isinstance(value, int) else 0


def _forward_since_july_2025(arguments: Arguments, fits: Fits) -> Reader:
    """Return a reader for ``forward(model_input)`` (since July 2025). The first input shows which fields of the table exist."""
    noted = False

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Work | None:
        nonlocal noted
        given = arguments.get("model_input", args, kwargs)
        if not noted and getattr(given, "is_prefill", None) is not False:  # a prefill has all of them
            noted = True
            for field in fits.fields:
                if field.owner == "ModelInput":
                    known = all(getattr(given, name, None) is not None for name in field.attributes)
                    fits.note(field.name, FITS if known else ABSENT)
        return model_input(given)

    return read


def _overlap(arguments: Arguments, fits: Fits) -> Reader:
    """Return a reader for ``microbatch_overlap_prefill/decode(model_input0, model_input1)``."""

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Work | None:
        parts = [model_input(arguments.get(f"model_input{at}", args, kwargs)) for at in (0, 1)]
        known = [part for part in parts if part is not None]
        if not known:
            return None
        return Work(
            phase=known[0].phase,
            batch=sum(part.batch for part in known),
            tokens=sum(part.tokens for part in known),
            context=sum(part.context for part in known),
        )

    return read


def _forward_0_0_1(arguments: Arguments, fits: Fits) -> Reader:
    """Return a reader for ``forward(batch_size, total_token_num, …)`` of 0.0.1, whose prefill synchronises in every layer."""

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Work | None:
        given = arguments.given(args, kwargs)
        prefill = given.get("is_prefill", True)
        return Work(
            phase=Phase.PREFILL if prefill else Phase.DECODE,
            batch=given["batch_size"],
            tokens=rows(given["input_ids"]),
            context=given["total_token_num"],
            pairs=bool(prefill),
        )

    return read


def _splitfuse_0_0_1(arguments: Arguments, fits: Fits) -> Reader:
    """Return a reader for ``splitfuse_forward`` of 0.0.1, in which some requests decode and others prefill.

    The context of the prefills is on the GPU, so only their new tokens count.
    """

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Work | None:
        given = arguments.given(args, kwargs)
        tokens = rows(given["input_ids"])
        return Work(
            phase=Phase.MIXED,
            batch=given["decode_req_num"] + given["prefill_req_num"],
            tokens=tokens,
            context=given["decode_total_token_num"] + tokens - given["decode_req_num"],
        )

    return read


def reader(name: str, arguments: Arguments, fits: Fits) -> Reader:
    """Return the reader for the arguments of the entry point that this row of the table names."""
    if name == "splitfuse_forward":
        return _splitfuse_0_0_1(arguments, fits)
    if name != "forward":
        return _overlap(arguments, fits)
    return (
        _forward_since_july_2025(arguments, fits)
        if "model_input" in arguments.names
        else _forward_0_0_1(arguments, fits)
    )


def new_tokens(request: Any) -> int:
    """Return how many tokens of this request the prefill computes. While it samples, the request has its old length."""
    length = getattr(request, "get_chuncked_input_token_len", None)
    return int((length() if length else len(request.input_token_ids)) - request.cur_kv_len)
