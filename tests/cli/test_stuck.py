"""Who keeps the others waiting, from the headers that a stuck server leaves."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from lightllm_otel import cli
from lightllm_otel.cli.stuck import Position, judge

PATIENCE = 10.0


def position(rank, number=7, on_gpu=60.0, alive=True, state="S"):
    return Position(rank, alive, state, number, "decode", on_gpu, 1.0)


@pytest.mark.parametrize(
    ("positions", "stuck", "ranks", "word"),
    [
        ([position(0, on_gpu=0.01), position(1, on_gpu=0.01)], False, (), "nothing is stuck"),
        ([position(0, on_gpu=None), position(1, on_gpu=None)], False, (), "nothing is stuck"),
        ([position(0, 8), position(1, 7, on_gpu=None), position(2, 8)], True, (1,), "rank 1 is behind"),
        ([position(0, 8), position(1, 7), position(2, 7)], True, (1, 2), "ranks 1, 2 are behind"),
        ([position(0, on_gpu=None), position(1)], True, (1,), "rank 1 is behind"),
        ([position(0), position(1, state="T")], True, (1,), "rank 1 is stopped"),
        ([position(0, on_gpu=None), position(1, on_gpu=None, state="T")], True, (1,), "kill -CONT"),
        ([position(0), position(1, alive=False)], True, (1,), "rank 1 is gone"),
        ([position(0), position(1)], True, (), "cannot tell"),
        ([position(0)], True, (0,), "does not go on"),
    ],
)
def test_who_is_behind(positions, stuck, ranks, word):
    verdict = judge(positions, PATIENCE)
    assert (verdict.stuck, verdict.ranks) == (stuck, ranks)
    assert word in verdict.sentence


RANK = """
import pathlib, sys, time
from lightllm_otel.ring.writer import RingWriter
ring = RingWriter(pathlib.Path(sys.argv[1]), 1)
ring.enter(int(sys.argv[2]), 1, time.time() - 60)
print("there", flush=True)
time.sleep(120)
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """``start(numbers)``: a process per rank, a minute in the step with that number; returns them."""
    monkeypatch.setenv("LIGHTLLM_OTEL_DIR", str(tmp_path))
    monkeypatch.setattr("lightllm_otel.cli.scrape.os.getuid", lambda: 4_000_000)
    folder = tmp_path / "group"
    folder.mkdir()
    with contextlib.ExitStack() as stack:

        def make(*numbers):
            processes = []
            for rank, number in enumerate(numbers):
                command = [sys.executable, "-c", RANK, str(folder / f"rank-{rank}.ring"), str(number)]
                process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
                stack.callback(process.kill)
                assert process.stdout.readline() == b"there\n"
                processes.append(process)
            return processes

        yield make


def asked(capsys, *words):
    status = cli.main(["doctor", "--stuck", *words])
    return status, capsys.readouterr().out


def test_a_rank_that_was_stopped_is_named(start, capsys):
    stopped = start(7, 7)[1]
    os.kill(stopped.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, stopped.pid, os.WSTOPPED | os.WNOWAIT)
    began = time.monotonic()
    status, out = asked(capsys)
    assert time.monotonic() - began < 5
    assert status == 1
    assert "rank 0: in decode step 7 for 60." in out
    assert "→ rank 1 is stopped" in out


def test_a_rank_that_did_not_enter_the_step_is_named_for_machines_too(start, capsys):
    start(8, 7, 8)
    status, out = asked(capsys, "--json")
    (server,) = json.loads(out)
    assert (status, server["server"], server["positions"][1]["number"]) == (1, "group", 7)
    assert server["behind"] == [1]
    assert server["sentence"].startswith("rank 1 is behind")


def test_how_long_is_too_long_can_be_said(start, capsys):
    start(7, 7)
    assert asked(capsys, "600")[0] == 0
    assert asked(capsys, "30")[0] == 1


def test_a_rank_that_has_ended_is_named(start, capsys):
    processes = start(7, 7)
    processes[0].kill()
    processes[0].wait()
    assert "rank 0 is gone" in asked(capsys)[1]


def test_no_server_is_nothing_stuck(start, capsys):
    status, out = asked(capsys)
    assert (status, "no server with the plugin runs here" in out) == (0, True)
