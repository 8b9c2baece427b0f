"""``lightllm-otel compare --repeats RUN…``: check whether repeats of one run agree, and name the operators that do not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from lightllm_otel.records.vocabulary import Mode, Phase
from lightllm_otel.tools import inputs
from lightllm_otel.tools.analysis.calls import calls_of, usual_batch
from lightllm_otel.tools.analysis.compare import CannotCompare
from lightllm_otel.tools.analysis.runs import Repeat, check_same
from lightllm_otel.tools.analysis.stability import LEAST_RUNS, Trust, trust
from lightllm_otel.tools.table import table
from lightllm_otel.tools.units import percent

UNSTABLE_STATUS = 3


@dataclasses.dataclass(frozen=True)
class PhaseAgreement:
    """Agreement of the repeats in one phase and mode. ``batch``: batch size of the steps that were compared."""

    phase: Phase
    mode: Mode
    batch: int
    trust: Trust


def compare_repeats(names: Sequence[str], as_json: bool) -> int:
    """Print the agreement of the repeats. Return exit status 0 if they agree and are complete.

    Return 3 if an operator differs from run to run, else 4 if a part of a recording is missing. Raises BadRecording and
    CannotCompare.
    """
    runs = [inputs.run(name) for name in names]
    repeats = [repeat for run in runs for repeat in run.repeats]
    paths = [each.path.resolve() for each in repeats]
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise CannotCompare(f"{twice} is given twice, and would agree with itself; pass each recording once")
    check_same(repeats)
    if len(repeats) < LEAST_RUNS:
        raise CannotCompare(
            f"--repeats needs at least {LEAST_RUNS} recordings of the same load, but got {len(repeats)}; "
            "lightllm-otel bench makes five by default"
        )
    kinds = [
        PhaseAgreement(phase, mode, batch, trust([calls_of(each, phase, mode, batch) for each in repeats]))
        for phase, mode in dict.fromkeys(kind for run in runs for kind in run.kinds())
        if (batch := usual_batch(repeats, phase, mode))
    ]
    if not any(kind.trust.operators for kind in kinds):
        raise CannotCompare(
            "these recordings have too few sampled steps to compare their operators; record more of them, with a smaller "
            "LIGHTLLM_OTEL_SAMPLE_EVERY or with lightllm-otel bench --every 1"
        )
    notes = [note for run in runs for note in run.notes]
    print(json.dumps(described(repeats, kinds, notes), indent=1) if as_json else render(repeats, kinds, notes))
    missing = inputs.incomplete("compare", notes)
    return UNSTABLE_STATUS if any(kind.trust.blame for kind in kinds) else missing


def described(repeats: Sequence[Repeat], kinds: Sequence[PhaseAgreement], notes: Sequence[str]) -> dict[str, Any]:
    """Return the agreement as JSON values."""
    return {
        "kind": "repeats", "version": 1, "repeats": [str(each.path) for each in repeats], "notes": list(notes),
        "kinds": [
            {
                "phase": kind.phase.value, "mode": kind.mode.value, "batch": kind.batch, "trusted": kind.trust.trusted,
                "blame": kind.trust.blame, "sentence": kind.trust.sentence,
                "operators": {
                    name: {**dataclasses.asdict(each), "differs": each.differs}
                    for name, each in kind.trust.operators.items()
                },
            }
            for kind in kinds
        ],
    }  # fmt: skip


def render(repeats: Sequence[Repeat], kinds: Sequence[PhaseAgreement], notes: Sequence[str]) -> str:
    """Return a text table for each phase and mode; the operators that differ most come first."""
    parts = ["\n".join(f"note: {note}" for note in notes)] if notes else []
    for kind in kinds:
        lines = [
            f"{kind.phase.value} · {kind.mode.value}, batch {kind.batch}, {len(repeats)} runs: {kind.trust.sentence}", "",
        ]  # fmt: skip
        ordered = sorted(kind.trust.operators.items(), key=lambda item: (-item[1].differs, -item[1].between))
        cells = [
            [f"  {name}", percent(each.between, 2), percent(each.inside, 2), f"{each.tail:.2f}",
             "differs" if each.differs else "agrees"]
            for name, each in ordered
        ]  # fmt: skip
        lines += table(
            [["", "between runs", "inside a run", "p99/median", "verdict"], *cells], "<>>><", (18, 12, 12, 10)
        )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
