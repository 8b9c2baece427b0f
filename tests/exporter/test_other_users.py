"""The exporter's files, and what our commands take for a server's: nothing of another user."""

import datetime
import json
import logging
import os
import socket

import pytest
import records
from other_user import ATTACKER, VICTIM, as_user, needs_root

from lightllm_otel.exporter import baseline, control, exporter, main, process, rank_rings
from lightllm_otel.exporter.baseline import BadBaseline
from lightllm_otel.guard import log
from lightllm_otel.records.folder import LOCK_NAME, FileLock, group_folder, ring_path
from lightllm_otel.records.recording import RecordingWriter
from lightllm_otel.records.writer import RingWriter
from lightllm_otel.settings import Settings
from lightllm_otel.tools import cli

pytestmark = needs_root
GROUP = "127.0.0.1-28765-dp0"
SECRET = b"not to be lost\n"
KEY = {"model": "llama", "gpu_name": "GPU", "tp": 1}
LEARNED = json.dumps(baseline.content(KEY, {}))


def precious(folder):
    path = folder / "precious"
    path.write_bytes(SECRET)
    path.chmod(0o666)
    return path


def said(action, *args):
    """(result, lines of the log)."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    log.addHandler(handler)
    return action(*args), lines


class TestFilesOfTheExporter:
    def test_a_folder_of_another_user_is_one_line_and_no_exporter(self, shared):
        as_user(ATTACKER, group_folder, shared / "otel", GROUP)
        folder = shared / "otel" / GROUP
        status, lines = as_user(VICTIM, said, main.main, folder, Settings.from_env({}), False)
        assert status == 1
        (line,) = lines
        assert f"{folder.parent} belongs to another user (uid {ATTACKER})" in line

    def test_its_log_is_no_link_to_another_file(self, shared):
        kept = as_user(VICTIM, precious, shared)
        folder = as_user(VICTIM, group_folder, shared / "otel", GROUP)
        (folder / process.LOG_NAME).symlink_to(kept)

        def work():
            process.let_go_of_stderr(folder)
            os.write(2, b"a line")

        as_user(VICTIM, work)
        assert kept.read_bytes() == SECRET

    def test_positions_are_not_written_through_a_link_nor_read_from_another_user(self, shared):
        kept = as_user(VICTIM, precious, shared)
        folder = as_user(VICTIM, group_folder, shared / "otel", GROUP)
        path = folder / rank_rings.POSITIONS
        path.symlink_to(kept)

        def work():
            RingWriter(ring_path(folder, 0), 1).write(*records.step())
            made = exporter.Exporter(folder, Settings.from_env({"LIGHTLLM_OTEL_TARGETS": "off"}))
            made._serve = lambda: None
            made.poll()

        as_user(VICTIM, work)
        assert kept.read_bytes() == SECRET
        assert json.loads(path.read_text())["0"]["position"] == 4
        assert not path.is_symlink()

    def test_control_is_neither_served_nor_asked_in_a_folder_of_another_user(self, shared):
        folder = as_user(ATTACKER, group_folder, shared / "otel", GROUP)
        for path in (folder.parent, folder):
            path.chmod(0o777)
        for use in (lambda: control.ControlServer(folder, None), lambda: control.ask(folder, {"level": "off"})):
            with pytest.raises(PermissionError, match=r"belongs to another user|can be written"):
                as_user(VICTIM, use)


class TestStateAndRecordings:
    """Their folders may be shared; what lies in them must be ours."""

    def test_what_was_learned_is_not_written_through_a_link(self, shared):
        kept = as_user(VICTIM, precious, shared)
        path = shared / baseline.file_name(KEY)
        as_user(ATTACKER, path.symlink_to, kept)
        with pytest.raises(PermissionError):  # the folder is sticky: nobody but the attacker can remove his link
            as_user(VICTIM, baseline.write, path, LEARNED)
        assert kept.read_bytes() == SECRET
        path.unlink()
        path.symlink_to(kept)
        os.lchown(path, VICTIM, VICTIM)
        as_user(VICTIM, baseline.write, path, LEARNED)
        assert kept.read_bytes() == SECRET
        assert as_user(VICTIM, baseline.read, path, False) == ({}, KEY)
        assert [found.name for found in shared.iterdir() if found.name.endswith(".new")] == []

    def test_what_another_user_learned_is_not_taken_unless_a_person_gives_it(self, shared):
        path = shared / baseline.file_name(KEY)
        as_user(ATTACKER, baseline.write, path, LEARNED)
        with pytest.raises(BadBaseline, match="belongs to another user"):
            as_user(VICTIM, baseline.read, path, False)
        assert as_user(VICTIM, baseline.read, path) == ({}, KEY)

    def test_a_recording_goes_into_no_folder_of_another_user(self, shared):
        now = datetime.datetime(2026, 12, 1, tzinfo=datetime.timezone.utc)
        kept = as_user(VICTIM, precious, shared)

        def plant():
            folder = shared / "20261201T000000Z-group"
            folder.mkdir()
            (folder / "rank-0.records").symlink_to(kept)
            folder.chmod(0o777)

        def record():
            writer = RecordingWriter(shared, "group", 1 << 20, now)
            writer.describe({0: records.FACTS})
            writer.append(0, records.cells(records.step()))
            writer.close()

        as_user(ATTACKER, plant)
        _, lines = as_user(VICTIM, said, record)
        assert kept.read_bytes() == SECRET
        (line,) = lines
        assert "belongs to another user" in line


class TestCommands:
    @pytest.fixture(autouse=True)
    def planted(self, shared, monkeypatch):
        """A server that is none, in the folder where ours is looked for."""

        def plant():
            folder = group_folder(shared / "otel", GROUP)
            RingWriter(ring_path(folder, 0), 1).describe({**records.FACTS, "model": "\x1b[2Jevil"})
            (folder / "exporter.json").write_text('{"address": "evil:1"}')
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(str(folder / control.SOCKET))
            assert FileLock(folder / LOCK_NAME).acquire()
            for path in (folder.parent, folder, *folder.iterdir()):
                path.chmod(0o755)

        as_user(ATTACKER, plant)
        monkeypatch.setenv("LIGHTLLM_OTEL_DIR", str(shared / "otel"))

    @pytest.mark.parametrize(
        "words", ["top --once", "ctl off", "doctor", "doctor --json", "doctor --stuck", "capture --kernels"]
    )
    def test_another_users_server_is_not_taken_for_ours_and_one_sentence_says_so(
        self, words, capsys, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        status = cli.main(words.split())
        shown = capsys.readouterr()
        assert f"belongs to another user (uid {ATTACKER})" in shown.out + shown.err
        assert "evil" not in shown.out + shown.err
        assert status == (0 if "stuck" in words else 1)
