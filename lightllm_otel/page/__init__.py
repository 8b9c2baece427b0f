"""One page that draws one JSON: a template, a style sheet and scripts, joined into a file that needs nothing else.

``data["kind"]`` chooses the drawing: ``report`` (:mod:`lightllm_otel.analyze.report`) or ``compare``. The scripts know
nothing of where the JSON came from: a live page serves the same files and calls ``draw(document.querySelector("main"), data)``
again with newer data.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
SCRIPTS = ("svg.js", "report.js", "compare.js", "draw.js")


def render(data: dict[str, Any], title: str) -> str:
    """A whole HTML document. Whatever text the data holds stays text."""
    # The only thing that can end a script element is "</"; "<!--" would open a comment in it.
    embedded = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    parts = {
        "TITLE": html.escape(title),
        "STYLE": (FOLDER / "style.css").read_text(),
        "SCRIPT": "\n".join((FOLDER / name).read_text() for name in SCRIPTS),
        "DATA": embedded,
    }
    page = (FOLDER / "template.html").read_text()
    head, *rest = page.split("{{")
    return head + "".join(parts[name] + after for name, _, after in (piece.partition("}}") for piece in rest))
