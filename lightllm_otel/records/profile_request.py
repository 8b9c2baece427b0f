"""Profile request to the first rank of a running group, and its answer: two small files in the group's folder.

``lightllm-otel capture --kernels`` writes the request to ``errand.json``. The rank looks for it once a second, removes it, and
answers with ``errand-done.json``. A request names a path to which the server then writes. So the rank accepts it only if folder
and file belong to the server's own user, and nobody else can write there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightllm_otel.records import private

ASKED, DONE = "errand.json", "errand-done.json"
MOST_BYTES = 64 << 20  # an answer lists the operators of every graph


def ask(folder: Path, profile_request: dict[str, Any]) -> None:
    """Write the request, and remove the answer to an earlier one. Raises OSError."""
    (folder / DONE).unlink(missing_ok=True)
    _write(folder / ASKED, profile_request)


def withdraw(folder: Path) -> None:
    """Remove a request that was not answered."""
    (folder / ASKED).unlink(missing_ok=True)


def take(folder: Path) -> dict[str, Any] | None:
    """Return the request and remove it; None if there is none, if it cannot be read, or if another user wrote it."""
    try:
        text = private.read(folder / ASKED, MOST_BYTES)
        (folder / ASKED).unlink()
        profile_request = json.loads(text)
    except (OSError, ValueError):
        return None
    return profile_request if isinstance(profile_request, dict) else None


def answer(folder: Path, answered: dict[str, Any]) -> None:
    """Write the answer. Raises OSError."""
    _write(folder / DONE, answered)


def answered(folder: Path) -> dict[str, Any] | None:
    """Return the answer; None if there is none yet."""
    try:
        found = json.loads(private.read(folder / DONE, MOST_BYTES))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write(path: Path, content: dict[str, Any]) -> None:
    private.write(path, json.dumps(content).encode())
