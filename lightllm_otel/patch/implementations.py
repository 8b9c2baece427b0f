"""Which function stands behind each operator: what a comparison of two runs names when it differs."""

from __future__ import annotations

import functools
from typing import Any

from lightllm_otel.patch.slots import LAYER_SLOTS, POST_SLOTS, PRE_SLOTS, Slot

_MOST = 200  # characters; the page that this goes onto is bounded


def names(model: Any) -> dict[str, str]:
    """Operator → functions of its slots in the first layer (and the last, where it differs), before they are wrapped."""
    layers = list(getattr(model, "layers_infer", ()))
    places: list[tuple[Any, tuple[Slot, ...]]] = [(getattr(model, "pre_infer", None), PRE_SLOTS)]
    places += [(layer, LAYER_SLOTS) for layer in (layers[:1] + layers[-1:] if len(layers) > 1 else layers)]
    places.append((getattr(model, "post_infer", None), POST_SLOTS))
    found: dict[str, list[str]] = {}
    for owner, slots in places:
        for slot in slots:
            for name in slot.names:
                host = getattr(owner, name, None)
                if callable(host) and (said := name_of(host)) not in found.setdefault(slot.operator.value, []):
                    found[slot.operator.value].append(said)
    return {operator: ", ".join(said)[:_MOST] for operator, said in found.items()}


def name_of(host: Any) -> str:
    """``Class.function`` behind partials and wrappers, with what a partial fixes beside its instance."""
    fixed: dict[str, Any] = {}
    while True:
        if isinstance(host, functools.partial):
            fixed = {**host.keywords, **fixed}
            host = host.func
        elif hasattr(host, "__wrapped__"):
            host = host.__wrapped__
        else:
            break
    name = str(getattr(host, "__qualname__", type(host).__qualname__)).replace("<locals>.", "")
    plain = [f"{key}={value}" for key, value in sorted(fixed.items()) if isinstance(value, (str, int, float, bool))]
    return f"{name}({', '.join(plain)})" if plain else name
