"""Tests of the commands, as a user calls them."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading

import pytest
import records

from lightllm_otel.contracts.table import HOOKS
from lightllm_otel.exporter.exporter import Exporter
from lightllm_otel.records.folder import FileLock, group_folder, ring_path
from lightllm_otel.records.recording import RecordingWriter
from lightllm_otel.records.vocabulary import ExporterStage, Operator, Signal
from lightllm_otel.records.writer import RingWriter
from lightllm_otel.settings import Settings
from lightllm_otel.tools import cli, contract_table, environment_findings, exporter_findings, group_findings
from lightllm_otel.tools.operator_table import OperatorCalls, duration, render, rows
from lightllm_otel.tools.scrape import Scrape

# A replay must not import anything of the host.
WITHOUT_HOST = (
    "import sys\n"
    "class No:\n"
    "    def find_spec(self, name, path=None, target=None):\n"
    "        if name.partition('.')[0] in ('torch', 'lightllm', 'cupy'): raise ImportError(name)\n"
    "sys.meta_path.insert(0, No())\n"
    "from lightllm_otel.tools.cli import main\n"
    "raise SystemExit(main(sys.argv[1:]))\n"
)


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    """Hide the servers of this machine from the commands."""
    monkeypatch.setenv("LIGHTLLM_OTEL_DIR", str(tmp_path / "dir"))
    monkeypatch.setattr("lightllm_otel.tools.scrape.os.getuid", lambda: 4_000_000)
    for name in list(os.environ):
        if name.startswith("LIGHTLLM_OTEL_") and name != "LIGHTLLM_OTEL_DIR":
            monkeypatch.delenv(name)
    return tmp_path / "dir"


@pytest.fixture
def serving(own_folder, monkeypatch):
    """Start a group with one rank and its exporter, both in this process, which does not see its own locks."""
    monkeypatch.setattr("lightllm_otel.exporter.discovery.is_locked", lambda path: True)
    folder = group_folder(own_folder, "127.0.0.1-28765-dp0")
    ring = RingWriter(ring_path(folder, 0), 1)
    ring.describe(records.FACTS)
    ring.write(*records.step(operators=[(Operator.FFN, 3e-3), (Operator.ATTENTION, 1e-3)], seconds=4e-3))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    exporter = Exporter(folder, dataclasses.replace(Settings.from_env({}), port=port))
    exporter.poll()
    yield exporter, ring
    exporter.server.close()


@pytest.fixture
def recording(tmp_path):
    writer = RecordingWriter(tmp_path, "test", 1 << 20)
    writer.describe({0: records.FACTS})
    steps = [records.step(number=n, wall_time=100.0 + n / 10, operators=[(Operator.FFN, 1e-3)] * 3) for n in range(5)]
    writer.append(0, records.cells(*steps))
    writer.close()
    return writer.path


def test_top_finds_the_exporter_and_shows_the_dearest_operator_first(serving, capsys):
    assert cli.main(["top", "--once"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "llama-7b on NVIDIA H200" in lines[0]
    table = [line.split() for line in lines if line.startswith("  ")]
    assert [row[:2] for row in table] == [["ffn", "75.0%"], ["attention", "25.0%"]]


def test_top_as_json_has_the_same_in_seconds(serving, capsys):
    assert cli.main(["top", "--once", "--json"]) == 0
    (said,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert said["server"]["model"] == "llama-7b"
    (phase,) = said["phases"]
    found = phase["operators"]
    assert list(found) == ["ffn", "attention"]
    assert found["ffn"]["seconds"] == pytest.approx(3 * found["attention"]["seconds"])
    assert found["ffn"]["mean"] == found["ffn"]["seconds"] / found["ffn"]["calls"]


def test_top_says_that_there_is_nothing_to_show(capsys):
    assert cli.main(["top", "--once"]) == 1
    assert "no exporter has announced itself" in capsys.readouterr().err
    assert cli.main(["top", "--once", "--url", "127.0.0.1:1"]) == 1
    assert "does not answer" in capsys.readouterr().err


def test_demo_replays_without_the_host_and_ends_by_itself(recording, tmp_path):
    command = [sys.executable, "-c", WITHOUT_HOST, "demo", str(recording), "--seconds", "1.5"]
    environ = {**os.environ, "LIGHTLLM_OTEL_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ, check=False)
    assert done.returncode == 0, done.stderr
    assert "http://127.0.0.1:" in done.stdout
    assert "ffn" in done.stdout


@pytest.mark.parametrize("name", ["h200-llama-7b-tp1", "h200-llama-tp2"])
def test_packaged_recordings_have_both_phases_and_every_rank(name):
    from lightllm_otel.records.recording import read_recording
    from lightllm_otel.tools.demo import find

    recorded = read_recording(find(name))
    assert recorded.torn == ()
    assert len(recorded.cells) == int(recorded.facts[0]["tp"])
    for rank in recorded.cells:
        steps = recorded.steps(rank)
        assert {int(step["phase"]) for step, intervals in steps if len(intervals)} == {0, 1}
        assert all((intervals["seconds"] >= 0).all() for _, intervals in steps)
        operators = {Operator.of(int(code)) for _, intervals in steps for code in intervals["operator"]}
        assert len(operators) >= 12
        assert (Operator.ALL_REDUCE in operators) == (len(recorded.cells) > 1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["demo", "nowhere"], "there is no recording nowhere"),
        (["demo", "."], "is not a recording"),
        (["run"], "pass the command to run"),
        (["run", "--", "/no/such/program"], "cannot be started"),
    ],
)
def test_bad_input_is_one_sentence_and_no_traceback(arguments, sentence, tmp_path):
    command = [sys.executable, "-m", "lightllm_otel", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=tmp_path, check=False)
    assert done.returncode > 0
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def set_locked(monkeypatch, is_locked):
    """Replace the check for locks in all modules of ``doctor``."""
    for module in (contract_table, exporter_findings, group_findings):
        monkeypatch.setattr(module, "is_locked", is_locked)


def findings(capsys):
    return [(f["state"], f["about"], f["what"]) for f in json.loads(capsys.readouterr().out)]


@pytest.fixture
def hooked(monkeypatch):
    monkeypatch.setattr(environment_findings, "hook", lambda measured: [])


def test_doctor_finds_nothing_wrong_where_nothing_is(hooked, capsys):
    assert cli.main(["doctor", "--json"]) == 0
    assert not [finding for finding in findings(capsys) if finding[0] == "wrong"]


@pytest.fixture
def alive(serving, monkeypatch):
    """Return the ring of a running server."""
    _, ring = serving
    ring.describe(records.FACTS)
    set_locked(monkeypatch, lambda path: True)
    return ring


@pytest.fixture
def unhooked(monkeypatch):
    """Hide the plugin's .pth file."""
    monkeypatch.setattr(sys, "path", [])


