"""Walk over the code of a layer's forward, in the order of execution.

It follows calls of the layer's own methods, takes both branches of every condition, and treats everything unknown as work. So
it may find work where there is none, which costs a boundary, but it never misses work.
"""

from __future__ import annotations

import ast
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Optional, Union

from lightllm_otel.records.vocabulary import Operator
from lightllm_otel.worker.host.calls import COLLECTIVES, COPIES, DECORATORS, FREE, PYTHON, WORK
from lightllm_otel.worker.host.source import definition, resolve, surroundings

ENTRY = ""  # stands for the boundary before a layer
COPY = "copy"  # a conversion; it belongs to the add beside it
_DEEPEST = 12  # nested calls of methods
_LONGEST = 20_000  # expressions of a forward, including those of the methods that it calls
# A prefill graph is captured piece by piece, and no operator in it is recorded.
_CAPTURING = ("is_current_stream_capturing", "is_capturing")  # the latter on branches for other accelerators

Kind = Union[Operator, str]
"""Kind of work: an operator, or the name of a call that no operator claims."""


class TooLongError(Exception):
    """The code is too long to analyse."""


class WalkState(NamedTuple):
    """State of the walk: the ``kinds`` of work since the last boundary, which was one of ``last``."""

    kinds: frozenset[Kind]
    last: frozenset[str]


class _Frame(NamedTuple):
    """One function of the walk. ``own``: the layer's name in it, mostly self. ``owner``: the class that defines it.

    ``numbers``: its variables that hold numbers. ``others``: variables that have held anything else. ``returns``: states at its
    returns. ``breaks``, ``continues``: states at which a loop in it is left.
    """

    names: Mapping[str, Any]
    own: str
    owner: Optional[type]
    inner: dict[str, ast.FunctionDef]
    numbers: set[str]
    others: set[str]
    returns: list[WalkState]
    breaks: list[WalkState]
    continues: list[WalkState]


def joined(*ways: Optional[WalkState]) -> Optional[WalkState]:
    """Return the state of a place that several ways may reach. None is a way that does not reach it."""
    there = [way for way in ways if way is not None]
    if not there:
        return None
    return WalkState(frozenset().union(*(way.kinds for way in there)), frozenset().union(*(way.last for way in there)))


