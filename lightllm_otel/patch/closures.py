"""Wrappers with the signature of what they wrap: ``*args`` would cost more, on every call, than all that we do."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import CodeType
from typing import Any

Host = Callable[..., Any]
_PLAIN = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_HEAD = """\
def make(host, timer, use, {defaults}):
"""
# A hook that hands on to another function while something is armed.
_HANDS_ON = (
    _HEAD
    + """\
    def slot({parameters}):
        if timer.armed is None:
            return host({arguments})
        return use(host, {arguments})
    return slot
"""
)
# A hook that marks the end of an operator, and its start if something leads to it: some three hundred of these run in a
# sampled step of eager code, so each does with one frame and no context manager.
_MARKS = (
    _HEAD
    + """\
    own, lead, between, caught = use
    def slot({parameters}):
        marking = timer.armed
        if marking is None or marking.context >= 0:  # not sampled, or nested in an operator that counts it as its own
            return host({arguments})
        try:
            if marking.pairs:
                marking.mark(between)
            elif lead >= 0:
                marking.mark(lead)
            marking.context = own
        except Exception as error:
            if not caught(error):
                raise
        try:
            return host({arguments})
        finally:
            try:
                marking.context = -1
                marking.mark(own)
            except Exception as error:
                if not caught(error):
                    raise
    return slot
"""
)


def as_operator(
    host: Host, timer: Any, own: int, lead: int | None, between: int, caught: Callable[[Exception], bool]
) -> Host:
    """``host`` as an operator: the interval up to its end is ``own``, the one up to its start ``lead`` (None: no mark).

    Where the host synchronises between operators every start is marked; what lies before it is ``between``.
    ``caught`` is told of our own errors, and says whether they end here.
    """
    return _make(_MARKS, host, timer, (own, -1 if lead is None else lead, between, caught))


def handing_on(host: Host, timer: Any, measured: Host) -> Host:
    """``host``, which is called as it is while ``timer.armed`` is None, else through ``measured(host, …)``."""
    return _make(_HANDS_ON, host, timer, measured)


def _make(template: str, host: Host, timer: Any, use: Any) -> Host:
    """Names, order and defaults of the parameters are the host's. What has no plain signature gets ``*args, **kwargs``."""
    try:
        # Not that of what a decorator wraps: it may take other arguments than what it is called with.
        parameters = list(inspect.signature(host, follow_wrapped=False).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    named = [each for each in parameters if each.kind in _PLAIN]
    if not parameters or len(named) != len(parameters) or any(each.name in _OURS for each in named):
        return _compiled(template, "*args, **kwargs", "*args, **kwargs", host, timer, use, {})
    defaults = {f"default_{each.name}": each.default for each in named if each.default is not each.empty}
    head, star = [], False
    for each in named:
        if each.kind is each.KEYWORD_ONLY and not star:
            head.append("*")
            star = True
        head.append(f"{each.name}=default_{each.name}" if each.default is not each.empty else each.name)
    arguments = [f"{each.name}={each.name}" if each.kind is each.KEYWORD_ONLY else each.name for each in named]
    return _compiled(template, ", ".join(head), ", ".join(arguments), host, timer, use, defaults)


_OURS = ("host", "timer", "use", "marking", "own", "lead", "between", "caught", "error", "Exception")


def _compiled(
    template: str, parameters: str, arguments: str, host: Host, timer: Any, use: Any, defaults: dict[str, Any]
) -> Host:
    source = template.replace("{defaults}", ", ".join(defaults)).replace("{parameters}", parameters)
    namespace: dict[str, Any] = {}
    exec(_code(source.replace("{arguments}", arguments)), namespace)
    made: Host = namespace["make"](host, timer, use, **defaults)
    return made


@functools.lru_cache(maxsize=64)
def _code(source: str) -> CodeType:
    """As in collections.namedtuple: only code made from a signature can have it. A model has few, in many layers."""
    return compile(source, __file__, "exec")
