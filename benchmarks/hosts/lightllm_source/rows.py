"""How each row of the table of contracts stands to one version of LightLLM."""

from __future__ import annotations

import ast
from typing import NamedTuple, Optional

from lightllm_otel.contracts.table import ENVIRONMENT, OPTIONS, Field, Hook, Row
from lightllm_source.syntax import FUNCTIONS, Class, Parameters
from lightllm_source.tree import Found, Tree

FITS, ABSENT, MISFIT = "fits", "absent", "misfit"


class State(NamedTuple):
    """How a row stands to one version: FITS, ABSENT (its place does not exist) or MISFIT; and why."""

    row: Row
    state: str
    why: str = ""


class Place(NamedTuple):
    """What a running Python would find at a dotted name. ``parameters``: of a function, None where they are not known.
    ``state`` and ``why``: where there is nothing that can be called.
    """

    parameters: Optional[Parameters] = None
    cls: Optional[Found] = None
    state: str = FITS
    why: str = ""

    @property
    def is_function(self) -> bool:
        return self.state == FITS and self.cls is None


def look_up(tree: Tree, module: str, place: str) -> Place:
    """Find ``function``, ``Class`` or ``Class.method`` in a module, inherited and decorated ones as well."""
    content = tree.module(module)
    if content is None:
        return Place(state=ABSENT, why=f"there is no {module}")
    if content.broken:
        return Place(state=ABSENT, why=f"{module} cannot be parsed: {content.broken}")
    name, _, method = place.partition(".")
    found = tree.find(module, name)
    if found is None:
        return Place(state=ABSENT, why=f"there is no {name} in {module}")
    if method and isinstance(found.what, Class):
        member = tree.member(found, method)
        if member is None:
            return Place(state=ABSENT, why=f"{name} has no {method}")
        found = Found(member.owner.module, member.what[-1] if isinstance(member.what, list) else member.what)
    if isinstance(found.what, Class):
        return Place(cls=found)
    if isinstance(found.what, FUNCTIONS):
        if any(getattr(each, "id", "") == "property" for each in found.what.decorator_list):
            return Place(state=MISFIT, why=f"{place} is a property")
        return Place(tree.parameters(found.module, found.what))
    if isinstance(found.what, (ast.Call, ast.Lambda, ast.Attribute, ast.Name)):
        return Place()  # a partial, or what a decorator made: it can be called, how is not known
    return Place(state=MISFIT, why=f"{place} is not a function")


def state_of(tree: Tree, row: Row) -> State:
    """Tell how a row stands to a version."""
    return _hook(tree, row) if isinstance(row, Hook) else _field(tree, row)


def _hook(tree: Tree, hook: Hook) -> State:
    place = look_up(tree, hook.module, hook.place)
    if place.state != FITS:
        return State(hook, place.state, place.why)
    if not hook.reads:
        return State(hook, FITS)
    names = place.parameters.names if place.parameters is not None else ()
    if any(set(each) <= set(names) for each in hook.reads):
        return State(hook, FITS)
    wanted = " or ".join(" and ".join(each) for each in hook.reads)
    return State(hook, MISFIT, f"{hook.place}({', '.join(names) or '?'}) has not {wanted}")


def _field(tree: Tree, field: Field) -> State:
    if tree.module(field.module) is None:
        return State(field, ABSENT, f"there is no {field.module}")
    lacking = [name for name in field.attributes if not _has(tree, field, name)]
    if not lacking:
        return State(field, FITS)
    state = ABSENT if len(lacking) == len(field.attributes) else MISFIT
    return State(field, state, f"{field.owner or field.module} has not {', '.join(lacking)}")


def _has(tree: Tree, field: Field, name: str) -> bool:
    content = tree.module(field.module)
    if field.owner == ENVIRONMENT:
        return content is not None and name in content.words
    if field.owner == OPTIONS:
        return content is not None and f"--{name}" in content.words
    if not field.owner:
        return tree.find(field.module, name) is not None
    place = look_up(tree, field.module, field.owner)
    if place.cls is not None:
        return tree.has(place.cls, name)
    return place.parameters is not None and name in place.parameters.names
