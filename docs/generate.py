"""Fill the generated blocks of both READMEs from the code and from benchmarks/results: ``python docs/generate.py``."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lightllm_otel.export.metrics import METRICS  # noqa: E402
from lightllm_otel.settings import PREFIX, SETTINGS  # noqa: E402

READMES = (ROOT / "README.md", ROOT / "README.zh-CN.md")
RESULTS = ROOT / "benchmarks" / "results"
COLUMNS = ("OLD, eager, prefill", "OLD, eager, decode", "NEW, eager, prefill", "NEW, eager, decode")


def metrics() -> str:
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    rows += [f"| `{m.name}` | {m.kind} | {', '.join(m.labels)} | {m.help} |" for m in METRICS]
    return "\n".join(rows)


def settings() -> str:
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    rows.append(f"| `{PREFIX}` | off | `1`, `true` or `on` turns it on; empty, `0`, `false`, `off` mean off. |")
    rows += [
        f"| `{s.variable}` | {f'`{s.default}`' if s.default else ''}{f' {s.unit}' if s.unit else ''} | {s.help} |"
        for s in SETTINGS
    ]
    return "\n".join(rows)


def first_light() -> str:
    """Mean time of a call and share of the step, per operator, version and phase."""
    operators = result("first_light")["summary"]["operators"]
    columns = [column for column in COLUMNS if column in operators]
    order = sorted(
        {name for column in columns for name in operators[column]},
        key=lambda name: -operators[columns[-1]].get(name, {}).get("share_percent", 0.0),
    )
    rows = ["| operator | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in order:
        cells = [operators[column].get(name) for column in columns]
        shown = [f"{cell['mean_us']} µs · {cell['share_percent']} %" if cell else "–" for cell in cells]
        rows.append(f"| `{name}` | " + " | ".join(shown) + " |")
    return "\n".join(rows)


def python_timer() -> str:
    """The async-timing bug: GPU time against a Python timer around the same calls, as it is and with blocking launches."""
    operators = result("first_light")["summary"]["operators"]
    column = "NEW, eager, prefill"
    rows = [
        "| prefill, NEW | on the GPU | Python timer | Python timer, `CUDA_LAUNCH_BLOCKING=1` |",
        "|---|---|---|---|",
    ]
    for name in ("qkv_proj", "attention", "o_proj", "ffn"):
        cell = operators[column][name]
        rows.append(
            f"| `{name}` | {cell['mean_us']} µs | {cell['python_timer_us']} µs | {cell['python_timer_launch_blocking_us']} µs |"
        )
    return "\n".join(rows)


def accuracy() -> str:
    """One call of each operator inside a CUDA graph: by our stamps, and by CUPTI in the host's own graph."""
    cases = result("accuracy")["summary"]["operators"]
    columns = [f"llama-7b, batch {batch}" for batch in (1, 20, 64)]
    rows = ["| operator | calls | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    last = cases[columns[1]]
    for name in sorted(last, key=lambda name: -last[name]["ours_us"] * last[name]["calls"]):
        cells = [cases[column][name] for column in columns]
        shown = [f"{cell['ours_us']} µs · {cell['cupti_us']} µs" for cell in cells]
        rows.append(f"| `{name}` | {last[name]['calls']} | " + " | ".join(shown) + " |")
    return "\n".join(rows)


def result(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return content


BLOCKS = {
    "metrics": metrics,
    "settings": settings,
    "first_light": first_light,
    "python_timer": python_timer,
    "accuracy": accuracy,
}


def fill(text: str) -> str:
    """``text`` with every ``<!-- generated: NAME -->`` … ``<!-- end -->`` block made anew."""
    for name, make in BLOCKS.items():
        block = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        content = make()
        text = block.sub(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
    return text


def main() -> None:
    for path in READMES:
        path.write_text(fill(path.read_text()))


if __name__ == "__main__":
    main()
