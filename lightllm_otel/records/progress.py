"""How far a rank's host has come in a step whose operators it marks, as three words of the ring's header.

Only the host's way: what it has launched, not what the GPU has done of it. A mark sets two words and computes nothing; a step
without marks sets none. The first word carries the step's number, so that what is there says nothing about another step.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Optional, Protocol

from lightllm_otel.records.vocabulary import Operator


class Words(Protocol):
    """The mapped header's, or a list."""

    def __setitem__(self, at: int, word: int, /) -> None: ...


STEP, BOUNDARIES, PLACE = range(3)
WORDS = 3
_SET = 1 << 31  # beside the step's number: there is something to read
_ALL = (1 << 32) - 1  # marks: everything is launched
_LAYER_AT = 8


def begin(words: Words, number: int) -> None:
    """A step that takes marks is entered."""
    words[BOUNDARIES] = words[PLACE] = 0
    words[STEP] = _SET | number & _SET - 1


def launched(words: Words) -> None:
    """Everything of that step."""
    words[BOUNDARIES] = _ALL


def forget(words: Words) -> None:
    """The step's marks have ended before it has."""
    words[STEP] = 0


def place(operator: Operator, layer: int) -> int:
    """What has been launched when this mark is taken. A gap launches nothing: 0, the place before it remains. A layer below -1
    stands for something else than an operator.
    """
    if layer < -1:
        return 1
    return 0 if operator is Operator.GAP else layer + 2 << _LAYER_AT | operator.code


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a host is with launching a step. ``boundaries``: how many so far. ``operator``: the last one, or empty.

    ``layer``: -1 outside layers, -2 where what is launched is no operator.

    ``everything``: the whole step is launched, and the host waits for the GPU or has gone on.
    """

    boundaries: int
    operator: str = ""
    layer: int = -1
    everything: bool = False

    def __str__(self) -> str:
        if self.everything:
            return "all of its forward launched"
        if not self.operator:
            return "nothing of it launched yet" if self.layer == -1 else "launched in part"
        return f"launched up to {self.operator}" + (f" of layer {self.layer}" if self.layer >= 0 else "")


def read(header: Any) -> Optional[Progress]:
    """Of the step that is in flight; None where it takes no boundaries."""
    words = [int(word) for word in header["reached"]]
    if not header["in_flight"] or words[STEP] != _SET | int(header["in_flight_number"]) & _SET - 1:
        return None
    if words[BOUNDARIES] == _ALL:
        return Progress(0, everything=True)
    layer, code = (words[PLACE] >> _LAYER_AT) - 2, words[PLACE] & (1 << _LAYER_AT) - 1
    if layer < -1 or code >= len(Operator):
        return Progress(words[BOUNDARIES], layer=-2 if words[PLACE] else -1)
    return Progress(words[BOUNDARIES], Operator.of(code).value, layer)
