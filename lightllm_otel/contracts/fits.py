"""Fit of the table's rows to the LightLLM of this process, and the features that are lost where rows do not fit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Union

from lightllm_otel.contracts.table import FIELDS, HOOKS, Field, Hook
from lightllm_otel.records.vocabulary import Feature

FITS = "fits"
ABSENT = "this LightLLM does not have it"
Row = Union[Hook, Field]


class Fits:
    """State of each row: :data:`FITS`, or a sentence. A row whose module was never imported has no state."""

    def __init__(self, hooks: Iterable[Hook] = HOOKS, fields: Iterable[Field] = FIELDS) -> None:
        self.hooks = tuple(hooks)
        self.fields = tuple(fields)
        self._states: dict[str, str] = {}
        self._groups: set[str] = set()
        self._group_of = {row.name: row.group for row in self.rows}

    def note(self, name: str, state: str) -> None:
        """Set the state of the row with this name."""
        self._states[name] = state
        if state == FITS and self._group_of.get(name):
            self._groups.add(self._group_of[name])

    def fits(self, *names: str) -> bool:
        """Tell whether one of these rows fits."""
        return any(self._states.get(name) == FITS for name in names)

    def group_fits(self, group: str) -> bool:
        """Tell whether a row of this group fits."""
        return group in self._groups

    @property
    def rows(self) -> tuple[Row, ...]:
        """Return all rows: first the hooks, then the fields."""
        return (*self.hooks, *self.fields)

    def lost(self) -> dict[Feature, list[str]]:
        """Return the losses of each incomplete feature, as sentences. A row that another row replaces loses nothing."""
        found: dict[Feature, list[str]] = {}
        for row in self.rows:
            if self._is_missed(row):
                sentences = found.setdefault(row.feature, [])
                if row.loses not in sentences:
                    sentences.append(row.loses)
        return found

    def _is_missed(self, row: Row) -> bool:
        state = self._states.get(row.name)
        if state is None or state == FITS or not row.loses or (row.group and self.group_fits(row.group)):
            return False
        expected = getattr(row, "expected", None)
        return state != ABSENT or expected is None or (expected != "" and self.fits(expected))

    def facts(self) -> dict[str, Any]:
        """Return the facts that ``doctor`` shows: the rows that do not fit, by name, and the features that are lost."""
        return {
            "rows": {name: state for name, state in self._states.items() if state != FITS},
            "lost": {feature.value: sentences for feature, sentences in self.lost().items()},
        }
