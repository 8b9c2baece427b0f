"""Patch set: attributes of the host that the plugin has replaced, and how to restore them."""

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
    """One replaced attribute. ``own``: the value in the owner's own dictionary. ``host``: the value of the attribute before.

    ``ours``: its value now.
    """

    owner: Any
    name: str
    own: Any
    host: Any
    ours: Any
    suspended: bool = False


class PatchSet:
    """Replaced attributes of instances, classes and modules.

    :meth:`suspend` restores exactly the previous values, :meth:`resume` applies the replacements again, and :meth:`undo`
    restores and forgets them, but for what somebody else has wrapped since: call it again when their wrapper is gone.
    """

    def __init__(self) -> None:
        self._changes: list[_Change] = []
        self._copies: list[tuple[ModuleType, str, Any]] = []
        self.suspended = False

    @property
    def changes(self) -> int:
        """Return the number of attributes that are replaced now."""
        return 0 if self.suspended else len(self._changes)

    def replace(self, owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
        """Set ``owner.name`` to ``wrap(owner.name)``; a suspended patch set is resumed first.

        Raises TypeError for static methods and class methods, which ``setattr`` could not restore, and AttributeError if there
        is no such attribute.
        """
        self.resume()
        own = vars(owner).get(name, _MISSING)  # not getattr, which would bind descriptors
        if isinstance(own, (staticmethod, classmethod)):
            raise TypeError(f"{owner!r}.{name} is a {type(own).__name__}")
        host = getattr(owner, name)
        ours = wrap(host)
        setattr(owner, name, ours)
        self._changes.append(_Change(owner, name, own, host, ours))

    def suspend(self) -> None:
        """Restore all attributes, the latest change first, and also copies of our functions in modules of the host."""
        if self.suspended:
            return
        self.suspended = True
        for change in reversed(self._changes):
            # If somebody else has wrapped our function since, it stays. Otherwise their wrapper would be lost.
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
        """Apply all replacements again, with the same wrappers."""
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
        """Return ``(module, name, function)`` wherever the host's ``from … import`` has copied a function of ours."""
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
        """Restore all attributes, and forget the changes. One that somebody else has wrapped stays, and stays known."""
        self.suspended = False  # look again at what could not be put back before
        self.suspend()
        self._changes = [change for change in self._changes if not change.suspended]
        self._copies.clear()
        self.suspended = False
