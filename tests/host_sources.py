"""Sources of fake hosts, compiled anew for each host: so each has classes of its own, and can differ from the others.

Every function of a host reports its calls, so that a test can compare them: thread, function, and whether a graph was
being captured. Changes are objects with ``concerns(source)`` and ``apply(tree)``; see ``random_hosts``.
"""

from __future__ import annotations

import ast
import functools
import types
from pathlib import Path

REPORT = "_report_call"


def load(name, path, changes=(), report=lambda function: None, package="", **more):
    """A module from the file, with the changes; ``more`` is put into it before it runs."""
    module = types.ModuleType(name)
    module.__package__, module.__file__ = package, str(path)
    vars(module).update(more)
    setattr(module, REPORT, report)
    code = _compiled(path) if not any(each.concerns(_text(path)) for each in changes) else _changed(path, changes)
    exec(code, vars(module))
    return module


@functools.cache
def _text(path: Path) -> str:
    return path.read_text()


@functools.cache
def _compiled(path: Path):
    return _changed(path, ())


def _changed(path, changes):
    tree = ast.parse(_text(path))
    for change in changes:
        if change.concerns(_text(path)):
            change.apply(tree)
    _Reporting().visit(tree)
    return compile(ast.fix_missing_locations(tree), str(path), "exec", dont_inherit=True)


class _Reporting(ast.NodeTransformer):
    """Has each function of the host say that it is called."""

    def __init__(self) -> None:
        self._around: list[str] = []

    def visit_ClassDef(self, node):
        self._around.append(node.name)
        self.generic_visit(node)
        self._around.pop()
        return node

    def visit_FunctionDef(self, node):
        # A name that a change gives to a function is not what it is known by.
        name = ".".join([*self._around[-1:], getattr(node, "known_as", node.name)])
        call = ast.Expr(ast.Call(ast.Name(REPORT, ast.Load()), [ast.Constant(name)], []))
        self._around.append(node.name)
        self.generic_visit(node)
        self._around.pop()
        documented = node.body and isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant)
        node.body.insert(1 if documented else 0, call)
        return node

    visit_AsyncFunctionDef = visit_FunctionDef
