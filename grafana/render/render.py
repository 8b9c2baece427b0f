"""Pictures of the dashboards without a Grafana: ``npm install`` in this folder, then ``python grafana/render/render.py``.

The panels' queries are asked of a Prometheus that scrapes ``lightllm-otel demo --fleet``; their answers are drawn in headless
Chromium by Grafana's own components. Not a Grafana server: variables, links and tooltips are not drawn.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LABEL = re.compile(r"{{ *(\w+) *}}")
EVERYTHING = dict.fromkeys(("job", "model", "rank", "phase", "operator", "other", "lightllm"), ".+")
ROWS = 14  # of a table
PAGE = """<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="panels.css">
<body style="margin:0"><div id="root"></div>
<script>window.RENDER=%s</script><script src="panels.js"></script>"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=int, default=240, help="of the demonstration before the pictures are taken")
    options.add_argument("--only", action="append", help="a dashboard's uid; again for each")
    options.add_argument("--prometheus", help="a running one, in the place of the demonstration")
    options.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures")
    given = options.parse_args()
    bundle()
    if given.prometheus:
        draw(given.prometheus, given)
        return
    command = [sys.executable, "-m", "lightllm_otel", "demo", "--fleet", "--port", "9601", "--prometheus", "9690"]
    demo = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        time.sleep(given.seconds)
        draw("http://127.0.0.1:9690", given)
    finally:
        demo.terminate()
        demo.wait(timeout=30)


def bundle() -> None:
    (HERE / "out").mkdir(exist_ok=True)
    loaders = [f"--loader:.{kind}={how}" for kind, how in
               (("svg", "dataurl"), ("png", "dataurl"), ("woff2", "dataurl"), ("ttf", "empty"))]  # fmt: skip
    command = [HERE / "node_modules" / ".bin" / "esbuild", "panels.tsx", "--bundle", "--minify", "--outfile=out/panels.js",
               '--define:process.env.NODE_ENV="production"', "--log-level=error", *loaders]  # fmt: skip
    subprocess.run([str(each) for each in command], cwd=HERE, check=True)


def draw(prometheus: str, given: argparse.Namespace) -> None:
    end = int(time.time())
    start = end - min(given.seconds - 20, 3600)
    for path in sorted((ROOT / "grafana" / "dashboards").glob("*.json")):
        if given.only and path.stem not in given.only:
            continue
        dashboard = json.loads(path.read_text())
        asked = Asked(
            prometheus, start, end, one_server=path.stem not in ("lightllm-otel-fleet", "lightllm-otel-plugin")
        )
        answers = {panel["id"]: asked.panel(panel) for panel in dashboard["panels"] if panel["type"] != "row"}
        page = {
            "dashboard": dashboard,
            "answers": {k: v for k, v in answers.items() if v},
            "from": start * 1000,
            "to": end * 1000,
            "dark": True,
        }
        height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"]) * 38 + 16
        html = HERE / "out" / f"{path.stem}.html"
        content = json.dumps(page).replace("</", "<\\/")
        html.write_text(PAGE % content)
        photograph(html, given.out / f"dashboard-{path.stem.removeprefix('lightllm-otel-')}.png", height)
        print(path.stem, f"{len(page['answers'])} of {len(answers)} panels with data", flush=True)


def photograph(html: Path, picture: Path, height: int) -> None:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("there is no chromium in PATH; Debian's package is called chromium")
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=6000",
               f"--window-size=1600,{height}", f"--screenshot={picture}", html.as_uri()]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    try:
        from PIL import Image
    except ImportError:
        return  # three times as large, that is all
    Image.open(picture).convert("RGB").quantize(128).save(picture, optimize=True)


