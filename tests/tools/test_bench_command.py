"""Tests of ``bench`` and ``capture`` without GPU and LightLLM: each refusal is one sentence."""

import argparse
import io
import json

import pytest

from lightllm_otel.records import profile_request
from lightllm_otel.tools import bench, cli
from lightllm_otel.tools.benchmark.manifest import Manifest, Outcome, Workload
from lightllm_otel.tools.kernel_capture import NoTrace, capture


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    """Hide the servers of this machine from the commands."""
    monkeypatch.setenv("LIGHTLLM_OTEL_DIR", str(tmp_path / "dir"))
    monkeypatch.setattr("lightllm_otel.tools.scrape.os.getuid", lambda: 4_000_000)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--static"], "pass --model-dir"),
        (["--model-dir", "."], "pass exactly one of --url (a running server), --serve"),
        (
            ["--model-dir", ".", "--static", "--url", "http://127.0.0.1:1"],
            "pass exactly one of --url (a running server), --serve",
        ),
        (["--model-dir", ".", "--url", "http://127.0.0.1:1", "--ab", "A=1", ""], "--ab needs --serve or --static"),
        (["--model-dir", ".", "--serve", "x", "--static"], "--serve (a command that starts one) and --static"),
        (["--model-dir", ".", "--serve", "x", "--url", "a", "--url", "b"], "with --serve, pass one --url"),
        (["--model-dir", ".", "--serve", "x", "--ab", "A", ""], "NAME=VALUE"),
        (["--model-dir", ".", "--static", "--ab", "A", "B=1"], "NAME=VALUE"),
        (["--model-dir", ".", "--static", "--repeats", "0"], "--repeats 0"),
        (["--model-dir", "nothing here", "--url", "http://127.0.0.1:1"], "is not a folder"),
        (["--model-dir", "nothing here", "--static"], "is not a folder"),
        (["--model-dir", ".", "--static", "--tp", "0"], "--tp 0: pass a whole number of at least 1"),
    ],
)
def test_bench_refuses_in_one_sentence(capsys, tmp_path, words, said):
    assert cli.main(["bench", *words, "--out", str(tmp_path / "out")]) == 1
    problem = capsys.readouterr().err
    assert said in problem
    assert len([line for line in problem.splitlines() if "lightllm-otel bench" in line]) == 1
    assert "Traceback" not in problem


@pytest.mark.parametrize("words", [[], ["--kernels"]])
def test_capture_without_a_server_says_so(capsys, tmp_path, words):
    assert cli.main(["capture", *words, "--out", str(tmp_path)]) == 1
    assert "no server with the plugin runs here" in capsys.readouterr().err


def test_a_rank_that_does_not_answer_is_given_up_and_the_request_withdrawn(tmp_path):
    with pytest.raises(NoTrace, match="send requests to it meanwhile"):
        capture(tmp_path, tmp_path / "trace.json", 0.1, 0.2)
    assert not (tmp_path / profile_request.ASKED).exists()


def test_what_the_rank_says_of_its_failure_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "lightllm_otel.tools.kernel_capture.profile_request.ask",
        lambda folder, asked: profile_request.answer(folder, {"ok": False, "text": "no room"}),
    )
    with pytest.raises(NoTrace, match="the server could not write a trace: no room"):
        capture(tmp_path, tmp_path / "trace.json", 0.1, 1.0)


def test_a_profile_request_is_taken_once(tmp_path):
    profile_request.ask(tmp_path, {"path": "/x", "seconds": 1})
    assert profile_request.take(tmp_path) == {"path": "/x", "seconds": 1}
    assert profile_request.take(tmp_path) is None


class TestProgress:
    class Stream(io.StringIO):
        terminal = False

        def isatty(self):
            return self.terminal

    @pytest.fixture
    def measured(self, monkeypatch, tmp_path):
        """Return ``measured(terminal)``: the text on stderr while two repeats are measured, the second with a note."""

        def make(terminal):
            stream = self.Stream()
            stream.terminal = terminal
            monkeypatch.setattr("sys.stderr", stream)
            workload = Workload(1, 1, 1, repeats=2, warmup=0, every=None)
            sides = {tmp_path: (self.repeat, Manifest(tmp_path, "static", workload))}
            bench._run(sides, workload, argparse.Namespace())
            return stream.getvalue()

        return make

    @staticmethod
    def repeat(number):
        return Outcome(f"{number}", seconds=1.0, output_tokens=99 + number, notes=("something",) if number == 2 else ())

    def test_a_terminal_has_a_bar_that_moves_and_notes_on_lines_of_their_own(self, measured):
        text = measured(True)
        assert "2/2" in text
        assert "101 output tokens/s" in text
        assert [line for line in text.replace("\r", "\n").splitlines() if line.startswith("note")] == [
            "note: something"
        ]

    def test_elsewhere_only_notes_are_written(self, measured):
        assert measured(False) == "note: something\n"


@pytest.mark.parametrize("command", ["report", "compare", "bench", "capture", "plan", "calibrate", "theory"])
def test_every_analysis_has_json(command):
    parser = next(action for action in cli.parser()._actions if action.dest == "command").choices[command]
    assert any("--json" in action.option_strings for action in parser._actions)


def test_json_of_all_is_one_document(capsys):
    assert cli.main(["plan", "--model", "llama2-7b", "--machine", "H200:1:4", "--json"]) == 0
    json.loads(capsys.readouterr().out)
