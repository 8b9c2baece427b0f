"""A run: one recording or several repeats of the same, as columns."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightllm_otel.records.batch import RecordBatch
from lightllm_otel.records.recording import MANIFEST, BadRecording, read_recording
from lightllm_otel.records.vocabulary import IdleReason, Label, Mode, Operator, Phase, Site
from lightllm_otel.reduce.operators import Operators
from lightllm_otel.tools.analysis import topology

BENCH = "bench.json"  # beside the repeats of a benchmark: what it ran on
_MOST_LAYERS = 4096
SAME = ("model", "config", "gpu_name", "tp", "dtype")  # what all repeats of a run have in common


@dataclasses.dataclass(frozen=True)
class Repeat:
    """One recording, its ranks one after the other.

    ``facts`` and ``batches``: by rank. ``records``: those of all ranks. ``rank``: that of each step, int, shape (steps,).
    """

    path: Path
    facts: dict[int, dict[str, Any]]
    batches: dict[int, RecordBatch]
    notes: tuple[str, ...] = ()

    @functools.cached_property
    def records(self) -> RecordBatch:
        return RecordBatch.joined(list(self.batches.values()))

    @functools.cached_property
    def rank(self) -> np.ndarray:
        return np.concatenate([np.full(len(batch), rank) for rank, batch in self.batches.items()])

    @property
    def steps(self) -> np.ndarray:
        return self.records.steps

    @property
    def intervals(self) -> np.ndarray:
        return self.records.intervals

    @property
    def of(self) -> np.ndarray:
        """Return the index of each interval's step."""
        return self.records.step_of_interval

    @property
    def count(self) -> int:
        """Return how many records there are."""
        return len(self.steps) + len(self.intervals)

    def chosen(self, phase: Phase, mode: Mode, sampled: bool = False) -> np.ndarray:
        """Return a mask of the steps of this kind that computed tokens of requests (bool, shape (steps,))."""
        wanted: np.ndarray = self._kinds == phase.code * len(Mode) + mode.code
        return wanted & self.records.is_sampled if sampled else wanted

    @functools.cached_property
    def _kinds(self) -> np.ndarray:
        """Phase and mode of each step as one small number; -1 without tokens of requests."""
        kinds = self.steps["phase"].astype(np.int8) * len(Mode) + self.steps["mode"].astype(np.int8)
        return np.where(self.steps["tokens"] > 0, kinds, -1)


@dataclasses.dataclass(frozen=True)
class Run:
    """Unit of analysis: the same benchmark, recorded once or several times."""

    name: str
    path: Path
    repeats: tuple[Repeat, ...]
    bench: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def facts(self) -> dict[str, Any]:
        """Return the facts of the lowest rank of the first repeat, with those of the machine that a benchmark has kept."""
        facts = self.repeats[0].facts
        link = topology.link_of(facts, self.bench.get("machine"))
        return {**(facts[min(facts)] if facts else {}), **_machine(self.bench), **({"link": link} if link else {})}

    @property
    def ranks(self) -> int:
        return int(self.facts.get("tp", 1))

    @property
    def records(self) -> int:
        return sum(repeat.count for repeat in self.repeats)

    @property
    def notes(self) -> tuple[str, ...]:
        """Return a sentence on each thing that the recordings lack."""
        return tuple(note for repeat in self.repeats for note in repeat.notes)

    @functools.cached_property
    def operators(self) -> Operators:
        """Return what operators took in the sampled steps of requests, over all ranks and repeats."""
        found = Operators()
        for repeat in self.repeats:
            for rank, batch in repeat.batches.items():
                found.add(rank, batch.only(batch.steps["tokens"] > 0))
        return found

    def kinds(self) -> Iterator[tuple[Phase, Mode]]:
        """Phases and modes in which there are steps with tokens, prefill first."""
        for phase in (Phase.PREFILL, Phase.DECODE, Phase.MIXED):
            for mode in Mode:
                if any(repeat.chosen(phase, mode).any() for repeat in self.repeats):
                    yield phase, mode


def load(path: Path) -> Run:
    """Load a recording's folder, or a folder with several of the same. Raises BadRecording."""
    if not path.is_dir():
        raise BadRecording(f"{path} is not a folder; give the folder of a recording, or one with several")
    repeats = tuple(_read(each) for each in _recordings(path))
    check_same(repeats)
    return Run(path.resolve().name, path, repeats, _bench(path))


