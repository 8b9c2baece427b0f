"""Read the arguments of a host's call by name, whatever its signature is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Arguments:
    """The parameters of one function of the host's, asked once.

    ``names``: in the order of the signature; empty where it has none that can be read. A name that the function does not have,
    or that a call does not give, reads as its default, else as None; nothing here raises.
    """

    def __init__(self, host: Callable[..., Any]) -> None:
        try:
            parameters = list(inspect.signature(host).parameters.values())
        except (TypeError, ValueError):
            parameters = []
        self.names = tuple(each.name for each in parameters)
        # What follows a *args has no place of its own.
        self._place = {each.name: at for at, each in enumerate(parameters) if each.kind in _POSITIONAL}
        self._default = {each.name: each.default for each in parameters if each.default is not each.empty}

    def fits(self, alternatives: tuple[tuple[str, ...], ...]) -> bool:
        """Tell whether the function has all parameters of one of the alternatives; also where none is asked for."""
        return not alternatives or any(set(names) <= set(self.names) for names in alternatives)

    def get(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return the argument that a call gives under this name."""
        if name in kwargs:
            return kwargs[name]
        place = self._place.get(name)
        if place is not None and place < len(args):
            return args[place]
        return self._default.get(name)

    def given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return every argument that a call gives, by name, defaults included, in the order of the signature."""
        found = {**self._default, **dict(zip(self._place, args)), **kwargs}
        return {name: found[name] for name in (*self.names, *kwargs) if name in found}
