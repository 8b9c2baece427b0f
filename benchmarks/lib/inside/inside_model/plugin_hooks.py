"""Find what lightllm-otel has put around the host's functions in this process, and take it out for a while.

So one process can be measured with the plugin and without it. Nothing of the plugin's inside is used: a hook is a function of
its package that stands in the place of one of LightLLM's.
"""

from __future__ import annotations

import dataclasses
import gc
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

PACKAGE = "lightllm_otel"
HOST = "lightllm"
_MISSING = object()


@dataclasses.dataclass(frozen=True)
class Hook:
    """``own``: what lies in the owner's own dictionary now; ``host``: what it stands for."""

    owner: Any
    name: str
    own: Any
    host: Any


class PluginHooks:
    """``roots``: objects whose attributes are looked through, beside LightLLM's modules, classes and their instances."""

    def __init__(self, package: str = PACKAGE, host: str = HOST, roots: Callable[[], list[Any]] | None = None) -> None:
        self._package, self._host, self._roots = package, host, roots
        self._out: list[Hook] = []
        self._found: list[Hook] | None = None

    @property
    def out(self) -> int:
        """How many hooks are out now."""
        return len(self._out)

    def take_out(self) -> None:
        """Put the host's functions where hooks are."""
        if not self._out:
            if self._found is None or any(vars(hook.owner).get(hook.name) is not hook.own for hook in self._found):
                self._found = list(self.find())
            for hook in self._found:
                setattr(hook.owner, hook.name, hook.host)
                self._out.append(hook)

    def put_back(self) -> None:
        """Undo ``take_out``, but where somebody else has put something since."""
        for hook in reversed(self._out):
            if vars(hook.owner).get(hook.name) is hook.host:
                setattr(hook.owner, hook.name, hook.own)
        self._out.clear()

    def find(self) -> Iterator[Hook]:
        """Yield every hook of the package that a module, class or instance of the host holds."""
        for owner in self._owners():
            for name, own in list(vars(owner).items()):
                host = self._behind(own)
                if host is not _MISSING:
                    yield Hook(owner, name, own, host)

    def _owners(self) -> Iterator[Any]:
        for name, module in list(sys.modules.items()):
            if isinstance(module, types.ModuleType) and _within(name, self._host):
                yield module
        yield from self._roots() if self._roots is not None else []
        for thing in gc.get_objects():
            # Not isinstance: it asks the object for its class, and some answer that with a warning.
            of = thing if issubclass(type(thing), type) else type(thing)
            if _within(of.__dict__.get("__module__"), self._host) and hasattr(thing, "__dict__"):
                yield thing

    def _behind(self, value: Any) -> Any:
        """Return the host's function behind a hook, or ``_MISSING`` if the value is no hook."""
        if not callable(value) or not self.is_ours(value):
            return _MISSING
        inner = value
        while self.is_ours(inner):
            inner = getattr(inner, "__wrapped__", _MISSING)
        if inner is _MISSING:
            return _MISSING
        if isinstance(value, types.MethodType):  # an instance holds a bound method
            return inner if isinstance(inner, types.MethodType) else types.MethodType(inner, value.__self__)
        if isinstance(value, (staticmethod, classmethod)):
            return type(value)(inner)
        return inner

    def is_ours(self, value: Any) -> bool:
        """Whether the code of a function is the package's."""
        function = getattr(value, "_self_wrapper", value)  # wrapt's
        function = getattr(function, "__func__", function)
        code = getattr(function, "__code__", None)
        return code is not None and f"/{self._package}/" in code.co_filename.replace("\\", "/")


def _within(module: Any, package: str) -> bool:
    return isinstance(module, str) and (module == package or module.startswith(f"{package}."))
