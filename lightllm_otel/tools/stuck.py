"""``lightllm-otel doctor --stuck``: show where each rank of a server is, and for which rank the others wait.

It reads only the headers of the rings. A stuck server does not answer, and its exporter may be stuck as well.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from lightllm_otel.records import progress
from lightllm_otel.records.folder import is_locked, lock_owner
from lightllm_otel.records.progress import Progress
from lightllm_otel.records.reader import RingReader, rings_in
from lightllm_otel.records.vocabulary import Phase
from lightllm_otel.tools.scrape import folders, looked_in

PATIENCE_SECONDS = 10.0  # a long prefill can take several seconds
STATES = {"T": "stopped", "t": "traced", "Z": "a zombie", "D": "waiting in the kernel"}
STOPPED = ("T", "t")


@dataclasses.dataclass(frozen=True)
class Position:
    """Position of one rank.

    ``number``: the step that the rank entered last. ``on_gpu``: for how many seconds that step has been in flight; None if it has
    ended. ``last_sign``: seconds since the last heartbeat. ``state``: the process state letter of the Linux kernel; empty if the
    process cannot be seen. ``progress``: how far the host has launched that step; None if it records no boundaries. ``pid``: 0 if
    unknown.
    """

    rank: int
    alive: bool
    state: str
    number: int
    phase: str
    on_gpu: Optional[float]
    last_sign: float
    progress: Optional[Progress] = None
    pid: int = 0

    @property
    def place(self) -> tuple[int, bool]:
        """Sort key: a rank that has ended a step is ahead of one that is still in it."""
        return self.number, self.on_gpu is None

    @property
    def way(self) -> str:
        """End of a sentence that says how far the host has launched the step; empty if that is unknown."""
        return "" if self.progress is None else f", {self.progress}"

    def __str__(self) -> str:
        if not self.alive:
            return f"rank {self.rank}: its process has ended; {self.phase} step {self.number} was its last"
        where = (
            f"in {self.phase} step {self.number} for {self.on_gpu:.1f} s{self.way}" if self.on_gpu is not None
            else f"after {self.phase} step {self.number}"
        )  # fmt: skip
        process = f"; process {self.pid}" if self.pid else ""
        process += f"; it is {STATES[self.state]}" if self.state in STATES else ""
        return f"rank {self.rank}: {where}; last sign of life {self.last_sign:.1f} s ago{process}"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Verdict on a group. ``ranks``: those that the others wait for; empty if nothing is stuck or the headers cannot tell."""

    stuck: bool
    ranks: tuple[int, ...]
    sentence: str


def stuck(as_json: bool, patience: float) -> int:
    """Print where each rank is. Return exit status 0 if no server on this machine is stuck, else 1.

    ``patience``: seconds after which a step counts as stuck. Each unreadable file is one line on stderr.
    """
    findings = []
    for folder in sorted(set(folders())):
        positions, unread = positions_in(folder, time.time())
        for sentence in unread:
            print(f"lightllm-otel doctor: {sentence}", file=sys.stderr)
        if any(position.alive for position in positions):
            findings.append((folder.name, positions, judge(positions, patience)))
    if as_json:
        print(json.dumps([
            {"server": name, "positions": [dataclasses.asdict(each) for each in positions], "stuck": verdict.stuck,
             "behind": verdict.ranks, "sentence": verdict.sentence}
            for name, positions, verdict in findings
        ], indent=1))  # fmt: skip
    else:
        for name, positions, verdict in findings:
            print("\n  ".join([name, *map(str, positions)]) + f"\n  → {verdict.sentence}")
        if not findings:
            print(f"no server with the plugin runs here ({looked_in()})")
    return int(any(verdict.stuck for _, _, verdict in findings))


def positions_in(folder: Path, now: float) -> tuple[list[Position], list[str]]:
    """Return the position of every rank with a ring in this folder, and a sentence for each unreadable file.

    ``now``: Unix time, seconds.
    """
    found: list[Position] = []
    try:
        rings, strays = rings_in(folder)
    except OSError as error:
        return found, [f"{folder} cannot be read ({error.strerror})"]
    unread = [f"{path} is left out: the ring of a rank is named rank-N.ring" for path in strays]
    for rank, path in rings:
        try:
            header = RingReader(path).header
        except (OSError, ValueError) as error:
            unread.append(str(error))
            continue
        seconds = max(0.0, now - float(header["in_flight_since"]))
        pid = lock_owner(path)
        found.append(Position(
            rank, is_locked(path), state_of(pid), int(header["in_flight_number"]),
            Phase.of(min(int(header["in_flight_phase"]), len(Phase) - 1)).value, seconds if header["in_flight"] else None,
            max(0.0, now - float(header["heartbeat"])), progress.read(header), pid,
        ))  # fmt: skip
    return found, unread


def state_of(pid: int) -> str:
    """Return the process state letter of the Linux kernel; empty if the process cannot be seen."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def judge(positions: Sequence[Position], patience: float) -> Verdict:
    """Return the verdict: a process that does not run is behind, else a rank that is behind the others.

    ``patience``: seconds after which a step counts as stuck.
    """
    gone = tuple(each.rank for each in positions if not each.alive)
    if gone:
        return Verdict(
            True, gone, f"{_ranks(gone)} gone while the others run; the server's log says why. Restart the server"
        )
    stopped = tuple(each.rank for each in positions if each.state in STOPPED)
    if stopped:
        return Verdict(True, stopped, f"{_ranks(stopped)} stopped (by SIGSTOP or a debugger): kill -CONT continues it")
    longest = max((each.on_gpu for each in positions if each.on_gpu is not None), default=0.0)
    if longest < patience:
        return Verdict(False, (), f"nothing is stuck: no step has been in flight for {patience:g} s")
    least = min(each.place for each in positions)
    behind = tuple(each.rank for each in positions if each.place == least)
    if len(behind) < len(positions):
        return Verdict(
            True, behind, f"{_ranks(behind)} behind: the others wait for it in a later step, or have finished this one"
        )
    if len(positions) == 1:
        return Verdict(
            True,
            behind,
            f"rank {behind[0]} has been in one step for {longest:.1f} s: its GPU or its host makes no progress",
        )
    return _in_one_step(positions, longest)


def _in_one_step(positions: Sequence[Position], longest: float) -> Verdict:
    """Return the verdict when all ranks are in the same step.

    The progress of the hosts tells where to look first, not which rank is to blame: if a GPU is stuck, its full queue or an
    allocation blocks a healthy host.
    """
    known = [each for each in positions if each.progress is not None]
    launching = [each for each in known if each.progress is not None and not each.progress.everything]
    hint = ""
    if len(known) == len(positions) and launching:
        if len(launching) < len(positions):
            return Verdict(
                True,
                (),  # this tells where to look, not which rank is to blame
                f"{_ranks([each.rank for each in launching])} still launching the step, which the others have fully launched. "
                "Look there first: its host is busy (compiling, loading, waiting for a lock: py-spy dump shows where) "
                "or waits for its GPU",
            )
        least = min(launching, key=lambda each: each.progress.boundaries if each.progress is not None else 0)
        if any(each.progress != least.progress for each in launching):
            hint = f"; look at rank {least.rank} first, which has launched the least of it"
    return Verdict(
        True,
        (),
        f"all ranks have been in the same step for up to {longest:.1f} s, so the headers cannot tell which rank is behind. "
        f"A kernel hangs, or a link is down (nvidia-smi shows which GPUs are busy, dmesg shows a lost GPU){hint}",
    )


def _ranks(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]} is"
    return f"ranks {', '.join(map(str, ranks))} are"
