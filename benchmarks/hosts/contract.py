"""Hold the table of contracts against LightLLM's source, by AST alone: no import of it, no torch, no GPU.

    LIGHTLLM_SRC=CHECKOUT python benchmarks/hosts/contract.py
    LIGHTLLM_CLONE=CLONE python benchmarks/hosts/contract.py      # the tip of its main branch, or LIGHTLLM_REVISION

With neither, the LightLLM that is installed here. Prints which rows fit, what is lost, and what nothing covers. Exit status 1:
LightLLM would break, or figures would be wrong; 2: there is nothing to look at.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import _paths  # noqa: F401 - puts the other folders on sys.path
from lightllm_source import origin, wrappers
from lightllm_source.attribution import Attribution, Plugin
from lightllm_source.forward import Roles
from lightllm_source.rows import FITS, State, look_up, state_of
from lightllm_source.rules import LOST, RULES, is_there
from lightllm_source.scan import Scan
from lightllm_source.tree import Tree
from lightllm_source.wrappers import Wrapper, passed_by_name, refuses

from lightllm_otel.contracts import table as contracts
from lightllm_otel.contracts.table import Field, Hook, Row, lost
from lightllm_otel.records.vocabulary import Feature
from lightllm_otel.worker.host import slots

CLASS_MAKER = "grouped"  # keeps a class, and wraps nothing
# What the plugin does beside the rows, and rules of absence rely on.
BEHAVIOURS = {
    "rebinds_back_references": "what refers back to the state of a forward is copied and bound to the copy, or refused",
}


@dataclasses.dataclass(frozen=True)
class Contract:
    """Everything that is assumed of LightLLM. ``wrappers``: the signatures that each maker of hooks gives its wrappers.
    ``attribution``: how the GPU time of a model is counted.

    ``careful``: whether a hook is made only where its row fits, and not wherever its place exists.
    """

    hooks: tuple[Hook, ...]
    fields: tuple[Field, ...]
    leaf_names: frozenset[str]
    attribution: Callable[[Tree, Roles], Attribution]
    wrappers: Mapping[str, Sequence[Wrapper]]
    behaviours: Collection[str] = ()
    careful: bool = True

    @classmethod
    def of_plugin(cls) -> Contract:
        """Return what the plugin as it is assumes."""
        return cls(
            contracts.HOOKS,
            contracts.FIELDS,
            frozenset(leaf.name for leaf in (*slots.TORCH_LEAVES, *slots.GROUP_LEAVES)),
            Plugin,
            wrappers.of_plugin(),
            BEHAVIOURS,
        )

    @property
    def rows(self) -> tuple[Row, ...]:
        return (*self.hooks, *self.fields)

    @property
    def unseen(self) -> list[str]:
        """Hooks whose wrapper was not found in the plugin's source, so that nobody can tell whether it breaks the host."""
        return [hook.name for hook in self.hooks if hook.maker != CLASS_MAKER and hook.maker not in self.wrappers]

    def without(self, name: str) -> Contract:
        """Return the contract without one row."""
        return dataclasses.replace(
            self,
            hooks=tuple(each for each in self.hooks if each.name != name),
            fields=tuple(each for each in self.fields if each.name != name),
        )

    @functools.cached_property
    def hooked(self) -> frozenset[str]:
        return frozenset(hook.place for hook in self.hooks)

    def leaves(self) -> Collection[str]:
        return self.leaf_names

    def reads(self, owner: str) -> Collection[str]:
        return {name for field in self.fields if field.owner == owner for name in field.attributes}


class Finding(NamedTuple):
    """``place``: the words of a rule of absence. ``known``: it is so on purpose, and documented."""

    rule: str
    kind: str
    place: str
    known: bool = False


@dataclasses.dataclass(frozen=True)
class Verdict:
    """``breaks``: rows whose hook would make LightLLM fail, with the reason. ``features``: measured, lost or not there."""

    states: tuple[State, ...]
    breaks: tuple[tuple[str, str], ...]
    lost: Mapping[Feature, tuple[str, ...]]
    there: frozenset[Feature]
    findings: tuple[Finding, ...]

    @property
    def fitting(self) -> frozenset[str]:
        return frozenset(each.row.name for each in self.states if each.state == FITS)

    @property
    def wrong(self) -> list[Finding]:
        """What nothing covers and would give wrong figures or tokens."""
        return [each for each in self.findings if not each.known and each.kind != LOST]

    @property
    def fails(self) -> bool:
        return bool(self.breaks or self.wrong)


