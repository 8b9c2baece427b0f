"""``lightllm-otel doctor``: print what is active on this machine, what is missing, and how to fix it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable

from lightllm_otel.tools import environment_findings, group_findings
from lightllm_otel.tools.finding import OK, WRONG, Finding, guarded
from lightllm_otel.tools.table import table


def doctor(as_json: bool, remote: bool) -> int:
    """Print all findings. Return exit status 0 if nothing is wrong, else 1.

    ``remote``: Prometheus runs on another machine, so an exporter that listens on the loopback address is wrong.
    """
    servers = guarded("servers", lambda: group_findings.groups(remote))
    running = any((finding.state, finding.about) == (OK, "server") for finding in servers)
    findings = [
        *guarded("hook", lambda: environment_findings.hook(running)),
        *guarded("settings", lambda: environment_findings.settings(running)),
        *guarded("versions", environment_findings.versions),
        *servers,
    ]
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1))
    else:
        print("\n".join(lines(findings)))
    return int(any(finding.state == WRONG for finding in findings))


def lines(findings: Iterable[Finding]) -> list[str]:
    """Return the findings as lines of text, each remedy in a line of its own."""
    rows: list[list[str]] = []
    for each in findings:
        rows.append([each.state, each.about, each.what])
        if each.remedy:
            rows.append(["", "", f"→ {each.remedy}"])
    return table(rows, "<<<", (4, 10))
