"""Hooks of steps: construction of the model, its forwards, sampling, and the end of a step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from threading import get_ident
from typing import TYPE_CHECKING, Any

from lightllm_otel.contracts.binding import Arguments
from lightllm_otel.contracts.table import Hook
from lightllm_otel.records.vocabulary import Feature, Phase, Stage, StepOnlyReason
from lightllm_otel.worker.gpu.step import Step
from lightllm_otel.worker.gpu.timer import Timer
from lightllm_otel.worker.host import inputs
from lightllm_otel.worker.host.fast_path import fast_path
from lightllm_otel.worker.host.step_notes import StepNotes

if TYPE_CHECKING:
    from lightllm_otel.worker.host.process import Session

Host = Callable[..., Any]


def attaching(host: Host, session: Session, arguments: Arguments, hook: Hook) -> Host:
    """Wrap the moment (since July 2025) at which the layers exist, and nothing has run or was captured yet."""

    @functools.wraps(host)
    def _init_padded_req(*args: Any, **kwargs: Any) -> Any:
        with session.guard(Stage.PATCH):
            session.attach(args[0])
        return host(*args, **kwargs)

    return _init_padded_req


def constructed(host: Host, session: Session, arguments: Arguments, hook: Hook) -> Host:
    """Wrap the model's constructor, after which it is complete. In 0.0.1 its layers cannot be wrapped earlier."""

    @functools.wraps(host)
    def __init__(*args: Any, **kwargs: Any) -> None:  # noqa: N807 - it is one
        host(*args, **kwargs)
        with session.guard(Stage.PATCH):
            session.attach(args[0])
            session.serve(args[0])

    return __init__


def entered(host: Host, session: Session, arguments: Arguments, hook: Hook) -> Host:
    """Wrap an entry of a forward. The entry that every decode step takes gets a fast path."""
    measured = forward(host, session, arguments, hook)
    if hook.name == "forward" and arguments.names[1:2] == ("model_input",):
        return fast_path(host, measured, session.fast_path, session)
    return measured


def forward(host: Host, session: Session, arguments: Arguments, hook: Hook) -> Host:
    """Wrap a forward: a step begins here. It is counted even after an error, because all ranks share the count."""
    read = inputs.reader(hook.name, arguments, session.fits)
    measure = session.guard(Stage.MEASURE)
    control = session.guard(Stage.ACTIVATE)
    whole_step_only = hook.feature is Feature.MICROBATCHES

    @functools.wraps(host)
    def method(*args: Any, **kwargs: Any) -> Any:
        forwards = session.forwards
        if forwards is None:
            instrumented_graphs = session.instrumented_graphs
            if instrumented_graphs is not None and instrumented_graphs.collecting:
                with session.guard(Stage.PATCH):
                    instrumented_graphs.collect(arguments.get("model_input", args, kwargs))
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
                    timer.step_only[StepOnlyReason.NOT_INSTRUMENTED.code] += bool(rows and due)
                    step = timer.enter(work, forwards.completed, due and not rows)
                    if whole_step_only:
                        timer.stop_recording(StepOnlyReason.OVERLAP)
        try:
            result = host(*args, **kwargs)
        except BaseException:
            with measure:
                session.fast_path.padded()
                if timer is not None and not timer.failed:
                    timer.abandon(step)
            raise
        forwards.complete()
        with measure:
            _returned(session, timer, step, model, rows)
        return result

    return method


