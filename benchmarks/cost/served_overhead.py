"""What the plugin costs a real server, in its own infer threads: one setting against another, in turns of some steps.

A pass is a batch of streaming requests, always the same prompts. Within it the model process changes the setting every
``block`` steps; the next pass has the settings the other way round (pairing.py). The reference is the same process without
any hook of the plugin (arms.py: ABSENT). A step lasts from the results of the one before to its own, on the host.

Two servers in turn, stock and instrumented, cover what cannot be taken out of a process. Their offset is that of two starts.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import fixed_batch
import numpy as np
import pairing
from model_servers import Arm, Column, ModelServer, Word, only
from pairing import Schedule
from streams import Request, Stream, together

Rows = list[dict[str, Any]]
Keep = Callable[[Rows], None]
OWN_ARMS = (Arm.OFF, Arm.STEPS, Arm.UNSAMPLED, Arm.DEFAULT, Arm.EVERY_STEP)
Turns = tuple[int, tuple[Arm, Arm]]  # number of the pass, and the reference and the other setting
TAIL = 99
DRAWS = 400


@dataclasses.dataclass(frozen=True)
class Load:
    """A pass: so many requests of so many tokens; of each block the first ``dropped`` steps do not count.

    ``spare``: tokens that are asked for beside the positions, because requests do not all begin in the same step.
    """

    batch: int = 20
    input_tokens: int = 256
    positions: int = 768
    block: int = 64
    dropped: int = 24
    spare: int = 40

    def schedule(self, passes: int = 2) -> Schedule:
        return Schedule(self.positions, self.block, passes, self.dropped)

    def requests(self) -> list[Request]:
        texts = fixed_batch.prompts(self.batch, self.input_tokens)
        return [Request(text, self.positions + self.spare) for text in texts]


TINY = Load(batch=2, input_tokens=8, positions=28, block=14, dropped=13, spare=4)


@dataclasses.dataclass(frozen=True)
class Case:
    """``passes``: an even number."""

    name: str
    arm: Arm
    passes: int
    reference: Arm = Arm.ABSENT


def cases(scale: float, reference: Arm) -> list[Case]:
    """Most important first."""
    wanted = (
        ("default", Arm.DEFAULT, 12), ("every_step", Arm.EVERY_STEP, 4), ("unsampled", Arm.UNSAMPLED, 4),
        ("steps", Arm.STEPS, 4), ("off", Arm.OFF, 2),
    )  # fmt: skip
    return [
        Case(name, arm, max(2, 2 * round(passes * scale / 2)), reference)
        for name, arm, passes in wanted
        if arm != reference
    ]


@dataclasses.dataclass(frozen=True)
class Pass:
    """By position: seconds of a step, and seconds of the thread's CPU time. ``times``: when each ended, in nanoseconds."""

    seconds: np.ndarray
    cpu: np.ndarray
    times: np.ndarray
    streams: list[Stream]


class Incomplete(ValueError):
    """A pass that cannot be compared; the message says why."""


# From the log of steps -------------------------------------------------------------------------------------------------


def pass_of(rows: np.ndarray, load: Load, streams: Sequence[Stream] = (), turns: Turns | None = None) -> Pass:
    """Read a pass from the steps of its duration, shape (steps, columns). Raises Incomplete.

    The setting changes behind the step of position 0, so the first step that counts is that of position 1.
    """
    run = longest_run(rows[:, Column.POSITION])
    if len(run) < load.positions + 1:
        raise Incomplete(f"{len(run)} steps in a row with {load.batch} requests, {load.positions + 1} are needed")
    chosen = rows[run][1 : load.positions + 1]
    before = rows[run][: load.positions]
    if turns is not None:
        check_turns(chosen[:, Column.ARM], load, *turns)
    cpu = (chosen[:, Column.SERIAL_CPU] + chosen[:, Column.REST_CPU]) * 1e-9
    at = chosen[:, Column.AT]
    return Pass((at - before[:, Column.AT]) * 1e-9, cpu, at, list(streams))


def longest_run(positions: np.ndarray) -> np.ndarray:
    """Return the indices of the longest run of positions that grow by one from 0."""
    best = np.arange(0)
    starts = np.flatnonzero(positions == 0)
    for start in starts:
        expected = np.arange(len(positions) - start)
        wrong = np.flatnonzero(positions[start:] != expected)
        length = int(wrong[0]) if len(wrong) else len(expected)
        if length > len(best):
            best = np.arange(start, start + length)
    return best


def check_turns(found: np.ndarray, load: Load, number: int, arms: tuple[Arm, Arm]) -> None:
    """Raise Incomplete unless each step that counts had been asked for the setting of its block."""
    schedule = load.schedule(4)
    counted = [at for at in range(load.positions) if schedule.counts(at)]
    expected = [int(arms[schedule.is_on(number, at)]) for at in counted]
    wrong = int((found[counted] != expected).sum())
    if wrong:
        raise Incomplete(f"{wrong} of {len(counted)} steps had another setting than was asked for")


