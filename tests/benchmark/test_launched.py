"""Tests of servers that the benchmark starts: they get its options, and end with all of their processes."""

import json
import os
import socket
import sys
from pathlib import Path

import pytest

from lightllm_otel.tools import cli
from lightllm_otel.tools.benchmark import launched

SERVER = """
import http.server, json, os, pathlib, signal, subprocess, sys
from lightllm_otel.records.folder import group_folder, ring_path
from lightllm_otel.records.writer import RingWriter

port, notes = int(sys.argv[2]), pathlib.Path(sys.argv[3])
signal.signal(signal.SIGTERM, signal.SIG_IGN)
# Like LightLLM, start a process that is detached from its parent and survives it.
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], start_new_session=True)
names = ("LIGHTLLM_OTEL", "LIGHTLLM_OTEL_DIR", "LIGHTLLM_OTEL_SAMPLE_EVERY", "COLOUR")
notes.write_text(json.dumps({"pids": [os.getpid(), child.pid], "environment": {name: os.environ.get(name) for name in names}}))
ring = RingWriter(ring_path(group_folder(pathlib.Path(os.environ["LIGHTLLM_OTEL_DIR"]), "its-group"), 0), 1)

class Answers(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"count_output_tokens": 1}')

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", port), Answers).serve_forever()
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(launched, "TERM_SECONDS", 1.0)
    monkeypatch.setattr(launched, "_POLL_SECONDS", 0.05)


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"  # a zombie is dead, but its parent has not waited for it


def test_a_server_has_the_plugin_and_its_environment_and_is_gone_afterwards(port, tmp_path):
    notes = tmp_path / "notes"
    words = [sys.executable, "-c", SERVER, "--port", str(port), str(notes)]
    url = launched.url_of(words)
    with launched.running(words, url, {"COLOUR": "red"}, 4, tmp_path / "a" / "server.log") as server:
        assert server.generate("b", 1) == 1
        assert server.folder.name == "its-group"
        seen = json.loads(notes.read_text())
        assert all(alive(pid) for pid in seen["pids"])
    environment = seen["environment"]
    assert (environment["LIGHTLLM_OTEL"], environment["LIGHTLLM_OTEL_SAMPLE_EVERY"], environment["COLOUR"]) == (
        "1",
        "4",
        "red",
    )
    assert server.folder.parent == type(server.folder)(environment["LIGHTLLM_OTEL_DIR"])
    assert not any(alive(pid) for pid in seen["pids"])
    assert not server.folder.exists()


def test_a_process_that_hides_its_environment_and_belongs_to_nobody_is_ended_too(port, tmp_path):
    """A process title can overwrite the environment. Then parent and session still identify the process."""
    notes = tmp_path / "pid"
    hidden = (
        "import os, pathlib, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"pathlib.Path({str(notes)!r}).write_text(str(os.getpid())); time.sleep(100)"
    )
    code = (
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {hidden!r}], env={{}}); "
        "time.sleep(1); sys.exit(3)"
    )
    running = launched.running([sys.executable, "-c", code], f"http://127.0.0.1:{port}", {}, None, tmp_path / "log")
    with pytest.raises(launched.NoServer, match="exited with status 3"), running:
        pass
    assert not alive(int(notes.read_text()))


def test_a_server_that_takes_a_request_and_says_nothing_is_given_up(tmp_path):
    code = "import socket, sys, time; at = socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(100)"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    running = launched.running(
        [sys.executable, "-c", code, str(free)], f"http://127.0.0.1:{free}", {}, None, tmp_path / "log", 2.0
    )
    with pytest.raises(launched.NoServer, match="has not answered"), running:
        pass


def test_a_server_that_ends_before_it_answers_is_a_sentence_with_its_last_line(port, tmp_path):
    words = [sys.executable, "-c", "import sys; print('no such model'); sys.exit(3)"]
    with (
        pytest.raises(launched.NoServer, match="exited with status 3 before it answered: no such model"),
        launched.running(words, f"http://127.0.0.1:{port}", {}, None, tmp_path / "log"),
    ):
        pass


def test_a_server_that_never_answers_is_given_up_and_ended(port, tmp_path):
    notes = tmp_path / "pid"
    code = f"import os, time; open({str(notes)!r}, 'w').write(str(os.getpid())); print('loading', flush=True); time.sleep(100)"
    running = launched.running(
        [sys.executable, "-c", code], f"http://127.0.0.1:{port}", {}, None, tmp_path / "log", 2.0
    )
    with pytest.raises(launched.NoServer, match=r"has not answered at .* for 2 s: loading"), running:
        pass
    assert not alive(int(notes.read_text()))


def test_a_command_that_does_not_exist_is_a_sentence(port, tmp_path):
    with (
        pytest.raises(launched.NoServer, match="no-such-command: No such file"),
        launched.running(["no-such-command"], f"http://127.0.0.1:{port}", {}, None, tmp_path / "log"),
    ):
        pass


def test_what_listens_there_already_is_not_taken_for_the_server(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        url = f"http://127.0.0.1:{other.getsockname()[1]}"
        running = launched.running(["true"], url, {}, None, tmp_path / "log")
        with pytest.raises(launched.NoServer, match="another process already listens at"), running:
            pass


def test_an_ended_benchmark_ends_its_server(port, tmp_path):
    notes = tmp_path / "notes"
    words = [sys.executable, "-c", SERVER, "--port", str(port), str(notes)]
    running = launched.running(words, launched.url_of(words), {}, None, tmp_path / "log")
    with pytest.raises(KeyboardInterrupt), running:
        raise KeyboardInterrupt
    assert not any(alive(pid) for pid in json.loads(notes.read_text())["pids"])


@pytest.mark.parametrize(
    ("command", "url"),
    [
        ("python -m lightllm.server.api_server --port 8123 --tp 2", "http://127.0.0.1:8123"),
        ("python -m lightllm.server.api_server --port=8124", "http://127.0.0.1:8124"),
        ("python -m lightllm.server.api_server", "http://127.0.0.1:8000"),
        ("python -m lightllm.server.api_server --host 0.0.0.0 --port 8125", "http://127.0.0.1:8125"),
        ("python -m lightllm.server.api_server --host 10.0.0.7 --port 8126", "http://10.0.0.7:8126"),
        ("python -m lightllm.server.api_server --host=::1 --port 8127", "http://[::1]:8127"),
    ],
)
def test_where_a_command_listens(command, url):
    assert launched.url_of(launched.words_of(command)) == url


@pytest.mark.parametrize("command", ["'", "", "serve --port", "serve --port eighty"])
def test_a_command_that_is_none_is_refused(command):
    with pytest.raises(ValueError, match="--serve"):
        launched.url_of(launched.words_of(command))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--serve", "serve", "--tp", "2"), "remove --tp, which would have no effect"),
        (("--serve", "serve", "--group", "a"), "remove --group, which would have no effect"),
        (("--serve", "serve", "--url", "http://127.0.0.1:1", "--group", "a"), "remove --group, which would have no effect"),
        (("--url", "http://127.0.0.1:1", "--no-graphs", "--share-gpu"), "remove --no-graphs and --share-gpu, which would"),
        (("--static", "--group", "a"), "remove --group, which would have no effect"),
    ],
)  # fmt: skip
def test_an_option_that_would_be_left_out_is_refused(words, said, tmp_path, capsys):
    assert cli.main(["bench", "--model-dir", str(tmp_path), "--out", str(tmp_path / "out"), *words]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
