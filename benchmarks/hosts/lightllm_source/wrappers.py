"""The signatures of the plugin's wrappers, from its own source: one that takes less than what it wraps breaks the host."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Optional

from lightllm_source.syntax import FUNCTIONS, Node, Parameters, dotted, parse
from lightllm_source.tree import Tree

PLUGIN = Path(__file__).resolve().parents[3] / "lightllm_otel"
FOLDERS = ("worker/host", "frontend", "inject")  # of the plugin, with wrappers in them
# A maker that asks for the host's signature before it chooses a wrapper uses a wrapper for its own signature alone.
_ASKS = ("signature", "parameters", "names")
_CALLERS = ("lightllm/common/basemodel/", "lightllm/server/router/model_infer/", "lightllm/server/httpserver/")


class Wrapper(NamedTuple):
    """``exact``: made for host functions with these very parameters, and no other."""

    parameters: Parameters
    exact: bool = False


def of_plugin(plugin: Path = PLUGIN) -> dict[str, list[Wrapper]]:
    """Return the signatures of what each function of the plugin wraps its argument ``host`` in."""
    return of_sources(
        {str(path): path.read_text() for name in FOLDERS for path in sorted((plugin / name).glob("*.py"))}
    )


def of_sources(sources: Mapping[str, str]) -> dict[str, list[Wrapper]]:
    """Return ``{maker: [each wrapper]}``; makers that hand ``host`` on to another maker have that one's."""
    makers: dict[str, Node] = {}
    for text in sources.values():
        makers |= parse(text).functions
    return {name: made for name in makers if (made := list(_wrappers(name, makers, False, set())))}


def _wrappers(name: str, makers: Mapping[str, Node], exact: bool, seen: set[str]) -> Iterator[Wrapper]:
    maker = makers.get(name.rpartition(".")[2])
    if maker is None or name in seen or not maker.args.args or maker.args.args[0].arg != "host":
        return
    seen.add(name)
    for node, asked in _nodes(maker, exact):
        if isinstance(node, FUNCTIONS) and any(_wraps_host(decorator) for decorator in node.decorator_list):
            yield Wrapper(Parameters.of(node.args), asked)
        elif isinstance(node, ast.Call) and any(dotted(argument) == "host" for argument in node.args[:1]):
            yield from _wrappers(dotted(node.func), makers, asked, seen)


def _nodes(node: ast.AST, asked: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Yield what lies under a node, and whether it lies in an ``if`` that asks for a signature."""
    for child in ast.iter_child_nodes(node):
        yield child, asked
        inside = isinstance(child, ast.If) and any(dotted(each).endswith(_ASKS) for each in ast.walk(child.test))
        yield from _nodes(child, asked or inside)


def _wraps_host(decorator: ast.expr) -> bool:
    return (
        isinstance(decorator, ast.Call)
        and dotted(decorator.func).endswith("wraps")
        and [dotted(argument) for argument in decorator.args] == ["host"]
    )


def refuses(made: Wrapper, host: Optional[Parameters], by_name: Callable[[str], bool]) -> str:
    """Return why a wrapper does not take every call that the host's function takes; empty if it does.

    ``host``: None where its signature is not known. ``by_name``: whether the host passes this parameter by name anywhere.
    The first parameter of a method may have any name.
    """
    wrapper = made.parameters
    if made.exact and (host is None or host.names != wrapper.names):
        return ""
    if host is None:
        return "" if wrapper.star and wrapper.stars else "it has a signature of its own, the host's is not known"
    for place, name in enumerate(host.positional):
        given = wrapper.positional[place] if place < len(wrapper.positional) else None
        if given is None and not wrapper.star:
            return f"it has no place for {name}"
        if given != name and not wrapper.stars and name not in wrapper.names and by_name(name):
            return f"it does not take {name} by name"
        if given not in (None, name) and place > 0 and by_name(name):
            return f"it calls {given} what the host calls {name}"
    for name in host.names:
        if name not in (*host.positional, *wrapper.names) and not (wrapper.star and wrapper.stars):
            return f"it does not take {name}"
    for name in wrapper.positional[len(host.positional) :]:
        if name not in wrapper.optional and not host.star:
            return f"it asks for {name}, which the host does not have"
    return ""


def passed_by_name(tree: Tree, place: str, parameter: str) -> bool:
    """Tell whether any call in LightLLM's processes passes a parameter of the function at ``place`` by its name."""
    owner, _, function = place.rpartition(".")
    called = owner if function == "__init__" else function
    modules = (tree.module(path[:-3].replace("/", ".")) for path in tree.paths if path.startswith(_CALLERS))
    return any((called, parameter) in module.passed for module in modules if module is not None)
