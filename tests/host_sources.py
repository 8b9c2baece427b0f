"""Sources of fake hosts, compiled anew for each host: so each has classes of its own, and can differ from the others.

Every function of a host reports its calls, so that a test can compare them: thread, function, and whether a graph was
being captured. Changes are objects with ``called``, the names that they are about, and ``apply(tree)``; see ``host_changes``.
"""

from __future__ import annotations

import ast
import collections
import functools
import gc
import re
import types
from pathlib import Path

REPORT = "_report_call"


def load(name, path, changes=(), report=lambda function: None, package="", **more):
    """A module from the file, with the changes; ``more`` is put into it before it runs."""
    module = types.ModuleType(name)
    module.__package__, module.__file__ = package, str(path)
    vars(module).update(more)
    setattr(module, REPORT, report)
    exec(_compiled(path, tuple(each for each in changes if not _words(path).isdisjoint(each.called))), vars(module))
    return module


@functools.cache
def _words(path: Path) -> set[str]:
    return set(re.findall(r"\w+", path.read_text()))


@functools.cache
def _reporting(path: Path) -> str:
    """The source with functions that report."""
    return ast.unparse(ast.fix_missing_locations(_Reporting().visit(ast.parse(path.read_text()))))


@functools.lru_cache(maxsize=256)
def _compiled(path, changes):
    if not changes:  # with the lines of the file
        tree = _Reporting().visit(ast.parse(path.read_text()))
        return compile(ast.fix_missing_locations(tree), str(path), "exec", dont_inherit=True)
    collecting = gc.isenabled()
    gc.disable()  # there are very many nodes, and none is garbage yet
    try:
        tree = Tree(ast.parse(_reporting(path)))
        for change in changes:
            change.apply(tree)
        return compile(ast.fix_missing_locations(tree.root), f"changed {path.name}", "exec", dont_inherit=True)
    finally:
        if collecting:
            gc.enable()


class Tree:
    """A source as Python reads it.

    ``named``: every (node, field) that says a name. ``calls``: by the name that is called. ``owners``: by the name of an
    attribute, classes whose objects get it from their own methods, or have it as a field.
    """

    def __init__(self, root) -> None:
        self.root = root
        self.named: dict[str, list] = collections.defaultdict(list)
        self.calls: dict[str, list] = collections.defaultdict(list)
        self.owners: dict[str, dict[str, ast.ClassDef]] = collections.defaultdict(dict)
        self.inside: dict[str, set] = {}  # what lies in each class
        self.foreign: set[str] = set()  # names of what the host runs on
        for node in ast.walk(root):
            self.add(node)

    def add(self, node) -> None:
        for field in ("id", "attr", "arg", "name", "asname"):
            if (name := getattr(node, field, None)) is not None:
                self.named[name].append((node, field))
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            self.named[node.value].append((node, "value"))
        elif isinstance(node, ast.Call):
            self.calls[getattr(node.func, "attr", getattr(node.func, "id", ""))].append(node)
        elif isinstance(node, ast.ClassDef):
            self._add_class(node)
        elif isinstance(node, ast.ImportFrom) and node.module == "machine":
            self.foreign |= {each.name for each in node.names}

    def _add_class(self, owner) -> None:
        self.inside[owner.name] = set(ast.walk(owner))
        for each in owner.body:
            if isinstance(each, ast.AnnAssign):
                self.owners[each.target.id][owner.name] = owner
        for node in self.inside[owner.name]:
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and getattr(node.value, "id", "") == "self"
            ):
                self.owners[node.attr][owner.name] = owner


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
        name = ".".join([*self._around[-1:], node.name])
        call = ast.Expr(ast.Call(ast.Name(REPORT, ast.Load()), [ast.Constant(name)], []))
        self._around.append(node.name)
        self.generic_visit(node)
        self._around.pop()
        documented = node.body and isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant)
        node.body.insert(1 if documented else 0, call)
        return node

    visit_AsyncFunctionDef = visit_FunctionDef