class Asked:
    """What a Prometheus answers, in the shape that the page draws. ``one_server``: only the last of the demonstration's."""

    def __init__(self, url: str, start: int, end: int, one_server: bool) -> None:
        self._url, self._start, self._end = url, start, end
        self._step = max((end - start) // 200, 1)
        everyone = self._get("query", query="lightllm_server_info")
        instances = sorted(each["metric"]["instance"] for each in everyone)
        self._values = {**EVERYTHING, "instance": instances[-1] if one_server else ".+", "other": instances[0], "ago": "1s",
                        "__rate_interval": "20s", "__range": f"{end - start}s"}  # fmt: skip

    def panel(self, panel: dict[str, Any]) -> Any:
        kind = panel["type"]
        if kind == "table":
            return self._table(panel)
        if kind == "xychart":
            return self._points(panel)
        instant = kind in ("stat", "bargauge")
        series = [each for target in panel["targets"] for each in self._series(target, instant)]
        return _grid(series) if kind == "heatmap" and series else series

    def _series(self, target: dict[str, Any], instant: bool) -> list[dict[str, Any]]:
        found = []
        for each in self._ask(target, instant):
            points = [each["value"]] if instant else each["values"]
            values = [float(value) for _, value in points]
            name = LABEL.sub(lambda match, labels=each["metric"]: labels.get(match[1], ""), target["legendFormat"])
            found.append(
                {
                    "name": name,
                    "times": [at * 1000 for at, _ in points],
                    "values": [None if math.isnan(v) else v for v in values],
                }
            )
        return found

    def _points(self, panel: dict[str, Any]) -> Any:
        """Of each series its looks and where its points are, with what they are called."""
        made = []
        lines = self._merged(panel)
        for series in panel["options"]["series"]:
            x, y = series["x"], series["y"]
            points = [
                {"x": line[x], "y": line[y], "name": f"{line['operator']} {line['phase']}"}
                for line in lines
                if line.get(x, 0) > 0 and line.get(y, 0) > 0  # not NaN either
            ]
            made.append(
                {
                    "name": y,
                    "colour": series["pointColor"]["fixed"],
                    "size": series["pointSize"]["fixed"],
                    "points": points,
                }
            )
        return made if any(each["points"] for each in made) else None

    def _merged(self, panel: dict[str, Any]) -> list[dict[str, Any]]:
        """As Grafana merges frames: rows with the same labels; ours join on what all of them have."""
        rows: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}
        for target in panel["targets"]:
            for each in self._ask(target, instant=True):
                labels = tuple(sorted((k, v) for k, v in each["metric"].items() if k not in ("__name__", "job")))
                rows.setdefault(labels, {})[target["legendFormat"]] = float(each["value"][1])
        shared = set.intersection(*({name for name, _ in labels} for labels in rows)) if rows else set()
        merged: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
        for labels, row in rows.items():
            key = tuple(pair for pair in labels if pair[0] in shared)
            merged.setdefault(key, {}).update({**dict(labels), **row})
        return list(merged.values())

    def _table(self, panel: dict[str, Any]) -> Any:
        merged = self._merged(panel)
        values = [target["legendFormat"] for target in panel["targets"]]
        names = sorted({name for row in merged for name in row} - set(values))
        lines = [[*(row.get(name, "") for name in names), *(row.get(name) for name in values)] for row in merged]
        order = panel["options"].get("sortBy") or []
        columns = names + values
        if order:
            at = columns.index(order[0]["displayName"])
            lines.sort(
                key=lambda line: -(line[at] if isinstance(line[at], float) and not math.isnan(line[at]) else -1e9)
            )
        numbers = [False] * len(names) + [True] * len(values)
        return {"columns": columns, "numbers": numbers, "rows": lines[:ROWS]} if lines else None

    def _ask(self, target: dict[str, Any], instant: bool) -> list[dict[str, Any]]:
        expr = target["expr"]
        for name in sorted(self._values, key=len, reverse=True):
            expr = expr.replace(f"${name}", self._values[name])
        if instant:
            return self._get("query", query=expr, time=self._end)
        return self._get("query_range", query=expr, start=self._start, end=self._end, step=self._step)

    def _get(self, what: str, **words: Any) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(words)}", timeout=60) as answer:
            result: list[dict[str, Any]] = json.loads(answer.read())["data"]["result"]
        return result


def _grid(series: list[dict[str, Any]]) -> dict[str, Any]:
    """Cumulative buckets as cells: names from the lowest bound up, counts by bucket and time."""
    ordered = sorted(series, key=lambda each: float(each["name"].replace("+Inf", "inf")))
    times = sorted({at for each in ordered for at in each["times"]})
    below, cells = [0.0] * len(times), []
    for each in ordered:
        found = dict(zip(each["times"], each["values"]))
        here = [found.get(at) or 0.0 for at in times]
        cells.append([max(now - before, 0.0) for now, before in zip(here, below)])
        below = here
    return {"names": [each["name"] for each in ordered], "times": times, "cells": cells}


if __name__ == "__main__":
    main()
