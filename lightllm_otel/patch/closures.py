"""Wrappers with the signature of what they wrap: ``*args`` would cost more, on every call, than all that we do."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

Host = Callable[..., Any]
_PLAIN = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_TEMPLATE = """\
def make(host, timer, measured, {defaults}):
    def {name}({parameters}):
        if timer.armed is None:
            return host({arguments})
        return measured(host, {arguments})
    return {name}
"""
_GENERAL = (
    _TEMPLATE.replace("{defaults}", "")
    .replace("{parameters}", "*args, **kwargs")
    .replace("{arguments}", "*args, **kwargs")
)


def fixed(host: Host, timer: Any, measured: Host) -> Host:
    """``host``, which is called as it is while ``timer.armed`` is None, else through ``measured(host, …)``.

    Names, order and defaults of the parameters are the host's. What has no plain signature gets ``*args, **kwargs``.
    """
    try:
        parameters = list(inspect.signature(host).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    named = [each for each in parameters if each.kind in _PLAIN]
    if not parameters or len(named) != len(parameters) or any(each.name in _OURS for each in named):
        return _make(_GENERAL, host, timer, measured, {})
    defaults = {f"default_{each.name}": each.default for each in named if each.default is not each.empty}
    head, star = [], False
    for each in named:
        if each.kind is each.KEYWORD_ONLY and not star:
            head.append("*")
            star = True
        head.append(f"{each.name}=default_{each.name}" if each.default is not each.empty else each.name)
    arguments = [f"{each.name}={each.name}" if each.kind is each.KEYWORD_ONLY else each.name for each in named]
    source = _TEMPLATE.replace("{defaults}", ", ".join(defaults)).replace("{parameters}", ", ".join(head))
    return _make(source.replace("{arguments}", ", ".join(arguments)), host, timer, measured, defaults)


_OURS = ("host", "timer", "measured")


def _make(source: str, host: Host, timer: Any, measured: Host, defaults: dict[str, Any]) -> Host:
    namespace: dict[str, Any] = {}
    # As in collections.namedtuple: only code made from a signature can have that signature.
    exec(compile(source.replace("{name}", "slot"), __file__, "exec"), namespace)
    made: Host = namespace["make"](host, timer, measured, **defaults)
    return made
