"""The committed dashboards, and what can be asked of their queries."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "grafana" / "dashboards"
PATHS = sorted(FOLDER.glob("*.json"))
LEGEND = re.compile(r"{{ *(\w+) *}}")
VALUES = {  # what Grafana puts in the place of its variables: everything, at once
    "$__rate_interval": "20s", "$__range": "60s", "$ago": "1s",
    **{f"${name}": ".+" for name in ("job", "instance", "model", "rank", "phase", "operator", "other", "lightllm")},
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Target:
    dashboard: str
    panel: dict
    target: dict

    def __str__(self) -> str:
        return f"{self.dashboard.removeprefix('lightllm-otel-')}: {self.panel['title']} {self.target['refId']}"

    @property
    def written(self) -> str:
        return self.target["expr"]

    @property
    def expr(self) -> str:
        return substituted(self.written)

    @property
    def legend(self) -> set[str]:
        """Labels that the legend shows; a table's columns are named, not filled in."""
        return set(LEGEND.findall(self.target["legendFormat"]))


def substituted(text: str) -> str:
    for name in sorted(VALUES, key=len, reverse=True):
        text = text.replace(name, VALUES[name])
    return text


def load(path: Path) -> dict:
    return json.loads(path.read_text())


def panels(dashboard: dict) -> list[dict]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def targets() -> Iterator[Target]:
    for path in PATHS:
        for panel in panels(load(path)):
            for target in panel["targets"]:
                yield Target(path.stem, panel, target)


ALL = list(targets())
