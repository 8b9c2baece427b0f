"""Pristine copy of LightLLM's ``InferStateInfo``: it shares the input tensors, but not what kernels add to the state.

Kernels keep tensors on the state that they compute once in a forward. They find the state through objects that refer back to
it (``att_state.infer_state`` since January 2026). A copy that shared such an object would find the host's tensors there. A
graph captured from it would lack the kernels that compute them, and later replays would produce wrong tokens.
"""

from __future__ import annotations

import collections
import copy
from collections.abc import Iterator
from typing import Any

DEPTH = 5  # of the search for references; deeper ones have never been seen
MOST = 20_000  # objects of one search
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type)


class RefersBack(Exception):
    """An object that cannot be copied refers back to the state; the message names it."""


def pristine_of(state: Any) -> Any:
    """Return a copy of the state. Objects on it that refer back to it are copied as well, and refer to the copy.

    Raises RefersBack if the state can still be reached from the copy.
    """
    pristine = copy.copy(state)
    copies: dict[int, Any] = {}
    for name, part in list(_attributes(state).items()):
        back = [each for each, value in _attributes(part).items() if value is state]
        if not back:
            continue
        if id(part) not in copies:
            made = copies[id(part)] = copy.copy(part)
            for each in back:
                setattr(made, each, pristine)
        setattr(pristine, name, copies[id(part)])
    way = _way(pristine, state)
    if way:
        raise RefersBack(f"infer_state{way} refers back to it")
    return pristine


def take_over_numbers(pristine: Any, state: Any) -> None:
    """Copy the plain values that the host has set on ``state`` since to ``pristine``. Its tensors stay as they are."""
    known = _attributes(pristine)
    for name, value in _attributes(state).items():
        if isinstance(value, (bool, int, float)) and name in known:
            setattr(pristine, name, value)


def _attributes(part: Any) -> dict[str, Any]:
    if isinstance(part, _PLAIN) or hasattr(part, "data_ptr"):
        return {}
    found = getattr(part, "__dict__", None)
    return dict(found) if isinstance(found, dict) else {}


def _way(start: Any, wanted: Any) -> str:
    """Return how ``wanted`` is reached from ``start``, in Python's notation, or an empty string if it is not reached."""
    seen = {id(start)}
    waiting = collections.deque([(start, "", 0)])
    while waiting and len(seen) < MOST:
        part, way, depth = waiting.popleft()
        for step, value in _parts(part):
            if value is wanted:
                return way + step
            if depth + 1 < DEPTH and id(value) not in seen and not isinstance(value, _PLAIN):
                seen.add(id(value))
                waiting.append((value, way + step, depth + 1))
    return ""


def _parts(part: Any) -> Iterator[tuple[str, Any]]:
    if hasattr(part, "data_ptr"):
        return
    if isinstance(part, dict):
        yield from ((f"[{key!r}]", value) for key, value in list(part.items()))
    elif isinstance(part, (list, tuple, set, frozenset)):
        yield from ((f"[{at}]", value) for at, value in enumerate(list(part)))
    else:
        yield from ((f".{name}", value) for name, value in _attributes(part).items())
        for name in ("__self__", "func", "args", "keywords"):  # bound methods and partials
            if callable(part) and (value := getattr(part, name, None)) is not None:
                yield f".{name}", value
        for cell in getattr(part, "__closure__", None) or ():
            try:
                yield "'s closure", cell.cell_contents
            except ValueError:  # the cell is not bound yet
                continue
