"""Wrappers of LightLLM's functions. Each passes its arguments on unchanged: no wrapper repeats a signature.

About three hundred of them run in an eager forward. While nothing is recorded, each reads one attribute. While operators are
recorded, each needs one frame and no context manager.
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
"""Handler of the plugin's own errors: it returns whether the error is swallowed."""


def foreign(recorder: BoundaryRecorder) -> bool:
    """Tell whether the recorder belongs to another thread than the calling one."""
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
    """Return ``host`` as an operator. The interval up to its end gets the code ``own``, the one up to its start ``lead``.

    ``lead``: None records no boundary at the start. If the host synchronises between operators, every start is a boundary, and
    the interval before it gets ``between``. ``unless_returned``: a call that returns one of its arguments has launched nothing,
    so its end is no boundary. ``begun``: codes after which the operator follows directly, so its start is no boundary.
    """

    def slot(*args: Any, **kwargs: Any) -> Any:
        recorder = timer.recorder
        # Nothing is recorded, or an operator around this one includes it, or another thread is measured.
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
        result = recorder  # never an argument of the host's, so a call that raises has its end recorded
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
    """Return ``host`` as an operator that is cut out of the operator that calls it.

    ``lead``: the code of the interval before it if it is called outside of all operators.
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
    """Return ``host``, called through ``measured(host, recorder, args, kwargs)`` while its thread's forward is recorded."""

    def slot(*args: Any, **kwargs: Any) -> Any:
        recorder = timer.recorder
        if recorder is None or foreign(recorder):
            return host(*args, **kwargs) if kwargs else host(*args)
        return measured(host, recorder, args, kwargs)

    return _like(slot, host)


def _is_among(result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return any(result is each for each in args) or any(result is each for each in kwargs.values())


def _like(slot: Host, host: Host) -> Host:
    """Give the wrapper the host's name, and the attributes that have been set on a function of the host's."""
    with contextlib.suppress(Exception):  # a callable object may have any attribute
        functools.update_wrapper(slot, host, updated=("__dict__",) if isinstance(host, types.FunctionType) else ())
    slot.__wrapped__ = host  # type: ignore[attr-defined]
    return slot
