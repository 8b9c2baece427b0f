"""``lightllm-otel doctor --contracts``: every place where the plugin hooks or reads LightLLM, with its state."""

from __future__ import annotations

import contextlib

from lightllm_otel.contracts.table import FIELDS, HOOKS, Field, Hook
from lightllm_otel.records.folder import is_locked
from lightllm_otel.records.reader import RingReader, rings_in
from lightllm_otel.tools.scrape import folders
from lightllm_otel.tools.table import table


def place(row: Hook | Field) -> str:
    """Return the place in LightLLM that this row of the contract table describes."""
    return row.place if isinstance(row, Hook) else f"{row.owner}.{', '.join(row.attributes)}"


def contract_table() -> int:
    """Print all rows of the contract table, with the state of each row that differs in a running server. Return 0."""
    states: dict[str, str] = {}
    for folder in folders():
        for _, path in rings_in(folder)[0]:
            with contextlib.suppress(OSError, ValueError):  # `doctor` without --contracts reports an unreadable ring
                if is_locked(path):
                    found = RingReader(path).facts().get("contracts") or {}
                    states.update(found.get("rows") or {})
    rows = []
    for row in (*HOOKS, *FIELDS):
        rows.append([row.feature.value, place(row), f"{row.since} … {row.until}"])
        if row.name in states:
            rows.append(["", f"here: {states[row.name]}; then {row.loses}"])
    print("\n".join(table(rows, "<<<", (14, 70))))
    return 0
