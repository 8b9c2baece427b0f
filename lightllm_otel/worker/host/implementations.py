"""Implementation of each operator, by name, for comparisons of two runs."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from lightllm_otel.worker.host.layers import layers_of

_MOST = 200  # characters, because the ring's page has a limited size
# The attention function is the same for all backends (v1.2.0). These objects do the work.
BACKENDS = ("prefill_att_backend", "decode_att_backend", "prefill_att_backend1", "decode_att_backend1")


def names(model: Any) -> dict[str, str]:
    """Return the names of the functions of each operator in all layers. The functions may be wrapped already.

    Further keys are LightLLM's own names: its attention backends, the implementation of ``experts``, and ``quant_method``.
    """
    found: dict[str, dict[str, None]] = {}
    for layer in layers_of(model):
        for place in layer.places.values():
            found.setdefault(place.slot.operator.value, {})[name_of(getattr(place.owner, place.name))] = None
    weights = [each for each in getattr(model, "trans_layers_weight", None) or () if each is not None]
    said = {
        **found,
        **{name: _classes([getattr(model, name, None)]) for name in BACKENDS},
        "experts": _classes(getattr(getattr(each, "experts", None), "fuse_moe_impl", None) for each in weights),
        "quant_method": dict.fromkeys(method for each in weights for method in _methods(each)),
    }
    return {name: ", ".join(each)[:_MOST] for name, each in said.items() if each}


def _classes(objects: Iterable[Any]) -> dict[str, None]:
    return dict.fromkeys(type(each).__name__ for each in objects if each is not None)


def _methods(weights: Any) -> list[str]:
    """Return how the matrices of a layer are quantised, by LightLLM's names."""
    methods = (getattr(each, "quant_method", None) for each in getattr(weights, "__dict__", {}).values())
    return sorted(
        {str(getattr(each, "method_name", None) or type(each).__name__) for each in methods if each is not None}
    )


def name_of(host: Any) -> str:
    """Return the ``Class.function`` behind partials and wrappers, with the plain values that a partial binds."""
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
