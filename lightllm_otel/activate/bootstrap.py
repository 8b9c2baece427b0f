"""What happens when a Python process starts with LIGHTLLM_OTEL on: hooks for modules that may never be imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

import wrapt

from lightllm_otel.guard import Guard, log, log_to_stderr
from lightllm_otel.patch.contracts import Hook, modules
from lightllm_otel.settings import PREFIX, Settings
from lightllm_otel.vocabulary import Level, Stage

if TYPE_CHECKING:
    from lightllm_otel.activate.session import ServerSession

# Set for children by the process that has said what is wrong, so that a server says it once.
REPORTED = f"{PREFIX}_REPORTED"


def activate() -> Hooks | None:
    """Register our import hooks in this process, unless it can have nothing to do with LightLLM; None when it is off."""
    if any("resource_tracker" in word for word in command_line()):
        return None
    settings = Settings.from_env(os.environ)
    log_to_stderr()
    if settings.problems:
        wrapt.register_post_import_hook(lambda module: report(settings.problems), "lightllm")
    elif settings.level is not Level.OFF:
        hooks = Hooks(settings, Guard())
        hooks.register()
        return hooks
    return None


class Hooks:
    """Hooks every module of the table of contracts when it is imported. Everything heavy is imported then, not before."""

    def __init__(self, settings: Settings, guard: Guard) -> None:
        self._settings = settings
        self._guard = guard
        self._session: ServerSession | None = None

    def register(self) -> None:
        for name, hooks in modules().items():
            wrapt.register_post_import_hook(self._hook(hooks), name)

    def _hook(self, hooks: tuple[Hook, ...]) -> Callable[[ModuleType], None]:
        def patch_module(module: ModuleType) -> None:
            with self._guard(Stage.PATCH):  # an exception here would break the host's import
                from lightllm_otel.patch import seams

                seams.patch(module, hooks, self.session())

        return patch_module

    def session(self) -> ServerSession:
        """The one of this process, made when the first module turns up."""
        if self._session is None:
            from lightllm_otel.activate.session import ServerSession
            from lightllm_otel.patch.ledger import Ledger

            self._session = ServerSession(self._settings, self._guard, Ledger(), live=Ledger())
        return self._session


def report(problems: tuple[str, ...]) -> None:
    """One line for each setting that cannot be used, once per server."""
    if os.environ.setdefault(REPORTED, str(os.getpid())) == str(os.getpid()):
        for problem in problems:
            log.error(problem)


def command_line() -> list[str]:
    """This process's command line; ``sys.argv`` is not set yet when .pth files run."""
    if hasattr(sys, "orig_argv"):
        return list(sys.orig_argv)
    try:
        with open("/proc/self/cmdline", "rb") as file:  # noqa: PTH123 - pathlib costs 10 ms at every Python start
            return file.read().decode(errors="replace").split("\0")
    except OSError:
        return []