WRONG_SETTING = (
    "LIGHTLLM_OTEL_SAMPLE_EVERY=0 is not a whole number from 1 to 1000000000; the default is used: 64. Correct it and "
    "restart the server"
)


def test_doctor_names_a_wrong_setting(hooked, capsys, monkeypatch):
    monkeypatch.setenv("LIGHTLLM_OTEL_SAMPLE_EVERY", "0")
    assert cli.main(["doctor", "--json"]) == 1
    assert [what for state, about, what in findings(capsys) if (state, about) == ("wrong", "setting")] == [
        WRONG_SETTING
    ]


def test_doctor_names_a_switch_that_is_neither_on_nor_off(hooked, capsys, monkeypatch):
    monkeypatch.setenv("LIGHTLLM_OTEL", "enabled")
    assert cli.main(["doctor", "--json"]) == 1
    (what,) = [what for state, _, what in findings(capsys) if state == "wrong"]
    assert what.startswith("LIGHTLLM_OTEL=enabled is neither on (1, true, on, yes)")


@pytest.mark.parametrize("word", ["no", "none", "disabled", '"0"'])
def test_doctor_does_not_take_a_word_for_off_for_on(hooked, capsys, monkeypatch, word):
    monkeypatch.setenv("LIGHTLLM_OTEL", word)
    assert cli.main(["doctor", "--json"]) == 0
    assert ("note", "switch", f"LIGHTLLM_OTEL is {word}: a server started here is not measured") in findings(capsys)


