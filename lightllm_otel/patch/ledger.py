"""Every change we make to the host, with its undo, remembered where the change is made."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

_MISSING = object()


class Ledger:
    """Replaces attributes of instances, classes and modules; :meth:`undo` puts back exactly what was there."""

    def __init__(self) -> None:
        self._undo = contextlib.ExitStack()
        self.changes = 0

    def replace(self, owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
        """Set ``owner.name`` to ``wrap(owner.name)``.

        Raises TypeError for static- and classmethods, which ``setattr`` would not put back as they were, and
        AttributeError when there is no such attribute.
        """
        own = vars(owner).get(name, _MISSING)  # raw: keeps descriptors intact
        if isinstance(own, (staticmethod, classmethod)):
            raise TypeError(f"{owner!r}.{name} is a {type(own).__name__}")
        setattr(owner, name, wrap(getattr(owner, name)))
        if own is _MISSING:
            self._undo.callback(delattr, owner, name)
        else:
            self._undo.callback(setattr, owner, name, own)
        self.changes += 1

    def undo(self) -> None:
        """Undo all changes, the last one first."""
        self._undo.close()
        self.changes = 0
