"""Which functions a function calls, by name, and which call follows which. From its AST alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from typing import Optional

from lightllm_source.syntax import FUNCTIONS, Node, assigned, dotted

MATMUL = "@"
# Code that runs only while a CUDA graph is captured is not on the way of a step.
CAPTURING = re.compile(r"(.*\.)?is_\w*capturing\(\)")


class Flow:
    """The calls of one function as a graph. ``calls[n]``: the dotted name of what node ``n`` calls (``self._ffn``,
    ``layer_weight.o_proj.mm``, ``super().f``), or an empty string. ``follows[n]``: the nodes that may come next.

    Both branches of an ``if`` may come; a loop's body runs once; what ends in ``raise`` does not reach ``END``. Functions
    that are defined inside count where they are called. ``needs[n]``: ``(attribute, value)`` where node ``n`` comes only if the
    object's attribute is true, or false.
    """

    BEGIN, END = 0, 1

    def __init__(self, function: Node) -> None:
        self.calls: list[str] = ["", ""]
        self.follows: list[set[int]] = [set(), set()]
        self.needs: dict[int, tuple[str, bool]] = {}
        self._inner: dict[str, Node] = {}
        self._aliases: dict[str, list[str]] = {}
        self._entered: set[str] = set()
        self._link(self._block(function.body, self.BEGIN, self.END), self.END)

    def _node(self, call: str, *before: Optional[int]) -> int:
        self.calls.append(call)
        self.follows.append(set())
        for each in before:
            self._link(each, len(self.calls) - 1)
        return len(self.calls) - 1

    def _link(self, before: Optional[int], after: int) -> None:
        if before is not None:
            self.follows[before].add(after)

    def _block(self, body: Sequence[ast.stmt], at: int, end: int) -> Optional[int]:
        """Add statements behind the node ``at``. Returns the last node, None where every way has left for ``end``."""
        now: Optional[int] = at
        for statement in body:
            if now is None:
                return None
            now = self._statement(statement, now, end)
        return now

    def _statement(self, statement: ast.stmt, at: int, end: int) -> Optional[int]:
        if isinstance(statement, FUNCTIONS):
            self._inner[statement.name] = statement
        elif isinstance(statement, ast.Raise):
            return None
        elif isinstance(statement, ast.If):
            return self._branches(statement, self._expression(statement.test, at), end)
        elif isinstance(statement, (ast.For, ast.AsyncFor, ast.While)):
            head = statement.test if isinstance(statement, ast.While) else statement.iter
            return self._block([*statement.body, *statement.orelse], self._expression(head, at), end)
        elif isinstance(statement, (ast.With, ast.AsyncWith)):
            for item in statement.items:
                at = self._expression(item.context_expr, at)
            return self._block(statement.body, at, end)
        elif isinstance(statement, ast.Try):
            return self._block([*statement.body, *statement.orelse, *statement.finalbody], at, end)
        elif not isinstance(statement, (ast.Assert, ast.ClassDef)):
            for target, value in assigned(statement):
                if isinstance(target, ast.Name):
                    self._aliases[target.id] = [name for name in _functions(value) if "." in name]
            at = self._expression(statement, at)
            if isinstance(statement, ast.Return):
                self._link(at, end)
                return None
        return at

    def _branches(self, statement: ast.If, at: int, end: int) -> Optional[int]:
        test = statement.test
        either = [statement.body, statement.orelse]
        if any(CAPTURING.fullmatch(dotted(each)) for each in ast.walk(test)):
            negated = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
            either = either[:1] if negated else either[1:]
        ends = []
        attribute, value = _attribute(test)
        for holds, body in zip((value, not value), either):
            begin = at
            if attribute:
                begin = self._node("", at)
                self.needs[begin] = (attribute, holds)
            last = self._block(body, begin, end)
            ends += [] if last is None else [last]
        return self._node("", *ends) if ends else None

    def _expression(self, expression: ast.AST, at: int) -> int:
        """Add the calls inside an expression in the order in which they run."""
        if isinstance(expression, ast.Lambda):
            return at
        if isinstance(expression, ast.IfExp):
            at = self._expression(expression.test, at)
            return self._node("", self._expression(expression.body, at), self._expression(expression.orelse, at))
        for child in ast.iter_child_nodes(expression):
            at = self._expression(child, at)
        if isinstance(expression, ast.Call):
            return self._call(dotted(expression.func), at)
        if isinstance(expression, ast.BinOp) and isinstance(expression.op, ast.MatMult):
            return self._node(MATMUL, at)
        return at

    def _call(self, name: str, at: int) -> int:
        if name in self._inner and name not in self._entered:
            self._entered.add(name)
            end = self._node("")
            self._link(self._block(self._inner[name].body, at, end), end)
            self._entered.discard(name)
            return end
        names = self._aliases.get(name) or [name]
        return self._node("", *[self._node(each, at) for each in names]) if len(names) > 1 else self._node(names[0], at)


def _attribute(test: ast.expr) -> tuple[str, bool]:
    """Return the attribute that ``self.x`` or ``not self.x`` asks for, and its value in the first branch; else an empty name."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        attribute, value = _attribute(test.operand)
        return attribute, not value
    return (test.attr, True) if isinstance(test, ast.Attribute) and dotted(test.value) == "self" else ("", True)


def flow_of(function: Node) -> Flow:
    """Return the flow of a function, made once and kept with its AST."""
    kept: Optional[Flow] = getattr(function, "flow", None)
    if kept is None:
        kept = Flow(function)
        function.flow = kept  # type: ignore[union-attr]
    return kept


def _functions(value: ast.expr) -> Iterator[str]:
    """Yield what a local name may stand for when it is called: ``(self.a, self.b)[mode]``, ``self.a if mode else self.b``."""
    if isinstance(value, ast.Attribute):
        yield dotted(value)
    elif isinstance(value, ast.Subscript):
        yield from _functions(value.value)
    elif isinstance(value, ast.Tuple):
        for each in value.elts:
            yield from _functions(each)
    elif isinstance(value, ast.IfExp):
        yield from _functions(value.body)
        yield from _functions(value.orelse)