def check(tree: Tree, contract: Contract, whole: Optional[Contract] = None) -> Verdict:
    """Hold a contract against one version of LightLLM.

    ``whole``: the contract whose features are asked for, where ``contract`` is a part of it.
    """
    states = tuple(state_of(tree, row) for row in contract.rows)
    fitting = {each.row.name for each in states if each.state == FITS}
    scan = Scan(tree, contract)
    there = frozenset(feature for feature in Feature if is_there(scan, feature))
    missing = lost(fitting, (whole or contract).rows)
    covering = fitting | set(contract.behaviours)
    findings = [
        Finding(rule.name, rule.kind, place, rule.is_known(place))
        for rule in RULES
        if not covering & set(rule.covered)
        for place in dict.fromkeys(rule.finds(scan))
    ]
    return Verdict(
        states,
        tuple(_breaks(tree, contract, fitting)),
        {feature: tuple(row.loses for row in rows) for feature, rows in missing.items() if feature in there},
        there,
        tuple(findings),
    )


def _breaks(tree: Tree, contract: Contract, fitting: Collection[str]) -> Iterator[tuple[str, str]]:
    for hook in contract.hooks:
        place = look_up(tree, hook.module, hook.place)
        if place.is_function and (hook.name in fitting or not contract.careful):
            by_name = functools.partial(passed_by_name, tree, hook.place)
            for wrapper in contract.wrappers.get(hook.maker, ()):
                why = refuses(wrapper, place.parameters, by_name)
                if why:
                    yield hook.name, f"{hook.place}: the wrapper fails: {why}"


def main(environ: Mapping[str, str] = os.environ) -> int:
    """Print how the plugin stands to one LightLLM. Returns the exit status."""
    try:
        tree, name = chosen(environ)
    except origin.NoSource as problem:
        print(f"make contract: {problem}", file=sys.stderr)
        return 2
    contract = Contract.of_plugin()
    verdict = check(tree, contract)
    print("\n".join(report(verdict, name)))
    if contract.unseen:
        print(f"not checked for start failures, because their wrapper was not found: {', '.join(contract.unseen)}")
    return int(verdict.fails)


def chosen(environ: Mapping[str, str]) -> tuple[Tree, str]:
    """Return the LightLLM to look at and its name. Raises NoSource."""
    if environ.get("LIGHTLLM_SRC"):
        return origin.of_folder(Path(environ["LIGHTLLM_SRC"])), f"LightLLM in {environ['LIGHTLLM_SRC']}"
    if environ.get("LIGHTLLM_CLONE"):
        clone = origin.Clone(Path(environ["LIGHTLLM_CLONE"]))
        commit = clone.commit(environ.get("LIGHTLLM_REVISION") or "HEAD")
        return clone.tree(commit), f"LightLLM {commit.name[:9]} of {commit.date}"
    folder = origin.installed()
    if folder is None:
        raise origin.NoSource(
            "no LightLLM is installed here; set LIGHTLLM_SRC to a checkout, or LIGHTLLM_CLONE to a clone of its repository"
        )
    return origin.of_folder(folder), f"LightLLM in {folder}"


def report(verdict: Verdict, name: str) -> Iterator[str]:
    """Yield the lines that are printed."""
    states = verdict.states
    width = max(len(each.row.name) for each in states)
    yield f"{name}: {len(verdict.fitting)} of {len(states)} rows fit"
    yield ""
    for each in states:
        yield f"  {each.row.name:{width}}  {each.state:6}  {each.row.feature.value}" + (
            f"  {each.why}" if each.why else ""
        )
    yield ""
    yield from (f"not in this version: {feature.value}" for feature in Feature if feature not in verdict.there)
    yield from (f"LOST: {feature.value}: {'; '.join(why)}" for feature, why in verdict.lost.items())
    yield from (f"BREAKS: {row}: {why}" for row, why in verdict.breaks)
    for rule in RULES:
        known = [each.place for each in verdict.findings if each.rule == rule.name and each.known]
        places = [each.place for each in verdict.findings if each.rule == rule.name and not each.known]
        if known:
            yield f"on purpose: {rule.says} ({len(known)} places): {rule.known}"
        if places:
            yield f"{'LOST' if rule.kind == LOST else 'WRONG'}: {rule.says}:"
            yield from (f"    {place}" for place in places)
    yield ""
    yield (
        f"start failures: {len(verdict.breaks)}, features lost: {len(verdict.lost)}, "
        f"wrong and not covered: {len(verdict.wrong)}"
    )


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sys.exit(main())
