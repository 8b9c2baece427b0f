"""Requests that a server computes at the same time: greedy, streamed, sampled by seed, and one whose client leaves."""

from __future__ import annotations

import concurrent.futures
import json
import urllib.request
from collections.abc import Iterator
from typing import Any

GREEDY = {"do_sample": False, "ignore_eos": True}
SEEDED = {"do_sample": True, "temperature": 1.0, "top_k": 40, "top_p": 0.95, "seed": 7, "ignore_eos": True}
STREAMED = {  # name → prompt, parameters, and after how many tokens the client leaves
    "greedy": ("several at once", {**GREEDY, "max_new_tokens": 12}, None),
    "short": ("another of them that ends before the rest", {**GREEDY, "max_new_tokens": 5}, None),
    "seeded": ("by chance, but by the same one", {**SEEDED, "max_new_tokens": 9}, None),
    "left": ("nobody waits for this", {**GREEDY, "max_new_tokens": 200}, 2),
}


def stream(server: Any, prompt: str, parameters: dict[str, Any]) -> Iterator[int]:
    """Token ids as they come. Who stops asking for them closes the connection."""
    body = json.dumps({"inputs": prompt, "parameters": parameters}).encode()
    request = urllib.request.Request(server.url + "/generate_stream", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        for line in answer:
            if line.startswith(b"data:"):
                yield int(json.loads(line[5:])["token"]["id"])


def tokens(server: Any, name: str) -> list[int]:
    prompt, parameters, leave_after = STREAMED[name]
    taken: list[int] = []
    for token in stream(server, prompt, parameters):
        taken.append(token)
        if len(taken) == leave_after:
            break
    return taken


def ask_at_once(server: Any) -> dict[str, list[int]]:
    """The tokens of every request, all of them sent at the same time; and of one that is not streamed, after them."""
    with concurrent.futures.ThreadPoolExecutor(len(STREAMED)) as pool:
        asked = {name: pool.submit(tokens, server, name) for name in STREAMED}
        answers = {name: each.result() for name, each in asked.items()}
    answers["after"] = list(server.generate("and one after them", 4).token_ids)
    return answers
