"""Hold the table of contracts against every LightLLM since July 2025: ``python benchmarks/hosts/hosts.py CLONE``.

Reads a clone of LightLLM's repository (a bare one will do) by AST alone: every commit of main since the first that the plugin
was made for, the tags, the tips of branches, and PyPI's package where it is installed. Writes benchmarks/results/hosts.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import _paths  # noqa: F401 - puts the other folders on sys.path
import outcome
from contract import Contract, Verdict, check
from lightllm_source import origin
from lightllm_source.origin import Clone, Commit
from lightllm_source.rows import ABSENT, FITS, MISFIT
from lightllm_source.rules import LOST, RULES
from lightllm_source.tree import Tree

from lightllm_otel.contracts.table import JULY_2025, MAIN, OLDEST, V1_1, V1_2
from lightllm_otel.records.vocabulary import Feature

TAGS = ("v1.0.0", "v1.0.1", V1_1, V1_2)
BRANCHES = (
    "lightspec", "support_ds4", "imbalanced", "rl_dev", "neo_npu", "vla", "gemma4_mtp",
    # Of those that live (a commit since July 2026) the three that change most lines in files that the plugin touches.
    "mtp_optimization", "fa4", "rl_verl_rebase_main",
)  # fmt: skip
# The versions that README's table has, and where each is found.
VERSIONS = {OLDEST: OLDEST, JULY_2025: JULY_2025, V1_1: V1_1, V1_2: V1_2, MAIN: MAIN}


class Host(NamedTuple):
    """One LightLLM. ``names``: of tags, branches or a package; most commits have none."""

    commit: Commit
    names: tuple[str, ...]
    tree: Tree


def hosts(clone: Clone) -> Iterator[Host]:
    """Yield every LightLLM that is looked at: PyPI's, the tags, main from July 2025 on, the branches."""
    folder = origin.installed()
    if folder is not None and next(folder.glob(f"{origin.PACKAGE}-{OLDEST}.dist-info"), None) is not None:
        yield Host(Commit("", "", ""), (OLDEST,), origin.of_folder(folder))
    first, tip = clone.commit(JULY_2025), clone.commit(MAIN)
    tags = [(tag, clone.commit(tag)) for tag in TAGS]
    names: dict[str, tuple[str, ...]] = {}
    for name, commit in ((JULY_2025, first), *tags, (MAIN, tip)):
        names[commit.name] = tuple(dict.fromkeys((*names.get(commit.name, ()), name)))
    line = list(clone.since(first.name, tip.name))
    before = [commit for _, commit in tags if commit.name not in {each.name for each in line}]
    for commit in (*before, *line):
        yield Host(commit, names.get(commit.name, ()), clone.tree(commit))
    for branch in BRANCHES:
        commit = clone.commit(branch)
        yield Host(commit, (branch,), clone.tree(commit))


def look(clone: Clone, contract: Contract) -> Iterator[tuple[Host, Verdict]]:
    """Yield each LightLLM with its verdict. A commit that changes nothing that was looked at has its predecessor's."""
    before: tuple[Tree, Verdict] | None = None
    for host in hosts(clone):
        verdict = before[1] if before is not None and host.tree.is_like(before[0]) else check(host.tree, contract)
        if before is None or verdict is not before[1]:
            before = (host.tree, verdict)
        yield host, verdict


