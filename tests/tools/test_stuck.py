"""Tests of ``doctor --stuck``: which rank the others wait for, from the ring headers of a stuck server."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from lightllm_otel.records import progress
from lightllm_otel.records.progress import Progress
from lightllm_otel.records.vocabulary import Operator
from lightllm_otel.records.writer import RingWriter
from lightllm_otel.tools import cli
from lightllm_otel.tools.stuck import Position, judge

PATIENCE = 10.0


LAUNCHED = Progress(0, everything=True)


def position(rank, number=7, on_gpu=60.0, alive=True, state="S", progress=None):
    return Position(rank, alive, state, number, "decode", on_gpu, 1.0, progress)


def words(number, boundaries, operator=Operator.GAP, layer=-1):
    """Return the progress words of a header; ``None`` boundaries mean that the whole step is launched."""
    found = [0] * progress.WORDS
    progress.begin(found, number)
    if boundaries is None:
        progress.launched(found)
    else:
        found[progress.BOUNDARIES], found[progress.PLACE] = boundaries, progress.place(operator, layer)
    return found


def at(boundaries):
    return Progress(boundaries, "ffn", 3)


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
        ([position(0)], True, (0,), "makes no progress"),
        ([position(0, progress=LAUNCHED), position(1, progress=at(9))], True, (), "rank 1 is still launching"),
        ([position(0, progress=LAUNCHED), position(1, progress=LAUNCHED)], True, (), "or a link is down"),
        ([position(0, progress=LAUNCHED), position(1)], True, (), "cannot tell"),
        ([position(0, progress=at(9)), position(1, progress=at(8))], True, (), "look at rank 1 first"),
        ([position(0, progress=at(9)), position(1, progress=at(9))], True, (), "dmesg shows a lost GPU)"),
    ],
)
def test_who_is_behind(positions, stuck, ranks, word):
    verdict = judge(positions, PATIENCE)
    assert (verdict.stuck, verdict.ranks) == (stuck, ranks)
    assert word in verdict.sentence


RANK = """
import pathlib, sys, time
from lightllm_otel.records.writer import RingWriter
ring = RingWriter(pathlib.Path(sys.argv[1]), 1)
ring.enter(int(sys.argv[2]), 1, time.time() - 60)
for at, word in enumerate(sys.argv[3:]):
    ring.progress[at] = int(word)
print("there", flush=True)
time.sleep(120)
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Return ``start(numbers)``: it starts one process per rank, which stays in the step with that number for a minute.

    ``words``: the progress words of each rank.
    """
    monkeypatch.setenv("LIGHTLLM_OTEL_DIR", str(tmp_path))
    monkeypatch.setattr("lightllm_otel.tools.scrape.os.getuid", lambda: 4_000_000)
    folder = tmp_path / "group"
    folder.mkdir()
    with contextlib.ExitStack() as stack:

        def make(*numbers, words=()):
            processes = []
            for rank, number in enumerate(numbers):
                command = [sys.executable, "-c", RANK, str(folder / f"rank-{rank}.ring"), str(number)]
                command += map(str, words[rank] if words else ())
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
    assert re.search(r"rank 0: in decode step 7 for 6\d\.", out)
    assert "→ rank 1 is stopped" in out


def test_a_rank_that_did_not_enter_the_step_is_named_for_machines_too(start, capsys):
    start(8, 7, 8)
    status, out = asked(capsys, "--json")
    (server,) = json.loads(out)
    assert (status, server["server"], server["positions"][1]["number"]) == (1, "group", 7)
    assert server["behind"] == [1]
    assert server["sentence"].startswith("rank 1 is behind")


def test_the_operator_that_a_host_has_launched_last_is_shown(start, capsys):
    start(7, 7, words=(words(7, None), words(7, 31, Operator.O_PROJ, 3)))
    status, out = asked(capsys)
    assert status == 1
    assert re.search(r"rank 0: in decode step 7 for 6\d\.\d s, its forward is fully launched; last sign", out)
    assert re.search(r"rank 1: in decode step 7 for 6\d\.\d s, launched up to o_proj of layer 3; last sign", out)
    assert "→ rank 1 is still launching the step" in out
    (server,) = json.loads(asked(capsys, "--json")[1])
    assert server["positions"][1]["progress"] == {
        "boundaries": 31,
        "operator": "o_proj",
        "layer": 3,
        "everything": False,
    }


def test_what_an_earlier_step_has_reached_is_not_taken_for_this_ones(start, capsys):
    start(7, 7, words=(words(6, None), words(6, 0)))
    (server,) = json.loads(asked(capsys, "--json")[1])
    assert [each["progress"] for each in server["positions"]] == [None, None]


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


@pytest.mark.parametrize("name", ["rank-0.bak.ring", "rank-x.ring"])
def test_a_stray_ring_is_named_and_the_others_are_judged(start, capsys, tmp_path, name):
    start(8, 7, 8)
    (tmp_path / "group" / name).write_bytes((tmp_path / "group" / "rank-0.ring").read_bytes())
    assert cli.main(["doctor", "--stuck"]) == 1
    shown = capsys.readouterr()
    assert "→ rank 1 is behind" in shown.out
    assert shown.err.count(name) == len(shown.err.splitlines()) == 1


def test_a_damaged_ring_is_named_and_the_others_are_judged(start, capsys, tmp_path):
    start(8, 7, 8)
    damaged = RingWriter(tmp_path / "group" / "rank-3.ring", 1)
    damaged.header["cells"] = 0
    assert cli.main(["doctor", "--stuck"]) == 1
    shown = capsys.readouterr()
    assert "→ rank 1 is behind" in shown.out
    assert "rank-3.ring is damaged" in shown.err


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "soon"])
def test_a_patience_that_is_none_is_refused(capsys, seconds):
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", f"--stuck={seconds}"])
    assert ended.value.code == 2
    assert "--stuck" in capsys.readouterr().err


def test_the_process_of_each_rank_is_shown(start, capsys):
    processes = start(7, 7)
    out = asked(capsys)[1]
    assert all(f"; process {process.pid}" in out for process in processes)
