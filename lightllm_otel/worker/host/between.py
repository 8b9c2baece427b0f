"""Work between operators: what a layer launches there, read from the source of its forward functions.

Most operators follow each other directly, so one boundary ends the first and begins the second. A layer may also add to the
residual stream in between, or do something that no row of the table claims. Then the second operator needs a boundary at its
own start. A walk over the code finds these places (:mod:`lightllm_otel.worker.host.walk`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Optional

from lightllm_otel.records.vocabulary import Operator
from lightllm_otel.worker.host.source import definition, resolve
from lightllm_otel.worker.host.walk import COPY, ENTRY, Kind, TooLongError, Walk

__all__ = ["COPY", "ENTRY", "Between", "Kind", "claimed", "read"]


@dataclasses.dataclass
class Between:
    """Work of a layer outside of the functions of the table.

    ``before``: for each function of the table that the layer calls, the work between the last boundary and the call.
    ``collectives``: by the last boundary, the work between it and a collective outside of these functions. ``first``: functions
    that may come first. ``left``: work after the layer's last boundary, which is one of ``ends``; ``ENTRY`` among them stands
    for the boundary before the layer. ``unread``: why the layer's code cannot be read; nothing else is known then.
    """

    before: dict[str, frozenset[Kind]] = dataclasses.field(default_factory=dict)
    collectives: dict[str, frozenset[Kind]] = dataclasses.field(default_factory=dict)
    first: frozenset[str] = frozenset()
    left: frozenset[Kind] = frozenset()
    ends: frozenset[str] = frozenset()
    unread: str = ""


def claimed(kinds: frozenset[Kind]) -> Optional[Operator]:
    """Return the operator that an interval with this work belongs to, or None if it has no work.

    A copy beside an add belongs to the add. Work of several kinds, or of an unknown kind, is ``other``.
    """
    every = kinds - {COPY} if Operator.RESIDUAL in kinds else kinds
    if len(every) > 1:
        return Operator.OTHER
    for kind in every:
        return kind if isinstance(kind, Operator) else Operator.OTHER
    return None


def read(layer: Any, methods: frozenset[str], weights: frozenset[str], entries: Sequence[str]) -> Between:
    """Walk over the functions ``entries`` of a layer, and return the work between its operators.

    ``methods``: its own functions in the table. ``weights``: names of its weights that it calls like functions.
    """
    found: list[Between] = []
    for name in entries:
        function, owner = resolve(layer, name)
        if function is None and not hasattr(layer, name):
            continue
        if function is None or definition(function) is None:
            return Between(unread=f"the source of {name} cannot be read")
        walk = Walk(layer, methods, weights, prefill="context" in name)
        try:
            end = walk.entry(function, owner)
        except TooLongError:
            return Between(unread=f"{name} is too long to analyse")
        if end is not None:
            found.append(Between(walk.before, walk.collectives, walk.first, end.kinds, end.last))
    if not found:
        return Between(unread="no forward function of it returns")
    return functools.reduce(_either, found)


def _either(one: Between, other: Between) -> Between:
    """Combine two forwards, because it is not known here which of them runs."""

    def merged(first: dict[str, frozenset[Kind]], second: dict[str, frozenset[Kind]]) -> dict[str, frozenset[Kind]]:
        nothing: frozenset[Kind] = frozenset()
        return {name: _alike(first.get(name, nothing), second.get(name, nothing)) for name in {**first, **second}}

    return Between(
        merged(one.before, other.before),
        merged(one.collectives, other.collectives),
        one.first | other.first,
        _alike(one.left, other.left),
        one.ends | other.ends,
    )


def _alike(one: frozenset[Kind], other: frozenset[Kind]) -> frozenset[Kind]:
    """Combine the work in two forwards. Work that belongs to different operators in them belongs to none."""
    differs = one and other and claimed(one) is not claimed(other)
    return one | other | {"another in each forward"} if differs else one | other
