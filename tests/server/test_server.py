"""What a user sees of a real server with LIGHTLLM_OTEL=1, and what the server must not notice."""

from __future__ import annotations

import itertools
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Host, Observed, Stock

LAYERS = 2  # of the tiny model
# Calls in one step of one rank, in prefill and in decode alike.
EACH_STEP = {
    "embedding": 1,
    "attn_norm": LAYERS,
    "qkv_proj": LAYERS,
    "attention": LAYERS,
    "o_proj": LAYERS,
    "ffn_norm": LAYERS,
    "ffn": LAYERS,
    "lm_head": 1,
    "sampling": 1,
}
# OLD writes keys and values in place unless its memory is fragmented, and its prefill has no chained boundaries.
EACH_STEP_OF_NEW = {"kv_write": LAYERS, "residual": 2 * LAYERS}
# The embedding's, and two in each layer; the logits are gathered.
EACH_STEP_OF_SEVERAL_RANKS = {"all_reduce": 2 * LAYERS + 1, "all_gather": 1}


def each_step(host: Host) -> dict[str, int]:
    calls = dict(EACH_STEP)
    if host.version == "new":
        calls |= EACH_STEP_OF_NEW
    if host.tp > 1:
        calls |= EACH_STEP_OF_SEVERAL_RANKS
    return calls


def decode_steps(requests: int, new_tokens: int, host: Host) -> int:
    """Of requests that come one after the other: a prefill gives the first token, a decode step each further one."""
    return requests * (new_tokens - 1 + host.overlaps)


def implied_by(requests: int, new_tokens: int, host: Host) -> Counter[tuple[str, str]]:
    """(phase, operator) → observations."""
    steps = {"prefill": requests, "decode": decode_steps(requests, new_tokens, host)}
    calls = each_step(host).items()
    return Counter({(phase, operator): count * steps[phase] * host.tp for phase in steps for operator, count in calls})


def test_tokens_are_the_same(observed: Observed, stock_of: Callable[[Host], Stock]) -> None:
    stock = stock_of(observed.host)
    assert all(answer.token_ids for answer in stock.answers)
    assert observed.ask_all() == stock.answers


def test_metrics_count_what_the_requests_imply(observed: Observed) -> None:
    requests, new_tokens = 2, 4
    before = observed.settled()
    for number in range(requests):
        observed.server.generate(f"request {number}: ", new_tokens)
    implied = implied_by(requests, new_tokens, observed.host)
    after = observed.settled(lambda metrics: metrics.operators() - before.operators() >= implied)

    counted = after.operators() - before.operators()
    assert {key: counted[key] for key in implied} == dict(implied)
    ranks = observed.host.tp
    assert after.steps("prefill") - before.steps("prefill") == requests * ranks
    steps = decode_steps(requests, new_tokens, observed.host)
    assert after.steps("decode") - before.steps("decode") == steps * ranks


def test_every_rank_is_on_metrics(observed: Observed) -> None:
    observed.server.generate("for every rank", 2)
    metrics = observed.settled(lambda metrics: metrics.steps("decode"))
    ranks = {str(rank) for rank in range(observed.host.tp)}
    for phase in ("prefill", "decode"):
        for operator in each_step(observed.host):
            seen = metrics.labels("lightllm_gpu_operator_seconds_total", "rank", operator=operator, phase=phase)
            assert seen == ranks, (phase, operator)


def test_the_last_request_is_on_metrics_within_a_second(observed: Observed) -> None:
    before = observed.settled()
    observed.server.generate("fresh", 2)
    answered = time.monotonic()
    observed.settled(lambda metrics: metrics.steps("decode") >= before.steps("decode") + observed.host.tp)
    assert time.monotonic() - answered < 2  # a second for the way there, one for two busy cores
    time.sleep(1)
    assert observed.metrics().total("lightllm_otel_data_age_seconds") <= 1 * observed.host.tp


def test_every_process_has_the_wheels_hook_and_model_processes_a_ring(observed: Observed, wheel_python: Path) -> None:
    site_packages = str(wheel_python.parents[1])
    reports = observed.reports()
    host_processes = {pid: report for pid, report in reports.items() if "lightllm" in report["host"]}
    assert len(host_processes) >= 3 + observed.host.tp - 1, reports  # api server, router, detokenizer, ranks
    for pid, report in host_processes.items():
        assert {"_lightllm_otel_boot", "lightllm_otel.inject.bootstrap"} <= report["ours"].keys(), (pid, report)
    for report in reports.values():
        for name, path in report["ours"].items():
            assert path.startswith(site_packages), f"{name} is not the wheel's: {path}"

    rings = {pid: rings_mapped_by(pid) for pid in observed.server.processes() if pid not in observed.exporters()}
    writers = {pid: mapped for pid, mapped in rings.items() if mapped}
    assert sorted(itertools.chain(*writers.values())) == [f"rank-{rank}.ring" for rank in range(observed.host.tp)], (
        rings
    )
    assert len(writers) == observed.host.tp


def rings_mapped_by(pid: int) -> list[str]:
    try:
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return []
    return sorted({Path(line.split(maxsplit=5)[5]).name for line in maps if line.endswith(".ring")})


def test_the_exporter_has_neither_torch_nor_lightllm(observed: Observed) -> None:
    (exporter,) = observed.exporters()
    assert observed.reports()[exporter]["host"] == []


def test_the_log_has_one_line_that_says_where_to_look(observed: Observed) -> None:
    log = observed.server.log.read_text(errors="replace")
    lines = [line for line in log.splitlines() if observed.address() in line and "next: lightllm-otel top" in line]
    assert len(lines) == 1, lines


def test_unset_means_that_nothing_of_ours_is_imported(observed: Observed, stock_of: Callable[[Host], Stock]) -> None:
    reports = stock_of(observed.host).reports
    assert sum("lightllm" in report["host"] for report in reports.values()) >= 3
    allowed = (
        {"_lightllm_otel_boot"} if sys.version_info >= (3, 15) else set()
    )  # site.py itself imports a .start's module
    for pid, report in reports.items():
        assert set(report["ours"]) <= allowed, (pid, report)
