"""The few stable places of LightLLM where steps begin and end. Patched when their module is imported, by name.

Patched at the definition, so that every later ``from … import`` gets the patched one.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any, Optional, Protocol

from lightllm_otel.guard import Guard
from lightllm_otel.measure.forwards import Forwards
from lightllm_otel.measure.step import Step
from lightllm_otel.measure.timer import Timer
from lightllm_otel.patch import requests
from lightllm_otel.patch.health import without_exporters
from lightllm_otel.patch.inputs import ENTRY_POINTS, WHOLE_STEP_ONLY, new_tokens, reader
from lightllm_otel.patch.lane import Lane, lean
from lightllm_otel.patch.ledger import Ledger
from lightllm_otel.patch.stepnotes import StepNotes
from lightllm_otel.patch.twins import Twins
from lightllm_otel.ring.control import Listener
from lightllm_otel.vocabulary import Stage, Whole

Host = Callable[..., Any]


class Session(Protocol):
    """What the seams talk to: one per model process.

    ``forwards`` is None until the model serves, ``timer`` also while live control says off. ``ledger`` holds what stays
    for the life of the process, ``live`` what live control can take away. ``notes``: None unless there are traces.
    """

    timer: Optional[Timer]
    forwards: Optional[Forwards]
    listener: Listener
    lane: Lane
    twins: Optional[Twins]
    guard: Guard
    ledger: Ledger
    live: Ledger
    notes: Optional[StepNotes]

    group_class: Any

    def attach(self, model: Any) -> None:
        """The model's layers exist: wrap them, before they run for the first time."""

    def serve(self, model: Any) -> None:
        """The model is complete: from here on its forwards are requests."""

    def owns(self, model: Any) -> bool:
        """Whether steps of this model are measured (a draft model's are not)."""

    def listen(self) -> None:
        """A forward is entered: follow live control, if there is an order that begins with it."""

    def housekeep(self) -> None:
        """Called on the model thread after each step and on idle ticks; throttles itself."""


def patch_model(module: ModuleType, session: Session) -> None:
    """``TpPartBaseModel``: construction, and every way into a forward."""
    model_class = module.TpPartBaseModel
    if hasattr(model_class, "_init_padded_req"):  # NEW: after the layers exist, before anything runs or is captured
        session.ledger.replace(model_class, "_init_padded_req", lambda host: _before(host, session.attach, session))
    session.ledger.replace(model_class, "__init__", lambda host: _constructed(host, session))
    if hasattr(model_class, "_check_max_len_infer"):
        session.ledger.replace(model_class, "_check_max_len_infer", lambda host: _checking(host, session))
    for name in ENTRY_POINTS:
        if hasattr(model_class, name):
            session.ledger.replace(model_class, name, functools.partial(entered, name=name, session=session))


def _before(host: Host, action: Callable[[Any], None], session: Session) -> Host:
    @functools.wraps(host)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        with session.guard(Stage.PATCH):
            action(self)
        return host(self, *args, **kwargs)

    return method


def _constructed(host: Host, session: Session) -> Host:
    @functools.wraps(host)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it is one
        host(self, *args, **kwargs)
        with session.guard(Stage.PATCH):
            session.attach(self)  # OLD; NEW has done it
            session.serve(self)

    return __init__


def _checking(host: Host, session: Session) -> Host:
    """NEW's last check at its start: does the longest prefill fit into memory? If not, it is tried without twins."""

    @functools.wraps(host)
    def _check_max_len_infer(self: Any, *args: Any, **kwargs: Any) -> Any:
        twins = session.twins if session.owns(self) else None
        try:
            return host(self, *args, **kwargs)
        except Exception:
            if twins is None or not twins.by_size:
                raise
            with session.guard(Stage.PATCH):
                twins.give_up("the longest prefill did not fit into the memory beside them; a smaller --mem_fraction, or "
                              "LIGHTLLM_OTEL_GRAPH_BATCH_SIZES, makes room")  # fmt: skip
        return host(self, *args, **kwargs)

    return _check_max_len_infer


def entered(host: Host, name: str, session: Session) -> Host:
    """A way into a forward; the one of NEW that every decode step takes has a lane of its own."""
    measured = forward(host, name, session)
    if list(inspect.signature(host).parameters) == ["self", "model_input"]:
        return lean(host, measured, session.lane, session)
    return measured


