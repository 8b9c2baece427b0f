"""Static benchmark: LightLLM's model class without a server, one process per rank, and new processes for every repeat.

Memory, clocks and autotuning vary more from start to start than from step to step. Only a new start makes repeats independent.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightllm_otel.records.folder import RING_PATTERN, is_locked
from lightllm_otel.tools.benchmark.manifest import Outcome, Workload
from lightllm_otel.tools.benchmark.tap import NoRing, Tap

START_SECONDS = 900.0
END_SECONDS = 20.0
DEFAULT_EVERY = 16


class RankFailed(RuntimeError):
    """Raised if a rank exits early; the message has the last line of its output."""


def repeat(
    workload: Workload, model_dir: Path, tp: int, number: int, out: Path, changes: Mapping[str, str] | None = None,
    data_type: str | None = None, graphs: bool = True, share_gpu: bool = False,
) -> Outcome:  # fmt: skip
    """Start all ranks, run and record the batch, and end the ranks.

    ``changes``: variables of their environment. ``share_gpu``: all ranks use one GPU. Raises RankFailed.
    """
    with temporary() as directory:
        ranks = [
            RankProcess(
                workload, model_dir, tp, rank, port, number, directory, changes or {}, data_type, graphs, share_gpu
            )
            for port in [_free_port()]
            for rank in range(tp)
        ]
        with contextlib.ExitStack() as stack:
            for rank in ranks:
                stack.callback(rank.end)
                rank.start()
            for rank in ranks:
                rank.answer(START_SECONDS)
            return _run(ranks, workload, directory, out, number)


def _run(ranks: list[RankProcess], workload: Workload, directory: Path, out: Path, number: int) -> Outcome:
    tap = Tap(group_of(directory, len(ranks)), out / f"repeat-{number}")
    for rank in ranks:
        rank.go()
    reading = threading.Event()
    thread = threading.Thread(target=tap.until, args=(reading.is_set, float("inf")))
    thread.start()
    try:
        answers = [rank.answer(float("inf")) for rank in ranks]
    finally:
        reading.set()
        thread.join()
    tap.until_quiet()
    tap.close()
    seconds = max(answer["prefill_seconds"] + answer["decode_seconds"] for answer in answers)
    notes = ("steps were overwritten before they were read; sample fewer steps (--every)",) if tap.lost else ()
    return Outcome(
        str(tap.path.relative_to(out)),
        seconds,
        workload.batch_size * workload.output_len,
        tap.lost,
        tap.hook_seconds / seconds,
        notes,
    )


@contextlib.contextmanager
def temporary() -> Iterator[Path]:
    """Temporary folder for rings and logs. The exporter of the ranks may still write to it while it is removed."""
    directory = Path(tempfile.mkdtemp(prefix="lightllm-otel-bench-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def group_of(directory: Path, ranks: int) -> Path:
    """Wait for all rings of the only group in ``directory``, and return its folder. Raises NoRing."""
    end = time.monotonic() + END_SECONDS
    while time.monotonic() < end:
        folders = {path.parent for path in directory.glob(f"*/{RING_PATTERN}") if is_locked(path)}
        if len(folders) == 1 and len(list((folder := folders.pop()).glob(RING_PATTERN))) >= ranks:
            return folder
        time.sleep(0.1)
    raise NoRing(
        "the ranks have no rings, because the plugin did not start in them; run lightllm-otel doctor to find out why"
    )


class RankProcess:
    """Process with one rank of the model. Parent and process exchange two lines each."""

    def __init__(
        self, workload: Workload, model_dir: Path, tp: int, rank: int, port: int, number: int, directory: Path,
        changes: Mapping[str, str], data_type: str | None, graphs: bool, share_gpu: bool,
    ) -> None:  # fmt: skip
        self._command = [
            sys.executable, "-m", "lightllm_otel", "run", "--", sys.executable, "-m", "lightllm_otel.tools.benchmark.rank",
            "--model-dir", str(model_dir), "--tp", str(tp), "--rank", str(rank), "--nccl-port", str(port),
            "--batch-size", str(workload.batch_size), "--input-len", str(workload.input_len),
            "--output-len", str(workload.output_len), "--warmup", str(workload.warmup), "--seed", str(1000 + number),
            *(["--graphs"] if graphs else []), *(["--data-type", data_type] if data_type else []),
            *(["--share-gpu"] if share_gpu else []),
        ]  # fmt: skip
        own = {
            "LIGHTLLM_OTEL": "1", "LIGHTLLM_OTEL_DIR": str(directory), "LIGHTLLM_OTEL_TARGETS": "off",
            "LIGHTLLM_OTEL_SAMPLE_EVERY": str(workload.every or DEFAULT_EVERY), "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        if share_gpu:  # NCCL refuses two ranks of one host on one GPU, so each rank poses as a host of its own
            own |= {
                "NCCL_HOSTID": f"node{rank}", "NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1",
            }  # fmt: skip
        self._environment = {**os.environ, **own, **changes}
        self._log = directory / f"rank-{rank}.log"
        self._number = rank
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the process."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                text=True, start_new_session=True,
            )  # fmt: skip

    def go(self) -> None:
        """Send the next line to the process."""
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has exited; answer() reports that
            self._process.stdin.write("go\n")
            self._process.stdin.flush()

    def answer(self, seconds: float) -> dict[str, Any]:
        """Return the next line of the process as JSON values. Raises RankFailed if it exits or takes longer than ``seconds``."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = ""
        with _deadline(self._process, seconds):
            line = self._process.stdout.readline()
        if not line:
            said = self._log.read_text(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(said) if line.strip()), "it wrote nothing")
            raise RankFailed(f"rank {self._number} exited early: {last[:400]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self) -> None:
        """Tell the process to end, and kill it if it does not end in time."""
        if self._process is None:
            return
        self.go()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


@contextlib.contextmanager
def _deadline(process: subprocess.Popen[str], seconds: float) -> Iterator[None]:
    """Kill the process if the block takes longer than ``seconds``."""
    if seconds == float("inf"):
        yield
        return
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
