"""Whole servers with a log of their steps in the model process, stock and instrumented, any of which can stand still."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import _paths

INSIDE = Path(__file__).resolve().parent / "inside"
sys.path[:0] = [str(INSIDE), str(_paths.DEMO)]

from inside_model.arms import LAG, Arm  # noqa: E402
from inside_model.markers import ENTER, FIRST_AT, FORWARD, LEAVE, SAMPLING_AT  # noqa: E402
from inside_model.observer import ANSWER, ASK  # noqa: E402
from inside_model.step_log import Column, StepLog, Word  # noqa: E402
from server import Server, ServerDied  # noqa: E402

from lightllm_otel.records.reader import RingReader  # noqa: E402
from lightllm_otel.records.vocabulary import DropReason  # noqa: E402

__all__ = [
    "ENTER",
    "FIRST_AT",
    "FORWARD",
    "LEAVE",
    "SAMPLING_AT",
    "Arm",
    "Column",
    "Kind",
    "ModelServer",
    "Word",
    "known",
    "only",
]

# The launcher works whether or not this Python has our .pth file.
LAUNCHER = [sys.executable, "-m", "lightllm_otel", "run", "--"]
START_SECONDS = 400.0
ANSWER_SECONDS = 120.0
TRACEBACK = "Traceback (most recent call last)"
SETTLE_TOKENS = LAG + 4
# What is repeated must be computed again, and text needs neither of the others.
FLAGS = ["--disable_dynamic_prompt_cache", "--disable_vision", "--disable_audio"]
TRITON = ["--llm_prefill_att_backend", "triton", "--llm_decode_att_backend", "triton"]
ENVIRONMENT = {
    "DISABLE_GPU_TENSOR_CACHE": "1",
    # CUPTI stays loaded once it is: taking it down and up again is not safe with graphs that exist already.
    "DISABLE_CUPTI_LAZY_REINIT": "1", "TEARDOWN_CUPTI": "0",
    # A server that stands still for minutes does not hang.
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "LOADWORKER": "8", "SPT_NOENV": "1",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Kind:
    """What is started: a model, and whether the plugin measures it."""

    name: str
    shape: str
    instrumented: bool
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


class ModelServer:
    """A server of one rank. ``folder``: its log, rings and recordings."""

    def __init__(
        self,
        kind: Kind,
        model: Path,
        source: Path | None,
        folder: Path,
        cpu: bool = False,
        arguments: Sequence[str] = (),
    ) -> None:
        self.kind, self.folder, self.cpu = kind, folder, cpu
        shutil.rmtree(folder, ignore_errors=True)  # rings and recordings of an earlier run
        folder.mkdir(parents=True)
        environ = {**ENVIRONMENT, "BENCHMARK_STEPS": str(folder), "BENCHMARK_OBSERVE": "1"}
        if kind.instrumented:
            environ |= {
                "LIGHTLLM_OTEL": "1", "LIGHTLLM_OTEL_DIR": str(folder / "otel"),
                "LIGHTLLM_OTEL_RECORD": str(folder / "record"), "LIGHTLLM_OTEL_RECORD_MAX_MIB": "2048",
                "LIGHTLLM_OTEL_STATE": str(folder / "state"), "LIGHTLLM_OTEL_RING_MIB": "32", **kind.environment,
            }  # fmt: skip
        before = os.environ.get("PYTHONPATH", "")
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(INSIDE), before]))
        self.server = Server(
            model, "new", cpu=cpu, source=source, env=environ, log=folder / "server.log", start_timeout=START_SECONDS,
            arguments=known([*FLAGS, *TRITON, *arguments], source), launcher=LAUNCHER if kind.instrumented else [], graphs=cpu,
        )  # fmt: skip
        self.began = self.seconds = 0.0
        self._asked = 0
        self._log: StepLog | None = None
        self._stopped: list[int] = []

    # What fixed_batch wants of a server.

    @property
    def port(self) -> int:
        return self.server.port

    def generate(self, *words: Any, **named: Any) -> Any:
        return self.server.generate(*words, **named)

    def processes(self) -> list[int]:
        return self.server.processes()

    # Life ------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.began = time.perf_counter()
        self.server.start()

    def wait(self) -> None:
        """Wait until it has answered. LightLLM looks for free ports before it binds them: when another was quicker, once more."""
        try:
            self.server.wait_healthy()
        except ServerDied as error:
            if "Address already in use" not in str(error) and "has been used" not in str(error):
                raise
            self.server.stop()
            self.start()
            self.server.wait_healthy()
        self.seconds = time.perf_counter() - self.began

    def stop(self) -> None:
        self.go_on()
        self.server.stop()

    def stand_still(self) -> None:
        """Stop every process of the server, the exporter too: another server is measured."""
        if not self._stopped:
            self._stopped = self.processes()
            self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)
        self._stopped = []

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    # Settings of the plugin ------------------------------------------------------------------------------------------

    @property
    def log(self) -> StepLog:
        """The log of its steps; there is none before the first step."""
        if self._log is None:
            self._log = StepLog(self.folder)
        return self._log

    def hold(self, arm: Arm) -> None:
        """Bring the plugin into a setting, and run steps until it holds."""
        words = self.log.words
        words[Word.BLOCK], words[Word.HOLD] = 0, int(arm)
        self.generate("settle", SETTLE_TOKENS)
        if words[Word.NOW] != arm:
            raise RuntimeError(f"{self.kind.name}: the model process did not take the setting {arm.name}; see its log")

    def watch(self, batch: int, cpu_time: bool = True) -> None:
        """Count positions of steps with this many requests; the setting stays as it is."""
        words = self.log.words
        words[Word.BLOCK], words[Word.HOLD] = 0, -1
        words[Word.BATCH], words[Word.CPU] = batch, int(cpu_time)
        words[Word.EPOCH] += 1

    def alternate(self, batch: int, block: int, number: int, arms: tuple[Arm, Arm]) -> None:
        """From the next full batch on: pass ``number`` of ``arms`` in turns, the first being the reference."""
        self.watch(batch)
        words = self.log.words
        words[Word.PASS] = number
        words[Word.FIRST], words[Word.SECOND] = (int(arm) for arm in arms)
        words[Word.BLOCK] = block

    # What is asked of the model process --------------------------------------------------------------------------------

    def ask(self, do: str, timeout: float = ANSWER_SECONDS, **given: Any) -> Any:
        """Have the model process do something; its result. Raises RuntimeError with what it said."""
        self._asked += 1
        number = self._asked
        new = self.folder / f"{ASK}.new"
        new.write_text(json.dumps({"number": number, "do": do, "with": given}))
        new.replace(self.folder / ASK)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError):
                answer = json.loads((self.folder / ANSWER).read_text())
                if answer["number"] == number:
                    if "problem" in answer:
                        raise RuntimeError(f"{self.kind.name}, {do}: {answer['problem']}")
                    return answer["result"]
            time.sleep(0.05)
        raise RuntimeError(f"{self.kind.name}: the model process did not answer {do!r} within {timeout:.0f} s")

    # What the plugin says of itself ------------------------------------------------------------------------------------

    def ring(self) -> dict[str, Any]:
        """Counters and facts of the rank's ring; empty for a stock server."""
        paths = sorted((self.folder / "otel").glob("*/rank-0.ring"))
        if not paths:
            return {}
        reader = RingReader(paths[0])
        header = reader.header
        return {
            "dropped": {reason.value: int(header["dropped"][reason.code]) for reason in DropReason},
            "errors": [int(count) for count in header["errors"]], "steps": int(header["steps"]),
            "sampled_steps": int(header["sampled_steps"]), "step_only": [int(each) for each in header["step_only"]],
            "hook_seconds": round(float(header["hook_seconds"]), 4), "stamp_cost": float(header["timestamp_cost"]),
            "facts": reader.facts(),
        }  # fmt: skip

    def problems(self) -> list[str]:
        """What went wrong inside: the benchmark's own hooks, or a traceback in the server's log."""
        found = []
        if self._log is not None and self._log.words[Word.PROBLEMS]:
            found.append(f"{self.kind.name}: the log of steps failed; see its server.log")
        text = self.server.log.read_text(errors="replace") if self.server.log.exists() else ""
        tracebacks = text.split(TRACEBACK)[1:]
        # LightLLM's own logging may contain some that it has dealt with.
        ours = [each for each in tracebacks if "lightllm_otel" in each[:4000] or "inside_model" in each[:4000]]
        found += [f"{self.kind.name}: {TRACEBACK}{each[:1500]}" for each in ours[:3]]
        if tracebacks and not ours:
            found.append(
                f"{self.kind.name}: {len(tracebacks)} tracebacks of LightLLM's, the last: {tracebacks[-1][:800]}"
            )
        return found


def known(words: Sequence[str], source: Path | None) -> list[str]:
    """Return the words of a command line without the options that this LightLLM does not have, and their values."""
    text = (source / "lightllm" / "server" / "api_cli.py").read_text() if source is not None else ""
    kept, keep = [], True
    for word in words:
        if word.startswith("--"):
            keep = f'"{word}"' in text
        if keep:
            kept.append(word)
    return kept


@contextlib.contextmanager
def only(server: ModelServer, others: Sequence[ModelServer]) -> Iterator[None]:
    """Let all others stand still for the duration of the block."""
    still = [each for each in others if each is not server]
    for each in still:
        each.stand_still()
    server.go_on()
    try:
        yield
    finally:
        for each in still:
            each.go_on()
