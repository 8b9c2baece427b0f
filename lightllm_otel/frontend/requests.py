"""Requests in LightLLM's HTTP process: when each was tokenised, and had its first and its last token.

Traced requests are noted for the exporter, which makes the spans. A request that is not traced gets LightLLM's own generator.
Only the request's number has to pass from process to process, and LightLLM does that itself.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Optional, Protocol

from lightllm_otel.contracts.binding import Arguments
from lightllm_otel.contracts.patch_set import PatchSet
from lightllm_otel.contracts.start_arguments import UNNAMED, meeting_place
from lightllm_otel.contracts.table import Hook
from lightllm_otel.frontend.trace_context import TraceContext, continued
from lightllm_otel.guard import Guard, log
from lightllm_otel.otel_environment import OtelEnvironment
from lightllm_otel.records.folder import group_folder, group_key
from lightllm_otel.records.notes import NotesWriter
from lightllm_otel.records.vocabulary import Stage
from lightllm_otel.settings import Settings

Host = Callable[..., Any]
CHAT = "/v1/chat/completions"
# OpenTelemetry's attribute names, by LightLLM's names. Stop sequences are text, so they are not exported.
PARAMETERS = {
    "max_new_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "best_of": "gen_ai.request.choice.count",
}


class RequestSession(Protocol):
    """The part of a process's session that these hooks use. ``watches``: None until the first hook needs it."""

    guard: Guard
    patch_set: PatchSet
    otel_environment: OtelEnvironment
    watches: Optional[Watches]

    @property
    def settings(self) -> Settings:
        """Return the settings of this process."""


def generating(host: Host, session: RequestSession, arguments: Arguments, hook: Hook) -> Host:
    """Wrap ``HttpServerManager.generate``, which every endpoint calls in all versions."""
    watches = watches_of(session)

    @functools.wraps(host)
    def generate(*args: Any, **kwargs: Any) -> Any:
        began = time.time_ns()
        made = host(*args, **kwargs)  # a generator, which has not run yet
        given = watches.contained(arguments.given, args, kwargs)
        watch = watches.contained(watches.begin, args[0], given, began) if given else None
        return made if watch is None else Watched(made, watch)

    return generate


def encoding(host: Host, session: RequestSession, arguments: Arguments, hook: Hook) -> Host:
    """Wrap ``_encode`` (since July 2025), in which the prompt becomes tokens and the request gets its number."""
    watches = watches_of(session)

    @functools.wraps(host)
    def _encode(*args: Any, **kwargs: Any) -> Any:
        made = host(*args, **kwargs)  # a coroutine, which has not run yet
        asked = watches.contained(arguments.get, "sampling_params", args, kwargs)
        watch = watches.by_key.get(id(asked))
        return made if watch is None else encoded(made, watch, asked)

    async def encoded(made: Any, watch: Watch, asked: Any) -> Any:
        prompt_ids = await made
        watches.contained(watch.tokenised, getattr(asked, "group_request_id", None))
        return prompt_ids

    return _encode


def tokenised_by_status(host: Host, session: RequestSession, arguments: Arguments, hook: Hook) -> Host:
    """Wrap the constructor of ``ReqStatus``, which all versions call after tokenising, before they pass the request on."""
    watches = watches_of(session)
    (name,) = next((names for names in hook.reads if set(names) <= set(arguments.names)), hook.reads[0])

    @functools.wraps(host)
    def __init__(*args: Any, **kwargs: Any) -> None:  # noqa: N807 - it is one
        host(*args, **kwargs)
        number = watches.contained(arguments.get, name, args, kwargs)
        watch = watches.by_key.get(number) if isinstance(number, int) else None
        if watch is not None:
            watches.contained(watch.tokenised, number)

    return __init__


def watches_of(session: RequestSession) -> Watches:
    """Return the traced requests of the process, which all of its hooks share."""
    if session.watches is None:
        session.watches = Watches(session)
    return session.watches


class Watches:
    """Traced requests of this process. ``by_key``: by the request's number, or by the id of its sampling parameters."""

    def __init__(self, session: RequestSession) -> None:
        self.by_key: dict[Any, Watch] = {}
        self._session = session
        self._notes: list[NotesWriter] | None = None
        self._failed = False

    def contained(self, action: Callable[..., Any], *args: Any) -> Any:
        """Call ``action`` and return its result. The first error ends tracing in this process; then the result is None."""
        if self._failed:
            return None
        try:
            return action(*args)
        except Exception as error:
            self._failed = True
            self.by_key.clear()
            if not self._session.guard.caught(Stage.PATCH, error):
                raise
            return None

    def begin(self, manager: Any, given: Mapping[str, Any], began: int) -> Watch | None:
        """Begin an incoming request, and return its watch, or None if it is not traced. ``began``: ns of Unix time."""
        request, number = given.get("request"), given.get("group_request_id")
        if given.get("is_health_req") or (isinstance(number, int) and number < 0):
            return None
        context = continued(request.headers if request is not None else {}, self._session.otel_environment)
        if context is None or not (writers := self.writers(manager.args)):
            return None
        key = number if number is not None else id(given["sampling_params"])
        watch = Watch(self, key, context, writers, began)
        watch.describe(manager.args, given["sampling_params"], request)
        self.by_key[key] = watch
        return watch

    def writers(self, args: Any) -> list[NotesWriter]:
        """Return the notes of this process: one file in the folder of each tensor-parallel group of the server."""
        if self._notes is None:
            self._notes = []
            host, port = meeting_place(vars(args))
            groups = int(getattr(args, "dp", 1) or 1) if int(getattr(args, "nnodes", 1) or 1) == 1 else 1
            for rank in range(groups):
                try:
                    folder = group_folder(self._session.settings.directory, group_key(host, port, rank))
                    self._notes.append(NotesWriter(folder / f"http-{os.getpid()}.notes"))
                except OSError as error:
                    log.error("requests are not traced, because their notes cannot be written (%s)", error)
                    break
        return self._notes


