"""The same batches in every run: requests are queued while the scheduler stands still, then all start together.

Concurrent batching differs by itself from run to run, so tokens of two runs can only be compared like this.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

QUEUE_SECONDS = 0.03


def prompts(count: int, tokens: int, first: int = 0) -> list[str]:
    """``count`` prompts that differ from the start, so that no cache helps; one character is one token here."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    numbers = range(first, first + count)
    words = [letters[number % 26] + letters[(7 * number + 3) % 26] + letters[number // 26 % 26] for number in numbers]
    return [(word * tokens)[:tokens] for word in words]


def generate(
    server: Any,
    count: int,
    input_tokens: int,
    output_tokens: int,
    first: int = 0,
    parameters: Sequence[dict[str, Any]] = (),
) -> tuple[list[tuple[int, ...]], float]:
    """``(token ids per request, seconds from the start of the scheduler to the last answer)``.

    ``parameters``: of each request, beside the usual ones.
    """
    texts = prompts(count, input_tokens, first)
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        with standing_still(server):
            answers = []
            for at, text in enumerate(texts):
                own = parameters[at] if parameters else {}
                answers.append(pool.submit(server.generate, text, output_tokens, 300, **own))
                time.sleep(QUEUE_SECONDS)  # one after the other, so that they queue in order
            time.sleep(0.3)
        began = time.perf_counter()
        tokens = [answer.result().token_ids for answer in answers]
        return tokens, time.perf_counter() - began


@contextlib.contextmanager
def standing_still(server: Any) -> Iterator[None]:
    """Stop all processes of the server but those that speak HTTP, for the duration of the block."""
    pids = [pid for pid in server.processes() if not _speaks_http(pid, server.port)]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _speaks_http(pid: int, port: int) -> bool:
    """Whether the process is the one that was started, which answers in 0.0.1, or one of gunicorn's or hypercorn's.

    Since v1.1.0 processes call themselves by what they do; hypercorn's workers are ``api_server``.
    """
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return True
    named = (b"gunicorn", b"hypercorn", b"::api_server")
    return (
        any(name in word for word in words for name in named)
        or str(port).encode() in words
        or b"lightllm_otel" in words
    )
