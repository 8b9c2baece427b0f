"""The fast path of decode steps that are not sampled: nearly all of them, so it costs as little as it can.

Between two steps the GPU waits for the host, and there every line of Python costs some hundred nanoseconds, because
nothing of it is in a cache any more. So a step finds ready what it needs; the rest is done when the GPU has its work.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Optional, Protocol

from lightllm_otel.guard import Guard
from lightllm_otel.records.control import BOTH, Listener
from lightllm_otel.records.vocabulary import Stage
from lightllm_otel.worker.forwards import Forwards
from lightllm_otel.worker.gpu.clock import Handle
from lightllm_otel.worker.gpu.timer import Begun, Timer
from lightllm_otel.worker.host import inputs

Host = Callable[..., Any]


class Ready(Protocol):
    """What the fast path asks of a session; see :class:`.process.Session`."""

    timer: Optional[Timer]
    forwards: Optional[Forwards]
    listener: Listener
    guard: Guard

    sees_replays: bool

    def housekeep(self) -> None: ...


class FastPath:
    """``ready``: empty, or the events for the next forward, if it may take this path; None: it needs no events.

    ``model``: the ``id`` of the one that is measured; a draft model takes the long way. ``replayed``: what the graph that the
    forward in progress has replayed was given (its input, or the state that holds it), until it is asked for its size.
    """

    def __init__(self) -> None:
        self.ready: list[list[Handle] | None] = []
        self.replayed: Any = None
        self.model = 0
        self._timer: Timer | None = None

    def prepare(self, session: Ready, model: Any) -> None:
        """A forward of the model that is measured has been launched: may the next one take the fast path?"""
        if self.ready:
            self.close()
        self.model = id(model)
        forwards, timer = session.forwards, session.timer
        if forwards is None or forwards.decode_due or session.listener.waiting is not None or not session.sees_replays:
            return
        self._timer = timer
        self.ready.append(timer.ends() if timer is not None and not timer.failed else None)

    def launched(self, session: Ready, timer: Timer | None, begun: Begun | None, model: Any, model_input: Any) -> None:
        """A forward has been launched in this lane."""
        padded, forwards = self.padded(), session.forwards
        if timer is None:
            session.housekeep()
        elif not timer.failed and forwards is not None:
            work = inputs.decode_input(model_input)
            if work is not None:
                timer.launched(begun, work, forwards.completed - 1, padded)
            elif begun is not None:
                timer.forget(begun)
        self.prepare(session, model)

    def close(self) -> None:
        """The next forward takes the long way."""
        while self.ready:
            ends = self.ready.pop()
            if ends is not None and self._timer is not None:
                self._timer.give(ends)

    def padded(self) -> int:
        """The batch of the graph that was replayed, as the GPU computed it; 0: none was. Can be asked once."""
        given, self.replayed = self.replayed, None
        return 0 if given is None else inputs.rows(given)


def fast_path(host: Host, measured: Host, fast_path: FastPath, session: Ready) -> Host:  # noqa: C901 - one frame on every step
    """``measured``, but for decode steps that may take the fast path.

    The model and its input are the first two arguments there; a call in any other form goes the long way.
    """
    ready = fast_path.ready
    measure = session.guard(Stage.MEASURE)
    caught = functools.partial(session.guard.caught, Stage.MEASURE)

    @functools.wraps(host)
    def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: C901 - see above
        try:
            listener = session.listener
            suits = (
                ready
                and not kwargs
                and len(args) == 2
                and id(args[0]) == fast_path.model
                and not args[1].is_prefill
                and listener.both[BOTH] == listener.heard
            )
        except Exception:  # noqa: BLE001 - an input that cannot be asked is the host's own matter
            suits = False
        if not suits:
            return measured(*args, **kwargs)
        try:
            ends = ready.pop()
        except IndexError:  # another infer thread was quicker
            return measured(*args, **kwargs)
        timer = session.timer
        begun = None
        if ends is not None and timer is not None:
            try:
                begun = timer.begin(ends)
            except Exception as error:
                if not caught(error):
                    raise
        try:
            result = host(*args, **kwargs)
        except BaseException:
            with measure:
                fast_path.padded()
                if begun is not None and timer is not None:
                    timer.forget(begun)
            raise
        forwards = session.forwards
        assert forwards is not None
        forwards.complete()
        try:
            fast_path.launched(session, timer, begun, *args)
        except Exception as error:
            if not caught(error):
                raise
        return result

    return forward
