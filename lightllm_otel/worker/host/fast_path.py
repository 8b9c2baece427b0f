"""Fast path of decode steps that are not sampled. Nearly all steps take it, so it must cost as little as possible.

Between two steps the GPU waits for the host. There, a line of Python costs about a hundred nanoseconds, because it is no
longer in a cache. So everything that a step needs is prepared before it; the rest is done when the GPU has its work.
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
    """The part of a session that the fast path uses; see :class:`.process.Session`."""

    timer: Optional[Timer]
    forwards: Optional[Forwards]
    listener: Listener
    guard: Guard
    sees_replays: bool

    def housekeep(self) -> None:
        """Do the housekeeping, at most once a second."""


class FastPath:
    """Preparation of the next forward. ``ready``: its events if it may take this path (None: it needs none), else empty.

    ``model``: the ``id`` of the measured model; a draft model takes the long path. ``replayed``: the input of the graph that
    the forward in progress has replayed, or the state that holds it, until :meth:`padded` is called.
    """

    def __init__(self) -> None:
        self.ready: list[list[Handle] | None] = []
        self.replayed: Any = None
        self.model = 0
        self._timer: Timer | None = None

    def prepare(self, session: Ready, model: Any) -> None:
        """Decide whether the next forward may take the fast path. The measured model's forward has just been launched."""
        if self.ready:
            self.close()
        self.model = id(model)
        forwards, timer = session.forwards, session.timer
        if forwards is None or forwards.decode_due or session.listener.waiting is not None or not session.sees_replays:
            return
        self._timer = timer
        self.ready.append(timer.ends() if timer is not None and not timer.failed else None)

    def launched(self, session: Ready, timer: Timer | None, begun: Begun | None, model: Any, model_input: Any) -> None:
        """Finish a forward of the fast path that has been launched."""
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
        """Send the next forward down the long path."""
        while self.ready:
            ends = self.ready.pop()
            if ends is not None and self._timer is not None:
                self._timer.give(ends)

    def padded(self) -> int:
        """Return the batch that the replayed graph computed, or 0 if none was replayed. A second call returns 0."""
        given, self.replayed = self.replayed, None
        return 0 if given is None else inputs.rows(given)


def fast_path(host: Host, measured: Host, fast_path: FastPath, session: Ready) -> Host:  # noqa: C901 - one frame on every step
    """Return ``host`` with a fast path for decode steps; all other forwards go through ``measured``.

    On the fast path, the model and its input are the only arguments. A call in any other form takes the long path.
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
        except Exception:  # noqa: BLE001 - an unknown input takes the long path
            suits = False
        if not suits:
            return measured(*args, **kwargs)
        try:
            ends = ready.pop()
        except IndexError:  # another infer thread was faster
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
