"""Findings of ``lightllm-otel doctor`` on operators: what is told apart in a rank's layers, and what is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lightllm_otel.tools.finding import NOTE, OK, WRONG, Finding
from lightllm_otel.worker.host.slots import OF_A_LAYER

_REPORT = "report the model's family, and which LightLLM it runs on"
_OF_A_LAYER = frozenset(operator.value for operator in OF_A_LAYER)


def operators(name: str, facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield the findings on one rank. ``name``: the rank's, ``facts``: what its ring says of it."""
    level, found = facts.get("level", ""), facts.get("slots") or {}
    if level != "operators":
        yield Finding(OK, name, f"level {level}: whole steps only")
        return
    yield Finding(
        OK, name, f"timed: {', '.join(operator for operator, state in found.items() if state == 'installed')}"
    )
    classes: Mapping[str, Mapping[str, Any]] = facts.get("layer_classes") or {}
    # What layers have is said for each of their classes; a ring of an older plugin has no classes.
    of_layers = _OF_A_LAYER if classes else frozenset()
    missing = [operator for operator, state in found.items() if state != "installed" and operator not in of_layers]
    if missing:
        what = f"not found in this model: {', '.join(missing)}"
        yield Finding(WRONG, name, what, f"their time shows in the operators around them; {_REPORT}")
    for kind, layer in classes.items():
        yield from _of_class(name, kind, layer)


def _of_class(name: str, kind: str, layer: Mapping[str, Any]) -> Iterator[Finding]:
    number = layer.get("layers", 0)
    which = f"{kind} ({number} {'layer' if number == 1 else 'layers'})"
    if missing := layer.get("missing"):
        what = f"{which}: not found: {', '.join(missing)}"
        yield Finding(WRONG, name, what, f"their time is `other`, or is that of an operator around them; {_REPORT}")
    if other := layer.get("other"):
        yield Finding(
            NOTE, name, f"{which}: calls whose time is `other`, because they are no operator's: {', '.join(other)}"
        )
    for why in layer.get("unread") or ():
        what = f"{which}: its code is not understood ({why}), so what lies between two of its operators is `other`"
        yield Finding(NOTE, name, what)
