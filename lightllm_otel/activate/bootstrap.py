"""What happens when a Python process starts with LIGHTLLM_OTEL on: hooks for modules that may never be imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import ModuleType

import wrapt

from lightllm_otel.activate.session import ServerSession
from lightllm_otel.guard import Guard, log, log_to_stderr
from lightllm_otel.patch.health import patch_health
from lightllm_otel.patch.ledger import Ledger
from lightllm_otel.patch.seams import SEAMS
from lightllm_otel.settings import PREFIX, Settings
from lightllm_otel.vocabulary import Level, Stage

# Set for children by the process that has said what is wrong, so that a server says it once.
REPORTED = f"{PREFIX}_REPORTED"


def activate() -> None:
    """Register our import hooks in this process, unless it can have nothing to do with LightLLM."""
    if any("resource_tracker" in word for word in command_line()):
        return
    settings = Settings.from_env(os.environ)
    log_to_stderr()
    if settings.problems:
        wrapt.register_post_import_hook(lambda module: report(settings.problems), "lightllm")
        return
    if settings.level is not Level.OFF:
        hook(settings, Guard(), Ledger())


def hook(settings: Settings, guard: Guard, ledger: Ledger) -> ServerSession:
    """Have every seam patched when its module is imported."""
    session = ServerSession(settings, guard, ledger)

    def guarded(patch: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
        def patch_module(module: ModuleType) -> None:
            with guard(Stage.PATCH):  # an exception here would break the host's import
                patch(module)

        return patch_module

    for name, patch in SEAMS.items():
        wrapt.register_post_import_hook(guarded(lambda module, patch=patch: patch(module, session)), name)
    wrapt.register_post_import_hook(
        guarded(lambda module: patch_health(module, ledger, guard)), "lightllm.server.health_monitor.manager"
    )
    wrapt.register_post_import_hook(guarded(session.patch_groups), "lightllm.distributed.communication_op")
    return session


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
