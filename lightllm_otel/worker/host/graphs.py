"""Hooks where LightLLM captures and replays CUDA graphs. Python does not run per operator in a replay."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lightllm_otel.contracts.binding import Arguments
from lightllm_otel.contracts.table import Hook
from lightllm_otel.records.vocabulary import Stage, Whole
from lightllm_otel.worker.host import inputs
from lightllm_otel.worker.host.instrumented_graphs import Captured, Drawing, Twins, module_of

if TYPE_CHECKING:
    from lightllm_otel.worker.host.process import Session

Host = Callable[..., Any]


def checking_memory(host: Host, session: Session, arguments: Arguments, hook: Hook) -> Host:
    """The host's last check at its start: does the longest prefill fit into memory? If not, it is tried without our graphs."""

    @functools.wraps(host)
    def _check_max_len_infer(*args: Any, **kwargs: Any) -> Any:
        twins = session.twins if session.owns(args[0] if args else None) else None
        try:
            return host(*args, **kwargs)
        except Exception:
            if twins is None or not twins.by_size:
                raise
            with session.guard(Stage.PATCH):
                twins.give_up("the longest prefill did not fit into the memory beside them; a smaller --mem_fraction, or "
                              "LIGHTLLM_OTEL_GRAPH_BATCH_SIZES, makes room")  # fmt: skip
        return host(*args, **kwargs)

    return _check_max_len_infer


def warming_up(host: Host, session: Session, arguments: Arguments, hook: Hook) -> Host:
    """All graphs of a model are captured in here."""
    module = module_of(host)

    @functools.wraps(host)
    def warmup(*args: Any, **kwargs: Any) -> Any:
        model = arguments.get("model", args, kwargs)
        twins = session.twins if session.owns(model) else None
        if twins is not None:
            with session.guard(Stage.PATCH):
                twins.plan(args[0], module, session.fits)
        try:
            result = host(*args, **kwargs)
        finally:
            if twins is not None:
                twins.collecting = False
        if twins is not None:
            with session.guard(Stage.PATCH):
                twins.seal(args[0], model)
        return result

    return warmup


def capturing(host: Host, session: Session, arguments: Arguments, hook: Hook) -> Host:
    """A capture must not see our events; beside it an instrumented graph may be captured, if the server is still starting."""

    @functools.wraps(host)
    def _capture_decode(*args: Any, **kwargs: Any) -> Any:
        _disarm(session, Whole.NO_TWIN)
        twins = session.twins
        drawing: Drawing | None = None
        if twins is not None and twins.captures(args[0] if args else None):
            with session.guard(Stage.PATCH):
                drawing = _drawing(twins, arguments, args, kwargs)
        result = host(*args, **kwargs)
        if drawing is not None and twins is not None:
            done = False
            with session.guard(Stage.PATCH):
                twins.capture(args[0], drawing)
                done = True
            if not done:
                twins.refuse("our own part failed; the log says how")
        return result

    return _capture_decode


def _drawing(twins: Twins, arguments: Arguments, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Drawing | None:
    """What is to be captured a second time, or None for a batch that is left out."""
    state = arguments.get("infer_state", args, kwargs)
    rows = _rows(arguments, args, kwargs)
    if not twins.wants(args[0], rows):
        return None
    handed_on = list(arguments.given(args, kwargs).items())[1:]  # the host hands on all that it was given, but itself
    decode = dict(handed_on)["decode_func"]
    return twins.drawing(rows, decode, [each for name, each in handed_on if name != "decode_func"], state)


def capturing_whole(host: Host, session: Session, arguments: Arguments, hook: Hook) -> Host:
    """A capture that gets no instrumented graph, and must not see our events either."""

    @functools.wraps(host)
    def capture(*args: Any, **kwargs: Any) -> Any:
        _disarm(session, Whole.NO_TWIN)
        return host(*args, **kwargs)

    return capture


def _disarm(session: Session, reason: Whole) -> None:
    timer = session.timer
    if timer is not None and not timer.failed:
        with session.guard(Stage.MEASURE):
            timer.disarm(reason)


def _rows(arguments: Arguments, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """The batch that the graph computes: of the input that is given (up to 2025), or that the state holds."""
    given = arguments.get("input_ids", args, kwargs) if "input_ids" in arguments.names else None
    return inputs.rows(arguments.get("infer_state", args, kwargs) if given is None else given)


def replaying(host: Host, session: Session, arguments: Arguments, hook: Hook) -> Host:
    """On sampled steps the host's own code replays our graph: for that one call it lies where the host's graph lies."""
    measure, lane = session.guard(Stage.MEASURE), session.lane
    holder = "input_ids" if "input_ids" in arguments.names else "infer_state"
    place = arguments.names.index(holder)

    @functools.wraps(host)
    def _replay(*args: Any, **kwargs: Any) -> Any:
        forwards, twins = session.forwards, session.twins
        if forwards is None:
            if twins is None or twins.trying is None:
                return host(*args, **kwargs)
            return _swapped(host, twins.trying, session, args, kwargs)
        if not forwards.decode_due:
            # Of what size, that can wait until the GPU has its work.
            lane.replayed = args[place] if len(args) > place else arguments.get(holder, args, kwargs)
            return host(*args, **kwargs)
        rows, captured, timer = 0, None, session.timer
        with session.guard(Stage.PATCH):
            rows = _rows(arguments, args, kwargs)
            captured = twins.beside(args[0], rows) if twins is not None else None
        if timer is not None and not timer.failed:
            with measure:
                step = timer.graph(rows, instrumented=captured is not None)
                if captured is not None:
                    captured.step = step
        if captured is None:
            return host(*args, **kwargs)
        return _swapped(host, captured, session, args, kwargs)

    return _replay


def _swapped(host: Host, captured: Captured, session: Session, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The host's replay, with our graph in the place of its own."""
    graphs, rows, entry = None, captured.twin.batch, None
    with session.guard(Stage.PATCH):
        graphs = args[0].graph
        own = graphs[rows]
        graphs[rows] = (captured, *own[1:])
        entry = own
    if entry is None or graphs is None:
        return host(*args, **kwargs)
    try:
        return host(*args, **kwargs)
    finally:
        graphs[rows] = entry


def replaying_whole(host: Host, session: Session, arguments: Arguments, hook: Hook) -> Host:
    """Two microbatches in one graph: the step can be timed, its operators cannot."""

    @functools.wraps(host)
    def _replay_overlap(*args: Any, **kwargs: Any) -> Any:
        timer = session.timer
        if timer is not None and not timer.failed:
            with session.guard(Stage.MEASURE):
                timer.graph(_rows(arguments, args, kwargs), instrumented=False)
        return host(*args, **kwargs)

    return _replay_overlap


def replaying_prefill(host: Host, session: Session, arguments: Arguments, hook: Hook) -> Host:
    """Prefill graphs: attention alone passes through Python, and all that lies between would count as attention."""

    @functools.wraps(host)
    def _replay(*args: Any, **kwargs: Any) -> Any:
        timer = session.timer
        if timer is not None and not timer.failed:
            with session.guard(Stage.MEASURE):
                timer.prefill_graph()
        return host(*args, **kwargs)

    return _replay
