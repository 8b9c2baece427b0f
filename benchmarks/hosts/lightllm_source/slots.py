"""Which calls in a layer's code go to functions that the plugin wraps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from lightllm_otel.records.vocabulary import Operator
from lightllm_otel.worker.host.slots import WEIGHTS


class Slots(NamedTuple):
    """``operators``: by the name of the function. ``methods``, ``weights``: names that the layer calls on itself, and on whatever
    holds its weights. ``inner``: ``attribute.name`` of a part of the layer. ``passing``: a call of these may launch nothing, and
    then ends no interval.
    """

    operators: Mapping[str, Operator]
    methods: frozenset[str] = frozenset()
    weights: frozenset[str] = frozenset()
    inner: frozenset[str] = frozenset()
    passing: frozenset[str] = frozenset()

    @classmethod
    def of(cls, found: Iterable[tuple[str, Operator, str, bool]]) -> Slots:
        """Return the slots for rows of name, operator, the attribute whose functions these are, and whether it is passing."""
        rows = list(found)
        return cls(
            {name: operator for name, operator, _, _ in rows},
            frozenset(name for name, _, on, _ in rows if not on),
            frozenset(name for name, _, on, _ in rows if on == WEIGHTS),
            frozenset(f"{on}.{name}" for name, _, on, _ in rows if on not in ("", WEIGHTS)),
            frozenset(name for name, _, _, passing in rows if passing),
        )

    def of_call(self, call: str) -> str:
        """Return the name of the function that ``self._ffn`` or ``layer_weight.norm_`` calls; empty where it is none of these."""
        owner, _, name = call.rpartition(".")
        if owner == "self":
            return name if name in self.methods else ""
        if owner and "." not in owner and "()" not in owner:
            return name if name in self.weights else ""
        return name if call.removeprefix("self.") in self.inner and call.startswith("self.") else ""
