"""The few stable places of LightLLM where steps begin and end. Patched when their module is imported, by name.

Patched at the definition, so that every later ``from … import`` gets the patched one.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any, Optional, Protocol

from lightllm_otel.guard import Guard
from lightllm_otel.measure.step import Step
from lightllm_otel.measure.timer import Timer
from lightllm_otel.patch.health import without_exporters
from lightllm_otel.patch.inputs import ENTRY_POINTS, WHOLE_STEP_ONLY, reader
from lightllm_otel.patch.ledger import Ledger
from lightllm_otel.vocabulary import Stage

Host = Callable[..., Any]


class Session(Protocol):
    """What the seams talk to: one per model process. ``timer`` is None until the model serves."""

    timer: Optional[Timer]
    guard: Guard
    ledger: Ledger

    group_class: Any

    def attach(self, model: Any) -> None:
        """The model's layers exist: wrap them, before they run for the first time."""

    def serve(self, model: Any) -> None:
        """The model is complete: from here on its forwards are requests."""

    def owns(self, model: Any) -> bool:
        """Whether steps of this model are measured (a draft model's are not)."""

    def housekeep(self) -> None:
        """Called on the model thread after each step and on idle ticks; throttles itself."""


def patch_model(module: ModuleType, session: Session) -> None:
    """``TpPartBaseModel``: construction, and every way into a forward."""
    model_class = module.TpPartBaseModel
    if hasattr(model_class, "_init_padded_req"):  # NEW: after the layers exist, before anything runs or is captured
        session.ledger.replace(model_class, "_init_padded_req", lambda host: _before(host, session.attach, session))
    session.ledger.replace(model_class, "__init__", lambda host: _constructed(host, session))
    for name in ENTRY_POINTS:
        if hasattr(model_class, name):
            session.ledger.replace(model_class, name, functools.partial(forward, name=name, session=session))


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


def forward(host: Host, name: str, session: Session) -> Host:
    """A step: from here to the end of ``sample``."""
    signature = inspect.signature(host)
    read = reader(name, signature.parameters)
    measure = session.guard(Stage.MEASURE)
    whole_step_only = name in WHOLE_STEP_ONLY

    @functools.wraps(host)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        timer = session.timer
        if timer is None or timer.failed or not session.owns(self):
            return host(self, *args, **kwargs)
        step: Step | None = None
        with measure:
            step = timer.enter(read(signature.bind(self, *args, **kwargs).arguments))
            if whole_step_only:
                timer.disarm(step)
        try:
            result = host(self, *args, **kwargs)
        except BaseException:
            with measure:
                timer.abandon(step)
            raise
        with measure:
            timer.leave(step)
        return result

    return method


def patch_graph(module: ModuleType, session: Session) -> None:
    """NEW's ``CudaGraph``: a replayed step runs no Python per operator; a capture must not see our events."""
    session.ledger.replace(module.CudaGraph, "replay", lambda host: _graphed(host, session))
    session.ledger.replace(module.CudaGraph, "capture_decode", lambda host: _graphed(host, session))


def _graphed(host: Host, session: Session) -> Host:
    padded_of = inspect.signature(host).bind

    @functools.wraps(host)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        timer = session.timer
        if timer is not None and not timer.failed:
            with session.guard(Stage.MEASURE):
                timer.replayed(padded_of(self, *args, **kwargs).arguments["input_ids"].shape[0])
        return host(self, *args, **kwargs)

    return method


def patch_sample(module: ModuleType, session: Session) -> None:
    """``sample`` ends a step. OLD's beam search and diverse mode pass groups; their requests are not told apart."""
    session.ledger.replace(module, "sample", lambda host: sampled(host, session))


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
            with measure:
                if step is not None:
                    timer.leave_sampling(step)
                session.housekeep()

    return sample


def count(step: Step, requests: Any) -> None:
    """Take LightLLM's own health checks (negative ids) out of the step's requests and tokens."""
    if not requests or not (hasattr(requests[0], "req_id") or hasattr(requests[0], "r_id")):
        return
    ids = [getattr(request, "req_id", None) or getattr(request, "r_id", 0) for request in requests]
    health = [request for request, number in zip(requests, ids) if isinstance(number, int) and number < 0]
    if not health:
        return
    step.requests -= len(health)
    if step.work.batch == step.work.tokens:  # one token each
        step.tokens -= len(health)
    elif step.requests == 0:
        step.tokens = 0
    else:
        step.tokens -= sum(new_tokens(request) for request in health)


def new_tokens(request: Any) -> int:
    """How many tokens of this request the prefill computes; both versions still have the old length while sampling."""
    length = request.get_chuncked_input_token_len if hasattr(request, "get_chuncked_input_token_len") else None
    return int((length() if length else len(request.input_token_ids)) - request.cur_kv_len)


def patch_rpc(module: ModuleType, session: Session) -> None:
    """NEW's router calls ``decode`` about every 10 ms, also when there is nothing to do: the idle tick."""
    if hasattr(module.ModelRpcServer, "decode"):
        session.ledger.replace(module.ModelRpcServer, "decode", lambda host: _ticking(host, session))


def _ticking(host: Host, session: Session) -> Host:
    @functools.wraps(host)
    def decode(self: Any, *args: Any, **kwargs: Any) -> Any:
        timer = session.timer
        if timer is None or timer.failed:
            return host(self, *args, **kwargs)
        before = timer.completed
        result = host(self, *args, **kwargs)
        with session.guard(Stage.MEASURE):
            if timer.completed == before:
                timer.tick()
                session.housekeep()
        return result

    return decode


def patch_backend(module: ModuleType, session: Session) -> None:
    """OLD has no idle tick, but removes a batch when its last request has ended; all of its events are done then."""
    if hasattr(module.ModeBackend, "remove_batch"):
        session.ledger.replace(module.ModeBackend, "remove_batch", lambda host: _emptied(host, session))


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
