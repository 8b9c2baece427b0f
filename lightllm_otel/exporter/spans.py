"""A span as plain data, without OpenTelemetry's SDK."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, Optional

STEP, OPERATOR = "lightllm.step ", "lightllm.operator "  # how names of spans begin
NANO = 1_000_000_000


@dataclasses.dataclass(frozen=True)
class Context:
    """Identity of a span. ``state``: W3C ``tracestate``."""

    trace_id: int
    span_id: int
    state: str = ""


@dataclasses.dataclass(frozen=True)
class SpanData:
    """One span; nanoseconds of Unix time. ``error``: what kind of failure ended it, or empty."""

    name: str
    context: Context
    parent: Optional[Context]
    start: int
    end: int
    attributes: Mapping[str, Any]
    links: tuple[Context, ...] = ()
    server: bool = False
    error: str = ""

    @property
    def of_step(self) -> bool:
        """Tell whether it is a step, or an operator in one."""
        return self.name.startswith((STEP, OPERATOR))


NewId = Callable[[int], int]


def random_id(size: int) -> int:
    """Return a random id of ``size`` bytes, never 0."""
    return int.from_bytes(os.urandom(size), "big") or 1