def test_doctor_notes_what_kubernetes_has_set(hooked, capsys, monkeypatch):
    monkeypatch.setenv("LIGHTLLM_OTEL_PORT", "tcp://10.0.0.1:9464")
    assert cli.main(["doctor", "--json"]) == 0
    (found,) = [finding for finding in findings(capsys) if finding[1] == "setting" and "PORT" in finding[2]]
    assert found[0] == "note"
    assert "was set by Kubernetes for the Service lightllm-otel" in found[2]


def test_doctor_says_that_the_hook_is_missing_where_no_server_is_measured(unhooked, capsys):
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "have no lightllm_otel_boot.pth" in out
    assert "→ start the server with: lightllm-otel run -- python -m …" in out
    assert "pip install -c installed.txt lightllm-otel" in out


def test_what_a_running_server_says_counts_more_than_a_missing_hook(alive, unhooked, capsys):
    """Such a server was started by ``lightllm-otel run``, or with another Python."""
    assert cli.main(["doctor", "--json"]) == 0
    (found,) = [finding for finding in findings(capsys) if finding[1] == "hook"]
    assert found[0] == "note"
    assert "The running server is measured" in found[2]
    assert "lightllm-otel run -- python -m …" in found[2]


def test_a_server_that_has_ended_does_not_stand_for_the_hook(serving, unhooked, monkeypatch, capsys):
    set_locked(monkeypatch, lambda path: False)
    assert cli.main(["doctor"]) == 1
    assert "a server that is started with this Python is not measured" in capsys.readouterr().out


def test_the_settings_of_a_running_server_count_more_than_those_of_this_shell(alive, hooked, monkeypatch, capsys):
    monkeypatch.setenv("LIGHTLLM_OTEL_SAMPLE_EVERY", "0")
    assert cli.main(["doctor", "--json"]) == 0
    assert ("note", "setting", WRONG_SETTING) in findings(capsys)


def test_doctor_says_what_a_running_server_found_wrong_with_its_settings(alive, hooked, capsys):
    alive.describe(
        {**records.FACTS, "problems": [WRONG_SETTING], "notes": ["LIGHTLLM_OTEL_PORT=tcp://10.0.0.1:1 was set …"]}
    )
    assert cli.main(["doctor", "--json"]) == 1
    found = findings(capsys)
    assert ("wrong", "rank-0", WRONG_SETTING) in found
    assert ("note", "rank-0", "LIGHTLLM_OTEL_PORT=tcp://10.0.0.1:1 was set …") in found


@pytest.mark.parametrize(
    ("facts", "exporter_lives", "remote", "status", "sentence"),
    [
        ({}, True, False, 0, "listens on this machine only"),
        ({}, True, True, 1, "listens on this machine only"),
        ({}, False, False, 1, "no exporter runs for"),
        ({"slots": {"ffn": "installed", "kv_write": "missing"}}, True, False, 1, "not found in this model: kv_write"),
    ],
)
def test_doctor_looks_at_the_running_server(
    serving, hooked, monkeypatch, capsys, facts, exporter_lives, remote, status, sentence
):
    _, ring = serving
    ring.describe({**records.FACTS, **facts})
    set_locked(monkeypatch, lambda path: path.suffix == ".ring" or exporter_lives)
    assert cli.main(["doctor", "--json", *(["--remote"] if remote else [])]) == status
    assert any(sentence in what for _, _, what in findings(capsys))


