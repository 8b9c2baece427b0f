"""How long the plugin's hooks take by themselves: a clock around each, and one around the host's function inside it.

The inner one is put into the closure of the hook. The difference has the calls of both clocks in it, a third of a microsecond.
"""

from __future__ import annotations

import functools
import statistics
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

from inside_model.plugin_hooks import PluginHooks

MOST_CALLS = 100_000


class OwnTimes:
    """The hooks of one process, while they are looked at. Their setting must not change meanwhile."""

    def __init__(self, hooks: PluginHooks | None = None) -> None:
        self._hooks = hooks or PluginHooks()
        self._thread = threading.local()
        self._nanoseconds: dict[str, list[int]] = {}
        self._undo: list[Callable[[], None]] = []
        self.missed: list[str] = []  # hooks in which the host's function was not found

    def install(self) -> None:
        """Look at every hook that is in place now."""
        self._nanoseconds, self.missed = {}, []
        outer: dict[int, Any] = {}
        for hook in list(self._hooks.find()):
            if not isinstance(hook.own, types.FunctionType) or not isinstance(hook.host, types.FunctionType):
                self.missed.append(hook.name)
                continue
            if id(hook.own) not in outer:
                cells = list(cells_of(hook.own, hook.host, self._hooks))
                if not cells:
                    self.missed.append(hook.name)
                    continue
                inner = self._inside(hook.host)
                for cell in cells:
                    cell.cell_contents = inner
                    self._undo.append(functools.partial(setattr, cell, "cell_contents", hook.host))
                outer[id(hook.own)] = self._around(hook.own, hook.name)
            setattr(hook.owner, hook.name, outer[id(hook.own)])
            self._undo.append(functools.partial(setattr, hook.owner, hook.name, hook.own))

    def remove(self) -> None:
        """Put everything back."""
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()

    def take(self) -> dict[str, dict[str, float]]:
        """Return, by hook, its calls and the median and mean of its own microseconds."""
        return {
            name: {
                "calls": len(each), "median_us": round(1e-3 * statistics.median(each), 3),
                "mean_us": round(1e-3 * statistics.fmean(each), 3),
            }
            for name, each in self._nanoseconds.items() if each
        }  # fmt: skip

    def _inside(self, host: Callable[..., Any]) -> Callable[..., Any]:
        thread, now = self._thread, time.perf_counter_ns

        @functools.wraps(host)
        def inside(*args: Any, **kwargs: Any) -> Any:
            began = now()
            try:
                return host(*args, **kwargs)
            finally:
                stack = getattr(thread, "stack", None)
                if stack:
                    stack[-1] += now() - began

        return inside

    def _around(self, hook: Callable[..., Any], name: str) -> Callable[..., Any]:
        thread, now = self._thread, time.perf_counter_ns
        found = self._nanoseconds.setdefault(name, [])

        @functools.wraps(hook)
        def around(*args: Any, **kwargs: Any) -> Any:
            stack = getattr(thread, "stack", None)
            if stack is None:
                stack = thread.stack = []
            stack.append(0)
            began = now()
            try:
                return hook(*args, **kwargs)
            finally:
                whole = now() - began
                own = whole - stack.pop()
                if len(found) < MOST_CALLS:
                    found.append(own)

        return around


def cells_of(hook: Any, host: Any, hooks: PluginHooks, depth: int = 4) -> Iterator[Any]:
    """Yield the cells of closures through which a hook reaches the host's function, also by other functions of the package."""
    for cell in getattr(hook, "__closure__", None) or ():
        try:
            content = cell.cell_contents
        except ValueError:  # not filled yet
            continue
        if content is host:
            yield cell
        elif depth and isinstance(content, types.FunctionType) and hooks.is_ours(content):
            yield from cells_of(content, host, hooks, depth - 1)
