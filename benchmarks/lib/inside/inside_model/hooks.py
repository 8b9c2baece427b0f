"""Hooks of the benchmark in LightLLM's model process, the same in a stock and in an instrumented one.

A step is logged when its results are on the host: in both infer threads' ``_post_handle``, behind the synchronize of its
event. Nothing is launched and nothing is waited for. A hook that fails takes itself out; the host's call goes on.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from inside_model.arms import Switch
from inside_model.step_log import Column, StepLog, Word

BACKEND = "lightllm.server.router.model_infer.mode_backend.base_backend"
EVENTS = "lightllm.server.router.model_infer.mode_backend.overlap_events"
Host = Callable[..., Any]


def register(folder: Path) -> None:
    """Hook LightLLM's modules when they are imported. ``folder``: where the log lies; the model process makes it."""
    import wrapt

    recorder = Recorder(folder)
    wrapt.register_post_import_hook(recorder.hook_backend, BACKEND)
    wrapt.register_post_import_hook(recorder.hook_events, EVENTS)


class Recorder:
    """The hooks of one process, and what they know between calls."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log: StepLog | None = None
        self._switch: Switch | None = None
        self._thread = threading.local()
        self._position = -1
        self._epoch = 0
        self._failed = False
        self.backend: Any = None

    # Hooks -----------------------------------------------------------------------------------------------------------

    def hook_backend(self, module: ModuleType) -> None:
        """Hook the model process's backend: the end of a step, and the wait for new requests."""
        backend = module.ModeBackend
        self._replace(backend, "_post_handle", self._around_post_handle)
        for name in ("_try_read_new_reqs_normal", "_try_read_new_reqs_multinode_tp"):
            self._replace(backend, name, self._around_waiting)

    def hook_events(self, module: ModuleType) -> None:
        """Hook the turns of the two infer threads, between which no other step can be launched."""
        self._replace(module.OverlapEventPack, "wait_to_forward", self._around_turn)
        self._replace(module.OverlapEventPack, "notify_forward_and_wait_post_handle", self._around_end_of_turn)

    @staticmethod
    def _replace(owner: Any, name: str, around: Callable[[Host], Host]) -> None:
        host = vars(owner).get(name)
        if host is not None:
            setattr(owner, name, functools.wraps(host)(around(host)))

    def _around_post_handle(self, host: Host) -> Host:
        def _post_handle(*args: Any, **kwargs: Any) -> Any:
            if not self._failed:
                try:
                    self._ended(args, kwargs)
                except Exception:  # noqa: BLE001 - the server goes on without the log
                    self._fail()
            return host(*args, **kwargs)

        return _post_handle

    def _around_waiting(self, host: Host) -> Host:
        def waiting(*args: Any, **kwargs: Any) -> Any:
            thread, log = self._thread, self._log
            if log is None or not log.words[Word.CPU]:
                return host(*args, **kwargs)
            began = time.thread_time_ns()
            try:
                return host(*args, **kwargs)
            finally:
                thread.waited = time.thread_time_ns() - began

        return waiting

    def _around_turn(self, host: Host) -> Host:
        def wait_to_forward(*args: Any, **kwargs: Any) -> Any:
            thread, log = self._thread, self._log
            if log is None or not log.words[Word.CPU]:
                return host(*args, **kwargs)
            row = getattr(thread, "row", -1)
            if row >= 0:
                log.cells[row + Column.REST_CPU] = time.thread_time_ns() - thread.behind
                thread.row = -1
            result = host(*args, **kwargs)
            thread.turn, thread.waited, thread.serial = time.thread_time_ns(), 0, 0
            return result

        return wait_to_forward

    def _around_end_of_turn(self, host: Host) -> Host:
        def notify_forward_and_wait_post_handle(*args: Any, **kwargs: Any) -> Any:
            thread, log = self._thread, self._log
            if log is not None and log.words[Word.CPU]:
                turn = getattr(thread, "turn", None)  # None: the log began in the middle of this turn
                thread.serial = 0 if turn is None else time.thread_time_ns() - turn - getattr(thread, "waited", 0)
            return host(*args, **kwargs)

        return notify_forward_and_wait_post_handle

    # What they do ----------------------------------------------------------------------------------------------------

    def _ended(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A step's results are on the host. The two threads come here one after the other, never at once."""
        at = time.perf_counter_ns()
        log = self._log or self._begin(args[0])
        words = log.words
        requests = kwargs["run_reqs"] if "run_reqs" in kwargs else args[1]
        batch = len(requests)
        if words[Word.EPOCH] != self._epoch:
            self._epoch, self._position = words[Word.EPOCH], -1
        self._position = self._position + 1 if batch == words[Word.BATCH] else -1
        row = log.add(at, batch, self._position, words[Word.NOW])
        if words[Word.CPU]:
            thread = self._thread
            log.cells[row + Column.SERIAL_CPU] = getattr(thread, "serial", 0)
            thread.behind = time.thread_time_ns()
            thread.row = row
        self._follow(words)

    def _follow(self, words: Any) -> None:
        switch = self._switch
        assert switch is not None
        switch.step()
        if switch.hooks.out > words[Word.HOOKS]:
            words[Word.HOOKS] = switch.hooks.out
        block = words[Word.BLOCK]
        if not block:
            wanted = words[Word.HOLD]
        elif self._position >= 0 and self._position % block == 0:
            second = (self._position // block % 2 == 1) != (words[Word.PASS] % 4 in (1, 2))  # as pairing.Schedule
            wanted = words[Word.SECOND if second else Word.FIRST]
        else:
            return
        if wanted >= 0 and wanted != words[Word.NOW]:
            words[Word.NOW] = wanted
            switch.to(wanted)

    def _begin(self, backend: Any) -> StepLog:
        self.backend = backend
        folder = os.environ.get("LIGHTLLM_OTEL_DIR", "")
        self._switch = Switch(Path(folder) if folder else None)
        log = StepLog(self._folder, create=True)
        log.words[Word.NOW] = log.words[Word.HOLD] = -1
        log.words[Word.PID] = os.getpid()
        self._log = log
        if os.environ.get("BENCHMARK_OBSERVE"):
            from inside_model.observer import Observer

            Observer(self._folder, backend).start()
        return log

    def _fail(self) -> None:
        self._failed = True
        import traceback

        traceback.print_exc()
        if self._log is not None:
            self._log.words[Word.PROBLEMS] += 1
