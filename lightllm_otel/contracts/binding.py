"""Arguments of the host's calls, read by name for any signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Arguments:
    """Parameters of one function of the host's, inspected once.

    ``names``: in the order of the signature; empty if the signature cannot be read. A parameter that is missing in a call, or
    in the function, reads as its default, else as None. Nothing here raises.
    """

    def __init__(self, host: Callable[..., Any]) -> None:
        try:
            parameters = list(inspect.signature(host).parameters.values())
        except (TypeError, ValueError):
            parameters = []
        self.names = tuple(each.name for each in parameters)
        # Parameters after *args have no position.
        self._place = {each.name: at for at, each in enumerate(parameters) if each.kind in _POSITIONAL}
        self._default = {each.name: each.default for each in parameters if each.default is not each.empty}

    def fits(self, alternatives: tuple[tuple[str, ...], ...]) -> bool:
        """Tell whether the function has all parameters of one alternative. Without alternatives, it always fits."""
        return not alternatives or any(set(names) <= set(self.names) for names in alternatives)

    def get(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return the argument of a call with this name."""
        if name in kwargs:
            return kwargs[name]
        place = self._place.get(name)
        if place is not None and place < len(args):
            return args[place]
        return self._default.get(name)

    def given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return all arguments of a call by name, including defaults, in the order of the signature."""
        found = {**self._default, **dict(zip(self._place, args)), **kwargs}
        return {name: found[name] for name in (*self.names, *kwargs) if name in found}