def cells_of(load: Load, passes: Sequence[Pass], first: int = 0) -> dict[str, list[pairing.Cell]]:
    """Pair steps at the same position of two passes. ``first``: passes of this case before, for the cells' numbers."""
    schedule = load.schedule(len(passes))
    found = {}
    for name, of in (("step", "seconds"), ("host", "cpu")):
        cells = pairing.cells(schedule, [getattr(each, of) for each in passes])
        found[name] = [dataclasses.replace(cell, passes=cell.passes + first // 2) for cell in cells]
    return found


def client_intervals(load: Load, passes: Sequence[Pass]) -> list[tuple[int, bool, np.ndarray]]:
    """``(block, on, seconds between tokens)`` of each block of each pass, as the client saw them."""
    schedule = load.schedule()
    found = []
    for number, each in enumerate(passes):
        for first in range(0, load.positions, load.block):
            begin, end = each.times[first + load.dropped - 1], each.times[first + load.block - 1]
            seconds = []
            for stream in each.streams:
                arrivals = np.array(stream.arrivals, np.int64)
                inside = (arrivals[1:] > begin) & (arrivals[1:] <= end)
                seconds.append(np.diff(arrivals)[inside] * 1e-9)
            if sum(map(len, seconds)):
                found.append((first // load.block, schedule.is_on(number, first), np.concatenate(seconds)))
    return found


def client_tail(found: Sequence[tuple[int, bool, np.ndarray]], seed: int = 0) -> dict[str, Any]:
    """How much higher the 99th percentile between tokens is at the client; blocks are drawn for the interval.

    The longest intervals of a pass are its last, with or without a setting. So intervals are divided by their block's median.
    """
    blocks = {at for at, on, _ in found if on} & {at for at, on, _ in found if not on}
    found = [each for each in found if each[0] in blocks]
    if not found:
        return {}
    typical = {
        block: float(np.median(np.concatenate([seconds for at, on, seconds in found if at == block and not on])))
        for block in blocks
    }
    sides = [[seconds / typical[at] for at, on, seconds in found if on is side] for side in (True, False)]

    def ratio(on: list[np.ndarray], off: list[np.ndarray]) -> float:
        tails = [float(np.percentile(np.concatenate(each), TAIL)) for each in (on, off)]
        return 100 * (tails[0] / tails[1] - 1)

    random = np.random.default_rng(seed)
    drawn = [
        ratio(*([side[at] for at in random.integers(0, len(side), len(side))] for side in sides)) for _ in range(DRAWS)
    ]
    plain = [np.concatenate([seconds for _, on, seconds in found if on is side]) for side in (True, False)]
    return {
        "client_p99_increase_percent": round(ratio(*sides), 3),
        "client_p99_increase_percent_ci95": [round(float(np.percentile(drawn, at)), 3) for at in (2.5, 97.5)],
        **{f"client_p99_{name}_us": round(1e6 * float(np.percentile(each, TAIL)), 1)
           for name, each in zip(("on", "off"), plain)},
    }  # fmt: skip


# Running ---------------------------------------------------------------------------------------------------------------


class Measurement:
    """All cases of one server. They take turns by two passes each, so that what drifts is the same for all."""

    def __init__(self, server: ModelServer, load: Load, keep: Keep, about: dict[str, Any]) -> None:
        self._server, self._load, self._keep, self._about = server, load, keep, about
        self._number = 0
        self._passes: dict[str, list[Pass]] = {}

    def run(self, wanted: Sequence[Case], until: float) -> None:
        """Until all passes are done or ``until`` (time.monotonic) has come; each case has rows as soon as it can."""
        done: dict[str, int] = {case.name: 0 for case in wanted}
        turns = max(case.passes for case in wanted) // 2
        for turn in range(turns):
            for case in wanted:
                # Cases with fewer passes are spread over all turns.
                due = case.passes / 2 * (turn + 1) / turns
                if done[case.name] / 2 >= due or time.monotonic() > until:
                    continue
                if self._two_passes(case, done[case.name]):
                    done[case.name] += 2
        for case in wanted:
            if found := self._passes.get(case.name):
                tails = cells_of(self._load, found)["step"]
                self._rows([
                    {"kind": "tail", **pairing.tail_row(case.name, tails)},
                    {"kind": "client", "case": case.name, **client_tail(client_intervals(self._load, found))},
                ])  # fmt: skip
        self._server.hold(Arm.DEFAULT)

    def _two_passes(self, case: Case, done: int) -> bool:
        before = self._server.ring()
        passes = []
        for number in range(2):
            arms = case.reference, case.arm
            self._server.alternate(self._load.batch, self._load.block, done % 4 + number, arms)
            try:
                passes.append(one_pass(self._server, self._load, (done % 4 + number, arms)))
            except Incomplete as problem:
                self._rows([{"kind": "incomplete", "case": case.name, "why": str(problem)}])
                return False
        # Only whole pairs are kept, in the order ABBA that pairing.Schedule has.
        self._passes.setdefault(case.name, []).extend(passes)
        cells = self._cells(case.name, passes, done)
        after = self._server.ring()
        about = {"kind": "case", "case": case.name, "arm": case.arm.name.lower(), "reference": case.reference.name.lower(),
                 "passes": 2, **dataclasses.asdict(self._load), **sampled(before, after),
                 "thread_clock_us": thread_clock_us(passes), "hooks_out": self._server.log.words[Word.HOOKS]}  # fmt: skip
        self._rows([about, *cells])
        return True

    def _cells(self, case: str, passes: Sequence[Pass], done: int) -> Rows:
        """Of two passes, of which the first had number ``done``."""
        ordered = passes if done % 4 == 0 else [passes[1], passes[0]]  # as if they were passes 0 and 1
        found = cells_of(self._load, ordered, done)
        rows = pairing.cell_rows(case, found["step"])
        return rows + [{**row, "kind": "host_cell"} for row in pairing.cell_rows(case, found["host"])]

    def _rows(self, rows: Rows) -> None:
        self._keep([{**row, **self._about} for row in rows])


def own_times(server: ModelServer, load: Load, about: dict[str, Any]) -> Rows:
    """What the plugin's own Python takes in a step, hook by hook, with each setting: a clock around and inside each hook."""
    rows: Rows = []
    for arm in OWN_ARMS:
        server.hold(arm)
        server.watch(load.batch, cpu_time=False)
        server.ask("own_times", on=True)
        first = server.log.words[Word.STEPS]
        try:
            together(server.port, load.requests())
            steps = server.log.words[Word.STEPS] - first
        finally:
            found = server.ask("own_times", on=False)
        rows.append({"kind": "own_time", "setting": arm.name.lower(), "steps": steps, **about, **found})
    server.hold(Arm.DEFAULT)
    return rows


def one_pass(server: ModelServer, load: Load, turns: Turns | None = None) -> Pass:
    """Run a pass and read it. Raises Incomplete."""
    first = server.log.words[0]
    streams = together(server.port, load.requests())
    problems = [each.problem for each in streams if each.problem]
    if problems:
        raise Incomplete(f"{len(problems)} of {len(streams)} requests failed, the first: {problems[0]}")
    return pass_of(server.log.rows(first), load, streams, turns)


def thread_clock_us(passes: Sequence[Pass]) -> float | None:
    """Return the least difference between two CPU times: some machines count them in milliseconds."""
    apart = np.diff(np.unique(np.concatenate([each.cpu for each in passes])))
    return round(1e6 * float(apart.min()), 3) if len(apart) else None


def sampled(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return how many steps the plugin has recorded and how many of them had their operators timed."""
    if not before or not after:
        return {}
    steps, had = (after[name] - before[name] for name in ("steps", "sampled_steps"))
    return {"steps_recorded": steps, "steps_sampled": had}


def in_turn(
    stock: ModelServer, instrumented: ModelServer, everyone: Sequence[ModelServer], load: Load, rounds: int,
    keep: Callable[[Rows], None], about: dict[str, Any], until: float,
) -> None:  # fmt: skip
    """Two servers with the same passes in turn, ABBA; the plugin at its defaults. Other servers stand still."""
    instrumented.hold(Arm.DEFAULT)
    for number in range(rounds):
        order = (stock, instrumented) if number % 2 == 0 else (instrumented, stock)
        found: dict[bool, Pass] = {}
        for server in order:
            with only(server, everyone):
                server.watch(load.batch)
                try:
                    found[server.kind.instrumented] = one_pass(server, load)
                except Incomplete as problem:
                    keep([{"kind": "incomplete", "case": "servers", "why": str(problem), **about}])
        if len(found) == 2:
            keep([{**row, "case": "servers", "round": number, **about} for row in round_rows(load, found, number)])
        if time.monotonic() > until:
            break


def round_rows(load: Load, found: dict[bool, Pass], number: int) -> Rows:
    """Compare a pass of the instrumented server with one of the stock server, position by position."""
    schedule = load.schedule()
    rows = []
    for kind, of in (("cell", "seconds"), ("host_cell", "cpu")):
        cells = pairing.whole_passes(schedule, [getattr(found[True], of)], [getattr(found[False], of)])
        cells = [dataclasses.replace(cell, passes=number) for cell in cells]
        rows += [{**row, "kind": kind} for row in pairing.cell_rows("servers", cells)]
    tails = {
        name: float(np.percentile(np.concatenate([np.diff(each.arrivals) for each in found[side].streams]), TAIL))
        for side, name in ((True, "on"), (False, "off"))
    }
    return [
        *rows,
        {"kind": "round", **{f"client_p99_{name}_us": round(1e-3 * value, 1) for name, value in tails.items()}},
    ]
