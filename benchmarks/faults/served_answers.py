"""Whether an instrumented server gives the stock server's answers, also while requests are given up and the exporter dies.

Each request runs alone, and then in fixed batches (fixed_batch.py): concurrent requests meet in other batches each time, and
then a host's own answers differ. The stock server's answers must equal themselves before anything is compared with them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fixed_batch
from model_servers import Arm, ModelServer, only
from streams import Request, Stream, stream, together

from lightllm_otel.records.folder import LOCK_NAME, is_locked

Rows = list[dict[str, Any]]
Tokens = tuple[int, ...]
ARMS = (Arm.DEFAULT, Arm.EVERY_STEP, Arm.STEPS, Arm.OFF, Arm.ABSENT)


@dataclasses.dataclass(frozen=True)
class Amount:
    """How much is compared: requests alone, and batches of ``batch`` requests."""

    alone: int = 4
    tokens: int = 48
    batch: int = 8
    batches: int = 2
    streams: int = 16
    stream_tokens: int = 200


TINY = Amount(alone=3, tokens=4, batch=2, batches=1, streams=3, stream_tokens=8)


def seeded(number: int) -> dict[str, Any]:
    return {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 50, "seed": 1000 + number}


def requests(amount: Amount, with_seed: bool) -> list[Request]:
    """Greedy ones and, where this LightLLM has seeds, as many that are sampled."""
    texts = fixed_batch.prompts(amount.alone, 48, 500)
    greedy = [Request(text, amount.tokens) for text in texts]
    return greedy + [Request(each.text, each.tokens, seeded(at)) for at, each in enumerate(greedy) if with_seed]


def has_seed(source: Path | None) -> bool:
    """Whether this LightLLM's sampling parameters have a seed."""
    if source is None:
        return False
    path = source / "lightllm" / "server" / "core" / "objs" / "sampling_params.py"
    return path.exists() and '("seed"' in path.read_text()


class Answers:
    """All answers of one server in one state, in order."""

    def __init__(self, server: ModelServer, amount: Amount, with_seed: bool) -> None:
        self.problems: list[str] = []
        self.alone: list[Tokens] = []
        self.streamed: list[Tokens] = []
        for request in requests(amount, with_seed):
            answer = server.generate(request.text, request.tokens, **request.parameters)
            self.alone.append(answer.token_ids)
            again = stream(server.port, request)
            self.problems += [again.problem] if again.problem else []
            self.streamed.append(again.token_ids)
        self.batches = [self._batch(server, amount, number, with_seed) for number in range(amount.batches)]

    def _batch(self, server: ModelServer, amount: Amount, number: int, with_seed: bool) -> list[Tokens]:
        """Half of a batch are sampled by seed."""
        parameters = [seeded(at) if with_seed and at % 2 else {} for at in range(amount.batch)]
        return fixed_batch.generate(
            server, amount.batch, 48, amount.tokens, 700 + number * amount.batch, parameters=parameters
        )[0]  # fmt: skip

    @property
    def tokens(self) -> int:
        return sum(map(len, self.alone + self.streamed + [each for batch in self.batches for each in batch]))

    def same_as(self, other: Answers) -> dict[str, bool]:
        return {
            "alone": self.alone == other.alone, "streamed": self.streamed == other.streamed,
            "streamed_as_alone": self.streamed == self.alone, "batches": self.batches == other.batches,
        }  # fmt: skip


def measure(
    stock: ModelServer, instrumented: ModelServer, everyone: Sequence[ModelServer], amount: Amount,
    source: Path | None, about: dict[str, Any],
) -> Rows:  # fmt: skip
    """Rows: the stock server against itself, each setting against it, and what happened meanwhile."""
    with_seed = has_seed(source)
    rows: Rows = []

    def compared(name: str, found: Answers, reference: Answers) -> None:
        same = found.same_as(reference)
        rows.append({
            **about, "kind": "answers", "server": name, "tokens_compared": found.tokens, "with_seed": with_seed, **same,
            "identical": all(same.values()), "problems": found.problems,
        })  # fmt: skip

    with only(stock, everyone):
        reference = Answers(stock, amount, with_seed)
        compared("stock again", Answers(stock, amount, with_seed), reference)
    with only(instrumented, everyone):
        for arm in ARMS:
            instrumented.hold(arm)
            compared(arm.name.lower(), Answers(instrumented, amount, with_seed), reference)
        instrumented.hold(Arm.EVERY_STEP)
        instrumented.watch(0, cpu_time=False)
        rows.append({**about, "kind": "disturbed", **disturb(instrumented, amount)})
        compared("after the exporter was killed", Answers(instrumented, amount, with_seed), reference)
        rows.append({**about, "kind": "control", **by_command(instrumented)})
        compared("after live control by command", Answers(instrumented, amount, with_seed), reference)
        instrumented.hold(Arm.DEFAULT)
    return rows


