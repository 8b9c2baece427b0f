"""Tests of the served benchmark: its requests, and the notes on a repeat that deviates from its workload."""

import http.server
import json
import os
import re
import signal
import threading
import types

import pytest
import simulated

from lightllm_otel.tools import cli
from lightllm_otel.tools.benchmark import served
from lightllm_otel.tools.benchmark.manifest import Workload
from lightllm_otel.tools.benchmark.tap import Tap

BATCH, TOKENS, REPEATS = 3, 8, 2


class Words:
    """Tokenizer with a token per word."""

    def encode(self, text):
        return re.findall(r"\w+|[^\w\s]", text)

    def decode(self, tokens):
        return " ".join(f"w{token}" for token in tokens)


@pytest.fixture
def server():
    """Start a server that answers every request. Return its address, and the list of prompts that it receives."""
    prompts = []

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompts.append(asked["inputs"])
            answer = json.dumps({"count_output_tokens": asked["parameters"]["max_new_tokens"]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as own:
        thread = threading.Thread(target=own.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{own.server_port}", prompts
        own.shutdown()
        thread.join()


class Recorded:
    """Replace the tap, because no server has rings on this machine."""

    lost, hook_seconds = 0, 0.0

    def __init__(self, folder, out):
        self.path = simulated.write(out, steps=4)

    until, until_quiet, close = Tap.until, lambda self: None, lambda self: None

    def poll(self):
        return 0


def test_the_prompt_cache_has_seen_no_prompt_of_a_repeat_at_warming_up(server, tmp_path, monkeypatch, capsys):
    address, prompts = server
    monkeypatch.setattr("lightllm_otel.tools.bench.prompts.tokenizer", lambda folder: (Words(), 5000))
    monkeypatch.setattr("lightllm_otel.tools.bench.find", lambda group: tmp_path)
    monkeypatch.setattr(served, "Tap", Recorded)
    words = ["--batch-size", BATCH, "--input-len", TOKENS, "--output-len", 4, "--repeats", REPEATS, "--warmup", 2]
    words += ["--model-dir", tmp_path, "--out", tmp_path / "out", "--url", address, "--url", address]
    assert cli.main(["bench", *map(str, words), "--group", "a", "--group", "b"]) == 0
    assert len(prompts) == 2 * (2 + REPEATS) * BATCH
    assert len(set(prompts)) == len(prompts)


BEFORE = {"level": "steps", "every": 64}


class TestAnEndByASignal:
    """Tests that the sampling is restored: a server that samples every step would stay slow."""

    @pytest.fixture(autouse=True)
    def requests(self, tmp_path, monkeypatch):
        """Return the list of requests that the exporter received."""
        requests = []
        for command in ("bench", "capture"):
            monkeypatch.setattr(f"lightllm_otel.tools.{command}.find", lambda group: tmp_path)
        monkeypatch.setattr("lightllm_otel.tools.bench.prompts.tokenizer", lambda folder: (Words(), 5000))
        monkeypatch.setattr(served, "_state", lambda folder: BEFORE)
        monkeypatch.setattr(served, "ask", lambda folder, asked: requests.append(asked))
        return requests

    @pytest.fixture(autouse=True)
    def _signals(self):
        """Restore the default handler of SIGHUP, even if nohup has started these tests."""
        before = [(number, signal.signal(number, signal.SIG_DFL)) for number in (signal.SIGTERM, signal.SIGHUP)]
        yield
        for number, handler in before:
            signal.signal(number, handler)

    def ended(self, number):
        """Replace the tap by one that receives a signal while it waits."""

        class Ended(Recorded):
            sampled = 0

            def until(self, done, seconds):
                os.kill(os.getpid(), number)
                return Tap.until(self, lambda: False, 5)

        return Ended

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
    def test_capture_leaves_the_servers_sampling_as_it_was(self, requests, tmp_path, monkeypatch, number):
        monkeypatch.setattr("lightllm_otel.tools.capture.Tap", self.ended(number))
        with pytest.raises(SystemExit) as end:
            cli.main(["capture", "--out", str(tmp_path)])
        assert end.value.code == 128 + number
        assert requests == [{"level": "operators", "every": 1}, BEFORE]
        assert signal.getsignal(number) is signal.SIG_DFL

    def test_bench_does_so_before_the_batch_is_answered(self, requests, tmp_path, monkeypatch):
        answered, restored = threading.Event(), threading.Event()

        def generate(self, prompt, new_tokens):
            answered.wait(20)
            return new_tokens

        monkeypatch.setattr(served.Server, "generate", generate)
        monkeypatch.setattr(served, "Tap", self.ended(signal.SIGTERM))
        monkeypatch.setattr(served, "ask", lambda folder, asked: asked == BEFORE and restored.set())
        watch = threading.Thread(target=lambda: (requests.append(restored.wait(10)), answered.set()))
        watch.start()
        words = [
            "--url",
            "http://127.0.0.1:1",
            "--every",
            "1",
            "--warmup",
            "0",
            "--input-len",
            "8",
            "--batch-size",
            "2",
        ]
        with pytest.raises(SystemExit):
            cli.main(["bench", *words, "--model-dir", str(tmp_path), "--out", str(tmp_path / "out")])
        watch.join()
        assert requests == [True]

    def test_whoever_is_to_outlive_its_terminal_does(self, requests, tmp_path, monkeypatch, capsys):
        """nohup ignores SIGHUP."""
        monkeypatch.setattr("lightllm_otel.tools.capture.Tap", self.ended(signal.SIGHUP))
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            monkeypatch.setattr(Tap, "until", lambda *_: True)
            assert cli.main(["capture", "--out", str(tmp_path)]) == 1
        finally:
            signal.signal(signal.SIGHUP, before)
        assert "no step within" in capsys.readouterr().err
        assert requests[-1] == BEFORE


WORKLOAD = Workload(batch_size=80, input_len=1024, output_len=4, repeats=1, warmup=0, every=None)


@pytest.mark.parametrize(
    ("prefilled", "said"),
    [(1024, False), (1023, False), (1022, False), (900, True), (1025, True)],
    ids=["all", "one that all share", "two that all share", "a prefix", "another's request"],
)
def test_prompts_that_were_not_prefilled_whole_are_said_but_for_the_beginning_that_all_share(tmp_path, prefilled, said):
    path = simulated.write(tmp_path, steps=4, context=prefilled)  # four prefills of 20 requests
    notes = list(served._complaints(types.SimpleNamespace(path=path, lost=0), WORKLOAD))
    assert any("prompt tokens were computed instead of 80 × 1024" in note for note in notes) is said
