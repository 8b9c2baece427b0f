"""Served benchmark: send a batch of concurrent requests to a running server several times, and record each repeat."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lightllm_otel.exporter.control import ask
from lightllm_otel.records.reader import RingReader, rings_in
from lightllm_otel.records.vocabulary import Level, Phase
from lightllm_otel.tools.analysis.runs import load
from lightllm_otel.tools.benchmark.manifest import Outcome, Workload
from lightllm_otel.tools.benchmark.tap import Tap

ANSWER_SECONDS = 3600.0
# Approximate tokens per request: tokenizers begin every prompt alike, so the prompt cache has that prefix.
_SHARED_TOKENS = 4


class NoAnswer(RuntimeError):
    """Raised if the server does not answer as expected; the message says how it answers."""


class Server:
    """LightLLM server of any version: its URL, and the folder of its rings on this machine."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url if "://" in url else f"http://{url}"
        self.folder = folder

    def generate(self, prompt: str, new_tokens: int, seconds: float = ANSWER_SECONDS) -> int:
        """Request exactly ``new_tokens`` tokens, greedy. Return the number of tokens received. Raises NoAnswer."""
        parameters = {"max_new_tokens": new_tokens, "do_sample": False, "ignore_eos": True}
        body = json.dumps({"inputs": prompt, "parameters": parameters}).encode()
        request = urllib.request.Request(f"{self.url.rstrip('/')}/generate", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=seconds) as answer:
                said = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            error.close()
            raise NoAnswer(
                f"{self.url} answers with status {error.code}; its log says why (maybe the prompt is too long)"
            ) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise NoAnswer(
                f"{self.url} does not answer ({reason}); check that it is the address of LightLLM"
            ) from error
        return int(said.get("count_output_tokens", new_tokens))

    def batch(self, prompts: Sequence[str], new_tokens: int) -> tuple[int, float]:
        """Send all prompts at once. Return the number of output tokens and the seconds. Raises NoAnswer."""
        with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
            began = time.perf_counter()
            answers = [pool.submit(self.generate, prompt, new_tokens) for prompt in prompts]
            return sum(answer.result() for answer in answers), time.perf_counter() - began


@contextlib.contextmanager
def sampling(folder: Path, every: int | None) -> Iterator[None]:
    """Sample one decode step in ``every`` inside the block, and restore the server's setting afterwards. Raises Refused."""
    if every is None:
        yield
        return
    before = _state(folder)
    try:
        ask(folder, {"level": Level.OPERATORS.value, "every": every})
        yield
    finally:
        ask(folder, before)


def _state(folder: Path) -> dict[str, Any]:
    header = RingReader(rings_in(folder)[0][0][1]).header
    return {"level": Level.of(int(header["level"])).value, "every": max(int(header["sample_every"]), 1)}


def repeat(
    server: Server, workload: Workload, prompts_of: Callable[[int], list[str]], number: int, out: Path
) -> Outcome:
    """Run and record one batch. ``prompts_of``: returns the prompts for a seed. Raises NoAnswer and NoRing."""
    prompts = prompts_of(number)
    tap = Tap(server.folder, out / f"repeat-{number}")
    pool = concurrent.futures.ThreadPoolExecutor(1)
    try:
        running = pool.submit(server.batch, prompts, workload.output_len)
        tap.until(running.done, ANSWER_SECONDS)
        tap.until_quiet()
        tap.close()
        tokens, seconds = running.result()
    finally:
        pool.shutdown(wait=False)  # on Ctrl-C, restore the sampling now, not after the batch
    return Outcome(
        str(tap.path.relative_to(out)),
        seconds,
        tokens,
        tap.lost,
        tap.hook_seconds / seconds,
        tuple(_complaints(tap, workload)),
    )


def _complaints(tap: Tap, workload: Workload) -> Iterator[str]:
    """Yield a sentence for each deviation of a repeat from its workload."""
    steps = load(tap.path).repeats[0]
    lowest = steps.rank == steps.rank.min()
    prefilled = int(steps.steps["tokens"][lowest & (steps.steps["phase"] == Phase.PREFILL.code)].sum())
    if not 0 <= workload.batch_size * workload.input_len - prefilled <= workload.batch_size * _SHARED_TOKENS:
        yield (
            f"{prefilled} prompt tokens were computed instead of {workload.batch_size} × {workload.input_len}: other requests "
            "arrived during the repeat, or the server's prompt cache held some of the prompts"
        )
    if tap.lost:
        yield "steps were overwritten before they were read; sample fewer steps (--every) or increase LIGHTLLM_OTEL_RING_MIB"
