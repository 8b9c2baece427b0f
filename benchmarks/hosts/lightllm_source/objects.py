"""Objects of LightLLM's classes, made from its source: their functions have the host's text, and do nothing when called.

So the plugin can be let loose on them: it finds what it would find in a server, and nothing of LightLLM is imported.
"""

from __future__ import annotations

import ast
import functools
import itertools
import linecache
import re
import types
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Optional

from lightllm_source.syntax import Class, Node, dotted
from lightllm_source.tree import Found, Tree

_NUMBERS = re.compile(r"\w*(num|dim|size|rank|idx|index)_?")
_NUMBER_CALLS = ("int", "len", "max", "min", "float", "get", "get_dp_world_size", "get_global_world_size")
_KEPT_DUNDERS = ("__call__", "__setattr__")  # what says how an object behaves towards whoever hooks it
_names = itertools.count()


class Objects:
    """Classes and objects of one version."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._kinds: dict[tuple[str, int], type] = {}

    def kind(self, found: Found) -> type:
        """Return the class with its bases, as far as these are in the tree."""
        key = (found.module, id(found.what))
        if key not in self._kinds:
            self._kinds[key] = object  # for a class that is its own base
            chain = self._tree.mro(found)
            assert isinstance(found.what, Class)
            bases = [self._tree.find(found.module, base) for base in found.what.bases]
            kinds = tuple(self.kind(base) for base in bases if base is not None and isinstance(base.what, Class))
            try:
                made = type(found.what.name, kinds or (object,), self._members(found))
            except TypeError:  # its real order needs a base that is not in the tree
                flat = {name: each for owner in reversed(chain) for name, each in self._members(owner).items()}
                made = type(found.what.name, (object,), flat)
            self._kinds[key] = made
        return self._kinds[key]

    def make(self, found: Found, flags: Mapping[str, bool], parts: Collection[str] = ()) -> Any:
        """Return an instance with what the class's methods assign to it: functions, numbers, ``flags``.

        ``parts``: attributes that are objects themselves.
        """
        made: Any = object.__new__(self.kind(found))
        own: dict[str, Any] = {}
        chain = self._tree.mro(found)
        for owner in chain:
            assert isinstance(owner.what, Class)
            for name, values in owner.what.instance.items():
                for value in values if name not in own and name not in flags else ():
                    content = self._value(value, owner, made, name in parts)
                    if content is None and _is_chosen(value) and _is_called(chain, name):
                        content = _nothing
                    if content is not None:
                        own.setdefault(name, content)
        vars(made).update({**own, **flags})
        return made

    def _members(self, found: Found) -> dict[str, Any]:
        assert isinstance(found.what, Class)
        return {
            name: self._member(found.module, node)
            for name, node in found.what.methods.items()
            if not name.startswith("__") or name in _KEPT_DUNDERS
        }

    def _member(self, module: str, node: Node) -> Any:
        made: Any = types.FunctionType(_code(node), _Names(self, self._tree, module))
        for decorator in node.decorator_list:
            word = dotted(decorator)
            if word in ("property", "staticmethod", "classmethod"):
                made = {"property": property, "staticmethod": staticmethod, "classmethod": classmethod}[word](made)
        return made

    def _value(self, value: ast.expr, owner: Found, made: Any, part: bool) -> Any:
        """Return what an expression that is assigned to an attribute stands for; None where that is not known."""
        if isinstance(value, ast.IfExp):
            either = (self._value(each, owner, made, part) for each in (value.body, value.orelse))
            return next((each for each in either if each is not None), None)
        if isinstance(value, ast.Call):
            word = dotted(value.func)
            if word.endswith("partial") and value.args:
                function = self._function(value.args[0], owner, made)
                return None if function is None else functools.partial(function, made)
            found = self._tree.find(owner.module, word) if part else None
            if found is not None and isinstance(found.what, Class):
                return self.make(found, {})
        bound = self._function(value, owner, made)
        return bound if bound is not None else 1 if _is_number(value) else None

    def _function(self, value: ast.expr, owner: Found, made: Any) -> Any:
        """Return the function behind ``self.f`` or ``Class.f``."""
        before, _, name = dotted(value).rpartition(".")
        if before == "self":
            function = getattr(type(made), name, None)
            return types.MethodType(function, made) if isinstance(function, types.FunctionType) else None
        found = self._tree.find(owner.module, before) if before and "()" not in before else None
        return getattr(self.kind(found), name, None) if found is not None and isinstance(found.what, Class) else None


class _Names(dict[str, Any]):
    """The names of a module, as a function's globals: classes alone, and each only when it is asked for."""

    def __init__(self, objects: Objects, tree: Tree, module: str) -> None:
        super().__init__()
        self._found = lambda name: tree.find(module, name)
        self._kind = objects.kind

    def get(self, name: str, default: Any = None) -> Any:
        found = self._found(name)
        return self._kind(found) if found is not None and isinstance(found.what, Class) else default


def _nothing(*args: Any, **kwargs: Any) -> Any:
    return args[-1] if args else None


def _code(node: Node) -> types.CodeType:
    """Return code that does nothing, whose source is that of the function; kept with its AST."""
    kept: Optional[types.CodeType] = getattr(node, "code", None)
    if kept is None:
        file = f"<LightLLM {next(_names)}>"
        text = ast.unparse(node) + "\n"
        linecache.cache[file] = (len(text), None, text.splitlines(True), file)
        code = _nothing.__code__  # codes with the same constants would be equal
        kept = code.replace(co_name=node.name, co_filename=file, co_firstlineno=1, co_consts=(*code.co_consts, file))
        node.code = kept  # type: ignore[union-attr]
    return kept


def _is_chosen(value: ast.expr) -> bool:
    """Tell whether a method of the object's own makes the value."""
    return isinstance(value, ast.Call) and dotted(value.func).startswith("self.")


def _is_called(chain: list[Found], name: str) -> bool:
    methods: Iterator[Node] = (
        node for each in chain if isinstance(each.what, Class) for node in each.what.methods.values()
    )
    return any(
        isinstance(each, ast.Call) and dotted(each.func) == f"self.{name}"
        for node in methods
        for each in ast.walk(node)
    )


def _is_number(value: ast.expr) -> bool:
    """Tell whether an expression looks like a number: sizes are taken from the model's configuration, and divided by ranks."""
    if isinstance(value, ast.BinOp):
        return True
    if isinstance(value, ast.Constant):
        return isinstance(value.value, (int, float)) and not isinstance(value.value, bool)
    if isinstance(value, ast.Call):
        return dotted(value.func).rpartition(".")[2] in _NUMBER_CALLS
    if isinstance(value, (ast.Name, ast.Attribute)):
        return _NUMBERS.fullmatch(dotted(value).rpartition(".")[2]) is not None
    return isinstance(value, ast.Subscript) and "config" in dotted(value.value)
