"""What a layer launches between its operators, read from the source of its forward functions.

Most operators follow each other directly, so one boundary ends the first and begins the second. Where a layer adds to the
residual stream in between, or does something that no row of the table claims, the second operator needs a boundary of its
own at its start. A walk over the code finds these places. It follows calls of the layer's own methods, takes both ways of
every condition, and takes whatever it does not know for work. So it may find work where there is none, which costs a
boundary, but it misses none.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import types
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Optional, Union

from lightllm_otel.patch.calls import COLLECTIVES, COPIES, FREE, PYTHON, WORK
from lightllm_otel.patch.source import definition, resolve
from lightllm_otel.vocabulary import Operator

ENTRY = ""  # the boundary before a layer, whatever it was
COPY = "copy"  # a conversion; it belongs to the add beside it
_DEEPEST = 12  # methods that call methods

Kind = Union[Operator, str]
"""An operator, or the name of a call that no operator claims."""

# A prefill graph is captured piece by piece; in it no operator is marked.
_CAPTURING = "is_current_stream_capturing"


class State(NamedTuple):
    """What lies behind the walk: ``kinds`` of work since the last boundary, which was one of ``last``."""

    kinds: frozenset[Kind]
    last: frozenset[str]


def joined(one: Optional[State], other: Optional[State]) -> Optional[State]:
    """Return what may lie behind a place to which two ways lead; None is a way that does not come there."""
    if one is None or other is None:
        return one if other is None else other
    return State(one.kinds | other.kinds, one.last | other.last)


@dataclasses.dataclass
class Between:
    """Work of a layer outside of the functions of the table.

    ``before``: of each function of the table that the layer calls, the work between the last boundary and it. ``collectives``:
    the same for collectives outside of these functions, by the boundary before them. ``first``: functions that may come first.
    ``left``: work behind the layer's last boundary. ``unread``: why the layer's code cannot be read; then nothing is known.
    """

    before: dict[str, frozenset[Kind]] = dataclasses.field(default_factory=dict)
    collectives: dict[str, frozenset[Kind]] = dataclasses.field(default_factory=dict)
    first: frozenset[str] = frozenset()
    left: frozenset[Kind] = frozenset()
    unread: str = ""


def claimed(kinds: Iterable[Kind]) -> Optional[Operator]:
    """Return the operator that an interval with this work belongs to; None where there is no work in it.

    A copy beside an add is the add's. Work of several kinds, or of an unknown one, is ``other``.
    """
    every = set(kinds)
    if Operator.RESIDUAL in every:
        every.discard(COPY)
    if len(every) > 1:
        return Operator.OTHER
    for kind in every:
        return kind if isinstance(kind, Operator) else Operator.OTHER
    return None


def read(layer: Any, methods: frozenset[str], weights: frozenset[str], entries: Sequence[str]) -> Between:
    """Walk over the functions ``entries`` of a layer.

    ``methods``: its own functions in the table; ``weights``: names of those weights that it calls as one calls a function.
    """
    found: list[Between] = []
    for name in entries:
        function, owner = resolve(layer, name)
        if function is None and not hasattr(layer, name):
            continue
        if function is None or definition(function) is None:
            return Between(unread=f"the source of {name} cannot be read")
        walk = _Walk(layer, methods, weights)
        end = walk.entry(function, owner, prefill="context" in name)
        if end is not None:
            found.append(dataclasses.replace(walk.found, left=end.kinds))
    if not found:
        return Between(unread="it has no forward function")
    return functools.reduce(_either, found)


def _either(one: Between, other: Between) -> Between:
    """What holds in two forwards, of which nobody says here which one runs."""

    def merged(first: dict[str, frozenset[Kind]], second: dict[str, frozenset[Kind]]) -> dict[str, frozenset[Kind]]:
        nothing: frozenset[Kind] = frozenset()
        return {name: _alike(first.get(name, nothing), second.get(name, nothing)) for name in {**first, **second}}

    return Between(
        merged(one.before, other.before),
        merged(one.collectives, other.collectives),
        one.first | other.first,
        _alike(one.left, other.left),
    )


def _alike(one: frozenset[Kind], other: frozenset[Kind]) -> frozenset[Kind]:
    """Work that is another operator's in one forward than in the other is no operator's."""
    differs = one and other and claimed(one) is not claimed(other)
    return one | other | {"another in each forward"} if differs else one | other


class _Frame(NamedTuple):
    """One function on the way. ``own``: the name of the layer in it, mostly self; ``owner``: the class that defines it."""

    names: dict[str, Any]
    own: str
    owner: Optional[type]
    inner: dict[str, ast.FunctionDef]
    returns: list[State]


class _Walk:
    def __init__(self, layer: Any, methods: frozenset[str], weights: frozenset[str]) -> None:
        self._layer = layer
        self._methods = methods
        self._weights = weights
        self._depth = 0
        self._prefill = False
        self.found = Between()

    def entry(self, function: types.FunctionType, owner: Optional[type], prefill: bool) -> Optional[State]:
        self._prefill = prefill
        return self._function(function, owner, State(frozenset(), frozenset((ENTRY,))))

    def _function(self, function: types.FunctionType, owner: Optional[type], state: State) -> Optional[State]:
        tree = definition(function)
        if tree is None or self._depth >= _DEEPEST:
            return _with(state, function.__name__)
        arguments = [*tree.args.posonlyargs, *tree.args.args]
        own = arguments[0].arg if arguments else ""
        return self._body(tree, _Frame(function.__globals__, own, owner, {}, []), state)

    def _body(self, tree: ast.FunctionDef, frame: _Frame, state: State) -> Optional[State]:
        self._depth += 1
        end = self._block(tree.body, state, frame)
        self._depth -= 1
        for returned in frame.returns:
            end = joined(end, returned)
        return end

    # Statements ------------------------------------------------------------------------------------------------------

    def _block(self, body: Sequence[ast.stmt], state: Optional[State], frame: _Frame) -> Optional[State]:
        for statement in body:
            if state is None:
                return None
            state = self._statement(statement, state, frame)
        return state

    def _statement(self, node: ast.stmt, state: State, frame: _Frame) -> Optional[State]:
        if isinstance(node, ast.If):
            taken, holds = self._expression(node.test, state, frame), self._holds(node.test, frame)
            return joined(
                None if holds is False else self._block(node.body, taken, frame),
                None if holds is True else self._block(node.orelse, taken, frame),
            )
        if isinstance(node, (ast.For, ast.While)):
            state = self._expression(node.iter if isinstance(node, ast.For) else node.test, state, frame)
            once = joined(state, self._block(node.body, state, frame))
            again = joined(once, self._block(node.body, once, frame))
            return self._block(node.orelse, again, frame)
        if isinstance(node, ast.With):
            for item in node.items:
                state = self._expression(item.context_expr, state, frame)
            end = self._block(node.body, state, frame)
            for item in node.items:  # a context may work when it ends as well
                end = end and self._expression(item.context_expr, end, frame)
            return end
        if isinstance(node, ast.Try):
            end = joined(state, self._block(node.body, state, frame))
            for handler in node.handlers:
                end = joined(end, self._block(handler.body, end, frame))
            return self._block([*node.orelse, *node.finalbody], end, frame)
        if isinstance(node, ast.FunctionDef):
            frame.inner[node.name] = node
            return state
        return self._simple(node, state, frame)

    def _holds(self, test: ast.expr, frame: _Frame) -> Optional[bool]:
        """What the layer itself says of a condition: those of its attributes that are True or False stay so."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            held = self._holds(test.operand, frame)
            return None if held is None else not held
        if isinstance(test, ast.Attribute) and isinstance(test.value, ast.Name) and test.value.id == frame.own:
            value = getattr(self._layer, "__dict__", {}).get(test.attr)
            return value if isinstance(value, bool) else None
        captured = self._prefill and isinstance(test, ast.Call) and _name_of(test.func) == _CAPTURING
        return False if captured else None

    def _simple(self, node: ast.stmt, state: State, frame: _Frame) -> Optional[State]:
        if isinstance(node, ast.Return):
            frame.returns.append(self._expression(node.value, state, frame) if node.value is not None else state)
            return None
        if isinstance(node, ast.Raise):
            return None
        if isinstance(node, ast.AugAssign):
            state = self._expression(node.value, state, frame)
            return state if self._is_number(node.value, frame) else _operation(node.op, state)
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.Expr)):
            state = self._expression(node.value, state, frame) if node.value is not None else state
            targets = node.targets if isinstance(node, ast.Assign) else []
            return _with(state, COPY) if any(isinstance(each, ast.Subscript) for each in targets) else state
        if isinstance(node, (ast.Assert, ast.Delete, ast.Pass, ast.Import, ast.ImportFrom, ast.Global, ast.Nonlocal,
                             ast.Break, ast.Continue)):  # fmt: skip
            return state
        return _with(state, type(node).__name__)

    # Expressions -----------------------------------------------------------------------------------------------------

    def _expression(self, node: ast.AST, state: State, frame: _Frame) -> State:
        if isinstance(node, ast.Call):
            return self._call(node, state, frame)
        if isinstance(node, (ast.Lambda, ast.Constant, ast.Name)):
            return state
        if isinstance(node, ast.IfExp):
            state = self._expression(node.test, state, frame)
            ways = [self._expression(each, state, frame) for each in (node.body, node.orelse)]
            return joined(*ways) or state
        parts = list(ast.iter_child_nodes(node))
        if hasattr(node, "generators"):  # a comprehension: its elements come behind what it goes over, again and again
            parts = sorted(parts, key=lambda part: not isinstance(part, ast.comprehension)) * 2
        for child in parts:
            state = self._expression(child, state, frame)
        if isinstance(node, ast.BinOp) and not self._is_number(node, frame):
            return _operation(node.op, state)
        if isinstance(node, ast.Subscript):
            at = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return _with(state, "index") if any(isinstance(part, (ast.Name, ast.Call)) for part in at) else state
        return state

    def _call(self, node: ast.Call, state: State, frame: _Frame) -> State:
        func, name = node.func, _name_of(node.func)
        receiver = func.value if isinstance(func, ast.Attribute) else None
        if receiver is not None:
            state = self._expression(receiver, state, frame)
        free = name in FREE or (receiver is None and name in PYTHON)
        for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
            # Arithmetic in the arguments of a view is that of its shape.
            parts = [each for each in ast.walk(argument) if isinstance(each, ast.Call)] if free else [argument]
            for part in parts:
                state = self._expression(part, state, frame)
        own = isinstance(receiver, ast.Name) and receiver.id == frame.own
        if isinstance(receiver, ast.Name) and name in (self._methods if own else self._weights):
            return self._boundary(name, state)
        if name in COLLECTIVES:
            return self._collective(name, state)
        if free:
            return state
        kind = COPY if receiver is not None and name in COPIES else WORK.get(name)
        return self._followed(node, name, state, frame) if kind is None else _with(state, kind)

    def _followed(self, node: ast.Call, name: str, state: State, frame: _Frame) -> State:
        """Follow a method of the layer's, called in one of several ways, or a function inside a function; else unknown work."""
        func = node.func
        function, owner = None, None
        if isinstance(func, ast.Name) and func.id in frame.inner:
            inside = frame._replace(inner=dict(frame.inner), returns=[])
            return self._body(frame.inner[func.id], inside, state) or _with(state, name)
        if isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name):
            named = frame.names.get(func.value.id)
            given = node.args[0] if node.args else None
            if func.value.id == frame.own:
                function, owner = resolve(self._layer, name)
            elif isinstance(named, type) and isinstance(given, ast.Name) and given.id == frame.own:
                function, owner = resolve(named, name)
        elif _is_super(func):
            function, owner = resolve(self._layer, name, behind=frame.owner)
        # What never returns, as far as we see, is bound to something else before it is called.
        end = None if function is None else self._function(function, owner, state)
        return end or _with(state, name)

    # What the walk finds ---------------------------------------------------------------------------------------------

    def _boundary(self, name: str, state: State) -> State:
        before = self.found.before
        before[name] = before.get(name, frozenset()) | state.kinds
        if ENTRY in state.last:
            self.found.first |= {name}
        return State(frozenset(), frozenset((name,)))

    def _collective(self, name: str, state: State) -> State:
        for last in state.last:
            known = self.found.collectives.get(last, frozenset())
            self.found.collectives[last] = known | state.kinds
        return State(frozenset(), frozenset((name,)))

    def _is_number(self, node: ast.AST, frame: _Frame) -> bool:
        if isinstance(node, ast.BinOp):
            return self._is_number(node.left, frame) and self._is_number(node.right, frame)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == frame.own:
            return isinstance(getattr(self._layer, "__dict__", {}).get(node.attr), (int, float))
        if isinstance(node, ast.Subscript):
            return isinstance(node.value, ast.Attribute) and node.value.attr == "shape"
        if isinstance(node, ast.Call):
            return _name_of(node.func) in ("len", "int", "size")
        return isinstance(node, ast.Constant)


def _with(state: State, kind: Kind) -> State:
    return State(state.kinds | {kind}, state.last)


def _operation(operation: ast.operator, state: State) -> State:
    """``+`` and the like on tensors."""
    return _with(state, Operator.RESIDUAL if isinstance(operation, ast.Add) else type(operation).__name__.lower())


def _is_super(func: ast.expr) -> bool:
    """Tell whether it is ``super().name``."""
    return isinstance(func, ast.Attribute) and isinstance(func.value, ast.Call) and _name_of(func.value.func) == "super"


def _name_of(func: ast.expr) -> str:
    return func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else "a call"
