"""Kernels that are easily found in a trace: before each forward, or around each method of a model that is an operator.

The table of methods is the benchmark's own, so that what the plugin says is compared with something else than itself.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

LAYER = {
    "_att_norm": "attn_norm", "_get_qkv": "qkv_proj", "_post_cache_kv": "kv_write", "_copy_kv_to_mem_cache": "kv_write",
    "_context_attention_kernel": "attention", "_token_attention_kernel": "attention", "_get_o": "o_proj",
    "_ffn_norm": "ffn_norm", "_ffn": "ffn",
}  # fmt: skip
PRE = {"context_forward": "embedding", "token_forward": "embedding"}
POST = {"context_forward": "lm_head", "token_forward": "lm_head"}
SAMPLE = "sample"
SAMPLERS = "lightllm.server.router.model_infer.mode_backend"
FORWARD, ENTER, LEAVE = "forward", "enter", "leave"
FIRST_AT, SAMPLING_AT = "first_operator_at", "sampling_at"  # Unix time in nanoseconds, as "at"
_MISSING = object()


def mark() -> None:
    """Launch ``spin_kernel`` on the current stream."""
    import torch

    if torch.cuda.is_available():
        torch.cuda._sleep(1)


class Replaced:
    """Attributes that are replaced for a while."""

    def __init__(self) -> None:
        self._own: list[tuple[Any, str, Any, Any]] = []

    def put(self, owner: Any, name: str, value: Any) -> None:
        self._own.append((owner, name, vars(owner).get(name, _MISSING), value))
        setattr(owner, name, value)

    def undo(self) -> None:
        for owner, name, own, value in reversed(self._own):
            if vars(owner).get(name) is not value:
                continue
            if own is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, own)
        self._own.clear()


class ForwardMarkers:
    """A marker before each ``forward`` of the model, and when it was; and when its first operator and sampling were entered.

    Without graphs an operator begins where its method is entered, even if the GPU has run out of work long before.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._replaced = Replaced()
        self._entered: list[dict[str, Any]] = []
        self._by_thread: dict[int, dict[str, Any]] = {}

    def install(self) -> None:
        host = self._model.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            model_input = args[0] if args else next(iter(kwargs.values()))
            mark()
            entry = {"at": time.time_ns(), **sizes_of(model_input)}
            self._by_thread[threading.get_ident()] = entry
            self._entered.append(entry)
            return host(*args, **kwargs)

        self._replaced.put(self._model, "forward", forward)
        first = getattr(self._model, "pre_infer", None)
        for name in PRE:
            if callable(getattr(first, name, None)):
                self._replaced.put(first, name, self._noting(getattr(first, name), FIRST_AT))
        for module in samplers():
            self._replaced.put(module, SAMPLE, self._noting(vars(module)[SAMPLE], SAMPLING_AT))

    def _noting(self, host: Callable[..., Any], what: str) -> Callable[..., Any]:
        @functools.wraps(host)
        def noted(*args: Any, **kwargs: Any) -> Any:
            entry = self._by_thread.get(threading.get_ident())
            if entry is not None:
                entry.setdefault(what, time.time_ns())
            return host(*args, **kwargs)

        return noted

    def remove(self) -> None:
        self._replaced.undo()

    def take(self) -> list[dict[str, Any]]:
        """Return what was noted since the last time."""
        noted, self._entered = self._entered, []
        self._by_thread.clear()
        return noted


def samplers() -> list[Any]:
    """LightLLM's modules that call ``sample`` by a name of their own."""
    return [
        module for name, module in list(sys.modules.items())
        if name.startswith(SAMPLERS) and callable(vars(module).get(SAMPLE))
    ]  # fmt: skip


def sizes_of(model_input: Any) -> dict[str, Any]:
    """Return batch, context and phase of a step; they are on the host before its forward."""
    return {
        "batch": int(model_input.batch_size), "context": int(model_input.total_token_num),
        "prefill": bool(model_input.is_prefill),
    }  # fmt: skip


class Annotations:
    """A marker at the entry and at the end of each operator's method, while the model has no CUDA graphs.

    All are launched on one stream, so the order of calls is the order of markers in the trace.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._replaced = Replaced()
        self._calls: list[tuple[str, str]] = []

    def install(self) -> None:
        model = self._backend.model
        if hasattr(model, "graph"):
            self._replaced.put(model, "graph", None)
        for owner, table in (
            (model.pre_infer, PRE),
            (model.post_infer, POST),
            *((each, LAYER) for each in model.layers_infer),
        ):
            for name, operator in table.items():
                host = getattr(owner, name, None)
                if callable(host):
                    self._replaced.put(owner, name, self._around(host, operator))
        for module in samplers():
            self._replaced.put(module, SAMPLE, self._around(vars(module)[SAMPLE], "sampling"))
        host_forward = model.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            self._calls.append((FORWARD, ""))  # its marker is ForwardMarkers'
            return host_forward(*args, **kwargs)

        self._replaced.put(model, "forward", forward)

    def _around(self, host: Callable[..., Any], operator: str) -> Callable[..., Any]:
        def annotated(*args: Any, **kwargs: Any) -> Any:
            mark()
            self._calls.append((ENTER, operator))
            try:
                return host(*args, **kwargs)
            finally:
                mark()
                self._calls.append((LEAVE, operator))

        return annotated

    def remove(self) -> None:
        self._replaced.undo()

    def take(self) -> list[tuple[str, str]]:
        """Return what was called since the last time."""
        calls, self._calls = self._calls, []
        return calls