def disturb(server: ModelServer, amount: Amount) -> dict[str, Any]:
    """Streams of which every second client leaves; in their middle the exporter is killed."""
    texts = fixed_batch.prompts(amount.streams, 48, 900)
    wanted = [
        Request(text, amount.stream_tokens, leave_after=max(amount.stream_tokens // 4, 1) if at % 2 else 0)
        for at, text in enumerate(texts)
    ]
    killed: list[int] = []
    killer = threading.Timer(0.05 * min(amount.stream_tokens, 20), lambda: killed.extend(kill_exporter(server)))
    killer.start()
    found = together(server.port, wanted)
    killer.join()
    stayed: list[Stream] = [each for each, request in zip(found, wanted) if not request.leave_after]
    return {
        "streams": len(wanted), "left": len(wanted) - len(stayed), "exporters_killed": len(killed),
        "problems": [each.problem for each in stayed if each.problem], "alive": server.server.alive,
        "exporter_is_back_after_seconds": until_exporter(server, 60.0),
    }  # fmt: skip


def kill_exporter(server: ModelServer) -> list[int]:
    """SIGKILL to the exporters of this server. Returns their process ids."""
    killed = []
    for pid in server.processes():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"exporter" in words and any(b"lightllm_otel" in word or b"lightllm-otel" in word for word in words):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
    return killed


def until_exporter(server: ModelServer, limit: float) -> float | None:
    """Seconds until an exporter holds the group's lock again, while requests come; None: none did."""
    began = time.monotonic()
    while time.monotonic() - began < limit:
        if any(is_locked(path) for path in (server.folder / "otel").glob(f"*/{LOCK_NAME}")):
            return round(time.monotonic() - began, 1)
        server.generate("b", 4)
        time.sleep(0.5)
    return None


def by_command(server: ModelServer) -> dict[str, Any]:
    """``lightllm-otel ctl``, as an operator uses it; the last one is what every server begins with."""
    environ = {**os.environ, "LIGHTLLM_OTEL_DIR": str(server.folder / "otel")}
    said = []
    for words in (["off"], ["steps"], ["operators", "every", "1"], ["operators", "every", "64"]):
        load = threading.Thread(target=server.generate, args=("c", 4 if server.cpu else 64))
        load.start()
        done = subprocess.run(
            [sys.executable, "-m", "lightllm_otel", "ctl", *words],
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        load.join()
        said.append({"words": " ".join(words), "status": done.returncode, "said": (done.stdout + done.stderr).strip()})
    return {"commands": said, "all_accepted": all(each["status"] == 0 for each in said)}


def summarise(rows: Rows) -> dict[str, Any]:
    """By host and shape: whether everything was the same."""
    found: dict[str, Any] = {}
    for row in (row for row in rows if "shape" in row):
        of = found.setdefault(row["host"], {}).setdefault(row["shape"], {"identical": {}, "problems": []})
        if row["kind"] == "answers":
            of["identical"][row["server"]] = row["identical"]
            of["tokens_compared"] = of.get("tokens_compared", 0) + row["tokens_compared"]
        of["problems"] += row.get("problems", [])
        if row["kind"] == "disturbed":
            of |= {name: row[name] for name in ("alive", "exporters_killed", "exporter_is_back_after_seconds")}
        if row["kind"] == "control":
            of["control_accepted"] = row["all_accepted"]
        if row["kind"] == "ring":
            of |= {"errors": sum(row["errors"]), "dropped": row["dropped"]}
    return found
