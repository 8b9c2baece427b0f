"""One file of Python as its text says it: classes, functions, imports, and the parameters of functions."""

from __future__ import annotations

import ast
import dataclasses
import functools
import warnings
from collections.abc import Iterator
from typing import NamedTuple, Optional, Union

Node = Union[ast.FunctionDef, ast.AsyncFunctionDef]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_BLOCKS = (ast.If, ast.Try, ast.With)


class Parameters(NamedTuple):
    """``names``: all, in order, with ``*args`` and ``**kwargs``. ``positional``: those that have a place. ``optional``: those
    with a default, or by keyword only with one.
    """

    names: tuple[str, ...]
    positional: tuple[str, ...]
    optional: frozenset[str] = frozenset()
    star: bool = False
    stars: bool = False

    @classmethod
    def of(cls, given: ast.arguments) -> Parameters:
        positional = [each.arg for each in (*given.posonlyargs, *given.args)]
        keyword_only = [each.arg for each in given.kwonlyargs]
        optional = positional[len(positional) - len(given.defaults) :] if given.defaults else []
        optional += [name for name, default in zip(keyword_only, given.kw_defaults) if default is not None]
        names = [*positional, *([given.vararg.arg] if given.vararg else []), *keyword_only]
        names += [given.kwarg.arg] if given.kwarg else []
        return cls(
            tuple(names),
            tuple(positional),
            frozenset(optional),
            given.vararg is not None,
            given.kwarg is not None,
        )

    def bound(self) -> Parameters:
        """Return the parameters without the first one."""
        return self._replace(names=self.names[1:], positional=self.positional[1:]) if self.positional else self


@dataclasses.dataclass(eq=False)
class Class:
    """``values``: what the body assigns. ``instance``: what methods assign to ``self``. ``fields``: every name that an
    instance has for sure.
    """

    name: str
    bases: tuple[str, ...]
    methods: dict[str, Node] = dataclasses.field(default_factory=dict)
    values: dict[str, ast.expr] = dataclasses.field(default_factory=dict)
    instance: dict[str, list[ast.expr]] = dataclasses.field(default_factory=dict)
    fields: set[str] = dataclasses.field(default_factory=set)


@dataclasses.dataclass(eq=False)
class Module:
    """``imports``: local name → (module, dots in front, name there; None for the module itself). ``stars``: star imports."""

    classes: dict[str, Class] = dataclasses.field(default_factory=dict)
    functions: dict[str, Node] = dataclasses.field(default_factory=dict)
    values: dict[str, ast.expr] = dataclasses.field(default_factory=dict)
    imports: dict[str, tuple[str, int, Optional[str]]] = dataclasses.field(default_factory=dict)
    stars: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    body: list[ast.stmt] = dataclasses.field(default_factory=list)
    broken: str = ""

    @functools.cached_property
    def passed(self) -> frozenset[tuple[str, str]]:
        """Return what calls in the module pass by name: pairs of the last word of what is called and the parameter."""
        calls = (node for statement in self.body for node in ast.walk(statement) if isinstance(node, ast.Call))
        return frozenset(
            (dotted(call.func).rpartition(".")[2], word.arg or "") for call in calls for word in call.keywords
        )

    @functools.cached_property
    def words(self) -> frozenset[str]:
        """Return the string constants of the module, names of options and of environment variables among them."""
        nodes = (node for statement in self.body for node in ast.walk(statement))
        return frozenset(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def parse(text: str) -> Module:
    """Read one file. A file that this Python cannot parse is a module with nothing in it, and says so in ``broken``."""
    module = Module()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the host's own escape sequences
            module.body = ast.parse(text).body
    except (SyntaxError, ValueError) as problem:
        module.broken = str(problem)
    for statement in flat(module.body):
        _define(module, statement)
    return module


def flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a body, those under ``if``, ``try`` and ``with`` as well; all branches count."""
    for statement in body:
        if isinstance(statement, _BLOCKS):
            for part in ("body", "handlers", "orelse", "finalbody"):
                for each in getattr(statement, part, ()):
                    yield from flat(each.body if isinstance(each, ast.ExceptHandler) else [each])
        else:
            yield statement


def _define(module: Module, statement: ast.stmt) -> None:
    if isinstance(statement, FUNCTIONS):
        module.functions[statement.name] = statement
    elif isinstance(statement, ast.ClassDef):
        module.classes[statement.name] = _class(statement)
    elif isinstance(statement, ast.Import):
        for alias in statement.names:
            local = alias.asname or alias.name.partition(".")[0]
            module.imports[local] = (alias.name if alias.asname else local, 0, None)
    elif isinstance(statement, ast.ImportFrom):
        for alias in statement.names:
            if alias.name == "*":
                module.stars.append((statement.module or "", statement.level))
            else:
                module.imports[alias.asname or alias.name] = (statement.module or "", statement.level, alias.name)
    else:
        for name, value in assigned(statement):
            if isinstance(name, ast.Name):
                module.values[name.id] = value


def assigned(statement: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Yield what a statement assigns: pairs of target and value."""
    if isinstance(statement, ast.Assign):
        for target in statement.targets:
            if isinstance(target, (ast.Tuple, ast.List)):
                parts = statement.value.elts if isinstance(statement.value, (ast.Tuple, ast.List)) else []
                for number, part in enumerate(target.elts):
                    yield part, parts[number] if len(parts) == len(target.elts) else statement.value
            else:
                yield target, statement.value
    elif isinstance(statement, ast.AnnAssign):
        yield statement.target, statement.value or ast.Constant(value=None)


def _class(node: ast.ClassDef) -> Class:
    made = Class(node.name, tuple(name for name in map(dotted, node.bases) if name))
    for statement in flat(node.body):
        if isinstance(statement, FUNCTIONS):
            made.methods[statement.name] = statement
            for inner in ast.walk(statement):
                for target, value in assigned(inner):
                    if isinstance(target, ast.Attribute) and dotted(target.value) == "self":
                        made.instance.setdefault(target.attr, []).append(value)
        for target, value in assigned(statement):
            if isinstance(target, ast.Name):
                made.values[target.id] = value
                if target.id in ("_fields_", "__slots__") and isinstance(value, (ast.List, ast.Tuple)):
                    made.fields |= {name for name in map(_first_word, value.elts) if name}
    made.fields |= {*made.methods, *made.values, *made.instance}
    return made


def _first_word(entry: ast.expr) -> str:
    """Return the name in an entry of ``_fields_`` or ``__slots__``."""
    entry = entry.elts[0] if isinstance(entry, ast.Tuple) and entry.elts else entry
    return entry.value if isinstance(entry, ast.Constant) and isinstance(entry.value, str) else ""


def dotted(expression: ast.AST) -> str:
    """Return ``a.b.c`` for a name with attributes, ``f().b`` behind a call, an empty string for all else."""
    if isinstance(expression, ast.Name):
        return expression.id
    if isinstance(expression, ast.Attribute):
        before = dotted(expression.value)
        return f"{before}.{expression.attr}"
    if isinstance(expression, ast.Call):
        return f"{dotted(expression.func)}()"
    return ""
