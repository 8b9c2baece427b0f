"""Two real processes vote through the store of their real process group, and replay the same graphs afterwards."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch.distributed", reason="torch is not installed here")

RANK = Path(__file__).parent / "process_rank.py"


def run(failures=("", "")):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(RANK), str(rank), str(len(failures)), str(port), "2", failure],
            env={**os.environ, "PYTHONPATH": str(RANK.parents[1])}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank, failure in enumerate(failures)
    ]  # fmt: skip
    done = [rank.communicate(timeout=90) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * len(ranks), "\n".join(errors for _, errors in done)
    return [json.loads(out.splitlines()[-1]) for out, _ in done]


def test_instrumented_graphs_are_ready_and_replayed_on_the_same_steps():
    first, second = run()
    assert (first["state"], second["state"]) == ("armed", "armed")
    assert first["instrumented_graphs"] == second["instrumented_graphs"]
    assert 1 < sum(first["instrumented_graphs"]) < 12
    assert first["right"]
    assert second["right"]


@pytest.mark.parametrize("failures", [("", "absent"), ("capture", "")], ids=str)
def test_a_process_that_fails_takes_instrumented_graphs_from_both(failures):
    reports = run(failures)
    assert {report["state"] for report in reports} <= {"refused", "absent"}
    assert all(report["right"] and not any(report["instrumented_graphs"]) for report in reports)


@pytest.mark.parametrize("failures", [("clock", ""), ("", "raises")], ids=str)
def test_a_process_that_fails_or_repeats_afterwards_still_replays_the_same(failures):
    first, second = run(failures)
    assert first["instrumented_graphs"] == second["instrumented_graphs"]
    assert any(first["instrumented_graphs"])
    assert first["right"]
    assert second["right"]
