"""``lightllm-otel ctl off|steps|operators|every N``: change what a running server measures, on all ranks at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lightllm_otel.exporter.control import SOCKET, Refused, ask
from lightllm_otel.records.folder import LOCK_NAME, is_locked
from lightllm_otel.tools.scrape import folders, looked_in


def ctl(words: list[str], group: str | None, as_json: bool = False) -> int:
    """Send one request to the exporter. Return exit status 0 if it was accepted, else 1 with one sentence."""
    try:
        folder, asked = find(group), request(words)
        said = ask(folder, asked)
        print(json.dumps({"kind": "ctl", "group": folder.name, "asked": asked, "said": said}) if as_json else said)
    except Refused as problem:
        print(f"lightllm-otel ctl: {problem}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"lightllm-otel ctl: the exporter does not answer ({error.strerror or error}); run lightllm-otel doctor to "
              "find out why",
              file=sys.stderr)  # fmt: skip
        return 1
    return 0


def request(words: list[str]) -> dict[str, Any]:
    """Return the request for ``off``, ``steps``, ``operators``, ``every N``, or ``operators every N``. Raises Refused."""
    asked: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in ("off", "steps", "operators"):
            asked["level"] = word
        elif word == "every" and rest and rest[0].isdigit():
            asked["every"] = int(rest.pop(0))
        else:
            raise Refused(f"{' '.join(words)!r} is not understood; pass off, steps, operators, or every N")
    return asked


def find(group: str | None) -> Path:
    """Return the folder of the running group with this name, or of the only running group. Raises Refused."""
    listening = {folder.name: folder for folder in folders() if (folder / SOCKET).exists()}
    alive = {name: folder for name, folder in listening.items() if is_locked(folder / LOCK_NAME)}
    if group is not None and group in alive:
        return alive[group]
    if group is None and len(alive) == 1:
        return next(iter(alive.values()))
    names = ", ".join(sorted(alive)) or "none"
    raise Refused(
        f"there is no running server {group}; running: {names}" if group is not None
        else f"no server with the plugin runs here ({looked_in()})" if not alive
        else f"several servers run here; select one with --group: {names}"
    )  # fmt: skip
