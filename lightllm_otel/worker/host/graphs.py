"""Hooks where LightLLM captures and replays CUDA graphs. In a replay Python does not run per operator."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lightllm_otel.contracts.binding import Arguments
from lightllm_otel.contracts.table import Hook
from lightllm_otel.records.vocabulary import Stage, StepOnlyReason
from lightllm_otel.worker.host import inputs
from lightllm_otel.worker.host.decode_call import DecodeCall, decode_call
from lightllm_otel.worker.host.instrumented_graph import InstrumentedGraph
from lightllm_otel.worker.host.instrumented_graphs import InstrumentedGraphs

if TYPE_CHECKING:
    from lightllm_otel.worker.host.process import Session

Host = Callable[..., Any]


def checking_memory(host: Host, session: Session, arguments: Arguments, hook: Hook) -> Host:
    """Wrap the host's last check at its start: whether the longest prefill fits into memory.

    If it fails, it is repeated without instrumented graphs.
    """

    @functools.wraps(host)
    def _check_max_len_infer(*args: Any, **kwargs: Any) -> Any:
        instrumented_graphs = session.instrumented_graphs if session.owns(args[0] if args else None) else None
        try:
            return host(*args, **kwargs)
        except Exception:
            if instrumented_graphs is None or not instrumented_graphs.by_size:
                raise
            with session.guard(Stage.PATCH):
                instrumented_graphs.give_up(
                    "the longest prefill did not fit into the memory beside them; lower --mem_fraction, or name fewer sizes in "
                    "LIGHTLLM_OTEL_GRAPH_BATCH_SIZES"
                )
        return host(*args, **kwargs)

    return _check_max_len_infer


def warming_up(host: Host, session: Session, arguments: Arguments, hook: Hook) -> Host:
    """Wrap the function in which the host captures all graphs of a model."""
    module = sys.modules.get(str(getattr(host, "__module__", "")))

    @functools.wraps(host)
    def warmup(*args: Any, **kwargs: Any) -> Any:
        model = arguments.get("model", args, kwargs)
        instrumented_graphs = session.instrumented_graphs if session.owns(model) else None
        if instrumented_graphs is not None:
            with session.guard(Stage.PATCH):
                instrumented_graphs.plan(args[0], module, session.fits)
        try:
            result = host(*args, **kwargs)
        finally:
            if instrumented_graphs is not None:
                instrumented_graphs.collecting = False
        if instrumented_graphs is not None:
            with session.guard(Stage.PATCH):
                instrumented_graphs.captured_all(args[0], model)
        return result

    return warmup


def capturing(host: Host, session: Session, arguments: Arguments, hook: Hook) -> Host:
    """Wrap a capture, which must not contain our events. While the server starts, it may be followed by one of ours."""

    @functools.wraps(host)
    def _capture_decode(*args: Any, **kwargs: Any) -> Any:
        _stop_recording(session, StepOnlyReason.NOT_INSTRUMENTED)
        instrumented_graphs = session.instrumented_graphs
        call: DecodeCall | None = None
        if instrumented_graphs is not None and instrumented_graphs.covers(args[0] if args else None):
            with session.guard(Stage.PATCH):
                call = _decode_call(instrumented_graphs, arguments, args, kwargs)
        result = host(*args, **kwargs)
        if call is not None and instrumented_graphs is not None:
            done = False
            with session.guard(Stage.PATCH):
                instrumented_graphs.capture(args[0], call)
                done = True
            if not done:
                instrumented_graphs.refuse("the plugin failed here; the log says how")
        return result

    return _capture_decode


def _decode_call(
    instrumented_graphs: InstrumentedGraphs, arguments: Arguments, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> DecodeCall | None:
    """Return the call that is to be captured a second time, or None for a batch size that is left out."""
    state = arguments.get("infer_state", args, kwargs)
    rows = _rows(arguments, args, kwargs)
    if not instrumented_graphs.wants(args[0], rows):
        return None
    handed_on = list(arguments.given(args, kwargs).items())[1:]  # the host hands on all of its arguments except itself
    decode = dict(handed_on)["decode_func"]
    return decode_call(rows, decode, [each for name, each in handed_on if name != "decode_func"], state)


def capturing_step_only(host: Host, session: Session, arguments: Arguments, hook: Hook) -> Host:
    """Wrap a capture that gets no instrumented graph; it must not contain our events either."""

    @functools.wraps(host)
    def capture(*args: Any, **kwargs: Any) -> Any:
        _stop_recording(session, StepOnlyReason.NOT_INSTRUMENTED)
        return host(*args, **kwargs)

    return capture


def _stop_recording(session: Session, reason: StepOnlyReason) -> None:
    timer = session.timer
    if timer is not None and not timer.failed:
        with session.guard(Stage.MEASURE):
            timer.stop_recording(reason)


def _rows(arguments: Arguments, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return the batch that the graph computes, from the input that is given (up to 2025) or that the state holds."""
    given = arguments.get("input_ids", args, kwargs) if "input_ids" in arguments.names else None
    return inputs.rows(arguments.get("infer_state", args, kwargs) if given is None else given)