class Findings:
    """Numbers for what was found, so that a row stays short."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, rule: str, place: str) -> int:
        return self._numbers.setdefault(f"{rule}: {place}", len(self._numbers))

    def said(self) -> list[str]:
        """Return what each number stands for, in order."""
        return list(self._numbers)


def row(host: Host, verdict: Verdict, findings: Findings) -> dict[str, Any]:
    """Return what is written of one LightLLM; what is empty is left out."""
    states = [each.state for each in verdict.states]
    found = {
        "commit": host.commit.name[:9],
        "date": host.commit.date,
        "name": ", ".join(host.names),
        "fit": states.count(FITS),
        "absent": states.count(ABSENT),
        "misfit": states.count(MISFIT),
        "lost": {feature.value: "; ".join(why) for feature, why in verdict.lost.items()},
        "start_failures": [why for _, why in verdict.breaks],
        "uncovered": numbers(findings, [each for each in verdict.findings if not each.known]),
        "known": sum(each.known for each in verdict.findings),
    }
    return {name: value for name, value in found.items() if value or name in ("fit", "absent")}


def numbers(findings: Findings, found: list[Any]) -> str:
    """Return the numbers of findings as one short text: ``0-3, 7``."""
    ends: list[list[int]] = []
    for number in sorted(findings.number(each.rule, each.place) for each in found):
        if ends and ends[-1][1] == number - 1:
            ends[-1][1] = number
        else:
            ends.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ends)


def features(host: Host, verdict: Verdict) -> dict[str, Any]:
    """Return what the plugin measures of one version: each feature is measured, lost, or not in that version."""
    states = {
        feature.value: "not there"
        if feature not in verdict.there
        else "lost"
        if feature in verdict.lost
        else "measured"
        for feature in Feature
    }
    operators = [each.place.partition(":")[0] for each in verdict.findings if each.rule == "operators_without_slot"
                 and each.place.endswith("every class")]  # fmt: skip
    drafts = any(path.startswith("lightllm/models/") and "mtp" in path for path in host.tree.paths)
    unclaimed = {each.place.partition(":")[0] for each in verdict.findings if each.rule == "unclaimed_work"}
    return {
        "features": states,
        "operators_lost": operators,
        "drafts": drafts,
        "wrong": len(verdict.wrong),
        "unclaimed": sorted(unclaimed),
    }


def summary(
    looked: list[tuple[Host, Verdict]], findings: Findings, tip: Commit, seconds: float, contract: Contract
) -> dict[str, Any]:
    """Return the figures that are claimed."""
    verdicts = [verdict for _, verdict in looked]
    named = {name: (host, verdict) for host, verdict in looked for name in host.names}
    return {
        "tip": tip.name,
        "tip_date": tip.date,
        "hosts": len(looked),
        "rows": len(verdicts[0].states),
        "hooks_without_wrapper": contract.unseen,
        "hosts_with_start_failures": sum(bool(verdict.breaks) for verdict in verdicts),
        "hosts_with_lost_features": sum(bool(verdict.lost) for verdict in verdicts),
        "hosts_with_wrong_figures": sum(bool(verdict.wrong) for verdict in verdicts),
        "seconds": round(seconds, 1),
        "versions": {
            version: {"date": named[name][0].commit.date, **features(*named[name])}
            for version, name in VERSIONS.items()
            if name in named
        },
        "rules": {
            rule.name: {"says": rule.says, "known": rule.known, "lost_only": rule.kind == LOST} for rule in RULES
        },
        "findings": findings.said(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("clone", type=Path, help="a clone of LightLLM's repository, bare or not")
    parser.add_argument("--out", type=Path, default=outcome.RESULTS, help="the folder for hosts.json")
    arguments = parser.parse_args()
    began = time.perf_counter()
    try:
        clone = Clone(arguments.clone)
        contract = Contract.of_plugin()
        looked = list(look(clone, contract))
        tip = clone.commit(MAIN)
        clone.close()
    except origin.NoSource as problem:
        print(f"hosts.py: {problem}", file=sys.stderr)
        return 2
    findings = Findings()
    rows = [row(host, verdict, findings) for host, verdict in looked]
    told = summary(looked, findings, tip, time.perf_counter() - began, contract)
    path = outcome.write("hosts", told, rows, arguments.out)
    print({name: value for name, value in told.items() if isinstance(value, (int, float, str))}, path)
    return int(told["hosts_with_start_failures"] > 0)


if __name__ == "__main__":
    sys.exit(main())
