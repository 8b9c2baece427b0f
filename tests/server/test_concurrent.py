"""Several requests at once, which the model computes in one batch, with the plugin and without it."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Host, Observed, Stock

both_ranks = pytest.mark.parametrize("observed", [("new", 1), ("new", 2)], ids=["new-tp1", "new-tp2"], indirect=True)


def complaints(log: str) -> set[str]:
    """Lines of the log that tell of an error, without what differs from start to start."""
    return {line.partition("]")[2].strip() for line in log.splitlines() if line.startswith(("ERROR", "CRITICAL"))}


@both_ranks
def test_requests_at_once_are_answered_as_without_the_plugin_while_the_exporter_dies(
    observed: Observed, stock_of: Callable[[Host], Stock], ask_at_once: Callable[[object], dict[str, list[int]]]
) -> None:
    stock = stock_of(observed.host)
    same = {name for name in stock.at_once[0] if all(again[name] == stock.at_once[0][name] for again in stock.at_once)}
    assert {"greedy", "short", "left", "after"} <= same, stock.at_once
    if observed.host.has_seeds:
        assert "seeded" in same
    before = observed.settled()

    (exporter,) = observed.exporters()
    first = ask_at_once(observed.server)
    os.kill(exporter, signal.SIGKILL)
    second = ask_at_once(observed.server)
    for answers in (first, second):
        assert {name: answers[name] for name in same} == {name: stock.at_once[0][name] for name in same}
        assert {name: len(ids) for name, ids in answers.items()} == {n: len(t) for n, t in stock.at_once[0].items()}

    def back() -> object:
        observed.server.generate("without an exporter", 2)
        return observed.exporters() not in ([], [exporter]) and observed.metrics()

    observed.wait_until(back, 60, "a new exporter that answers")
    after = observed.settled(lambda metrics: metrics.steps("decode") > before.steps("decode"))
    assert after.total("lightllm_otel_errors_total") == 0
    assert complaints(observed.server.log.read_text(errors="replace")) <= complaints(stock.log)


@both_ranks
def test_steps_of_several_requests_count_each_of_them(
    observed: Observed, ask_at_once: Callable[[object], dict[str, list[int]]]
) -> None:
    def counted() -> tuple[float, float]:
        metrics = observed.settled()
        return metrics.steps("decode"), metrics.total("lightllm_gpu_step_requests_total", phase="decode")

    before = counted()
    answers = ask_at_once(observed.server)
    steps, requests = (now - then for now, then in zip(counted(), before))
    ranks = observed.host.tp
    # The first token of a request is its prefill's, but for one of which all but the last token was cached. The one that
    # was left goes on until LightLLM hears of it.
    wanted = sum(len(ids) - 1 for ids in answers.values()) * ranks
    assert requests >= wanted
    assert steps < requests, "no step had two requests"
