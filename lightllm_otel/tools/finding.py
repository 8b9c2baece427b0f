"""Findings of ``lightllm-otel doctor``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

OK, NOTE, WRONG = "ok", "note", "wrong"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One finding. ``state``: ok, note, or wrong (exit status 1). ``remedy``: what to do; empty if there is nothing to do."""

    state: str
    about: str
    what: str
    remedy: str = ""


def guarded(about: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    """Return the findings of ``look``, or one finding if it fails, so that the other findings are still shown."""
    try:
        return look()
    except Exception as error:  # noqa: BLE001 - the files that it reads can hold anything
        return [Finding(WRONG, about, f"cannot be checked: {error!r}", "please report this error")]
