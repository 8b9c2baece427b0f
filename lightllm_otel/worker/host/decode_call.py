"""Decode call: the call from which the host captures a graph, kept so that it can be captured a second time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from lightllm_otel.worker.host.pristine import RefersBack, pristine_of


@dataclasses.dataclass(frozen=True)
class DecodeCall:
    """The call ``decode(*given)``, in which ``pristine`` stands for the host's ``state``.

    ``rows``: the batch of the graph. ``decode`` is None where the call cannot be repeated on this rank; ``problem`` says why.
    """

    rows: int
    decode: Callable[..., Any] | None
    given: tuple[Any, ...]
    pristine: Any
    state: Any
    problem: str = ""


def decode_call(rows: int, decode: Callable[..., Any], given: Sequence[Any], state: Any) -> DecodeCall:
    """Return the call as it is before the host's capture, because kernels will leave tensors on ``state``."""
    try:
        pristine = pristine_of(state)
    except (RefersBack, AttributeError, TypeError) as error:
        return DecodeCall(rows, None, (), None, state, f"the host's infer_state cannot be copied: {error}")
    return DecodeCall(rows, decode, tuple(pristine if each is state else each for each in given), pristine, state)
