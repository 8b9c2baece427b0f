"""How the plugin counts GPU work that lies in no operator: found out by running its hooks on a layer that is made up."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lightllm_otel.guard import Guard
from lightllm_otel.measure.marking import Marking
from lightllm_otel.measure.marks import Mark, Marks
from lightllm_otel.patch import operators
from lightllm_otel.patch.ledger import Ledger
from lightllm_otel.patch.slots import LAYER_SLOTS, POST_SLOTS, PRE_SLOTS, TORCH_LEAVES, Slot
from lightllm_otel.vocabulary import Operator

LOOSE, OWN = "loose", "own"


class Attribution(NamedTuple):
    """``before_slot``: the operator that work directly before a slot counts as, by the slot's attribute.
    ``before_collective``: the same before a collective outside every slot.
    """

    before_slot: Mapping[str, str]
    before_collective: str


class _Recorder(Marking):
    """Keeps what was done in each interval, and the operator that it was closed with."""

    def __init__(self, marks: Marks) -> None:
        super().__init__(capacity=1 << 10)
        self._marks = marks
        self._done: list[str] = []
        self.closed: list[tuple[str, list[str]]] = []

    def mark(self, code: int) -> None:
        self.codes.append(code)
        self.closed.append((self._marks.name(code), self._done))
        self._done = []

    def work(self, name: str) -> None:
        self._done.append(name)


def of_plugin() -> Attribution:
    """Run loose work before every slot and before a collective, and read which operator the plugin gives it to."""
    # A layer in the middle of the model: before the first one there is no residual.
    found = {
        name: _counted(lambda model, name=name: getattr(model.layers_infer[1], name)) for name in _names(LAYER_SLOTS)
    }
    found |= {
        f"pre.{name}": _counted(lambda model, name=name: getattr(model.pre_infer, name)) for name in _names(PRE_SLOTS)
    }
    found |= {
        f"post.{name}": _counted(lambda model, name=name: getattr(model.post_infer, name))
        for name in _names(POST_SLOTS)
    }
    return Attribution(found, _counted(lambda model: model.torch.all_reduce))


def _names(slots: tuple[Slot, ...]) -> list[str]:
    return [name for slot in slots for name in slot.names]


def _counted(wrapped: Callable[[Any], Callable[..., Any]]) -> str:
    """Return the operator of the interval that holds loose work before a call of this wrapped function."""
    marks = Marks()
    recorder = _Recorder(marks)
    timer: Any = types.SimpleNamespace(armed=None, failed=False, marks=marks, gap=marks.code(Mark(Operator.GAP)))

    def host(*args: Any) -> None:
        recorder.work(OWN)

    def owner(slots: tuple[Slot, ...]) -> Any:
        return types.SimpleNamespace(**dict.fromkeys(_names(slots), host))

    model: Any = types.SimpleNamespace(
        pre_infer=owner(PRE_SLOTS),
        layers_infer=[owner(LAYER_SLOTS), owner(LAYER_SLOTS)],
        post_infer=owner(POST_SLOTS),
        torch=types.SimpleNamespace(**dict.fromkeys((leaf.name for leaf in TORCH_LEAVES), host)),
    )
    ledger, guard = Ledger(), Guard(strict=True)
    operators.install(model, timer, ledger, guard)
    operators.install_collectives(model.torch, TORCH_LEAVES, timer, ledger, guard, operators.Transport())
    call = wrapped(model)
    timer.armed = recorder
    recorder.mark(timer.gap)  # a step begins
    recorder.work(LOOSE)
    call()
    timer.armed = None
    return next(operator for operator, done in recorder.closed if LOOSE in done)
