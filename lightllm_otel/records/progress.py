"""Progress of a rank's host in a step with boundaries, as three words in the ring's header.

The words tell what the host has launched, not what the GPU has finished. A boundary sets two words and computes nothing. A step
without boundaries sets none. The first word holds the step's number, so that a reader never takes it for another step.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Optional, Protocol

from lightllm_otel.records.vocabulary import Operator


class Words(Protocol):
    """Three words of 32 bits: in the mapped header, or a list."""

    def __setitem__(self, at: int, word: int, /) -> None: ...


STEP, BOUNDARIES, PLACE = range(3)
WORDS = 3
_SET = 1 << 31  # set beside the step's number: the words are valid
_ALL = (1 << 32) - 1  # in BOUNDARIES: the whole step is launched
_LAYER_AT = 8


def begin(words: Words, number: int) -> None:
    """Begin a step that records boundaries."""
    words[BOUNDARIES] = words[PLACE] = 0
    words[STEP] = _SET | number & _SET - 1


def launched(words: Words) -> None:
    """Record that the host has launched the whole step."""
    words[BOUNDARIES] = _ALL


def forget(words: Words) -> None:
    """Invalidate the words: the step records no more boundaries."""
    words[STEP] = 0


def place(operator: Operator, layer: int) -> int:
    """Return the word for the operator that has been launched at this boundary.

    Return 0 for a gap, which launches nothing: the last position stays. A layer below -1 stands for launches that belong to no
    operator.
    """
    if layer < -1:
        return 1
    return 0 if operator is Operator.GAP else layer + 2 << _LAYER_AT | operator.code


@dataclasses.dataclass(frozen=True)
class Progress:
    """Progress of a host in launching a step.

    ``boundaries``: the number of boundaries so far. ``operator``: the last operator launched, or empty. ``layer``: its layer, -1
    outside layers, -2 if the last launch belongs to no operator. ``everything``: the whole step is launched, and the host waits
    for the GPU or has continued.
    """

    boundaries: int
    operator: str = ""
    layer: int = -1
    everything: bool = False

    def __str__(self) -> str:
        if self.everything:
            return "its forward is fully launched"
        if not self.operator:
            return "nothing launched yet" if self.layer == -1 else "partly launched"
        return f"launched up to {self.operator}" + (f" of layer {self.layer}" if self.layer >= 0 else "")


def read(header: Any) -> Optional[Progress]:
    """Return the progress of the step in flight, from the ring's header; None if that step records no boundaries."""
    words = [int(word) for word in header["progress"]]
    if not header["in_flight"] or words[STEP] != _SET | int(header["in_flight_number"]) & _SET - 1:
        return None
    if words[BOUNDARIES] == _ALL:
        return Progress(0, everything=True)
    layer, code = (words[PLACE] >> _LAYER_AT) - 2, words[PLACE] & (1 << _LAYER_AT) - 1
    if layer < -1 or code >= len(Operator):
        return Progress(words[BOUNDARIES], layer=-2 if words[PLACE] else -1)
    return Progress(words[BOUNDARIES], Operator.of(code).value, layer)