def forward(host: Host, name: str, session: Session) -> Host:
    """A step: from here to the end of ``sample``. Counts, whatever becomes of the rest: the count is what ranks share."""
    parameters = list(inspect.signature(host).parameters)
    read = reader(name, dict.fromkeys(parameters))
    names = parameters[1:]
    measure = session.guard(Stage.MEASURE)
    control = session.guard(Stage.ACTIVATE)
    whole_step_only = name in WHOLE_STEP_ONLY

    @functools.wraps(host)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        forwards = session.forwards
        if forwards is None:
            return host(self, *args, **kwargs)
        if not session.owns(self):
            if session.timer is not None:
                session.timer.whole[Whole.DRAFT.code] += 1
            try:
                return host(self, *args, **kwargs)
            finally:
                session.lane.replayed = None
        with control:
            session.listen()
        timer = session.timer
        step: Step | None = None
        if timer is not None and not timer.failed:
            with measure:
                work = read({**dict(zip(names, args)), **kwargs})
                step = timer.enter(work, forwards.completed, forwards.due(work.phase, work.tokens))
                if whole_step_only:
                    timer.disarm(Whole.OVERLAP)
        try:
            result = host(self, *args, **kwargs)
        except BaseException:
            with measure:
                session.lane.padded()
                if timer is not None and not timer.failed:
                    timer.abandon(step)
            raise
        forwards.complete()
        with measure:
            _returned(session, timer, step, self)
        return result

    return method


def _returned(session: Session, timer: Timer | None, step: Step | None, model: Any) -> None:
    padded = session.lane.padded()
    if timer is None:  # nothing else looks after the exporter now, through which live control switches on again
        session.housekeep()
    elif not timer.failed:
        timer.leave(step, padded)
    session.lane.prepare(session, model)


def patch_graph(module: ModuleType, session: Session) -> None:
    """NEW's ``CudaGraph``: where graphs are captured and replayed. Python does not run per operator in a replay."""
    graph_class = module.CudaGraph
    wraps = {
        "warmup": (session.ledger, lambda host: _warming_up(host, session, module)),
        "_capture_decode": (session.ledger, lambda host: _capturing(host, session)),
        "_replay": (session.live, lambda host: _replaying(host, session)),
        "_replay_overlap": (session.live, lambda host: _replaying_whole(host, session)),
    }
    for name, (ledger, wrap) in wraps.items():
        if hasattr(graph_class, name):
            ledger.replace(graph_class, name, wrap)


def _warming_up(host: Host, session: Session, module: ModuleType) -> Host:
    @functools.wraps(host)
    def warmup(self: Any, model: Any) -> Any:
        twins = session.twins if session.owns(model) else None
        if twins is not None:
            with session.guard(Stage.PATCH):
                twins.plan(self, module)
        result = host(self, model)
        if twins is not None:
            with session.guard(Stage.PATCH):
                twins.seal(self)
        return result

    return warmup


def _capturing(host: Host, session: Session) -> Host:
    """A capture must not see our events; beside it a twin may be captured, if the server is still starting."""

    @functools.wraps(host)
    def _capture_decode(self: Any, decode_func: Any, input_ids: Any, infer_state: Any) -> Any:
        timer, twins = session.timer, session.twins
        if timer is not None:
            timer.disarm(Whole.NO_TWIN)
        wanted = twins is not None and twins.wants(self, input_ids.shape[0])
        pristine = None
        if wanted:
            with session.guard(Stage.PATCH):
                pristine = copy.copy(infer_state)
        result = host(self, decode_func, input_ids, infer_state)
        if wanted and twins is not None:
            done = False
            with session.guard(Stage.PATCH):
                twins.capture(self, decode_func, input_ids, pristine, infer_state)
                done = True
            if not done:
                twins.refuse("our own part failed; the log says how")
        return result

    return _capture_decode


def _replaying(host: Host, session: Session) -> Host:
    """On sampled steps the host's own code replays the twin: for that one call it lies where the host's graph lies."""
    measure, lane = session.guard(Stage.MEASURE), session.lane

    @functools.wraps(host)
    def _replay(self: Any, input_ids: Any, infer_state: Any) -> Any:
        forwards = session.forwards
        if forwards is None:
            return host(self, input_ids, infer_state)
        if not forwards.decode_due:
            lane.replayed = input_ids  # of what size, that can be asked when the GPU has its work
            return host(self, input_ids, infer_state)
        batch, twins, timer = input_ids.shape[0], session.twins, session.timer
        captured = twins.beside(self, batch) if twins is not None else None
        if timer is not None and not timer.failed:
            with measure:
                step = timer.graph(batch, twin=captured is not None)
                if captured is not None:
                    captured.step = step
        if captured is None:
            return host(self, input_ids, infer_state)
        entry = self.graph[batch]
        self.graph[batch] = (captured, *entry[1:])
        try:
            return host(self, input_ids, infer_state)
        finally:
            self.graph[batch] = entry

    return _replay


