"""``lightllm-otel run -- COMMAND``: activation without a .pth file, for immutable images and sites that forbid such files."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

from lightllm_otel.settings import PREFIX, is_on, unquoted

LAUNCHER = Path(__file__).resolve().parent / "launcher"
PACKAGE_ROOT = Path(__file__).resolve().parents[2]


def prepare(environ: MutableMapping[str, str]) -> None:
    """Change this environment so that every Python child starts the plugin, through a launcher on PYTHONPATH.

    An unset switch is turned on. A switch that is off stays off, so that an image with this command can be turned off.
    """
    if not unquoted(environ.get(PREFIX, "")):
        environ[PREFIX] = "1"
    before = [entry for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    # The package's folder comes last, so that it hides nothing of the host's.
    entries = [str(LAUNCHER), *before, str(PACKAGE_ROOT)]
    environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(entries))


def run(command: list[str]) -> int:
    """Replace this process by ``command``. If that fails, return 127 after one sentence on stderr."""
    prepare(os.environ)
    with contextlib.suppress(ValueError):  # neither on nor off: the server's log reports it
        if not is_on(os.environ):
            sys.stderr.write(
                f"lightllm-otel run: {PREFIX}={os.environ[PREFIX].strip()}, so {command[0]} is not measured\n"
            )
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"lightllm-otel run: {command[0]} cannot be started: {error.strerror}\n")
    return 127
