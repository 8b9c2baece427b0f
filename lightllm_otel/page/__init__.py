"""One page that draws one JSON: a template, a style sheet and scripts, joined into a file that needs nothing else.

``data["kind"]`` chooses the drawing: ``report`` (:mod:`lightllm_otel.tools.analysis.report`), ``compare``, or ``live``
(:mod:`lightllm_otel.exporter.live`). The scripts know nothing of where the JSON came from. With ``data["events"]``, an address,
they draw it again with whatever comes from there; without, the page is as it was.
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
    """A whole HTML document. Whatever text the data holds stays text. ``live``: it may ask its own host for more."""
    # The only thing that can end a script element is "</"; "<!--" would open a comment in it.
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
    """The page's Content-Security-Policy as a header: its own style and script and nothing else, in nobody's frame."""
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
