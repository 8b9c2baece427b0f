"""Changes to a fake host's source, as another version of LightLLM could have them: the host goes on to work as before.

Its own calls follow each change. ``torn`` ones are the exception: there the host's own call does not fit its function, and it
raises what it raises.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import threading
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import host_sources

MORE = "_more"
# Functions that the host calls by another name than their own, and those that it calls by one name.
ALIASES = {
    "_token_forward": ("decode_func",), "prefill_normal": ("prefill",), "decode_normal": ("decode",),
    "_draft_decode_vanilla": ("_draft_decode_func",), "_copy_kv": ("_copy_kv_to_mem_cache",),
}  # fmt: skip
FAMILIES = {
    "prefill_normal": ("prefill_normal", "prefill_mtp", "prefill_overlap"),
    "decode_normal": ("decode_normal", "decode_mtp", "decode_overlap"),
    "_draft_decode_vanilla": ("_draft_decode_vanilla", "_draft_decode_eagle"),
}
OTHERS = {each for first, family in FAMILIES.items() for each in family if each != first}


@dataclasses.dataclass(frozen=True)
class Change:
    """``kind``: a function of ``KINDS``. ``name``: of a function, a class or an attribute, everywhere in the host.

    ``parameters``: the function's, without ``self``; empty where functions of this name differ in them. ``required``: how many
    have no default. ``owner``: the one class that is meant. ``detail``: what else the kind wants to know.
    """

    kind: str
    name: str
    parameters: tuple[str, ...] = ()
    required: int = 0
    owner: str = ""
    detail: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.kind, self.owner, self.name, self.detail)))

    @property
    def defined(self) -> tuple[str, ...]:
        return FAMILIES.get(self.name, (self.name,))

    @property
    def called(self) -> tuple[str, ...]:
        return (*self.defined, *self.aliases)

    @property
    def aliases(self) -> tuple[str, ...]:
        return ALIASES.get(self.name, ()) if self.owner in ("", "TpPartBaseModel") else ()  # not of a post layer

    def apply(self, tree: host_sources.Tree) -> None:
        KINDS[self.kind](tree, self)


def definitions(tree, change):
    """Functions of that name with those parameters."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for name in change.defined for node, _ in tree.named[name] if isinstance(node, functions)]
    inside = _inside(tree, change)
    return [node for node in found if (inside is None or node in inside)
            and (not change.parameters or tuple(_names(node)) == change.parameters)]  # fmt: skip


def calls(tree, change):
    """The host's calls of them."""
    inside = _inside(tree, change)
    own = [node for name in change.defined for node in tree.calls[name] if not _is_of(node.func, tree.foreign)]
    aliased = [node for name in change.aliases for node in tree.calls[name]]
    return [node for node in own if inside is None or node in inside] + aliased


def _inside(tree, change):
    """What lies in the one class that is meant; None: everything is."""
    return tree.inside.get(change.owner, set()) if change.owner else None


def _is_of(node, owners):
    """``cuda.graph``, or ``self.args.port``"""
    of = getattr(node, "value", None)
    return getattr(of, "id", None) in owners or (bool(owners) and getattr(of, "attr", None) == "args")


def _is_method(function):
    return bool(function.args.args) and function.args.args[0].arg == "self"


def _names(function):
    return [each.arg for each in function.args.args][_is_method(function) :]


def _by_name(call, parameters):
    """Give every argument by name, unless there are others than the parameters."""
    if len(call.args) <= len(parameters) and not any(isinstance(each, ast.Starred) for each in call.args):
        call.keywords = [ast.keyword(name, value) for name, value in zip(parameters, call.args)] + call.keywords
        call.args = []


# Parameters ---------------------------------------------------------------------------------------------------------------


def rename_parameter(tree, change):
    old, new = change.detail, f"{change.detail}_now"
    for function in definitions(tree, change):
        for argument in function.args.args:
            if argument.arg == old:
                argument.arg = new
        for part in function.body:
            _rename_variable(part, old, new)
    for call in calls(tree, change):
        for keyword in call.keywords:
            if keyword.arg == old:
                keyword.arg = new


