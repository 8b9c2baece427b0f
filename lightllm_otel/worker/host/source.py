"""Source of LightLLM's functions: finds the Python function behind an attribute, and its definition."""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import textwrap
import types
from collections import ChainMap
from collections.abc import Mapping
from typing import Any, Optional

_DEEPEST = 12  # partials of partials


def resolve(
    owner: Any, name: str, behind: Optional[type] = None
) -> tuple[Optional[types.FunctionType], Optional[type]]:
    """Return the Python function behind an attribute of an object or class, and the class that defines it.

    It looks through partials, bound methods and decorators. ``behind``: search only the classes after this one, as ``super()``
    does. The result is ``(None, None)`` if there is no Python function.
    """
    kind = owner if isinstance(owner, type) else type(owner)
    if behind is None and kind is not owner and name in getattr(owner, "__dict__", ()):
        function = undecorated(vars(owner)[name], name)
        return function, next((each for each in kind.__mro__ if _defines(each, function)), None)
    order = list(kind.__mro__)
    for each in order[order.index(behind) + 1 :] if behind in order else order:
        if name in vars(each):
            return undecorated(vars(each)[name], name), each
    return None, None


def _defines(owner: type, function: Optional[types.FunctionType]) -> bool:
    return function is not None and any(each is function for each in vars(owner).values())


def undecorated(host: Any, name: str) -> Optional[types.FunctionType]:
    """Return the function inside partials, methods and decorators, or None if it is not a Python function."""
    for _ in range(_DEEPEST):
        if isinstance(host, functools.partial):
            host = host.func
        elif isinstance(host, (staticmethod, classmethod, types.MethodType)):
            host = host.__func__
        elif isinstance(host, types.FunctionType) and "__wrapped__" in vars(host):
            host = vars(host)["__wrapped__"]
        elif isinstance(host, types.FunctionType) and host.__name__ != name and (held := _held(host, name)) is not None:
            host = held
        else:
            break
    return host if isinstance(host, types.FunctionType) else None


def _held(function: types.FunctionType, name: str) -> Optional[types.FunctionType]:
    """Return the function of that name in the closure of a decorator's wrapper that has no ``__wrapped__``."""
    for cell in function.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:  # the cell is not bound yet
            continue
        if isinstance(content, types.FunctionType) and content.__name__ == name:
            return content
    return None


def surroundings(function: types.FunctionType) -> Mapping[str, Any]:
    """Return the names of the function's closure and module, with their values."""
    closure: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        with contextlib.suppress(ValueError):  # the cell is not bound yet
            closure[name] = cell.cell_contents
    return ChainMap(closure, function.__globals__)


def definition(function: types.FunctionType) -> Optional[ast.FunctionDef]:
    """Return the function's definition, or None if its source is missing or is not a ``def``."""
    return _definition(function.__code__)


@functools.lru_cache(maxsize=512)  # layers share their functions
def _definition(code: types.CodeType) -> Optional[ast.FunctionDef]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    first = tree.body[0] if tree.body else None
    # The lines of a lambda may be those of the function that contains it.
    return first if isinstance(first, ast.FunctionDef) and first.name == code.co_name else None
