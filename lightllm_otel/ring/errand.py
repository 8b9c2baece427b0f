"""An errand for the first rank of a running group, and its answer: two small files in the group's folder.

``lightllm-otel capture --kernels`` leaves ``errand.json`` there; the rank, which looks once a second, takes it away and answers
with ``errand-done.json``. Whoever may write into the folder is the owner of the server.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ASKED, DONE = "errand.json", "errand-done.json"


def ask(folder: Path, errand: dict[str, Any]) -> None:
    """Raises OSError."""
    (folder / DONE).unlink(missing_ok=True)
    _write(folder / ASKED, errand)


def withdraw(folder: Path) -> None:
    (folder / ASKED).unlink(missing_ok=True)


def take(folder: Path) -> dict[str, Any] | None:
    """The errand, once; None when there is none, or none that can be read."""
    try:
        text = (folder / ASKED).read_text()
        (folder / ASKED).unlink()
        errand = json.loads(text)
    except (OSError, ValueError):
        return None
    return errand if isinstance(errand, dict) else None


def answer(folder: Path, answered: dict[str, Any]) -> None:
    """Raises OSError."""
    _write(folder / DONE, answered)


def answered(folder: Path) -> dict[str, Any] | None:
    """What was answered; None before."""
    try:
        found: dict[str, Any] = json.loads((folder / DONE).read_text())
    except (OSError, ValueError):
        return None
    return found


def _write(path: Path, content: dict[str, Any]) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(content))
    new.replace(path)
