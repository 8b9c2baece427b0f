"""Hooks where a step begins and ends: construction of the model, its forwards, sampling, and what follows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lightllm_otel.measure.step import Step
from lightllm_otel.measure.timer import Timer
from lightllm_otel.patch import inputs
from lightllm_otel.patch.binding import Arguments
from lightllm_otel.patch.contracts import Hook
from lightllm_otel.patch.lane import fast_path
from lightllm_otel.patch.stepnotes import StepNotes
from lightllm_otel.vocabulary import Feature, Phase, Stage, Whole

if TYPE_CHECKING:
    from lightllm_otel.patch.seams import Session

Host = Callable[..., Any]


def attaching(host: Host, session: Session, arguments: Arguments, hook: Hook) -> Host:
    """Since July 2025: the layers exist, and nothing has run or was captured yet."""

    @functools.wraps(host)
    def _init_padded_req(*args: Any, **kwargs: Any) -> Any:
        with session.guard(Stage.PATCH):
            session.attach(args[0])
        return host(*args, **kwargs)

    return _init_padded_req


def constructed(host: Host, session: Session, arguments: Arguments, hook: Hook) -> Host:
    """The model is complete; 0.0.1 has no earlier moment at which its layers exist."""

    @functools.wraps(host)
    def __init__(*args: Any, **kwargs: Any) -> None:  # noqa: N807 - it is one
        host(*args, **kwargs)
        with session.guard(Stage.PATCH):
            session.attach(args[0])
            session.serve(args[0])

    return __init__


def entered(host: Host, session: Session, arguments: Arguments, hook: Hook) -> Host:
    """A way into a forward; the one that every decode step takes has a fast path."""
    measured = forward(host, session, arguments, hook)
    if hook.name == "forward" and arguments.names[1:2] == ("model_input",):
        return fast_path(host, measured, session.lane, session)
    return measured


def forward(host: Host, session: Session, arguments: Arguments, hook: Hook) -> Host:
    """A step begins here. It counts, whatever becomes of the rest: the count is what ranks share."""
    read = inputs.reader(hook.name, arguments, session.fits)
    measure = session.guard(Stage.MEASURE)
    control = session.guard(Stage.ACTIVATE)
    whole_step_only = hook.feature is Feature.MICROBATCHES

    @functools.wraps(host)
    def method(*args: Any, **kwargs: Any) -> Any:
        forwards = session.forwards
        if forwards is None:
            twins = session.twins
            if twins is not None and twins.collecting:
                with session.guard(Stage.PATCH):
                    twins.collect(arguments.get("model_input", args, kwargs))
            return host(*args, **kwargs)
        model = args[0] if args else None
        if not session.owns(model):
            return _draft(host, session, args, kwargs)
        with control:
            session.listen()
        timer = session.timer
        step: Step | None = None
        rows = 0
        if timer is not None and not timer.failed:
            with measure:
                timer.adopt_thread()
                work = read(args, kwargs)
                if work is not None:
                    rows = _unseen_graph(session, model, work.phase, arguments.get("model_input", args, kwargs))
                    due = forwards.due(work.phase, work.tokens)
                    timer.whole[Whole.NO_TWIN.code] += bool(rows and due)
                    step = timer.enter(work, forwards.completed, due and not rows)
                    if whole_step_only:
                        timer.disarm(Whole.OVERLAP)
        try:
            result = host(*args, **kwargs)
        except BaseException:
            with measure:
                session.lane.padded()
                if timer is not None and not timer.failed:
                    timer.abandon(step)
            raise
        forwards.complete()
        with measure:
            _returned(session, timer, step, model, rows)
        return result

    return method


def _draft(host: Host, session: Session, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A forward of a draft model: part of the step of the model that it drafts for."""
    if session.timer is not None:
        session.timer.whole[Whole.DRAFT.code] += 1
    try:
        return host(*args, **kwargs)
    finally:
        session.lane.replayed = None


def _unseen_graph(session: Session, model: Any, phase: Phase, given: Any) -> int:
    """The batch of the graph that this decode step will replay where no hook sees the replay; 0: it will replay none.

    Events between its operators would not be taken, and if it captured one, they would end the capture.
    """
    if phase is not Phase.DECODE or session.fits.fits("graph_replay"):
        return 0
    return inputs.graph_rows(getattr(model, "graph", None), given)


def _returned(session: Session, timer: Timer | None, step: Step | None, model: Any, rows: int) -> None:
    padded = session.lane.padded() or rows
    if timer is None or timer.failed:  # nothing else looks after the exporter, which brings live control
        session.housekeep()
    else:
        timer.leave(step, padded)
    session.lane.prepare(session, model)


def sampled(host: Host, session: Session, arguments: Arguments, hook: Hook) -> Host:
    """Sampling: the last work of a step up to July 2025. 0.0.1's beam search and diverse mode pass groups of requests."""
    measure = session.guard(Stage.MEASURE)
    (name,) = hook.reads[0]

    @functools.wraps(host)
    def sample(*args: Any, **kwargs: Any) -> Any:
        timer = session.timer
        if timer is None or timer.failed:
            try:
                return host(*args, **kwargs)
            finally:
                with session.guard(Stage.ACTIVATE):
                    session.housekeep()
        step: Step | None = None
        requests: Any = None
        with measure:
            step = timer.enter_sampling()
            if step is not None:
                requests = arguments.get(name, args, kwargs)
                count(step, requests)
        try:
            return host(*args, **kwargs)
        finally:
            due = False
            with measure:
                if step is not None:
                    due = step.marking is not None
                    timer.leave_sampling(step, ends=not session.fits.group_fits("end"))
                session.housekeep()
            if step is not None and session.notes is not None:
                note(session, step, requests, due)

    return sample


def ending(host: Host, session: Session, arguments: Arguments, hook: Hook) -> Host:
    """Since v1.1.0: all of a step is launched; from here on the host looks after requests, or waits for the GPU.

    What follows sampling on the GPU (tokens are copied, drafts run) belongs to the step.
    """
    measure = session.guard(Stage.MEASURE)

    @functools.wraps(host)
    def ended(*args: Any, **kwargs: Any) -> Any:
        timer = session.timer
        step: Step | None = None
        if timer is not None and not timer.failed:
            with measure:
                step = timer.end_step()
        try:
            return host(*args, **kwargs)
        finally:
            if step is not None and timer is not None:  # the GPU has its work, and the next step is not launched yet
                with measure:
                    timer.read_some()
                    session.housekeep()

    return ended


def note(session: Session, step: Step, reqs: Any, due: bool) -> None:
    """Say who ran in the step; ``due``: its operators are timed. The first failure is the last attempt."""
    notes, session.notes = session.notes, None
    with session.guard(Stage.RING):
        if notes is not None and (due or StepNotes.begins(step, reqs)):
            notes.step(step, reqs, due)
        session.notes = notes


def count(step: Step, requests: Any) -> None:
    """Take LightLLM's own health checks (negative ids, up to May 2026) out of the step's requests and tokens."""
    if not requests:
        return
    name = "req_id" if hasattr(requests[0], "req_id") else "r_id"
    if not hasattr(requests[0], name):
        return
    health = [request for request in requests if is_health_check(getattr(request, name, None))]
    if not health:
        return
    step.requests -= len(health)
    if step.work.batch == step.work.tokens:  # one token each
        step.tokens -= len(health)
    elif step.requests == 0:
        step.tokens = 0
    else:
        step.tokens -= sum(inputs.new_tokens(request) for request in health)


def is_health_check(number: Any) -> bool:
    return isinstance(number, int) and number < 0