def _rename_variable(node, old, new):
    if isinstance(node, (ast.FunctionDef, ast.Lambda)) and any(each.arg == old for each in node.args.args):
        return  # another variable of this name
    if isinstance(node, ast.Name) and node.id == old:
        node.id = new
    for child in ast.iter_child_nodes(node):
        _rename_variable(child, old, new)


def add_parameter(tree, change):
    """``first``: before all others. ``last``: behind them, with a default. ``by name``: must be given, and by name."""
    for function in definitions(tree, change):
        argument = ast.arg(MORE)
        if change.detail == "first":
            function.args.args.insert(_is_method(function), argument)
        elif change.detail == "last":
            function.args.args.append(argument)
            function.args.defaults.append(ast.Constant(None))
        else:
            function.args.kwonlyargs.append(argument)
            function.args.kw_defaults.append(None)
    for call in calls(tree, change):
        if change.detail == "first":
            call.args.insert(0, ast.Constant("more"))
        elif change.detail == "by name":
            call.keywords.append(ast.keyword(MORE, ast.Constant("more")))


def torn(tree, change):
    """A parameter that nobody gives: the host's own call raises."""
    for function in definitions(tree, change):
        function.args.args.insert(_is_method(function), ast.arg(MORE))


def remove_parameter(tree, change):
    """The argument reaches the function in another way."""
    place = change.parameters.index(change.detail)
    key = ast.Constant(f"{change.name}.{change.detail}")
    for function in definitions(tree, change):
        given = function.args
        defaults = [None] * (len(given.args) - len(given.defaults)) + given.defaults
        at = [each.arg for each in given.args].index(change.detail)
        default = defaults.pop(at)
        given.args.pop(at)
        given.defaults = [each for each in defaults if each is not None]
        taken = ast.Call(ast.Name("_taken", ast.Load()), [key, *([] if default is None else [default])], [])
        variable = ast.Name(change.detail, ast.Store())
        tree.add(variable)
        function.body.insert(0, ast.Assign([variable], taken))
    for call in calls(tree, change):
        given = [keyword for keyword in call.keywords if keyword.arg == change.detail]
        if given:
            value = given[0].value
            call.keywords.remove(given[0])
        elif len(call.args) > place:
            value = call.args.pop(place)
        else:
            continue
        call.func = ast.Call(ast.Name("_aside", ast.Load()), [call.func, key, value], [])


def reverse_parameters(tree, change):
    for function in definitions(tree, change):
        first = _is_method(function)
        own = function.args.args[first : first + change.required]
        function.args.args[first : first + change.required] = own[::-1]
    for call in calls(tree, change):
        _by_name(call, change.parameters)


def keyword_only(tree, change):
    for function in definitions(tree, change):
        first, given = _is_method(function), function.args
        defaults = [None] * (len(given.args) - len(given.defaults)) + given.defaults
        given.kwonlyargs, given.kw_defaults = (
            given.args[first:] + given.kwonlyargs,
            defaults[first:] + given.kw_defaults,
        )
        given.args, given.defaults = given.args[:first], []
    for call in calls(tree, change):
        _by_name(call, change.parameters)


def positional_only(tree, change):
    for function in definitions(tree, change):
        function.args.posonlyargs, function.args.args = function.args.args, []
    for call in calls(tree, change):
        given = {keyword.arg: keyword for keyword in call.keywords}
        for name in change.parameters[len(call.args) :]:
            if not given:
                break
            keyword = given.pop(name, None)
            call.args.append(ast.Constant(None) if keyword is None else keyword.value)
            if keyword is not None:
                call.keywords.remove(keyword)


def any_parameters(tree, change):
    """``(*args, **kwargs)``, as behind a decorator. ``detail``: which of ``DECORATORS``."""
    for function in definitions(tree, change):
        place = 0 if change.detail == "_as_property" else len(function.decorator_list)
        function.decorator_list.insert(place, ast.Name(change.detail, ast.Load()))


# Returns ------------------------------------------------------------------------------------------------------------------