CLASSES = {
    "LlamaTransformerLayerInfer": {"layers": 30, "operators": ["ffn"], "missing": ["kv_write", "o_proj"]},
    "Gemma3TransformerLayerInfer": {"layers": 1, "operators": ["ffn"], "other": ["copy", "mm"]},
    "NewTransformerLayerInfer": {
        "layers": 2,
        "operators": ["ffn"],
        "unread": ["the source of token_forward cannot be read"],
    },
    "GoodTransformerLayerInfer": {"layers": 4, "operators": ["ffn"]},
}


@pytest.fixture
def doctor_of(serving, hooked, monkeypatch, capsys):
    """Return ``doctor_of(facts)``: exit status, and (state, what) of each finding on the rank of a server with these facts."""
    set_locked(monkeypatch, lambda path: True)

    def run(**facts):
        serving[1].describe({**records.FACTS, **facts})
        status = cli.main(["doctor", "--json"])
        return status, [(state, what) for state, about, what in findings(capsys) if about.startswith("rank")]

    return run


def test_doctor_says_for_each_class_of_layers_what_is_missing_and_what_is_other(doctor_of):
    status, found = doctor_of(layer_classes=CLASSES)
    assert [each for each in found if "TransformerLayerInfer" in each[1]] == [
        ("wrong", "LlamaTransformerLayerInfer (30 layers): not found: kv_write, o_proj"),
        ("note", "Gemma3TransformerLayerInfer (1 layer): calls that belong to no operator, so they count as `other`: copy, mm"),
        ("note", "NewTransformerLayerInfer (2 layers): the plugin cannot analyse its code (the source of token_forward cannot be "
                 "read), so the time between two of its operators counts as `other`"),
    ]  # fmt: skip
    assert status == 1


def test_only_what_a_class_of_layers_lacks_is_wrong(doctor_of):
    """The table of slots also has operators of other models."""
    others = {kind: facts for kind, facts in CLASSES.items() if "missing" not in facts}
    status, found = doctor_of(layer_classes=others, slots={"ffn": "installed", "kv_write": "missing"})
    assert not [each for each in found if each[0] == "wrong"]
    assert status == 0


def test_an_operator_outside_of_all_layers_that_is_missing_is_wrong(doctor_of):
    others = {"GoodTransformerLayerInfer": CLASSES["GoodTransformerLayerInfer"]}
    status, found = doctor_of(layer_classes=others, slots={"ffn": "installed", "lm_head": "missing"})
    assert [what for state, what in found if state == "wrong"] == ["not found in this model: lm_head"]
    assert status == 1


def test_doctor_says_that_a_receiver_takes_nothing(serving, hooked, monkeypatch, capsys):
    exporter, ring = serving
    ring.describe(records.FACTS)
    set_locked(monkeypatch, lambda path: True)
    exporter._collector.otlp_sender.errors[Signal.METRICS] = 3
    assert cli.main(["doctor", "--json"]) == 1
    (what,) = [what for _, about, what in findings(capsys) if about == "otlp"]
    assert what.startswith("3 batches could not be sent")