class Walk:
    """Walk over one layer. ``before``, ``collectives`` and ``first`` are results, as in :class:`.between.Between`."""

    def __init__(self, layer: Any, methods: frozenset[str], weights: frozenset[str], prefill: bool) -> None:
        self.before: dict[str, frozenset[Kind]] = {}
        self.collectives: dict[str, frozenset[Kind]] = {}
        self.first: frozenset[str] = frozenset()
        self._layer = layer
        self._own: dict[str, Any] = getattr(layer, "__dict__", {})
        self._methods = methods
        self._weights = weights
        self._prefill = prefill
        self._depth = self._length = 0

    def entry(self, function: types.FunctionType, owner: Optional[type]) -> Optional[WalkState]:
        """Walk through a forward, and return the state at its end, or None if it never returns. Raises TooLongError."""
        return self._function(function, owner, WalkState(frozenset(), frozenset((ENTRY,))))

    def _function(self, function: types.FunctionType, owner: Optional[type], state: WalkState) -> Optional[WalkState]:
        tree = definition(function)
        if tree is None or self._depth >= _DEEPEST:
            return _plus(state, function.__name__)
        around = [f"@{_name_of(each)}" for each in tree.decorator_list if _name_of(each) not in DECORATORS]
        own = next((each.arg for each in (*tree.args.posonlyargs, *tree.args.args)), "")
        frame = _Frame(surroundings(function), own, owner, {}, set(), _given(tree), [], [], [])
        end = self._body(tree, frame, _plus(state, *around))
        return end and _plus(end, *around)

    def _body(self, tree: ast.FunctionDef, frame: _Frame, state: WalkState) -> Optional[WalkState]:
        self._depth += 1
        end = self._block(tree.body, state, frame)
        self._depth -= 1
        return joined(end, *frame.returns)

    # Statements ------------------------------------------------------------------------------------------------------

    def _block(self, body: Sequence[ast.stmt], state: Optional[WalkState], frame: _Frame) -> Optional[WalkState]:
        for statement in body:
            if state is None:
                return None
            state = self._statement(statement, state, frame)
        return state

    def _statement(self, node: ast.stmt, state: WalkState, frame: _Frame) -> Optional[WalkState]:
        if isinstance(node, ast.If):
            taken, holds = self._expression(node.test, state, frame), self._holds(node.test, frame)
            return joined(
                None if holds is False else self._block(node.body, taken, frame),
                None if holds is True else self._block(node.orelse, taken, frame),
            )
        if isinstance(node, (ast.For, ast.While)):
            return self._loop(node, state, frame)
        if isinstance(node, ast.With):
            return self._with(node, state, frame)
        if isinstance(node, ast.Try):
            return self._try(node, state, frame)
        if isinstance(node, ast.FunctionDef) and not node.decorator_list:
            frame.inner[node.name] = node
            return state
        return self._simple(node, state, frame)

    def _loop(self, node: Union[ast.For, ast.While], state: WalkState, frame: _Frame) -> Optional[WalkState]:
        if isinstance(node, ast.For):
            state = self._expression(node.iter, state, frame)
            frame.others.update(name.id for name in ast.walk(node.target) if isinstance(name, ast.Name))
        head, around = state, frame._replace(breaks=[], continues=[])
        while True:
            test = self._expression(node.test, head, frame) if isinstance(node, ast.While) else head
            end = self._block(node.body, test, around)
            again = joined(head, test, end, *around.continues)
            if again is None or again == head:
                return joined(self._block(node.orelse, test, frame), *around.breaks)
            head = again

    def _with(self, node: ast.With, state: WalkState, frame: _Frame) -> Optional[WalkState]:
        def contexts(state: WalkState) -> WalkState:
            for item in node.items:
                state = self._expression(item.context_expr, state, frame)
            return state

        inside = frame._replace(returns=[], breaks=[], continues=[])
        end = self._block(node.body, contexts(state), inside)
        self._leave(inside, frame, contexts)  # a context may also do work when it ends
        return end and contexts(end)

    def _try(self, node: ast.Try, state: WalkState, frame: _Frame) -> Optional[WalkState]:
        inside = frame._replace(returns=[], breaks=[], continues=[])
        end = self._block([*node.body, *node.orelse], state, inside)
        # An exception may come from anywhere, so it is unknown what had been launched by then.
        raised = WalkState(state.kinds | {"except"}, state.last | self._methods | self._weights | COLLECTIVES)
        ends = [self._block(each.body, raised, inside) for each in node.handlers]
        self._leave(inside, frame, lambda state: self._block(node.finalbody, state, frame))
        end = joined(end, *ends)
        return end and self._block(node.finalbody, end, frame)

    def _leave(self, inside: _Frame, frame: _Frame, through: Callable[[WalkState], Optional[WalkState]]) -> None:
        """Send every way out of a block through the code at its end."""
        for left, out in zip(inside[-3:], frame[-3:]):
            out += [last for state in left if (last := through(state)) is not None]

    def _simple(self, node: ast.stmt, state: WalkState, frame: _Frame) -> Optional[WalkState]:
        if isinstance(node, (ast.Return, ast.Raise, ast.Break, ast.Continue)):
            self._left(node, state, frame)
            return None
        if isinstance(node, ast.AugAssign):
            state = self._expression(node.value, state, frame)
            number = self._is_number(node.target, frame) and self._is_number(node.value, frame)
            return state if number else _operation(node.op, state)
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            return self._assignment(node, state, frame)
        if isinstance(node, (ast.Expr, ast.Assert)):
            return self._expression(node.test if isinstance(node, ast.Assert) else node.value, state, frame)
        if isinstance(node, (ast.Delete, ast.Pass, ast.Import, ast.ImportFrom, ast.Global, ast.Nonlocal)):
            return state
        return _plus(state, type(node).__name__)

    def _left(self, node: ast.stmt, state: WalkState, frame: _Frame) -> None:
        if isinstance(node, ast.Return):
            frame.returns.append(self._expression(node.value, state, frame) if node.value is not None else state)
        elif not isinstance(node, ast.Raise):
            (frame.breaks if isinstance(node, ast.Break) else frame.continues).append(state)

    def _assignment(self, node: Union[ast.Assign, ast.AnnAssign], state: WalkState, frame: _Frame) -> WalkState:
        if node.value is None:
            return state
        state, number = self._expression(node.value, state, frame), self._is_number(node.value, frame)
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for name in (each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)):
            (frame.numbers if number else frame.others).add(name)
        return _plus(state, COPY) if any(isinstance(each, ast.Subscript) for each in targets) else state

    def _holds(self, test: ast.expr, frame: _Frame) -> Optional[bool]:
        """Return the value of a condition on the layer's own attributes, if it is True or False; such attributes stay so."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            held = self._holds(test.operand, frame)
            return None if held is None else not held
        if isinstance(test, ast.Attribute) and isinstance(test.value, ast.Name) and test.value.id == frame.own:
            value = self._own.get(test.attr)
            return value if isinstance(value, bool) else None
        capturing = self._prefill and isinstance(test, ast.Call) and _name_of(test.func) in _CAPTURING
        return False if capturing else None

    # Expressions -----------------------------------------------------------------------------------------------------

    def _expression(self, node: ast.AST, state: WalkState, frame: _Frame) -> WalkState:
        self._length += 1
        if self._length > _LONGEST:
            raise TooLongError
        if isinstance(node, ast.Call):
            return self._call(node, state, frame)
        if isinstance(node, (ast.Lambda, ast.Constant, ast.Name)):
            return state
        if isinstance(node, (ast.IfExp, ast.BoolOp)):
            parts = [node.test, node.body, node.orelse] if isinstance(node, ast.IfExp) else node.values
            first = self._expression(parts[0], state, frame)
            ways = [self._expression(each, first, frame) for each in parts[1:]]
            return joined(first, *ways) or first if isinstance(node, ast.BoolOp) else joined(*ways) or first
        inside = list(ast.iter_child_nodes(node))
        if hasattr(node, "generators"):  # a comprehension evaluates its elements repeatedly, after its iterables
            inside = sorted(inside, key=lambda part: not isinstance(part, ast.comprehension)) * 2
        for child in inside:
            state = self._expression(child, state, frame)
        return self._operated(node, state, frame)

    def _operated(self, node: ast.AST, state: WalkState, frame: _Frame) -> WalkState:
        """Add the work of an expression that is not a call: arithmetic, indexing, a property of the layer."""
        if isinstance(node, ast.BinOp) and not self._is_number(node, frame):
            return _operation(node.op, state)
        if isinstance(node, ast.UnaryOp) and not isinstance(node.op, ast.Not) and not self._is_number(node, frame):
            return _plus(state, type(node.op).__name__.lower())
        if isinstance(node, ast.Compare):
            identity = all(isinstance(each, (ast.Is, ast.IsNot, ast.In, ast.NotIn)) for each in node.ops)
            plain = all(self._is_plain(each, frame) for each in (node.left, *node.comparators))
            return state if identity or plain else _plus(state, "comparison")
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            chosen = [part for part in parts if not isinstance(part, (ast.Slice, ast.Constant))]
            return state if all(self._is_number(part, frame) for part in chosen) else _plus(state, "index")
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == frame.own:
            of_class = inspect.getattr_static(type(self._layer), node.attr, None)
            return _plus(state, node.attr) if isinstance(of_class, property) else state
        return state

    def _call(self, node: ast.Call, state: WalkState, frame: _Frame) -> WalkState:
        func, name = node.func, _name_of(node.func)
        receiver = func.value if isinstance(func, ast.Attribute) else None
        if receiver is not None:
            state = self._expression(receiver, state, frame)
        elif not isinstance(func, ast.Name):
            state = self._expression(func, state, frame)
        free = name in FREE or (receiver is None and name in PYTHON)
        for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
            # Arithmetic in the arguments of a view only computes its shape.
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
        return self._followed(node, name, state, frame) if kind is None else _plus(state, kind)

    def _followed(self, node: ast.Call, name: str, state: WalkState, frame: _Frame) -> WalkState:
        """Follow a call of the layer's method or of an inner function. Any other call is unknown work."""
        func = node.func
        function, owner = None, None
        if isinstance(func, ast.Name) and func.id in frame.inner:
            tree = frame.inner[func.id]
            inside = frame._replace(
                inner=dict(frame.inner), numbers=set(), others=frame.others | _given(tree), returns=[]
            )
            return self._body(tree, inside, state) or _plus(state, name)
        if isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name):
            named = frame.names.get(func.value.id)
            given = node.args[0] if node.args else None
            if func.value.id == frame.own:
                function, owner = resolve(self._layer, name)
            elif isinstance(named, type) and isinstance(given, ast.Name) and given.id == frame.own:
                function, owner = resolve(named, name)
        elif isinstance(func, ast.Attribute) and isinstance(func.value, ast.Call) and _name_of(func.value) == "super":
            function, owner = resolve(self._layer, name, behind=frame.owner)
        # A function that seems never to return is replaced by another one before it is called.
        end = None if function is None else self._function(function, owner, state)
        return end or _plus(state, name)

    def _is_plain(self, node: ast.AST, frame: _Frame) -> bool:
        """Tell whether the expression is a number or text."""
        return isinstance(node, (ast.Constant, ast.JoinedStr)) or self._is_number(node, frame)

    def _is_number(self, node: ast.AST, frame: _Frame) -> bool:
        if isinstance(node, ast.BinOp):
            return self._is_number(node.left, frame) and self._is_number(node.right, frame)
        if isinstance(node, ast.UnaryOp):
            return self._is_number(node.operand, frame)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == frame.own:
            return isinstance(self._own.get(node.attr), (int, float))
        if isinstance(node, ast.Subscript):
            return isinstance(node.value, ast.Attribute) and node.value.attr == "shape"
        named = (
            isinstance(node, ast.Name)
            and node.id not in frame.others
            and (node.id in frame.numbers or isinstance(frame.names.get(node.id), (int, float)))
        )
        counted = isinstance(node, ast.Call) and _name_of(node) in ("len", "int", "size", "numel")
        return named or counted or (isinstance(node, ast.Constant) and isinstance(node.value, (int, float)))

    # Results ---------------------------------------------------------------------------------------------------------

    def _boundary(self, name: str, state: WalkState) -> WalkState:
        self.before[name] = self.before.get(name, frozenset()) | state.kinds
        if ENTRY in state.last:
            self.first |= {name}
        return WalkState(frozenset(), frozenset((name,)))

    def _collective(self, name: str, state: WalkState) -> WalkState:
        for last in state.last:
            self.collectives[last] = self.collectives.get(last, frozenset()) | state.kinds
        return WalkState(frozenset(), frozenset((name,)))


def _plus(state: WalkState, *kinds: Kind) -> WalkState:
    return WalkState(state.kinds.union(kinds), state.last)


def _operation(operation: ast.operator, state: WalkState) -> WalkState:
    """Add the work of an arithmetic operation on tensors."""
    return _plus(state, Operator.RESIDUAL if isinstance(operation, ast.Add) else type(operation).__name__.lower())


def _name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        return _name_of(node.func)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else "a call"


def _given(tree: ast.FunctionDef) -> set[str]:
    """Return the names of a function's parameters."""
    return {each.arg for each in ast.walk(tree.args) if isinstance(each, ast.arg)}
