"""``lightllm-otel demo``: replay a recording through ring, exporter and ``/metrics``, without a GPU."""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lightllm_otel.exporter.exporter import Exporter
from lightllm_otel.records.folder import group_folder, ring_path
from lightllm_otel.records.recording import BadRecording, Recording, read_recording
from lightllm_otel.records.vocabulary import Level
from lightllm_otel.records.writer import RingWriter
from lightllm_otel.settings import Settings
from lightllm_otel.tools.ending import ended_by_signals
from lightllm_otel.tools.operator_table import render, rows
from lightllm_otel.tools.scrape import fetch

PACKAGED = Path(__file__).resolve().parents[1] / "recordings"
DEFAULT = "h200-llama-7b-tp1"
TABLE_AFTER_SECONDS = 3.0
_POLL = 0.05


class Replay:
    """Replay of a recording in a loop: the steps of all ranks in the order in which they began, ``speed`` times as fast."""

    def __init__(self, recording: Recording, folder: Path, speed: float) -> None:
        self._speed = speed
        self._rings = {rank: RingWriter(ring_path(folder, rank), 4) for rank in recording.cells}
        for rank, ring in self._rings.items():
            ring.describe(recording.facts[rank])
            ring.header["level"] = Level(recording.facts[rank].get("level", Level.OPERATORS)).code
        self._steps = sorted(
            ((float(step["wall_time"]), rank, step, intervals) for rank in recording.cells
             for step, intervals in recording.steps(rank)),
            key=lambda row: row[0],
        )  # fmt: skip
        self._first = self._steps[0][0]
        self._span = self._steps[-1][0] - self._first + float(self._steps[-1][2]["seconds"])
        self._next = 0
        self._round = 0

    def advance(self, elapsed: float) -> None:
        """Write every step that begins within ``elapsed`` seconds after the start of the replay."""
        while True:
            wall, rank, step, intervals = self._steps[self._next]
            due = (self._round * self._span + wall - self._first) / self._speed
            if due > elapsed:
                return
            record = np.array([step])
            record["wall_time"] = time.time()
            ring = self._rings[rank]
            ring.write(record.tobytes(), np.array(intervals))
            ring.header["sampled_steps"] += bool(len(intervals))
            ring.header["in_flight_number"] = step["number"]
            self._next += 1
            if self._next == len(self._steps):
                self._next, self._round = 0, self._round + 1


@ended_by_signals(status=0)
def demo(name: str | None, seconds: float | None, port: int | None, speed: float) -> int:
    """Replay until Ctrl-C, or for ``seconds``. Return exit status 0, or 1 with one sentence if the recording cannot be read."""
    try:
        recording = read_recording(find(name))
        if not any(len(cells) for cells in recording.cells.values()):
            raise BadRecording(f"{recording.path} has no steps; record a run with requests in it")
        if speed <= 0:
            raise BadRecording(f"--speed {speed:g}: pass a number above 0")
    except BadRecording as problem:
        print(f"lightllm-otel demo: {problem}", file=sys.stderr)
        return 1
    for sentence in recording.torn:
        print(sentence, file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="lightllm-otel-demo-") as directory:
        settings = dataclasses.replace(
            Settings.from_env(os.environ), directory=Path(directory), record=None, state=None
        )
        settings = dataclasses.replace(settings, port=port or settings.port)
        folder = group_folder(Path(directory), "demo")
        return play(Replay(recording, folder, speed), Exporter(folder, settings), recording, seconds)


def play(replay: Replay, exporter: Exporter, recording: Recording, seconds: float | None) -> int:
    """Write the steps, poll the exporter, and print one table meanwhile. Return the exit status."""
    started = time.monotonic()
    shown = False
    exporter.poll()
    if exporter.server is None:
        return 1  # the exporter has printed which ports it tried
    address = f"http://{exporter.server.address}/metrics"
    facts = next(iter(recording.facts.values()))
    page = address.rpartition("/")[0]
    print(f"Replaying {recording.path.name}: {facts.get('model')} on {facts.get('gpu_name')}, tp {facts.get('tp')}, "
          f"LightLLM {facts.get('lightllm')}.\nLive page: {page}/\nMetrics: {address}\n"
          f"Live table: lightllm-otel top --url {address}\n"
          + ("Press Ctrl-C to stop." if seconds is None else f"Stops after {seconds:g} s."), flush=True)  # fmt: skip
    try:
        while seconds is None or time.monotonic() - started < seconds:
            replay.advance(time.monotonic() - started)
            exporter.poll()
            if not shown and time.monotonic() - started > TABLE_AFTER_SECONDS:
                shown = True
                print("\n" + render(rows(fetch(address))), flush=True)
            time.sleep(_POLL)
        if not shown:
            print("\n" + render(rows(fetch(address))), flush=True)
    except KeyboardInterrupt:
        print("" if shown else "\n" + render(rows(fetch(address))), flush=True)
    finally:
        exporter.close()  # also removes the discovery file
    return 0


def find(name: str | None) -> Path:
    """Return the folder of a recording: this folder, or one in the package with this name. Raises BadRecording."""
    given = Path(name or DEFAULT)
    if given.is_dir():
        return given
    packaged = PACKAGED / given.name
    if packaged.is_dir():
        return packaged
    known = ", ".join(sorted(path.name for path in PACKAGED.glob("*/"))) or "none"
    raise BadRecording(f"there is no recording {name or DEFAULT}; the package contains: {known}")
