"""An errand for the first rank of a running group, and its answer: two small files in the group's folder.

``lightllm-otel capture --kernels`` leaves ``errand.json`` there; the rank, which looks once a second, takes it away and answers
with ``errand-done.json``. An errand names a path that the server then writes to, so it is taken only where folder and file
belong to the server's own user and nobody else can write there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightllm_otel.records import private

ASKED, DONE = "errand.json", "errand-done.json"
MOST_BYTES = 64 << 20  # an answer names the operators of every graph


def ask(folder: Path, profile_request: dict[str, Any]) -> None:
    """Raises OSError."""
    (folder / DONE).unlink(missing_ok=True)
    _write(folder / ASKED, profile_request)


def withdraw(folder: Path) -> None:
    (folder / ASKED).unlink(missing_ok=True)


def take(folder: Path) -> dict[str, Any] | None:
    """The errand, once; None when there is none, or none that can be read, or it is not ours."""
    try:
        text = private.read(folder / ASKED, MOST_BYTES)
        (folder / ASKED).unlink()
        profile_request = json.loads(text)
    except (OSError, ValueError):
        return None
    return profile_request if isinstance(profile_request, dict) else None


def answer(folder: Path, answered: dict[str, Any]) -> None:
    """Raises OSError."""
    _write(folder / DONE, answered)


def answered(folder: Path) -> dict[str, Any] | None:
    """What was answered; None before."""
    try:
        found = json.loads(private.read(folder / DONE, MOST_BYTES))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write(path: Path, content: dict[str, Any]) -> None:
    private.write(path, json.dumps(content).encode())
