"""The decode step of the 7B shape as one bar, operator by operator, from a result file: an SVG without any library."""

from __future__ import annotations

import html
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))

from results import Measured, measured  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "accuracy.json"
PICTURE = ROOT / "docs" / "pictures" / "decode-step.svg"
SHAPE, BATCH = "llama-7b", 20
WIDTH, MARGIN, TOP, BAR = 900, 24, 66, 64
NARROW = 0.05  # shares below this have no room for a name in the bar
# Dark enough for white letters, and told apart without colour by their order, which is that of the legend.
COLOURS = {
    "ffn": "#b3541e", "attention": "#1f5f9e", "qkv_proj": "#2e7d4f", "o_proj": "#6a4c93", "lm_head": "#8a6d0b",
    "residual": "#4d5b66", "attn_norm": "#9c2c50", "ffn_norm": "#c2185b", "kv_write": "#00727a", "embedding": "#5d4037",
    "sampling": "#3f51b5", "all_reduce": "#d32f2f", "other": "#7a6a58", "gap": "#b9bec4",
}  # fmt: skip


def newest(result: dict[str, Any]) -> tuple[Measured, dict[str, float]]:
    """Return the newest LightLLM that has the case, and its microseconds by operator."""
    for each in measured(result):
        for row in each.rows:
            case = row.get("shape"), row.get("batch"), row.get("mode")
            if case == (SHAPE, BATCH, "decode graph") and "step_by_operator_us" in row:
                return each, row["step_by_operator_us"]
    raise ValueError(f"accuracy.json has no decode step of {SHAPE}, batch {BATCH}")


def parts(result: dict[str, Any]) -> dict[str, float]:
    """Microseconds of each operator in one step, the longest first and what is left over last."""
    return dict(sorted(newest(result)[1].items(), key=lambda part: (part[0] == "gap", -part[1])))


def draw(result: dict[str, Any]) -> str:
    """The picture. Light and dark: it brings its own ground."""
    step, of = parts(result), newest(result)[0]
    whole = sum(step.values())
    scale = (WIDTH - 2 * MARGIN) / whole
    title = f"One decode step of LLaMA-7B, batch {BATCH}, in a CUDA graph: {whole / 1e3:.2f} ms on {of.gpu['name']}"
    body, at = [], float(MARGIN)
    for operator, microseconds in step.items():
        width = microseconds * scale
        label = f"{operator} {_time(microseconds)}, {100 * microseconds / whole:.1f} %"
        body.append(f'<rect x="{at:.2f}" y="{TOP}" width="{max(width, 0.5):.2f}" height="{BAR}" '
                    f'fill="{COLOURS.get(operator, "#777777")}"><title>{html.escape(label)}</title></rect>')  # fmt: skip
        if microseconds / whole > NARROW:
            dark = "#1b1f23" if operator == "gap" else "#ffffff"
            middle = at + width / 2
            body.append(_text(middle, TOP + BAR / 2 - 2, operator, dark, "middle", 12))
            body.append(_text(middle, TOP + BAR / 2 + 14, f"{100 * microseconds / whole:.0f} %", dark, "middle", 12))
        at += width
    body += _legend(step, whole)
    height = TOP + BAR + 30 + 20 * ((len(step) + 3) // 4) + 34
    note = (
        "Timed on the GPU, inside the graph, in sampled steps; gap: Python prepares the step, and the GPU waits. "
        f"LightLLM: {of.title()}."
    )
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{html.escape(title)}" font-family="Segoe UI, Helvetica, Arial, sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff" rx="6"/>',
        _text(MARGIN, 34, title, "#1b1f23", "start", 17),
        *body,
        _text(MARGIN, height - 14, note, "#57606a", "start", 12),
        "</svg>",
    ]) + "\n"  # fmt: skip


def _legend(step: dict[str, float], whole: float) -> list[str]:
    """Every operator with its time, four to a line."""
    column = (WIDTH - 2 * MARGIN) / 4
    lines = []
    for number, (operator, microseconds) in enumerate(step.items()):
        x, y = MARGIN + number % 4 * column, TOP + BAR + 30 + 20 * (number // 4)
        lines.append(
            f'<rect x="{x:.1f}" y="{y - 10}" width="11" height="11" fill="{COLOURS.get(operator, "#777777")}"/>'
        )
        words = f"{operator} {_time(microseconds)} · {100 * microseconds / whole:.1f} %"
        lines.append(_text(x + 17, y, words, "#1b1f23", "start", 12))
    return lines


def _text(x: float, y: float, words: str, colour: str, anchor: str, size: int) -> str:
    return (f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="{size}" text-anchor="{anchor}">'
            f"{html.escape(words)}</text>")  # fmt: skip


def _time(microseconds: float) -> str:
    return f"{microseconds / 1e3:.2f} ms" if microseconds >= 1000 else f"{microseconds:.0f} µs"


def main() -> None:
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(draw(json.loads(RESULT.read_text())))


if __name__ == "__main__":
    main()
