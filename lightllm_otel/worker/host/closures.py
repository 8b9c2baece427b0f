"""Wrappers of LightLLM's functions. Each hands on whatever it is called with, untouched: no wrapper repeats a signature.

Some three hundred of these run in a forward of eager code. While nothing is armed they ask one question. Where operators are
marked, each does with one frame and no context manager.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable
from threading import get_ident
from typing import Any

from lightllm_otel.worker.gpu.boundary_recorder import BoundaryRecorder

Host = Callable[..., Any]
Caught = Callable[[Exception], bool]
"""Is told of an error of ours; says whether it ends here."""


def foreign(recorder: BoundaryRecorder) -> bool:
    """Tell whether another thread's forward is measured than the one that asks."""
    thread = getattr(recorder, "thread", None)
    return thread is not None and thread != get_ident()


def as_operator(
    host: Host,
    timer: Any,
    own: int,
    lead: int | None,
    between: int,
    caught: Caught,
    unless_returned: bool = False,
    begun: tuple[int, ...] = (),
) -> Host:
    """Return ``host`` as an operator: the interval up to its end is ``own``, the one up to its start ``lead`` (None: no mark).

    Where the host synchronises between operators every start is marked; what lies before it is ``between``.
    ``unless_returned``: a call that returns one of its arguments has launched nothing, so its end is not marked.
    ``begun``: marks behind which nothing lies before the operator; its start is not marked again.
    """

    def slot(*args: Any, **kwargs: Any) -> Any:
        recorder = timer.recorder
        # Nothing is measured, or an operator around this one counts it as its own, or another thread is measured.
        if recorder is None or recorder.context >= 0 or foreign(recorder):
            return host(*args, **kwargs) if kwargs else host(*args)
        try:
            if recorder.pairs:
                recorder.record(between)
            elif lead is not None and not (begun and recorder.codes[-1] in begun):
                recorder.record(lead)
            recorder.context = own
        except Exception as error:
            if not caught(error):
                raise
        result = recorder  # no argument of the host's: a call that raises is marked
        try:
            result = host(*args, **kwargs)
            return result
        finally:
            try:
                recorder.context = -1
                if not (unless_returned and _is_among(result, args, kwargs)):
                    recorder.record(own)
            except Exception as error:
                if not caught(error):
                    raise

    return _like(slot, host)


def as_inner_operator(host: Host, timer: Any, own: int, lead: int, caught: Caught) -> Host:
    """Return ``host`` as an operator that is cut out of the one that calls it.

    ``lead``: what lies before it where it is called outside of every operator.
    """

    def slot(*args: Any, **kwargs: Any) -> Any:
        recorder = timer.recorder
        if recorder is None:
            return host(*args, **kwargs) if kwargs else host(*args)
        outer = recorder.context
        if outer == own or recorder.in_collective or foreign(recorder):
            return host(*args, **kwargs)
        try:
            recorder.record(timer.boundary_codes.part(outer) if outer >= 0 else lead)
            recorder.context = own
        except Exception as error:
            if not caught(error):
                raise
        try:
            return host(*args, **kwargs)
        finally:
            try:
                recorder.context = outer
                recorder.record(own)
            except Exception as error:
                if not caught(error):
                    raise

    return _like(slot, host)


def handing_on(
    host: Host, timer: Any, measured: Callable[[Host, BoundaryRecorder, tuple[Any, ...], dict[str, Any]], Any]
) -> Host:
    """Return ``host``, called through ``measured(host, marking, args, kwargs)`` while its thread's forward is measured."""

    def slot(*args: Any, **kwargs: Any) -> Any:
        recorder = timer.recorder
        if recorder is None or foreign(recorder):
            return host(*args, **kwargs) if kwargs else host(*args)
        return measured(host, recorder, args, kwargs)

    return _like(slot, host)


def _is_among(result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return any(result is each for each in args) or any(result is each for each in kwargs.values())


def _like(slot: Host, host: Host) -> Host:
    """With the host's name for whoever reads it, and what has been written onto a function of the host's."""
    with contextlib.suppress(Exception):  # an object that is called may have any attribute
        functools.update_wrapper(slot, host, updated=("__dict__",) if isinstance(host, types.FunctionType) else ())
    slot.__wrapped__ = host  # type: ignore[attr-defined]
    return slot