def change_return(tree, change):
    """``pair``: with something else. ``object``: as an attribute of one. ``aside``: None, and it is fetched elsewhere."""
    pack, unpack = {"pair": ("_paired", "_first"), "object": ("_boxed", "_unboxed"),
                    "aside": ("_left", "_fetched")}[change.detail]  # fmt: skip
    for function in definitions(tree, change):
        _ReturnThrough(pack).visit_body(function)
    for call in calls(tree, change):
        inner = ast.Call(call.func, call.args, call.keywords)
        call.func, call.args, call.keywords = ast.Name(unpack, ast.Load()), [inner], []


class _ReturnThrough(ast.NodeTransformer):
    def __init__(self, pack):
        self._pack = pack

    def visit_body(self, function):
        function.body = [self.visit(each) for each in function.body]
        function.body.append(ast.Return(ast.Call(ast.Name(self._pack, ast.Load()), [ast.Constant(None)], [])))

    def visit_Return(self, node):
        value = node.value or ast.Constant(None)
        return ast.Return(ast.Call(ast.Name(self._pack, ast.Load()), [value], []))

    def visit_FunctionDef(self, node):
        return node

    visit_Lambda = visit_FunctionDef


# Names --------------------------------------------------------------------------------------------------------------------


def rename(tree, change):
    """Nothing has this name any more: a function, a class, an attribute, a field."""
    for name in change.defined:
        _rename_everywhere(tree, name, f"{name}_elsewhere", strings=change.detail == "attribute")


def _rename_everywhere(tree, old, new, strings):
    for node, field in tree.named[old] if old not in tree.foreign else ():
        if not _is_of(node, tree.foreign) and (strings or field != "value"):
            setattr(node, field, new)


def hollow(tree, change):
    """The host keeps an attribute under another name; under this one there is something else."""
    if change.name in tree.foreign:
        return
    _rename_everywhere(tree, change.name, f"{change.name}_elsewhere", strings=True)
    for owner in tree.owners[change.name].values():
        value = ast.Name(f"_hollow_{change.detail}", ast.Load())
        owner.body.append(ast.Assign([ast.Name(change.name, ast.Store())], value))


# How graphs are kept --------------------------------------------------------------------------------------------------------


def graph_entries(tree, change):
    """``graph`` keeps for each number of rows something else than a tuple with the graph first; or other keys."""
    _Entries(change.detail).visit(tree.root)


class _Entries(ast.NodeTransformer):
    def __init__(self, how):
        self._how = how

    def visit_Subscript(self, node):
        self.generic_visit(node)
        if not self._of_graphs(node.value):
            return node
        if self._how == "keys":
            node.slice = ast.Tuple([node.slice, ast.Constant(0)], ast.Load())
        elif isinstance(node.ctx, ast.Load):
            return ast.Call(ast.Name(f"_entry_from_{self._how}", ast.Load()), [node], [])
        return node

    def visit_Assign(self, node):
        of_graphs = isinstance(node.targets[0], ast.Subscript) and self._of_graphs(node.targets[0].value)
        self.generic_visit(node)
        if of_graphs and self._how != "keys":
            node.value = ast.Call(ast.Name(f"_entry_to_{self._how}", ast.Load()), [node.value], [])
        return node

    def visit_Compare(self, node):
        self.generic_visit(node)
        if self._how == "keys" and self._of_graphs(node.comparators[0]):
            node.left = ast.Tuple([node.left, ast.Constant(0)], ast.Load())
        return node

    @staticmethod
    def _of_graphs(node):
        return isinstance(node, ast.Attribute) and node.attr == "graph"


KINDS = {
    function.__name__: function
    for function in (
        rename_parameter,
        add_parameter,
        torn,
        remove_parameter,
        reverse_parameters,
        keyword_only,
        positional_only,
        any_parameters,
        change_return,
        rename,
        hollow,
        graph_entries,
    )
}


# What changed sources call --------------------------------------------------------------------------------------------------


class _Kept(threading.local):
    def __init__(self):
        self.values = {}


_kept = _Kept()


def _aside(function, key, value):
    _kept.values.setdefault(key, []).append(value)
    return function


def _taken(key, *default):
    kept = _kept.values.get(key)
    return default[0] if default and not kept else kept.pop()


