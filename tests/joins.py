"""Find the joins of a PromQL expression that a second series would break: Prometheus fails the whole expression there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Optional

import promql_parser as promql

SET_OPERATORS = ("and", "or", "unless")  # they never fail, however many series match


@dataclasses.dataclass(frozen=True)
class Shape:
    """Labels that a series of a vector can have, and those that tell it from all others. None: there is no limit.

    A series that was scraped has no limit: a target can have any labels, and two targets can have the same ones but one.
    """

    labels: Optional[frozenset[str]] = None
    key: Optional[frozenset[str]] = None


SCALAR = Shape(frozenset(), frozenset())


def risky(text: str, recorded: Mapping[str, Shape]) -> list[str]:
    """Return the joins in ``text`` that a second series could break; ``recorded``: the shapes of recorded metrics."""
    found: list[str] = []
    _shape(promql.parse(text), recorded, found)
    return found


def shape(text: str, recorded: Mapping[str, Shape]) -> Shape:
    return _shape(promql.parse(text), recorded, [])


def _shape(node: object, recorded: Mapping[str, Shape], found: list[str]) -> Shape:
    if isinstance(node, promql.VectorSelector):
        return recorded.get(node.name, Shape())
    if isinstance(node, promql.MatrixSelector):
        return _shape(node.vector_selector, recorded, found)
    if isinstance(node, promql.AggregateExpr):
        return _aggregate(node, _shape(node.expr, recorded, found))
    if isinstance(node, promql.BinaryExpr):
        return _binary(node, _shape(node.lhs, recorded, found), _shape(node.rhs, recorded, found), found)
    if isinstance(node, promql.Call):
        return _call(node, [_shape(each, recorded, found) for each in node.args])
    if isinstance(node, (promql.NumberLiteral, promql.StringLiteral)):
        return SCALAR
    return _shape(node.expr, recorded, found)  # in parentheses, negated, a subquery


def _call(node: promql.Call, given: list[Shape]) -> Shape:
    if node.func.name in ("scalar", "vector", "time"):
        return SCALAR
    vectors = [each for each, argument in zip(given, node.args) if not _is_literal(argument)]
    (of,) = vectors
    if node.func.name == "label_replace" and of.labels is not None:
        return dataclasses.replace(of, labels=of.labels | {node.args[1].val})
    if node.func.name == "histogram_quantile" and of.labels is not None:
        return Shape(of.labels - {"le"}, of.key and of.key - {"le"})
    return of


def _is_literal(node: object) -> bool:
    return isinstance(node, (promql.NumberLiteral, promql.StringLiteral))


def _aggregate(node: promql.AggregateExpr, below: Shape) -> Shape:
    named = frozenset(node.modifier.labels) if node.modifier is not None else frozenset()
    if str(node.op) in ("topk", "bottomk"):
        one = isinstance(node.param, promql.NumberLiteral) and node.param.val == 1
        return Shape(below.labels, named if one else below.key)
    if node.modifier is not None and node.modifier.type == promql.AggModifierType.Without:
        return below if below.labels is None else Shape(below.labels - named, below.labels - named)
    kept = named if below.labels is None else named & below.labels
    return Shape(kept, below.key if below.key is not None and below.key <= kept else kept)


def _binary(node: promql.BinaryExpr, left: Shape, right: Shape, found: list[str]) -> Shape:
    if SCALAR in (left, right) and node.modifier is None:
        return left if right == SCALAR else right
    if str(node.op) == "or":
        return _either(left, right)
    if str(node.op) in SET_OPERATORS or node.modifier is None or node.modifier.matching is None:
        return left  # without labels to match on, series match on all that they have: never two
    matched = _matched(node, left), _matched(node, right)
    grouped = node.modifier.card == promql.VectorMatchCardinality.ManyToOne
    if not matched[1] or not (matched[0] or grouped):
        found.append(str(node))
    if not grouped:
        return Shape(left.labels and left.labels & frozenset(node.modifier.matching.labels), left.key)
    brought = frozenset(node.modifier.group_labels or ())
    if brought and (left.labels is None or brought & left.labels):
        found.append(f"replaces labels of the left: {node}")
    return Shape(None if left.labels is None else left.labels | brought, left.key)


def _either(left: Shape, right: Shape) -> Shape:
    if left.labels is None or right.labels is None:
        return Shape()
    same = left.key == right.key
    return Shape(left.labels | right.labels, left.key if same else left.labels | right.labels)


def _matched(node: promql.BinaryExpr, side: Shape) -> bool:
    """Return whether at most one series of this side has the labels that are matched on."""
    labels = frozenset(node.modifier.matching.labels)
    if node.modifier.matching.type == promql.LabelModifierType.Include:
        return side.key is not None and side.key <= labels
    return side.key is not None and not side.key & labels


def recorded(rules: list[dict[str, str]]) -> dict[str, Shape]:
    """Return the shapes of all recorded metrics. A rule may use a metric that is recorded further down."""
    known: dict[str, Shape] = {}
    for _ in rules:
        new = {rule["record"]: shape(rule["expr"], known) for rule in rules}
        if new == known:
            break
        known = new
    return known