def _draft(host: Host, session: Session, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a forward of a draft model, which is part of the main model's step."""
    if session.timer is not None:
        session.timer.step_only[StepOnlyReason.DRAFT.code] += 1
    try:
        return host(*args, **kwargs)
    finally:
        session.fast_path.replayed = None


def _unseen_graph(session: Session, model: Any, phase: Phase, given: Any) -> int:
    """Return the batch of the graph that this decode step will replay without a hook that sees it; 0 if there is none.

    Then no events may be recorded between operators: in a replay there are none, and in a capture they would end it.
    """
    if phase is not Phase.DECODE or session.fits.fits("graph_replay"):
        return 0
    return inputs.graph_rows(getattr(model, "graph", None), given)


def _returned(session: Session, timer: Timer | None, step: Step | None, model: Any, rows: int) -> None:
    padded = session.fast_path.padded() or rows
    if timer is None or timer.failed:  # nothing else checks on the exporter, which receives live control
        session.housekeep()
    else:
        timer.leave(step, padded)
    session.fast_path.prepare(session, model)


def sampled(host: Host, session: Session, arguments: Arguments, hook: Hook) -> Host:  # noqa: C901 - one frame on every step
    """Wrap sampling, which is the last work of a step up to July 2025.

    Beam search and the diverse mode of 0.0.1 pass groups of requests.
    """
    caught = functools.partial(session.guard.caught, Stage.MEASURE)
    (name,) = hook.reads[0]
    place = arguments.names.index(name)
    checks = HealthChecks()

    @functools.wraps(host)
    def sample(*args: Any, **kwargs: Any) -> Any:  # noqa: C901, PLR0912 - see above
        timer = session.timer
        step = None
        if timer is not None and not timer.failed:
            step = timer.launched_steps.get(get_ident())
        if step is None or timer is None or step.sampled:
            try:
                return host(*args, **kwargs)
            finally:
                _look_after(session)
        due = step.recorder is not None
        plain = timer.sampling_is_plain(step)
        if plain:
            step.sampled = True
        else:
            try:
                timer.enter_sampling()
            except Exception as error:
                if not caught(error):
                    raise
        try:
            return host(*args, **kwargs)
        finally:
            requests = args[place] if len(args) > place else arguments.get(name, args, kwargs)
            try:
                checks.leave_out(step, requests)
                if not plain:
                    timer.leave_sampling(step, ends=not session.fits.group_fits("end"))
            except Exception as error:
                if not caught(error):
                    raise
            if step.closed:
                _look_after(session)
            if session.notes is not None:
                note(session, step, requests, due)

    return sample


def ending(host: Host, session: Session, arguments: Arguments, hook: Hook) -> Host:
    """Wrap the moment (since v1.1.0) at which all of a step is launched, and the host handles requests or waits for the GPU.

    What follows sampling on the GPU (copies of tokens, drafts) belongs to the step.
    """
    caught = functools.partial(session.guard.caught, Stage.MEASURE)

    @functools.wraps(host)
    def ended(*args: Any, **kwargs: Any) -> Any:
        timer = session.timer
        if timer is None or not timer.launched_steps or timer.failed:
            return host(*args, **kwargs)
        step: Step | None = None
        try:
            step = timer.end_step()
        except Exception as error:
            if not caught(error):
                raise
        try:
            return host(*args, **kwargs)
        finally:
            if step is not None:  # the GPU is busy, and the next step has not been launched yet
                try:
                    timer.read_some()
                except Exception as error:
                    if not caught(error):
                        raise
                _look_after(session)

    return ended


def _look_after(session: Session) -> None:
    """Check on heartbeat, exporter and live control, even after measuring has ended."""
    try:
        session.housekeep()
    except Exception as error:
        if not session.guard.caught(Stage.ACTIVATE, error):
            raise


def note(session: Session, step: Step, reqs: Any, due: bool) -> None:
    """Write which requests ran in the step. ``due``: its operators are timed. The first error ends all notes."""
    notes, session.notes = session.notes, None
    with session.guard(Stage.RING):
        if notes is not None and (due or StepNotes.begins(step, reqs)):
            notes.step(step, reqs, due)
        session.notes = notes


class HealthChecks:
    """Filter of LightLLM's own requests (negative ids, up to May 2026), which do not count as requests and tokens of a step.

    A request begins with a prefill step, or, if its prompt is cached, as the last one of a decode step. All requests are
    inspected only then, and for some steps afterwards.
    """

    _STEPS = 256

    def __init__(self) -> None:
        self._looking = 0

    def leave_out(self, step: Step, requests: Any) -> None:
        """Subtract the health checks from the step's requests and tokens."""
        if not requests:
            return
        if step.work.phase is Phase.DECODE and not self._looking:
            number = _number(requests[-1])
            if not isinstance(number, int) or number >= 0:
                return
        self._looking = max(self._looking - 1, 0)
        health = [request for request in requests if is_health_check(_number(request))]
        if health:
            self._looking = self._STEPS
            _leave_out(step, health)


def _number(request: Any) -> Any:
    """Return the request's number. 0.0.1 has another name for it, and its groups of requests have none."""
    return request.req_id if hasattr(request, "req_id") else getattr(request, "r_id", None)


def _leave_out(step: Step, health: list[Any]) -> None:
    step.requests -= len(health)
    if step.work.batch == step.work.tokens:  # one token each
        step.tokens -= len(health)
    elif step.requests == 0:
        step.tokens = 0
    else:
        step.tokens -= sum(inputs.new_tokens(request) for request in health)


def is_health_check(number: Any) -> bool:
    """Tell whether this is the number of one of LightLLM's health checks."""
    return isinstance(number, int) and number < 0
