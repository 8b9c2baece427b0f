"""Requests that stream their answers, all at once: when each token came, and which it was."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import http.client
import json
import time
from collections.abc import Sequence
from typing import Any

TIMEOUT = 300.0


@dataclasses.dataclass(frozen=True)
class Request:
    """``leave_after``: close the connection after so many tokens; 0: never."""

    text: str
    tokens: int
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    leave_after: int = 0


@dataclasses.dataclass(frozen=True)
class Stream:
    """``arrivals``: nanoseconds of CLOCK_MONOTONIC. ``problem``: why it ended early, if nobody left."""

    arrivals: list[int]
    token_ids: tuple[int, ...]
    problem: str = ""


def stream(port: int, request: Request) -> Stream:
    """Send a request and read its answer to the end."""
    wanted = {"max_new_tokens": request.tokens, "do_sample": False, "ignore_eos": True, **request.parameters}
    body = json.dumps({"inputs": request.text, "parameters": wanted})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    arrivals: list[int] = []
    lines: list[bytes] = []
    problem = ""
    try:
        connection.request("POST", "/generate_stream", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != http.client.OK:
            return Stream([], (), f"status {answer.status}: {answer.read(300)!r}")
        for line in answer:
            if line.startswith(b"data:"):
                arrivals.append(time.perf_counter_ns())
                lines.append(line)
                if request.leave_after and len(lines) >= request.leave_after:
                    break
    except (OSError, http.client.HTTPException) as error:
        problem = f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    ids = tuple(token for token in map(_token_of, lines) if token is not None)
    if not problem and not request.leave_after and len(ids) != request.tokens:
        problem = f"{len(ids)} of {request.tokens} tokens"
    return Stream(arrivals, ids, problem)


def _token_of(line: bytes) -> int | None:
    token = json.loads(line[len(b"data:") :])["token"]["id"]
    return None if token is None else int(token)


def together(port: int, requests: Sequence[Request]) -> list[Stream]:
    """Send all requests at once."""
    with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(lambda request: stream(port, request), requests))
