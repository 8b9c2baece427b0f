"""Whether each step's batch, tokens, context and time belong together in the recording of a real server.

Requests end one after the other and begin one after the other, so the batch changes every few steps. A kernel inside each
step takes as long as the step's batch says (spin.py). The model process notes what it computes in each forward. A plugin
that gives a step the figures of its neighbour, with two steps in flight, shows in all three.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import fixed_batch
import numpy as np
from model_servers import Arm, ModelServer
from recorded import match, recorded_steps
from streams import Request, stream

from lightllm_otel.records.vocabulary import Mode, Phase

Rows = list[dict[str, Any]]
UNIT_US = 2000.0
WAIT_SECONDS = 2.0  # the plugin hands its steps over on the idle tick, and the exporter polls


@dataclasses.dataclass(frozen=True)
class Staircase:
    """``batch`` requests that end one after the other, each ``steps`` steps behind the last; then they begin so."""

    batch: int = 20
    steps: int = 6
    input_tokens: int = 64
    apart_seconds: float = 0.12

    def down(self) -> list[Request]:
        texts = fixed_batch.prompts(self.batch, self.input_tokens, 1200)
        return [Request(text, self.steps * (at + 1) + 8) for at, text in enumerate(texts)]

    def up(self) -> list[Request]:
        texts = fixed_batch.prompts(self.batch, self.input_tokens, 1300)
        return [Request(text, self.steps * self.batch) for text in texts]


TINY = Staircase(batch=4, steps=3, input_tokens=8, apart_seconds=1.0)


def measure(server: ModelServer, stairs: Staircase, about: dict[str, Any]) -> Rows:
    """Rows: one for each level of measuring."""
    rows: Rows = []
    for arm in (Arm.STEPS, Arm.EVERY_SECOND):
        server.hold(arm)
        server.watch(0, cpu_time=False)
        server.ask("spin", on=True, unit_us=UNIT_US)
        began = time.time()
        try:
            problems = _requests(server, stairs)
        finally:
            noted = server.ask("spin", on=False)["forwards"]
        time.sleep(WAIT_SECONDS)
        steps = recorded_steps(server.folder / "record", since=began)
        rows.append({**about, "kind": "order", "arm": arm.name.lower(), "problems": problems, **compare(noted, steps)})
    server.hold(Arm.DEFAULT)
    return rows


def _requests(server: ModelServer, stairs: Staircase) -> list[str]:
    with concurrent.futures.ThreadPoolExecutor(stairs.batch) as pool:
        found = list(pool.map(lambda request: stream(server.port, request), stairs.down()))
        later = []
        for request in stairs.up():
            later.append(pool.submit(stream, server.port, request))
            time.sleep(stairs.apart_seconds)
        found += [each.result() for each in later]
    return [each.problem for each in found if each.problem]


def compare(noted: Sequence[dict[str, Any]], steps: Sequence[Any]) -> dict[str, Any]:
    """``noted``: forwards in the model process, with their delays; ``steps``: as recorded, whole steps without intervals."""
    pairs = match([each["at"] * 1e-9 for each in noted], [float(step["wall_time"]) for step in steps])
    matched = [(noted[note], steps[step]) for note, step in pairs]
    wrong = {
        name: sum(not equal(note, step) for note, step in matched)
        for name, equal in (
            ("phase", lambda note, step: note["prefill"] == (step["phase"] == Phase.PREFILL.code)),
            ("batch", lambda note, step: note["batch"] == int(step["batch"])),
            ("context", lambda note, step: note["context"] == int(step["context"])),
            ("tokens", lambda note, step: note["prefill"] or note["batch"] == int(step["tokens"])),
        )
    }
    decodes = [(note, step) for note, step in matched if not note["prefill"]]
    batches = [note["batch"] for note, _ in decodes]
    return {
        "forwards": len(noted), "recorded": len(steps), "matched": len(matched),
        "not_recorded": len(noted) - len(matched), "numbers_in_order": _in_order(steps),
        "batches": sorted(set(batches)), "changes_of_batch": int((np.diff(batches) != 0).sum()) if batches else 0,
        **{f"wrong_{name}": count for name, count in wrong.items()}, **times(decodes),
    }  # fmt: skip


def _in_order(steps: Sequence[Any]) -> bool:
    numbers = [int(step["number"]) for step in steps]
    return numbers == sorted(numbers) and len(set(numbers)) == len(numbers)


def times(decodes: Sequence[tuple[dict[str, Any], Any]]) -> dict[str, Any]:
    """How many steps' seconds are those of another delay, and how many would be if all were shifted by one step."""
    if len(decodes) < 3:
        return {"delay_found_ms": None, "wrong_time": None, "wrong_time_if_shifted": None}
    units = np.array([note["units"] for note, _ in decodes], float)
    batches = np.array([note["batch"] for note, _ in decodes], float)
    seconds = np.array([float(step["seconds"]) for _, step in decodes])
    graph = np.array([step["mode"] == Mode.GRAPH.code for _, step in decodes], float)
    # A step lasts longer with its batch, too, and differently without a graph.
    model = np.column_stack([np.ones(len(units)), batches, graph, units])
    parts = np.linalg.lstsq(model, seconds, rcond=None)[0]
    delay, rest = float(parts[3]), seconds - model[:, :3] @ parts[:3]

    def wrong(of: np.ndarray) -> int:
        return int((np.abs(of - units * delay) > abs(delay) / 2).sum())

    return {
        "delay_found_ms": round(1e3 * delay, 4), "wrong_time": wrong(rest),
        "wrong_time_if_shifted": wrong(np.roll(rest, 1)),
    }  # fmt: skip


def summarise(rows: Rows) -> dict[str, Any]:
    """By host and shape: whether nothing is shifted, and whether a shift would have been seen."""
    found: dict[str, Any] = {}
    for row in (row for row in rows if "arm" in row):
        wrong = {
            name: count for name, count in row.items() if name.startswith("wrong_") and name != "wrong_time_if_shifted"
        }
        found.setdefault(row["host"], {}).setdefault(row["shape"], {})[row["arm"]] = {
            "steps": row["matched"], "not_recorded": row["not_recorded"], "changes_of_batch": row["changes_of_batch"],
            **wrong, "wrong_time_if_shifted": row["wrong_time_if_shifted"], "delay_found_ms": row["delay_found_ms"],
            "nothing_is_shifted": not any(wrong.values()) and row["matched"] > 0 and row["numbers_in_order"],
            "a_shift_would_show": bool(row["wrong_time_if_shifted"]), "problems": row["problems"],
        }  # fmt: skip
    return found
