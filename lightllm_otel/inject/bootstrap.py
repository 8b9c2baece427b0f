"""Bootstrap in a Python process that imports LightLLM with LIGHTLLM_OTEL on: registers hooks for LightLLM's modules."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

import wrapt

from lightllm_otel.contracts.table import Hook, modules
from lightllm_otel.guard import Guard, log, log_to_stderr
from lightllm_otel.records.vocabulary import Level, Stage
from lightllm_otel.settings import PREFIX, REPORTED, Settings

if TYPE_CHECKING:
    from lightllm_otel.worker.session import ServerSession


def activate() -> Hooks | None:
    """Register the import hooks in this process, which is about to import LightLLM; return None if the plugin is off."""
    settings = Settings.from_env(os.environ)
    log_to_stderr()
    report(settings)
    if not settings.enabled or settings.level is Level.OFF:
        return None
    hooks = Hooks(settings, Guard())
    hooks.register()
    return hooks


class Hooks:
    """Import hooks of all modules in the table of contracts. Heavy imports happen when such a module is imported."""

    def __init__(self, settings: Settings, guard: Guard) -> None:
        self._settings = settings
        self._guard = guard
        self._session: ServerSession | None = None

    def register(self) -> None:
        """Register one hook for each module of the table."""
        for name, hooks in modules().items():
            wrapt.register_post_import_hook(self._hook(hooks), name)

    def _hook(self, hooks: tuple[Hook, ...]) -> Callable[[ModuleType], None]:
        def patch_module(module: ModuleType) -> None:
            with self._guard(Stage.PATCH):  # an exception would break the host's import
                from lightllm_otel.inject.hooks import patch

                patch(module, hooks, self.session())

        return patch_module

    def session(self) -> ServerSession:
        """Return the session of this process. The first imported module creates it."""
        if self._session is None:
            from lightllm_otel.contracts.patch_set import PatchSet
            from lightllm_otel.worker.session import ServerSession

            self._session = ServerSession(self._settings, self._guard, PatchSet(), live=PatchSet())
        return self._session


def report(settings: Settings) -> None:
    """Log one line for each setting that cannot be used, once per server. If the plugin is off, log only the reason for it."""
    problems, notes = settings.problems, settings.notes
    if not settings.enabled:
        problems, notes = tuple(each for each in problems if each.startswith(f"{PREFIX}=")), ()
    if not problems and not notes:
        return
    if os.environ.setdefault(REPORTED, str(os.getpid())) == str(os.getpid()):
        for problem in problems:
            log.error(problem)
        for note in notes:
            log.warning(note)