class Watch:
    """One traced request. Times are nanoseconds of Unix time; 0 means not yet."""

    def __init__(
        self, watches: Watches, key: Any, context: TraceContext, writers: list[NotesWriter], began: int
    ) -> None:
        self.context = context
        self._watches = watches
        self._key = key
        self._writers = writers
        self._number: Any = None
        self._tokenised = self._first = self._last = 0
        self._began = began
        self._prompt_tokens = self._tokens = 0
        self._finish: list[str] = []
        self._about: dict[str, Any] = {}
        self._over = False

    def describe(self, args: Any, sampling_params: Any, request: Any) -> None:
        """Keep the span's attributes: model, endpoint and parameters, but no text of the request."""
        path = request.url.path if request is not None else ""
        model = getattr(args, "model_name", None)
        if model in UNNAMED:
            model = Path(str(args.model_dir)).name
        asked = {name: getattr(sampling_params, ours, None) for ours, name in PARAMETERS.items()}
        if (asked["gen_ai.request.top_k"] or 0) < 1:  # such a value means all tokens
            del asked["gen_ai.request.top_k"]
        self._about = {
            "gen_ai.operation.name": "chat" if path == CHAT else "text_completion",
            "gen_ai.provider.name": "lightllm",
            "gen_ai.request.model": model,
            "url.path": path or None,
            "server.address": request.url.hostname if request is not None else None,
            "server.port": getattr(args, "port", None),
            **{name: value for name, value in asked.items() if isinstance(value, (int, float))},
        }

    def tokenised(self, number: Any) -> None:
        """Note that the prompt is tokenised. ``number``: the request's number, by which step notes refer to it."""
        if self._number is None:
            self._number, self._tokenised = number, time.time_ns()
            begin = {"k": "b", "id": number, "t": self.context.trace_id, "s": self.context.span_id}
            for writer in self._writers:
                writer.write(begin)

    def answered(self, item: Any) -> None:
        """Note a token of the answer. ``item``: ``(sub request, text, metadata, finish status)``, as LightLLM yields it."""
        self._last = time.time_ns()
        if not self._first:
            self._first = self._last
            self._prompt_tokens = item[2].get("prompt_tokens", 0)
        self._tokens += 1
        status = item[3]
        if status.is_finished():
            self._finish.append(status.get_finish_reason() or "stop")

    def end(self, error: str) -> None:
        """End the request and write its note. ``error``: the class of the exception that ended it early, or empty."""
        if self._over:
            return
        self._over = True
        self._watches.by_key.pop(self._key, None)
        context = self.context
        times = (self._began, self._tokenised, self._first, self._last, time.time_ns())
        self._writers[0].write(
            {
                "k": "e", "id": self._number, "t": context.trace_id, "s": context.span_id, "p": context.parent,
                "ts": context.state, "at": times, "in": self._prompt_tokens, "out": self._tokens, "fin": self._finish,
                "err": error, "a": {name: value for name, value in self._about.items() if value is not None},
            }
        )  # fmt: skip

    def contained(self, action: Callable[..., Any], *args: Any) -> Any:
        """Call ``action`` as :meth:`Watches.contained` does."""
        return self._watches.contained(action, *args)


class Watched:
    """Wrapper of LightLLM's generator with the same items, exceptions and end, in the same order."""

    def __init__(self, host: Any, watch: Watch) -> None:
        self._host = host
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    def __aiter__(self) -> Watched:
        return self

    async def __anext__(self) -> Any:
        try:
            item = await self._host.__anext__()
        except BaseException as error:
            # The normal end is an exception as well. CancelledError and GeneratorExit mean that the client has left.
            ended = "" if isinstance(error, StopAsyncIteration) else type(error).__name__
            self._watch.contained(self._watch.end, ended)
            raise
        self._watch.contained(self._watch.answered, item)
        return item

    async def aclose(self) -> None:
        try:
            await self._host.aclose()
        finally:
            self._watch.contained(self._watch.end, "GeneratorExit")

    def __del__(self) -> None:
        """End the request: nobody iterates any more."""
        self._watch.contained(self._watch.end, "GeneratorExit")
