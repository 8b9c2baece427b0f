"""Result files of benchmarks, and of which LightLLM and GPU each figure is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
JULY_2025 = "fc72ffab"  # the LightLLM of every figure that names none
MAIN = "main"
ENGLISH, CHINESE = "en", "zh"


def result(name: str) -> dict[str, Any]:
    """Return the content of ``benchmarks/results/NAME.json``."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return content


@dataclasses.dataclass(frozen=True)
class Measured:
    """Part of a result file that is about one LightLLM.

    ``host``: its commit, or ``NAME@COMMIT``. ``served``: measured inside a real server (served.py); then the summary of
    overhead.json has a level for the shape, and other names of settings.
    """

    host: str
    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    gpu: dict[str, Any]
    served: bool

    @property
    def name(self) -> str:
        """Name of the version, without its commit."""
        return self.host.partition("@")[0]

    def title(self, language: str = ENGLISH) -> str:
        """Its version for readers."""
        return version(self.name, self.date, language)

    @property
    def commit(self) -> str:
        """Its commit, which may be shortened."""
        return self.host.rpartition("@")[2]

    @property
    def date(self) -> str:
        """Date of its commit; empty where hosts.json does not have it."""
        return next((date for known, date in commits().items() if known.startswith(self.commit[:9])), "")


def measured(content: dict[str, Any]) -> list[Measured]:
    """Split a result file by LightLLM: main first, that of July 2025 last."""
    summary, rows = content["summary"], content["rows"]
    served = []
    for host, own in summary.get("hosts", {}).items():
        of_host = [row for row in rows if row.get("host") == host]
        gpus = [row["gpu"] for row in of_host if "gpu" in row]
        served.append(Measured(host, own, of_host, gpus[-1] if gpus else content["gpu"], served=True))
    served.sort(key=lambda each: each.name != MAIN)
    july = [row for row in rows if row.get("host", JULY_2025) == JULY_2025]
    return [*served, Measured(JULY_2025, summary, july, content["gpu"], served=False)]


def version(name: str, date: str, language: str = ENGLISH) -> str:
    """Return what readers call a version of LightLLM; ``date`` is empty for what is on PyPI."""
    if name == MAIN:
        return {ENGLISH: f"main of {date}", CHINESE: f"{date} 的 main"}[language]
    if name == JULY_2025:
        return {ENGLISH: f"July 2025 ({name})", CHINESE: f"2025 年 7 月（{name}）"}[language]
    return name if date else f"{name} (PyPI)"


def commits() -> dict[str, str]:
    """Return the date of every version in hosts.json by its commit."""
    rows = [row for row in result("hosts")["rows"] if "commit" in row and "date" in row]
    return {row["commit"]: row["date"] for row in rows}