def test_doctor_says_which_part_of_the_exporter_has_failed(serving, hooked, monkeypatch, capsys, lenient):
    exporter, _ = serving
    set_locked(monkeypatch, lambda path: True)
    for _ in range(3):
        with exporter.group.parts(ExporterStage.POSITIONS):
            raise OSError(28, "No space left on device")
    assert cli.main(["doctor", "--json"]) == 1
    wrong = [what for state, about, what in findings(capsys) if (state, about) == ("wrong", "exporter")]
    assert "its part positions has failed 3 times; all other parts still work" in wrong


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("rank-0.bak.ring", "the ring of a rank is named rank-N.ring"),
        ("rank-1.ring", "is damaged: its header says 0 cells"),
    ],
)
def test_doctor_names_a_ring_that_is_none_and_looks_at_the_others(serving, hooked, monkeypatch, capsys, name, sentence):
    exporter, ring = serving
    path = ring_path(exporter._folder, 0).with_name(name)
    header = ring.header.copy()
    header["cells"] = 0
    path.write_bytes(header.tobytes() + bytes((1 << 20) - header.nbytes))
    set_locked(monkeypatch, lambda path: True)
    exporter.poll()
    assert cli.main(["doctor", "--json"]) == 1
    said = [(about, what) for _, about, what in findings(capsys)]
    assert any(name in what and sentence in what for _, what in said)
    assert any(about == "rank-0" and what.startswith("llama-7b") for about, what in said)
    assert any("its part rings has failed 1 times" in what for _, what in said)


def test_the_table_of_contracts_does_without_a_ring_that_is_damaged(serving, monkeypatch, capsys):
    exporter, ring = serving
    ring.describe({**records.FACTS, "contracts": {"rows": {HOOKS[0].name: "changed"}}})
    for name in ("rank-1.ring", "rank-0.bak.ring"):
        ring_path(exporter._folder, 0).with_name(name).write_bytes(bytes(1 << 20))
    set_locked(monkeypatch, lambda path: True)
    assert cli.main(["doctor", "--contracts"]) == 0
    assert capsys.readouterr().out.count("here: changed; then") == 1


def test_doctor_shows_the_rest_when_it_cannot_look_at_something(serving, hooked, monkeypatch, capsys):
    set_locked(monkeypatch, lambda path: True)
    monkeypatch.setattr(group_findings, "rank", lambda path: 1 / 0)
    assert cli.main(["doctor"]) == 1
    shown = capsys.readouterr()
    assert "rank-0.ring cannot be checked: ZeroDivisionError" in " ".join(shown.out.split())
    assert "oldest unread step" in shown.out
    assert "Traceback" not in shown.out + shown.err


def test_doctor_does_not_hang_with_nvml(hooked, monkeypatch, capsys):
    free = threading.Event()
    monkeypatch.setattr(environment_findings, "_driver", lambda: free.wait(30) and "")
    monkeypatch.setattr(environment_findings, "DRIVER_SECONDS", 0.2)
    assert cli.main(["doctor", "--json"]) == 1
    assert ("wrong", "driver", "NVML has not answered for 0.2 s") in findings(capsys)
    free.set()


def test_quantiles_are_interpolated_as_prometheus_does():
    row = OperatorCalls(count=4, seconds=1.0, buckets={1.0: 1, 2.0: 3, 4.0: 4, float("inf"): 4})
    assert row.quantile(0.5) == 1.5
    assert row.quantile(1.0) == 4.0


def test_a_table_of_two_readings_shows_what_came_between():
    name = "lightllm_gpu_operator_duration_seconds"
    labels = '{mode="eager",operator="ffn",phase="decode"}'
    text = f"# TYPE {name} histogram\n{name}_count{labels} %d\n{name}_sum{labels} %g\n"
    table = rows(Scrape(text % (6, 3.0)), Scrape(text % (2, 1.0)))
    row = table["decode", "eager"]["ffn"]
    assert (row.count, row.seconds) == (4, 2.0)
    assert "ffn" in render(table, 2.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.5e-6, "4.5 µs"), (0.0123, "12.3 ms"), (2.0, "2 s"), (float("nan"), "–")]
)
def test_durations_have_three_digits_and_a_unit(seconds, text):
    assert duration(seconds) == text


def test_a_lock_of_this_process_is_not_seen_by_itself(tmp_path):
    """POSIX locks work between processes, so the tests above must replace the check for locks."""
    lock = FileLock(tmp_path / "lock")
    assert lock.acquire()
    lock.release()
