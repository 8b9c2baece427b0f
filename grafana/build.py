"""Write grafana/dashboards/*.json from the boards: ``python grafana/build.py``."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from grafana import render_json  # noqa: E402
from grafana.boards import BOARDS  # noqa: E402

DASHBOARDS = ROOT / "grafana" / "dashboards"


def main() -> None:
    wanted = {f"{board.uid}.json": render_json.text(board) for board in BOARDS}
    for path in DASHBOARDS.glob("*.json"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (DASHBOARDS / name).write_text(text)


if __name__ == "__main__":
    main()
