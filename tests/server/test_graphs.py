"""The current LightLLM with its graphs on, on the CPU: its own warm-up, padding and replay, with our instrumented graphs beside
them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Answer, Host, Observed

# The sizes are named, because capturing them on a busy CPU takes longer than the budget of those that are not.
ENVIRONMENT = {"CPU_GRAPHS": "1", "KEPT_LENGTHS": "1", "LIGHTLLM_OTEL_GRAPH_BATCH_SIZES": "1-2"}
LAYERS = 2
Stock = Callable[["Host"], "list[Answer]"]


@pytest.mark.parametrize("tp", [1, 2])
def test_twins_are_armed_on_all_ranks_replayed_by_the_host_and_answer_as_its_own_graphs(
    tp: int, observe: Callable[..., Observed], graphs_of: Stock, host_of: Callable[[str, int], Host]
) -> None:
    expected = graphs_of(host_of("new", tp))
    environment = {**ENVIRONMENT, "LIGHTLLM_OTEL_SAMPLE_EVERY": "2"}
    observed = observe(("new", tp), env=environment, graphs=True, set_nccl_port=True)
    assert observed.ask_all() == expected
    metrics = observed.settled()
    assert metrics.total("lightllm_otel_instrumented_graphs") == 2, observed.server.log_tail()

    observed.server.generate("some more steps", 12)
    metrics = observed.settled(lambda metrics: metrics.steps("decode") >= 20 * tp)
    assert metrics.total("lightllm_otel_errors_total") == 0
    assert metrics.total("lightllm_otel_steps_whole_only_total") == 0
    name = "lightllm_gpu_operator_duration_seconds_count"
    calls = {
        op: metrics.total(name, operator=op, phase="decode", mode="graph") for op in ("ffn", "lm_head", "sampling")
    }
    assert calls["lm_head"] >= tp
    assert (calls["ffn"], calls["sampling"]) == (LAYERS * calls["lm_head"], calls["lm_head"])
    if tp > 1:
        assert metrics.total(name, operator="all_reduce", mode="graph") == (2 * LAYERS + 1) * calls["lm_head"]
    assert "ranks replay different graphs" not in observed.server.log.read_text(errors="replace")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("absent", "rank 1 did not vote on 'plan'; check that lightllm-otel is installed there"),
        ("capture", "the graph for batch size 2 could not be captured a second time on every rank"),
    ],
)
def test_where_one_rank_alone_fails_no_rank_replays_a_twin_and_the_answers_stay(
    how: str, said: str, observe: Callable[..., Observed], graphs_of: Stock, host_of: Callable[[str, int], Host]
) -> None:
    """A replay that the other rank does not make would hang both."""
    expected = graphs_of(host_of("new", 2))
    observed = observe(("new", 2), env={**ENVIRONMENT, "BROKEN_RANK": how}, graphs=True)
    assert observed.ask_all() == expected
    metrics = observed.settled()
    assert metrics.total("lightllm_otel_instrumented_graphs") == 0
    log = observed.server.log.read_text(errors="replace")
    assert said in log
    assert "ranks replay different graphs" not in log
    calls = metrics.total("lightllm_gpu_operator_duration_seconds_count", phase="decode", mode="graph", operator="ffn")
    assert calls == 0
    assert metrics.steps("decode") > 0, "whole steps are measured all the same"
