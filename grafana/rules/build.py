"""Writes alerts.yml from the table of alerts: ``python grafana/rules/build.py [--runbooks URL]``.

Where runbooks can be read is what ``--runbooks`` says, else ``Runbooks`` among pyproject.toml's ``[project.urls]``, else the
place in the repository whose address is ``Repository`` there. Without any of them a link is only a path in this repository.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER))

from table import ALERTS, OF_THIS_SERVER, THIS_SERVER, Alert, asked  # noqa: E402

PROJECT = FOLDER.parents[1] / "pyproject.toml"
RUNBOOKS = "docs/runbooks"
STUCK_INTERVAL = "15s"
HEADER = "# Made by grafana/rules/build.py from grafana/rules/table.py. What each is for: docs/alerts.md.\n"

# Parts of a description that query Prometheus when the alert is evaluated.
WHICH = "{{ with $labels.cluster }}{{ . }}, {{ end }}{{ with $labels.namespace }}{{ . }}, {{ end }}"
LATE = (
    asked("range", f'topk(1, lightllm:last_arrivals_share:ratio10m{{{THIS_SERVER},phase=~"decode|prefill"}})')
    + " Last to arrive: rank {{ .Labels.rank }}, in {{ .Value | humanizePercentage }} of the collectives with a wait.{{ end }}"
    + asked("range", f"lightllm:collective_wait_share:ratio10m{{{THIS_SERVER}}}")
    + " Of a collective's time in {{ .Labels.phase }} {{ .Value | humanizePercentage }} is waiting, the rest transfer.{{ end }}"
)
VERSIONS = (
    asked(
        "with", f"group by (lightllm, torch, cuda, plugin) (last_over_time(lightllm_server_info{{{THIS_SERVER}}}[1d]))"
    )
    + " Versions of the last day:{{ range . }} lightllm {{ .Labels.lightllm }}, torch {{ .Labels.torch }}, "
    "CUDA {{ .Labels.cuda }}, plugin {{ .Labels.plugin }};{{ end }}{{ end }}"
)


def gpus(of_rank: bool) -> str:
    """The GPUs of the server, or the one of the alert's rank."""
    which, rank = ("{rank=%q}", " $labels.rank") if of_rank else ("", "")
    return (
        asked("with", f"group by (rank, uuid) (lightllm_gpu_info{which} {OF_THIS_SERVER})", rank, by="rank")
        + " GPU{{ range . }} {{ .Labels.rank }}: {{ .Labels.uuid }}{{ end }}.{{ end }}"
    )


def since(name: str) -> str:
    return (
        asked("with", f'min(ALERTS_FOR_STATE{{alertname="{name}",{THIS_SERVER}}})')
        + " Since {{ . | first | value | humanizeTimestamp }}.{{ end }}"
    )


def description(alert: Alert) -> str:
    """Server, what, who was late, GPU, since when, versions, effect on users, first action."""
    effect = f" For users: {alert.effect} First: {alert.action}"
    if not alert.of_server:
        return alert.what[0].upper() + alert.what[1:] + effect
    return (
        "{{ $labels.server }} (" + WHICH + "{{ $labels.model }}, {{ $labels.gpu }}, TP {{ $labels.tp }}): "
        + alert.what.strip() + (LATE if alert.late else "") + gpus(alert.rank) + since(alert.name) + VERSIONS + effect
    )  # fmt: skip


def rule(alert: Alert, runbooks: str) -> dict[str, Any]:
    made: dict[str, Any] = {"alert": alert.name, "expr": alert.expr, "for": alert.lasts, "keep_firing_for": alert.keeps}
    for key in ("for", "keep_firing_for"):
        if made[key] == "0s":
            del made[key]
    made["labels"] = {"severity": alert.severity, **({"window": alert.window} if alert.window else {})}
    made["annotations"] = {
        "summary": alert.summary,
        "description": description(alert),
        "runbook_url": f"{runbooks}/{alert.name}.md",
    }
    return made


def place(project: str) -> str:
    """Where the runbooks can be read, by the text of pyproject.toml (Python 3.9 reads no TOML)."""
    section = re.search(r"^\[project\.urls\]$(.*?)(?=^\[|\Z)", project, re.MULTILINE | re.DOTALL)
    urls = dict(re.findall(r'^"?(\w+)"? = "([^"]+)"', section[1], re.MULTILINE)) if section else {}
    if "Runbooks" in urls:
        return urls["Runbooks"].rstrip("/")
    return f"{urls['Repository'].rstrip('/')}/blob/main/{RUNBOOKS}" if "Repository" in urls else RUNBOOKS


def rules(runbooks: str) -> dict[str, Any]:
    """As Prometheus reads it. What must be seen within a minute is looked at more often."""
    quick = [alert for alert in ALERTS if alert.lasts == "0s"]
    return {
        "groups": [
            {
                "name": "lightllm-stuck",
                "interval": STUCK_INTERVAL,
                "rules": [rule(alert, runbooks) for alert in quick],
            },
            {
                "name": "lightllm-alerts",
                "interval": "30s",
                "rules": [rule(alert, runbooks) for alert in ALERTS if alert not in quick],
            },
        ]
    }


def text(runbooks: str | None = None) -> str:
    made = rules(place(PROJECT.read_text()) if runbooks is None else runbooks.rstrip("/"))
    return HEADER + yaml.safe_dump(made, sort_keys=False, width=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runbooks", metavar="URL", help="where the runbooks can be read")
    (FOLDER / "alerts.yml").write_text(text(parser.parse_args().runbooks))


if __name__ == "__main__":
    main()
