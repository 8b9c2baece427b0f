"""``--fail-if all_reduce:decode:+5%``: conditions that a comparison must not meet."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from lightllm_otel.records.vocabulary import Operator, Phase
from lightllm_otel.tools.analysis.compare import STEP, OperatorChange
from lightllm_otel.tools.analysis.lacking import Lacking

_FORM = re.compile(r"(?P<operator>\w+):(?P<phase>\w+):(?P<percent>[+-]\d+(?:\.\d+)?)%?")


class BadCondition(ValueError):
    """A condition that is not understood or cannot be judged; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Condition:
    """One condition. ``least``: the change from which on it is met; negative: a gain that must not be that large."""

    operator: str
    phase: str
    least: float

    def __str__(self) -> str:
        return f"{self.operator}:{self.phase}:{100 * self.least:+g}%"


def parse(text: str) -> Condition:
    """Parse a condition. Raises BadCondition."""
    found = _FORM.fullmatch(text.strip())
    operators, phases = [STEP, *(each.value for each in Operator)], [each.value for each in Phase]
    if found is None or found["operator"] not in operators or found["phase"] not in phases:
        raise BadCondition(
            f"--fail-if {text!r} is not understood; write OPERATOR:PHASE:+PERCENT%, like all_reduce:decode:+5%, with one of "
            f"{', '.join(operators)} and one of {', '.join(phases)}"
        )
    return Condition(found["operator"], found["phase"], float(found["percent"]) / 100)


def met(condition: Condition, rows: Sequence[OperatorChange], lacking: Sequence[Lacking] = ()) -> str:
    """Return a sentence if the condition is met (the whole interval lies beyond it), else an empty string. Raises BadCondition.

    ``lacking``: what has no row, and so can never be said to be no worse.
    """
    asked = condition.operator, condition.phase
    chosen = [row for row in rows if (row.operator, row.phase) == asked]
    without = [each.note for each in lacking if (each.operator, each.phase) == asked]
    if not chosen and not without:
        raise BadCondition(f"--fail-if {condition}: the comparison has no such operator in this phase")
    for row in chosen:
        if row.interval is None:
            raise BadCondition(f"--fail-if {condition} cannot be judged with so few repeats; record at least 3 a side")
        low, high = row.interval
        if (condition.least >= 0 and low > condition.least) or (condition.least < 0 and high < condition.least):
            return (
                f"{condition} is met ({row.mode}): {100 * row.change:+.1f} %, "
                f"95 % interval {100 * low:+.1f} to {100 * high:+.1f} %"
            )
    if without:
        raise BadCondition(f"--fail-if {condition} cannot be judged: {'; '.join(without)}")
    return ""
