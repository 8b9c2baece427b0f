"""LightLLM's source as a running Python would see it: names through imports, classes with what they inherit, signatures."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import NamedTuple, Optional, Union

from lightllm_source.syntax import FUNCTIONS, Class, Module, Node, Parameters, dotted, parse

_DEEPEST = 16  # imports of imports
# Decorators whose result has the signature of what they decorate.
TRANSPARENT = {
    "abstractmethod", "asynccontextmanager", "cache", "classmethod", "contextmanager", "enable_grad", "final",
    "inference_mode", "lru_cache", "no_grad", "override", "staticmethod", "wraps",
}  # fmt: skip


class Found(NamedTuple):
    """A class, function or value, and the module that defines it."""

    module: str
    what: Union[Class, Node, ast.expr]


class Member(NamedTuple):
    """An attribute of a class or its instances. ``what``: a function, or the values that may be assigned to it."""

    owner: Found
    what: Union[Node, list[ast.expr]]


class Tree:
    """One version of LightLLM. ``paths``: path → what ``load`` makes a module of (a blob's id, a file, or the text itself)."""

    def __init__(self, paths: Mapping[str, str], load: Callable[[str], Module] = parse) -> None:
        self.paths = paths
        self._load = load
        self.read: set[str] = set()
        """The files that were looked into so far."""
        self._modules: dict[str, Optional[Module]] = {}
        self._mros: dict[tuple[str, int], list[Found]] = {}

    def is_like(self, other: Tree) -> bool:
        """Tell whether every question that the other version has answered would have the same answer here."""
        return self.paths.keys() == other.paths.keys() and all(
            self.paths[path] == other.paths[path] for path in other.read
        )

    def path(self, name: str) -> str:
        """Return where a module lies; an empty string when it does not exist."""
        base = name.replace(".", "/")
        return next((path for path in (f"{base}.py", f"{base}/__init__.py") if path in self.paths), "")

    def module(self, name: str) -> Optional[Module]:
        if name not in self._modules:
            path = self.path(name)
            if path:
                self.read.add(path)
            self._modules[name] = self._load(self.paths[path]) if path else None
        return self._modules[name]

    def find(self, module: str, name: str, deep: int = 0) -> Optional[Found]:
        """Return what ``name`` is in a module, through its imports; None for what is not in this tree."""
        here, _, rest = name.partition(".")
        content = self.module(module)
        if content is None or deep > _DEEPEST:
            return None
        own = content.classes.get(here) or content.functions.get(here)
        if own is not None:
            return self._inside(Found(module, own), rest)
        if here in content.values:
            value = content.values[here]
            return (
                self.find(module, dotted(value), deep + 1) if dotted(value) not in ("", here) else Found(module, value)
            )
        if here in content.imports:
            source, level, there = content.imports[here]
            source = self._absolute(module, source, level)
            if there is None:
                return self._below(source, rest, deep)
            return self.find(source, f"{there}.{rest}" if rest else there, deep + 1) or self._below(
                f"{source}.{there}", rest, deep
            )
        for source, level in content.stars:
            found = self.find(self._absolute(module, source, level), name, deep + 1)
            if found is not None:
                return found
        return None

    def _below(self, module: str, rest: str, deep: int) -> Optional[Found]:
        """Look for ``a.b.C`` where some of the words are modules."""
        while rest:
            found = self.find(module, rest, deep + 1)
            if found is not None:
                return found
            step, _, rest = rest.partition(".")
            module = f"{module}.{step}"
        return None

    def _inside(self, found: Found, rest: str) -> Optional[Found]:
        if not rest:
            return found
        member = self.member(found, rest) if isinstance(found.what, Class) else None
        return Found(member.owner.module, member.what) if member and not isinstance(member.what, list) else None

    def _absolute(self, module: str, source: str, level: int) -> str:
        if not level:
            return source
        parts = module.split(".")
        keep = len(parts) - level + self.path(module).endswith("__init__.py")
        return ".".join([*parts[:keep], *([source] if source else [])])

    def mro(self, found: Found) -> list[Found]:
        """Return the class and its bases, as far as they are in this tree, in the order of lookup."""
        key = (found.module, id(found.what))
        kept = self._mros.get(key)
        if kept is None:
            self._mros[key] = kept = [found]  # a class that is its own base ends here
            assert isinstance(found.what, Class)
            bases = [self.find(found.module, base) for base in found.what.bases]
            chains = [self.mro(base) for base in bases if base is not None and isinstance(base.what, Class)]
            kept = self._mros[key] = [found, *_merged(chains)]
        return kept

    def member(self, found: Found, name: str, instance: bool = False) -> Optional[Member]:
        """Return an attribute of a class, or of its instances, where what a method assigns to ``self`` goes first."""
        chain = self.mro(found)
        if instance:
            values = [(owner, owner.what.instance[name]) for owner in chain
                      if isinstance(owner.what, Class) and name in owner.what.instance]  # fmt: skip
            if values:
                return Member(values[0][0], [value for _, each in values for value in each])
        for owner in chain:
            assert isinstance(owner.what, Class)
            if name in owner.what.methods:
                return Member(owner, owner.what.methods[name])
            if name in owner.what.values:
                return Member(owner, [owner.what.values[name]])
        return None

    def has(self, found: Found, name: str) -> bool:
        """Tell whether instances of a class have this attribute."""
        return any(isinstance(each.what, Class) and name in each.what.fields for each in self.mro(found))

    def parameters(self, module: str, node: Node) -> Optional[Parameters]:
        """Return the parameters that ``inspect.signature`` would name; None behind a decorator that is not known."""
        found: Optional[Parameters] = Parameters.of(node.args)
        for decorator in reversed(node.decorator_list):
            word = dotted(decorator.func if isinstance(decorator, ast.Call) else decorator)
            if word.rpartition(".")[2] not in TRANSPARENT:
                found = self._decorated(module, word, isinstance(decorator, ast.Call), found)
        if any(dotted(each) == "classmethod" for each in node.decorator_list) and found is not None:
            found = found.bound()
        return found

    def _decorated(self, module: str, word: str, called: bool, inner: Optional[Parameters]) -> Optional[Parameters]:
        """Return the parameters of what a decorator of LightLLM's own makes."""
        found = self.find(module, word)
        if found is None or not isinstance(found.what, FUNCTIONS):
            return None
        makers: list[Node] = [found.what]
        for _ in range(2 if called else 1):
            makers = [each for maker in makers for each in maker.body if isinstance(each, FUNCTIONS)]
        if not makers:
            return inner  # it hands back what it is given
        wraps = any(dotted(each).endswith("wraps()") for each in makers[-1].decorator_list)
        return inner if wraps else Parameters.of(makers[-1].args)


def _merged(chains: list[list[Found]]) -> list[Found]:
    """Merge the bases' orders: each class behind all that inherit from it, as Python does where it can."""
    merged: list[Found] = []
    rest = [list(chain) for chain in chains]
    while rest := [chain for chain in rest if chain]:
        head = next((c[0] for c in rest if not any(c[0] in other[1:] for other in rest)), rest[0][0])
        merged.append(head)
        rest = [[each for each in chain if each != head] for chain in rest]
    return merged
