"""Hooks of the host's loop, which may run without a step: then the GPU is idle because there is nothing to do."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lightllm_otel.contracts.binding import Arguments
from lightllm_otel.contracts.table import Hook
from lightllm_otel.records.vocabulary import Stage

if TYPE_CHECKING:
    from lightllm_otel.worker.host.process import Session

Host = Callable[..., Any]


def ticking(host: Host, session: Session, arguments: Arguments, hook: Hook) -> Host:
    """Wrap ``decode`` of July 2025, which the router calls about every 10 ms, even if there is nothing to do."""

    @functools.wraps(host)
    def decode(*args: Any, **kwargs: Any) -> Any:
        timer, forwards = session.timer, session.forwards
        if timer is None or forwards is None:
            return host(*args, **kwargs)
        before = forwards.completed
        result = host(*args, **kwargs)
        if forwards.completed == before:
            _tick(session)
        return result

    return decode


def asking(host: Host, session: Session, arguments: Arguments, hook: Hook) -> Host:
    """Wrap the read of new requests (since v1.1.0), which each thread does before a step, even if there is nothing to do.

    In it the ranks exchange data and the host loads caches, so the GPU works outside of steps.
    """
    last = -1
    measure = session.guard(Stage.MEASURE)
    caught = functools.partial(session.guard.caught, Stage.MEASURE)
    clock = time.perf_counter

    @functools.wraps(host)
    def _try_read_new_reqs(*args: Any, **kwargs: Any) -> Any:
        nonlocal last
        timer, forwards = session.timer, session.forwards
        if timer is None or forwards is None or timer.failed:
            if forwards is not None:
                with session.guard(Stage.ACTIVATE):  # the exporter still serves what has been measured
                    session.housekeep()
            return host(*args, **kwargs)
        try:
            timer.loop_began()
            if forwards.completed == last:  # no forward since the last call
                _tick(session)
            last = forwards.completed
        except Exception as error:
            if not caught(error):
                raise
        began = clock()
        try:
            return host(*args, **kwargs)
        finally:
            with measure:
                timer.scheduled(clock() - began)

    return _try_read_new_reqs


def emptied(host: Host, session: Session, arguments: Arguments, hook: Hook) -> Host:
    """Wrap ``remove_batch`` of 0.0.1, which has no idle tick: it removes a batch when the last request has ended.

    All events of the batch are done then.
    """

    @functools.wraps(host)
    def remove_batch(*args: Any, **kwargs: Any) -> Any:
        result = host(*args, **kwargs)
        timer = session.timer
        if timer is not None and not timer.failed:
            with session.guard(Stage.MEASURE):
                timer.tick(idle=not getattr(args[0], "cache", None))
        return result

    return remove_batch


def _tick(session: Session) -> None:
    timer = session.timer
    if timer is not None and not timer.failed:
        with session.guard(Stage.MEASURE):
            timer.tick()
    with session.guard(Stage.ACTIVATE):  # even after measuring has ended, because the exporter still serves
        session.housekeep()