def _bench(path: Path) -> dict[str, Any]:
    """Return the benchmark's own file; empty if it cannot be read, because the recordings are what counts."""
    try:
        found = json.loads((path / BENCH).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _machine(bench: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of a benchmark's machine in which two runs can differ. Fields of another form are left out."""
    about = bench.get("machine")
    if not isinstance(about, dict):
        return {}
    gpus, driver = about.get("gpus"), about.get("driver")
    said = [gpu.get("sm_clock_most_mhz") for gpu in gpus if isinstance(gpu, dict)] if isinstance(gpus, list) else []
    clocks = {clock for clock in said if isinstance(clock, (int, float))}
    found = {"driver": driver if isinstance(driver, str) else "", "sm_clock_mhz": "/".join(map(str, sorted(clocks)))}
    return {name: value for name, value in found.items() if value}


def _recordings(path: Path) -> list[Path]:
    if (path / MANIFEST).exists():
        return [path]
    found = sorted({file.parent for depth in ("*", "*/*") for file in path.glob(f"{depth}/{MANIFEST}")})
    return found or [path]  # which then says what it lacks


def _read(path: Path) -> Repeat:
    try:
        recording = read_recording(path)
    except BadRecording:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadRecording(f"{path / MANIFEST} is damaged ({error!r}); record the run again") from error
    batches: dict[int, RecordBatch] = {}
    had_any, notes = False, list(recording.torn)
    for rank, cells in sorted(recording.cells.items()):
        batch = RecordBatch.of_cells(cells)
        had_any |= len(batch) > 0
        if not (batch.steps["tokens"] > 0).any():
            what = "has health checks only" if len(batch) else "is empty or missing"
            notes.append(
                f"{path}: rank {rank} has no steps (rank-{rank}.records {what}), so all of this is of the other ranks"
            )
            continue
        batches[rank] = batch
    if not batches:
        what = "health checks only, no step of a request" if had_any else "no steps"
        raise BadRecording(f"{path} has {what}; record a run with requests in it")
    repeat = Repeat(path, recording.facts, batches, tuple(notes))
    _check_facts(repeat)
    _check_codes(repeat)
    _check_numbers(repeat)
    return dataclasses.replace(repeat, notes=(*notes, *_unnamed(repeat)))


def _unnamed(repeat: Repeat) -> Iterator[str]:
    """Yield a note if ranks of the group are not in the manifest. Those of other nodes never are."""
    facts = repeat.facts[min(repeat.facts)]
    nodes = facts.get("nodes")
    here = facts.get("tp", 1) // (nodes if isinstance(nodes, int) and nodes > 0 else 1)
    if len(repeat.facts) < here:
        yield f"{repeat.path / MANIFEST} names {len(repeat.facts)} of {here} ranks, so all of this is of those"


def _check_facts(repeat: Repeat) -> None:
    for rank, facts in repeat.facts.items():
        ranks = facts.get("tp", 1) if isinstance(facts, dict) else None
        if not isinstance(ranks, int) or ranks < 1:
            raise BadRecording(
                f"{repeat.path / MANIFEST} is damaged: it does not say of rank {rank} what it must; record the run again"
            )


def _check_codes(repeat: Repeat) -> None:
    """Codes are only ever appended, so one that is not known was written by a newer version, or never."""
    kinds: tuple[tuple[str, type[Label], np.ndarray], ...] = (
        ("a phase", Phase, repeat.steps["phase"]), ("a mode", Mode, repeat.steps["mode"]),
        ("an operator", Operator, repeat.intervals["operator"]), ("a site", Site, repeat.intervals["site"]),
        ("an idle reason", IdleReason, repeat.steps["idle_reason"]),
    )  # fmt: skip
    for what, label, codes in kinds:
        if len(codes) and int(codes.max()) >= len(label):
            raise BadRecording(
                f"{repeat.path} has {what} with code {int(codes.max())}, which this version does not know; the file is "
                "damaged, or of another version: use the lightllm-otel that wrote it"
            )


def _check_numbers(repeat: Repeat) -> None:
    """No process of ours writes such times, so the file was damaged."""
    steps, intervals = repeat.steps, repeat.intervals
    columns = [steps[name] for name in ("seconds", "wall_time", "idle_seconds")] + [intervals["seconds"]]
    # A day is longer than any step, and the year 2100 later than any recording: what lies beyond are other bytes.
    limits = (86_400.0, 4.1e9, 4.1e9, 86_400.0)
    sound = all(bool((np.isfinite(column) & (np.abs(column) < limit)).all()) for column, limit in zip(columns, limits))
    if not sound or (steps["seconds"] <= 0).any() or (intervals["layer"] >= _MOST_LAYERS).any():
        raise BadRecording(f"{repeat.path} is damaged: it has times or layers that cannot be; record the run again")


def check_same(repeats: Sequence[Repeat]) -> None:
    """Check that these can be repeats of one run. Raises BadRecording."""
    first = repeats[0]
    for other in repeats[1:]:
        one, two = (repeat.facts[min(repeat.facts)] if repeat.facts else {} for repeat in (first, other))
        for fact in SAME:
            if one.get(fact) != two.get(fact):
                raise BadRecording(
                    f"{first.path} and {other.path} are no repeats of one run, their {fact} differs "
                    f"({one.get(fact)}, {two.get(fact)}); give one of them, or compare them"
                )
