"""Self-contained HTML page that draws one JSON object: a template, a style sheet and scripts, joined into one file.

``data["kind"]`` selects the drawing: ``report`` (:mod:`lightllm_otel.tools.analysis.report`), ``compare``
(:mod:`lightllm_otel.tools.compare`), or ``live`` (:mod:`lightllm_otel.exporter.live`). If ``data["events"]`` is an address, the
page listens to server-sent events there, and draws each new JSON object. Otherwise the page never changes.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
SCRIPTS = ("words.js", "svg.js", "report.js", "compare.js", "live.js", "draw.js")


def render(data: dict[str, Any], title: str, live: bool = False) -> str:
    """Return an HTML document. Text in ``data`` is never interpreted as HTML. ``live``: the page can connect to its own host."""
    # "</" could end the script element, and "<!--" would begin a comment in it.
    embedded = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    parts = {
        "POLICY": _policy(live),
        "TITLE": html.escape(title),
        "STYLE": _style(),
        "SCRIPT": _script(),
        "DATA": embedded,
    }
    page = (FOLDER / "template.html").read_text()
    head, *rest = page.split("{{")
    return head + "".join(parts[name] + after for name, _, after in (piece.partition("}}") for piece in rest))


def policy(live: bool) -> str:
    """Return the Content-Security-Policy header of the page: only its own style and script, and no embedding in frames."""
    return f"{_policy(live)}; frame-ancestors 'none'"


def _policy(live: bool) -> str:
    connect = "connect-src 'self'; " if live else ""
    return (
        f"default-src 'none'; style-src {_hash(_style())}; script-src {_hash(_script())}; img-src data:; {connect}"
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@functools.cache
def _style() -> str:
    return (FOLDER / "style.css").read_text()


@functools.cache
def _script() -> str:
    return "\n".join((FOLDER / name).read_text() for name in SCRIPTS)
