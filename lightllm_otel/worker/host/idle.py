"""Hooks where the host's loop comes round without a step: the GPU is idle because there is nothing to do."""

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
    """July 2025: the router calls ``decode`` about every 10 ms, also when there is nothing to do."""

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
    """Since v1.1.0: each thread asks for new requests before it looks for a step, also when there is nothing to do.

    To ask, the ranks talk to each other and the host loads caches: that is work of the GPU outside of steps.
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
                with session.guard(Stage.ACTIVATE):  # the exporter serves what there is
                    session.housekeep()
            return host(*args, **kwargs)
        try:
            timer.loop_began()
            if forwards.completed == last:  # nothing since it was asked last
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
    """0.0.1 has no idle tick, but removes a batch when its last request has ended; all of its events are done then."""

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
    with session.guard(Stage.ACTIVATE):  # also when measuring has ended: the exporter still serves what there is
        session.housekeep()
