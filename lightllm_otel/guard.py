"""Guard between the plugin's errors and the host: errors are caught, counted and logged once, and never raised."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType

from lightllm_otel.records.vocabulary import Stage

log = logging.getLogger("lightllm_otel")


def log_to_stderr() -> None:
    """Give the plugin's logger its own handler, because LightLLM does not configure the root logger."""
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(asctime)s [lightllm-otel] %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


class Guard:
    """Source of context managers for the plugin's code on the host's path. ``strict`` (tests) lets errors through.

    ``errors``: counts per stage, in the order of :class:`Stage`. ``on_error`` is called with the stage of each error, to turn
    that part off. Only ``Exception`` is caught, because Ctrl-C belongs to the host.
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self.on_error: Callable[[Stage], None] | None = None
        self.errors = [0] * len(Stage)
        self._stages = {stage: _Boundary(self, stage) for stage in Stage}

    def __call__(self, stage: Stage) -> _Boundary:
        return self._stages[stage]

    def caught(self, stage: Stage, error: BaseException) -> bool:
        """Count an error, and log the first one of its stage. Return whether the error is swallowed."""
        self.errors[stage.code] += 1
        if self.errors[stage.code] == 1:
            log.warning(
                "%s disabled after an error; the server is not affected. Please report this: %r",
                stage, error, exc_info=error,
            )  # fmt: skip
        if self.on_error is not None:
            self.on_error(stage)
        return not self.strict


class _Boundary:
    """Context manager of one stage. It has no state of its own, so one instance serves all threads."""

    def __init__(self, guard: Guard, stage: Stage) -> None:
        self._guard = guard
        self._stage = stage

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return isinstance(error, Exception) and self._guard.caught(self._stage, error)