def replaying(host: Host, session: Session, arguments: Arguments, hook: Hook) -> Host:
    """Wrap a replay: on sampled steps the instrumented graph takes the place of the host's graph for that one call."""
    measure, fast_path = session.guard(Stage.MEASURE), session.fast_path
    holder = "input_ids" if "input_ids" in arguments.names else "infer_state"
    place = arguments.names.index(holder)

    @functools.wraps(host)
    def _replay(*args: Any, **kwargs: Any) -> Any:
        forwards, instrumented_graphs = session.forwards, session.instrumented_graphs
        if forwards is None:
            if instrumented_graphs is None or instrumented_graphs.checked is None:
                return host(*args, **kwargs)
            return _swapped(host, instrumented_graphs.checked, session, args, kwargs)
        if not forwards.decode_due:
            # Its size is read later, when the GPU has its work.
            fast_path.replayed = args[place] if len(args) > place else arguments.get(holder, args, kwargs)
            return host(*args, **kwargs)
        rows, instrumented, timer = 0, None, session.timer
        with session.guard(Stage.PATCH):
            rows = _rows(arguments, args, kwargs)
            instrumented = instrumented_graphs.replacement(args[0], rows) if instrumented_graphs is not None else None
        if timer is not None and not timer.failed:
            with measure:
                step = timer.graph(rows, instrumented=instrumented is not None)
                if instrumented is not None:
                    instrumented.step = step
        if instrumented is None:
            return host(*args, **kwargs)
        return _swapped(host, instrumented, session, args, kwargs)

    return _replay


def _swapped(
    host: Host, instrumented: InstrumentedGraph, session: Session, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call the host's replay with the instrumented graph in the place of its own."""
    graphs, rows, entry = None, instrumented.graph_layout.batch, None
    with session.guard(Stage.PATCH):
        graphs = args[0].graph
        own = graphs[rows]
        graphs[rows] = (instrumented, *own[1:])
        entry = own
    if entry is None or graphs is None:
        return host(*args, **kwargs)
    try:
        return host(*args, **kwargs)
    finally:
        graphs[rows] = entry


def replaying_step_only(host: Host, session: Session, arguments: Arguments, hook: Hook) -> Host:
    """Wrap the replay of a graph with two microbatches: its step can be timed, its operators cannot."""

    @functools.wraps(host)
    def _replay_overlap(*args: Any, **kwargs: Any) -> Any:
        timer = session.timer
        if timer is not None and not timer.failed:
            with session.guard(Stage.MEASURE):
                timer.graph(_rows(arguments, args, kwargs), instrumented=False)
        return host(*args, **kwargs)

    return _replay_overlap


def replaying_prefill(host: Host, session: Session, arguments: Arguments, hook: Hook) -> Host:
    """Wrap the replay of prefill graphs: only attention runs in Python, so everything between would count as attention."""

    @functools.wraps(host)
    def _replay(*args: Any, **kwargs: Any) -> Any:
        timer = session.timer
        if timer is not None and not timer.failed:
            with session.guard(Stage.MEASURE):
                timer.prefill_graph()
        return host(*args, **kwargs)

    return _replay
