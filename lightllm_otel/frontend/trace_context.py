"""W3C trace context: the trace that a request belongs to, and the decision whether it is traced."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping

from lightllm_otel.otel_environment import OtelEnvironment

# version-trace id-parent id-flags; later versions may append more.
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_MOST_STATE = 512  # characters; the standard demands at least so many


@dataclasses.dataclass(frozen=True)
class TraceContext:
    """Ids of one request's span, as hexadecimal digits. ``parent``: the caller's span, or empty. ``state``: ``tracestate``."""

    trace_id: str
    span_id: str
    parent: str = ""
    state: str = ""


def continued(
    headers: Mapping[str, str], otel_environment: OtelEnvironment, random: Callable[[int], bytes] = os.urandom
) -> TraceContext | None:
    """Return the context of a request with these headers, or None if it is not traced.

    ``random`` returns random bytes. It is not Python's ``random``, because that would change the host's random numbers.
    """
    parsed = parse(headers.get("traceparent", "")) if otel_environment.propagate else None
    trace_id = parsed[0] if parsed is not None else random(16).hex()
    follows = parsed is not None and otel_environment.sampler.follow
    sampled = parsed[2] if parsed is not None and follows else chosen(trace_id, otel_environment.sampler.root)
    if not sampled:
        return None
    state = headers.get("tracestate", "") if parsed is not None else ""
    return TraceContext(trace_id, random(8).hex(), parsed[1] if parsed else "", state[:_MOST_STATE])


def parse(traceparent: str) -> tuple[str, str, bool] | None:
    """Return ``(trace id, parent id, sampled)`` of a header, or None if the header must be ignored."""
    found = _TRACEPARENT.fullmatch(traceparent.strip())
    if found is None:
        return None
    version, trace_id, parent, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not int(trace_id, 16) or not int(parent, 16):
        return None
    return trace_id, parent, bool(int(flags, 16) & 1)


def chosen(trace_id: str, ratio: float) -> bool:
    """Decide like the SDK's ``TraceIdRatioBased`` sampler, so that all services decide alike. ``ratio``: from 0 to 1."""
    return int(trace_id[16:], 16) < round(ratio * 2**64)