def _replaying_whole(host: Host, session: Session) -> Host:
    @functools.wraps(host)
    def _replay_overlap(self: Any, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        timer = session.timer
        if timer is not None and not timer.failed:
            with session.guard(Stage.MEASURE):
                timer.graph(input_ids.shape[0], twin=False)
        return host(self, input_ids, *args, **kwargs)

    return _replay_overlap


def patch_sample(module: ModuleType, session: Session) -> None:
    """``sample`` ends a step. OLD's beam search and diverse mode pass groups; their requests are not told apart."""
    session.live.replace(module, "sample", lambda host: sampled(host, session))


def sampled(host: Host, session: Session) -> Host:
    measure = session.guard(Stage.MEASURE)

    @functools.wraps(host)
    def sample(logits: Any, reqs: Any, *args: Any, **kwargs: Any) -> Any:
        timer = session.timer
        if timer is None or timer.failed:
            return host(logits, reqs, *args, **kwargs)
        step: Step | None = None
        with measure:
            step = timer.enter_sampling()
            if step is not None:
                count(step, reqs)
        try:
            return host(logits, reqs, *args, **kwargs)
        finally:
            due = False
            with measure:
                if step is not None:
                    due = step.marking is not None
                    timer.leave_sampling(step)
                session.housekeep()
            if step is not None and session.notes is not None:
                note(session, step, reqs, due)

    return sample


def note(session: Session, step: Step, reqs: Any, due: bool) -> None:
    """Who ran in the step; ``due``: its operators are timed. The first failure is the last attempt."""
    notes, session.notes = session.notes, None
    with session.guard(Stage.RING):
        if notes is not None and (due or StepNotes.begins(step, reqs)):
            notes.step(step, reqs, due)
        session.notes = notes


def count(step: Step, requests: Any) -> None:
    """Take LightLLM's own health checks (negative ids) out of the step's requests and tokens."""
    name = "req_id" if requests and hasattr(requests[0], "req_id") else "r_id"
    if not requests or not hasattr(requests[0], name):
        return
    health = [request for request in requests if is_health_check(getattr(request, name))]
    if not health:
        return
    step.requests -= len(health)
    if step.work.batch == step.work.tokens:  # one token each
        step.tokens -= len(health)
    elif step.requests == 0:
        step.tokens = 0
    else:
        step.tokens -= sum(new_tokens(request) for request in health)


def is_health_check(number: Any) -> bool:
    return isinstance(number, int) and number < 0


def patch_rpc(module: ModuleType, session: Session) -> None:
    """NEW's router calls ``decode`` about every 10 ms, also when there is nothing to do: the idle tick."""
    if hasattr(module.ModelRpcServer, "decode"):
        session.live.replace(module.ModelRpcServer, "decode", lambda host: _ticking(host, session))


def _ticking(host: Host, session: Session) -> Host:
    @functools.wraps(host)
    def decode(self: Any, *args: Any, **kwargs: Any) -> Any:
        timer, forwards = session.timer, session.forwards
        if timer is None or forwards is None or timer.failed:
            return host(self, *args, **kwargs)
        before = forwards.completed
        result = host(self, *args, **kwargs)
        if forwards.completed == before:
            with session.guard(Stage.MEASURE):
                timer.tick()
                session.housekeep()
        return result

    return decode


def patch_backend(module: ModuleType, session: Session) -> None:
    """OLD has no idle tick, but removes a batch when its last request has ended; all of its events are done then.

    The branch of NEW with two threads per model (``wzj_router``) has no ``decode`` call, but asks for new requests.
    """
    if hasattr(module.ModeBackend, "remove_batch"):
        session.live.replace(module.ModeBackend, "remove_batch", lambda host: _emptied(host, session))
    if hasattr(module.ModeBackend, "_try_read_new_reqs"):
        session.live.replace(module.ModeBackend, "_try_read_new_reqs", lambda host: _asking(host, session))


def _asking(host: Host, session: Session) -> Host:
    last = -1

    @functools.wraps(host)
    def _try_read_new_reqs(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal last
        timer, forwards = session.timer, session.forwards
        if timer is not None and forwards is not None and not timer.failed:
            with session.guard(Stage.MEASURE):
                if forwards.completed == last:  # nothing since it was asked last
                    timer.tick()
                    session.housekeep()
                last = forwards.completed
        return host(self, *args, **kwargs)

    return _try_read_new_reqs


def _emptied(host: Host, session: Session) -> Host:
    @functools.wraps(host)
    def remove_batch(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = host(self, *args, **kwargs)
        timer = session.timer
        if timer is not None and not timer.failed:
            with session.guard(Stage.MEASURE):
                timer.tick(idle=not getattr(self, "cache", None))
        return result

    return remove_batch


def patch_groups(module: ModuleType, session: Session) -> None:
    """NEW's process groups; their methods are wrapped once there is a model to measure."""
    session.group_class = module.CustomProcessGroup


def patch_health(module: ModuleType, session: Session) -> None:
    """LightLLM's ``--health_monitor`` kills the server when a process it has once seen is gone; ours may come and go.

    In a container api_server is process 1, so a detached exporter becomes its child and would be watched.
    """
    if hasattr(module, "get_all_cared_pids"):  # OLD watches the address only
        session.ledger.replace(module, "get_all_cared_pids", lambda host: without_exporters(host, session.guard))


def patch_http(module: ModuleType, session: requests.Session) -> None:
    """Requests come in here; they are watched where somebody asks for traces."""
    requests.patch_http(module, session)
