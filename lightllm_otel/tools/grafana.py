"""``lightllm-otel grafana push|check``: install the dashboards in a Grafana, or check that they are installed and current."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from lightllm_otel.exporter.grafana import SAME, Change, Datasource, Grafana, GrafanaProblem, packaged

DONE = {"create": "created", "change": "changed", "same": "unchanged"}
DUE = {"create": "is missing", "change": "differs", "same": "is current"}


def add(commands: Any) -> None:
    """Add the parser of this command."""
    grafana = commands.add_parser("grafana", help="install the dashboards in a Grafana, or check that they are current")
    grafana.add_argument("action", choices=("push", "check"))
    grafana.add_argument("--url", default=os.environ.get("GRAFANA_URL", ""), help="http://…:3000; default: GRAFANA_URL")
    grafana.add_argument(
        "--token",
        default=os.environ.get("GRAFANA_TOKEN", ""),
        help="token of a service account; default: GRAFANA_TOKEN",
    )
    grafana.add_argument(
        "--user",
        default=os.environ.get("GRAFANA_USER", ""),
        help="user, if there is no token; its password is read from GRAFANA_PASSWORD",
    )
    grafana.add_argument(
        "--datasource", metavar="NAME", help="data source (a Prometheus) that the dashboards select by default"
    )
    grafana.add_argument("--prometheus-url", metavar="URL", help="create that data source, or change its URL")
    grafana.add_argument("--dry-run", action="store_true", help="with push: only print what would change, as a diff")
    grafana.add_argument("--json", action="store_true")


def grafana(given: argparse.Namespace) -> int:
    """Push or check. Return exit status 0 for success, 1 for a problem or (check) a difference, 2 for wrong usage."""
    problem = _usage(given)
    if problem:
        print(f"lightllm-otel grafana: {problem}", file=sys.stderr)
        return 2
    try:
        return _push(given) if given.action == "push" else _check(given)
    except GrafanaProblem as found:
        print(f"lightllm-otel grafana: {found}", file=sys.stderr)
        return 1


def _usage(given: argparse.Namespace) -> str:
    if not given.url:
        return "pass --url, or set GRAFANA_URL"
    if not given.token and not (given.user and os.environ.get("GRAFANA_PASSWORD")):
        return "pass --token, or set GRAFANA_TOKEN, or pass --user and set GRAFANA_PASSWORD"
    if given.prometheus_url and not given.datasource:
        return "--prometheus-url needs the name of the data source: --datasource"
    return ""


def _changes(given: argparse.Namespace) -> tuple[Grafana, list[Change]]:
    auth = given.token or (given.user, os.environ["GRAFANA_PASSWORD"])
    server = Grafana(given.url, auth)
    source = Datasource(given.datasource, given.prometheus_url) if given.datasource else None
    return server, server.changes(packaged(), source)


def _push(given: argparse.Namespace) -> int:
    server, changes = _changes(given)
    say = (lambda text: None) if given.json else print
    done: list[Change] = []
    try:
        for change in changes:
            if given.dry_run:
                say("\n".join([f"{change.what} {DUE[change.state]}", *(f"  {line}" for line in change.diff)]))
            else:
                server.apply(change)
                say(f"{change.what}: {DONE[change.state]}")
            done.append(change)
    finally:  # also print what was done before a failure
        if given.json:
            print(_json(given, done))
    return 0


def _check(given: argparse.Namespace) -> int:
    server, changes = _changes(given)
    if given.json:
        print(_json(given, changes))
        return int(any(change.state != SAME for change in changes))
    print(f"Grafana {server.version()} at {given.url}")
    for change in changes:
        print(f"{change.what} {DUE[change.state]}")
    if all(change.state == SAME for change in changes):
        return 0
    print("next: lightllm-otel grafana push")
    return 1


def _json(given: argparse.Namespace, changes: list[Change]) -> str:
    """Return the changes as JSON: those that were made, or (check, --dry-run) those that are due."""
    words = DUE if given.action == "check" or given.dry_run else DONE
    found = [{"what": each.what, "state": words[each.state], "diff": list(each.diff)} for each in changes]
    return json.dumps({"kind": "grafana", "action": given.action, "url": given.url, "changes": found})
