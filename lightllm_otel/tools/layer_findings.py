"""Findings of ``lightllm-otel doctor`` on operators: which operators the plugin finds in a rank's layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lightllm_otel.tools.finding import NOTE, OK, WRONG, Finding
from lightllm_otel.worker.host.slots import OF_A_LAYER

_REPORT = "report the model's family and the version of LightLLM"
_OF_A_LAYER = frozenset(operator.value for operator in OF_A_LAYER)


def operators(name: str, facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield the findings on one rank. ``name``: of the rank; ``facts``: from its ring."""
    level, found = facts.get("level", ""), facts.get("slots") or {}
    if level != "operators":
        yield Finding(OK, name, f"level {level}: step-level times only")
        return
    yield Finding(
        OK, name, f"timed: {', '.join(operator for operator, state in found.items() if state == 'installed')}"
    )
    classes: Mapping[str, Mapping[str, Any]] = facts.get("layer_classes") or {}
    # The facts list the operators of each layer class separately. Rings of an older plugin have no classes.
    of_layers = _OF_A_LAYER if classes else frozenset()
    missing = [operator for operator, state in found.items() if state != "installed" and operator not in of_layers]
    if missing:
        what = f"not found in this model: {', '.join(missing)}"
        yield Finding(WRONG, name, what, f"their time counts for the operators around them; {_REPORT}")
    for kind, layer in classes.items():
        yield from _of_class(name, kind, layer)


def _of_class(name: str, kind: str, layer: Mapping[str, Any]) -> Iterator[Finding]:
    number = layer.get("layers", 0)
    which = f"{kind} ({number} {'layer' if number == 1 else 'layers'})"
    if missing := layer.get("missing"):
        what = f"{which}: not found: {', '.join(missing)}"
        yield Finding(WRONG, name, what, f"their time counts as `other`, or for an operator around them; {_REPORT}")
    if other := layer.get("other"):
        yield Finding(
            NOTE, name, f"{which}: calls that belong to no operator, so they count as `other`: {', '.join(other)}"
        )
    for why in layer.get("unread") or ():
        what = f"{which}: the plugin cannot analyse its code ({why}), so the time between two of its operators counts as `other`"
        yield Finding(NOTE, name, what)
