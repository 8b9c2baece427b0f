"""Record the schema of all metrics: ``python docs/metrics_schema.py`` writes docs/metrics-schema.json from the table.

docs/metrics.md says which changes are allowed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lightllm_otel.exporter.metrics import METRICS, Metric  # noqa: E402

PATH = ROOT / "docs" / "metrics-schema.json"


def row(metric: Metric) -> dict[str, Any]:
    """Return what a user's query depends on: kind, unit, labels, the name over OTLP, and the labels ``le`` of a histogram."""
    found: dict[str, Any] = {
        "kind": metric.kind, "unit": metric.unit, "labels": list(metric.labels), "otlp": metric.otlp,
    }  # fmt: skip
    if metric.bounds:
        found["le"] = [f"{bound:.7g}" for bound in metric.bounds]
    return found


def text() -> str:
    """Return the schema as JSON, one metric a line."""
    lines = [f'  "{metric.name}": {json.dumps(row(metric))}' for metric in METRICS]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    PATH.write_text(text())
