"""A line of ``lightllm-otel doctor``."""

from __future__ import annotations

import dataclasses

OK, NOTE, WRONG = "ok", "note", "wrong"


@dataclasses.dataclass(frozen=True)
class Finding:
    """``state``: ok, note, or wrong (exit status 1). ``remedy``: what to do; empty when nothing."""

    state: str
    about: str
    what: str
    remedy: str = ""