def _left(value):
    _kept.values.setdefault("left", []).append(value)


def _fetched(nothing):
    return _kept.values["left"].pop()


def _opaque(function):
    def anything(*args, **kwargs):
        return function(*args, **kwargs)

    return anything


def _wrapped(function):
    return functools.wraps(function)(_opaque(function))


class _Callable:
    """A function as an object; as a method it binds."""

    def __init__(self, function):
        self._function = function

    def __call__(self, *args, **kwargs):
        return self._function(*args, **kwargs)

    def __get__(self, owner, kind=None):
        return self if owner is None else types.MethodType(self, owner)


def _as_property(function):
    return property(lambda self: types.MethodType(function, self))


DECORATORS = ("_opaque", "_wrapped", "_Callable", "_as_property")
NAMESPACE = {
    "_aside": _aside, "_taken": _taken, "_left": _left, "_fetched": _fetched, "_opaque": _opaque, "_wrapped": _wrapped,
    "_Callable": _Callable, "_as_property": _as_property,
    "_paired": lambda value: (value, "more"), "_first": lambda pair: pair[0],
    "_boxed": lambda value: types.SimpleNamespace(value=value), "_unboxed": lambda box: box.value,
    "_hollow_none": None, "_hollow_text": "unknown", "_hollow_raises": property(lambda self: 1 // 0),
    "_entry_to_object": lambda entry: types.SimpleNamespace(parts=entry), "_entry_from_object": lambda entry: entry.parts,
    "_entry_to_reversed": lambda entry: entry[::-1], "_entry_from_reversed": lambda entry: entry[::-1],
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Function:
    name: str
    parameters: tuple[str, ...]
    required: int
    owner: str = ""
    method: bool = True
    coroutine: bool = False


def functions_of(sources, own=lambda owner, name: True):
    """Functions of these sources; those of one name that differ in their parameters are one, or one for each class.

    ``own(class or "", name)``: whether a function is the host's.
    """
    found: dict[str, set[Function]] = {}
    for source in sources:
        for owner, node in _functions_in(ast.parse(source)):
            names = tuple(_names(node))
            plain = not (node.args.vararg or node.args.kwarg or node.args.kwonlyargs)
            known = not node.name.startswith("__") and node.name not in OTHERS
            if known and plain and own(owner, node.name):
                made = Function(node.name, names, len(names) - len(node.args.defaults), owner, _is_method(node),
                                isinstance(node, ast.AsyncFunctionDef))  # fmt: skip
                found.setdefault(node.name, set()).add(made)
    for _, each in sorted(found.items()):
        if len({(one.parameters, one.required) for one in each}) == 1:
            yield dataclasses.replace(next(iter(each)), owner="")
        elif next(iter(each)).name.startswith("_"):  # called within its class only
            yield from sorted(each, key=lambda one: one.owner)
        else:
            yield Function(next(iter(each)).name, (), 0, method=all(one.method for one in each))


def _functions_in(tree, owner=""):
    """With their class; those of the host of 2025 are made in ``make``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield owner, node
            if node.name == "make":
                yield from _functions_in(node, owner)
        else:
            yield from _functions_in(node, node.name if isinstance(node, ast.ClassDef) else owner)


def changes_of(function):
    """Every change that there can be to one function."""
    make = functools.partial(
        Change, name=function.name, parameters=function.parameters, required=function.required, owner=function.owner
    )
    for each in (*function.parameters[:2], *function.parameters[2:][-1:]):  # the others are like these
        yield make("rename_parameter", detail=each)
        yield make("remove_parameter", detail=each)
    for where in ("first", "last", "by name"):
        yield make("add_parameter", detail=where)
    yield make("torn")
    if function.required > 1:
        yield make("reverse_parameters")
    if function.parameters:
        yield make("keyword_only")
        yield make("positional_only")
    for decorator in DECORATORS if function.method else DECORATORS[:-1]:
        yield make("any_parameters", detail=decorator)
    for shape in () if function.coroutine else ("pair", "object", "aside"):
        yield make("change_return", detail=shape)
    if not function.owner:
        yield make("rename")
