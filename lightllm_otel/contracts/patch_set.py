"""Every change we make to the host, with its undo, remembered where the change is made."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_MISSING = object()
HOST_PREFIX = "lightllm."


@dataclasses.dataclass
class _Change:
    """``own``: what lay in the owner's own dictionary; ``host``: what its attribute gave; ``ours``: what it gives now."""

    owner: Any
    name: str
    own: Any
    host: Any
    ours: Any
    suspended: bool = False


class PatchSet:
    """Replaces attributes of instances, classes and modules.

    :meth:`suspend` puts back exactly what was there, :meth:`resume` puts ours in again, :meth:`undo` forgets it all but what
    somebody else has wrapped since: call it again when their wrapper is gone.
    """

    def __init__(self) -> None:
        self._changes: list[_Change] = []
        self._copies: list[tuple[ModuleType, str, Any]] = []
        self.suspended = False

    @property
    def changes(self) -> int:
        """How many attributes of the host are ours now."""
        return 0 if self.suspended else len(self._changes)

    def replace(self, owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
        """Set ``owner.name`` to ``wrap(owner.name)``; a suspended patch set is resumed first.

        Raises TypeError for static- and classmethods, which ``setattr`` would not put back as they were, and
        AttributeError when there is no such attribute.
        """
        self.resume()
        own = vars(owner).get(name, _MISSING)  # raw: keeps descriptors intact
        if isinstance(own, (staticmethod, classmethod)):
            raise TypeError(f"{owner!r}.{name} is a {type(own).__name__}")
        host = getattr(owner, name)
        ours = wrap(host)
        setattr(owner, name, ours)
        self._changes.append(_Change(owner, name, own, host, ours))

    def suspend(self) -> None:
        """Put everything back, the last change first; also where host modules have copied a function of ours."""
        if self.suspended:
            return
        self.suspended = True
        for change in reversed(self._changes):
            # Where somebody else has put something around ours since, it stays: it would be lost otherwise.
            if vars(change.owner).get(change.name) is not change.ours:
                continue
            change.suspended = True
            if change.own is _MISSING:
                delattr(change.owner, change.name)
            else:
                setattr(change.owner, change.name, change.own)
        self._copies = self._copied()
        for module, name, ours in self._copies:
            setattr(module, name, self._host_of(ours))

    def resume(self) -> None:
        """Make all changes again, with the wrappers that were there before."""
        if not self.suspended:
            return
        self.suspended = False
        for change in self._changes:
            # Where somebody else has set something since, it stays, and this change waits.
            if change.suspended and vars(change.owner).get(change.name, _MISSING) is change.own:
                setattr(change.owner, change.name, change.ours)
                change.suspended = False
        for module, name, ours in self._copies:
            if vars(module).get(name) is self._host_of(ours):
                setattr(module, name, ours)

    def _host_of(self, ours: Any) -> Any:
        """Return the host's function below ours, and below ours that is around another one of ours."""
        hosts = {id(change.ours): change.host for change in self._changes}
        while id(ours) in hosts:
            ours = hosts[id(ours)]
        return ours

    def _copied(self) -> list[tuple[ModuleType, str, Any]]:
        """``from module import function`` has put a function of ours into these modules, under these names."""
        functions = {id(change.ours) for change in self._changes if isinstance(change.owner, ModuleType)}
        if not functions:
            return []
        modules = [module for name, module in list(sys.modules.items()) if name.startswith(HOST_PREFIX) and module]
        return [
            (module, name, value)
            for module in modules
            for name, value in list(vars(module).items())
            if id(value) in functions
        ]

    def undo(self) -> None:
        """Undo all changes for good. One that somebody else has wrapped stays, and stays known."""
        self.suspended = False  # look again at what could not be put back before
        self.suspend()
        self._changes = [change for change in self._changes if not change.suspended]
        self._copies.clear()
        self.suspended = False
