"""How Prometheus and our own commands find an exporter, and what other users of the machine cannot change about it."""

import dataclasses
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import records
from other_user import ATTACKER, VICTIM, as_user, needs_root

from lightllm_otel.exporter import discovery
from lightllm_otel.exporter.discovery import ADDRESS, KEEP_SECONDS, Announcement, entry, own_address, targets
from lightllm_otel.records.folder import LOCK_NAME, FileLock, group_folder, ring_path
from lightllm_otel.records.writer import RingWriter
from lightllm_otel.tools.scrape import NoExporter, only_address

TESTS = records.__file__.rpartition("/")[0]
GROUP = "127.0.0.1-28765-dp0"
FACTS = {"model": "llama", "nodes": 1}


@dataclasses.dataclass
class Server:
    """What an announcement needs to know of an exporter's HTTP server."""

    host: str = "127.0.0.1"
    port: int = 9464

    @property
    def address(self):
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@pytest.fixture
def now():
    return [0.0]


@pytest.fixture
def announce(tmp_path, now):
    made = []

    def start(name=GROUP, to=tmp_path / "targets"):
        made.append(Announcement(group_folder(tmp_path / "dir", name), to, lambda: now[0]))
        return made[-1]

    yield start
    for announcement in made:
        announcement.withdraw()


def published(folder):
    return sorted(folder.glob("*.json"))


class TestForPrometheus:
    def test_instance_is_this_machine_and_no_label_is_one_that_changes(self):
        """Each machine's agent reads 127.0.0.1; and another model at the same address is the same target."""
        (target,) = entry(Server(), GROUP, FACTS)
        assert target == {"targets": ["127.0.0.1:9464"], "labels": {"instance": f"{socket.gethostname()}:9464"}}
        assert entry(Server(), "another-group", {"model": "other"}) == [target]

    def test_a_group_over_several_machines_has_its_name(self):
        (target,) = entry(Server(), GROUP, {**FACTS, "nodes": 2})
        assert target["labels"]["lightllm_group"] == GROUP

    def test_an_exporter_that_other_machines_can_reach_has_a_name_that_they_can_ask(self):
        (target,) = entry(Server("0.0.0.0"), GROUP, FACTS)
        assert target["targets"] == [f"{socket.gethostname()}:9464"]
        assert [own_address(Server(host)) for host in ("0.0.0.0", "::", "10.1.2.3")] == [
            "127.0.0.1:9464", "[::1]:9464", "10.1.2.3:9464",
        ]  # fmt: skip

    def test_the_name_fits_the_pattern_of_the_documents(self, announce, tmp_path):
        announce().keep(Server(), FACTS)
        (path,) = published(tmp_path / "targets")
        assert path.match(discovery.pattern(tmp_path / "targets"))
        assert GROUP in path.name

    def test_a_file_that_was_removed_comes_back(self, announce, tmp_path, now):
        announcement = announce()
        announcement.keep(Server(), FACTS)
        (path,) = published(tmp_path / "targets")
        path.unlink()
        announcement.keep(Server(), FACTS)
        assert not path.exists()
        now[0] = KEEP_SECONDS + 1
        announcement.keep(Server(), FACTS)
        assert path.exists()

    def test_a_folder_that_cannot_be_written_is_one_line_and_tried_again(self, announce, tmp_path, now, caplog):
        (tmp_path / "targets").write_text("in the way")
        announcement = announce()
        for now[0] in (0.0, 1.0, KEEP_SECONDS + 1, 3 * KEEP_SECONDS):
            announcement.keep(Server(), FACTS)
        (record,) = caplog.records
        assert "LIGHTLLM_OTEL_TARGETS" in record.message
        assert "http://127.0.0.1:9464/metrics" in record.message
        (tmp_path / "targets").unlink()
        now[0] = 5 * KEEP_SECONDS
        announcement.keep(Server(), FACTS)
        assert len(published(tmp_path / "targets")) == 1

    def test_off_announces_to_our_own_commands_only(self, announce, tmp_path):
        announce(to=None).keep(Server(), FACTS)
        assert json.loads((tmp_path / "dir" / GROUP / ADDRESS).read_text()) == {"address": "127.0.0.1:9464"}
        assert not (tmp_path / "targets").exists()

    def test_two_servers_with_one_group_name_have_a_file_each(self, tmp_path, announce):
        """Containers that share the folder of discovery files, or two replays."""
        first, second = announce(), Announcement(group_folder(tmp_path / "other", GROUP), tmp_path / "targets")
        first.keep(Server(port=1), FACTS)
        second.keep(Server(port=2), FACTS)
        said = {
            target for path in published(tmp_path / "targets") for target in json.loads(path.read_text())[0]["targets"]
        }
        assert said == {"127.0.0.1:1", "127.0.0.1:2"}
        second.withdraw()
        assert len(published(tmp_path / "targets")) == 1


@needs_root
class TestOtherUsers:
    @pytest.mark.parametrize("umask", [0o000, 0o027, 0o077])
    def test_prometheus_can_read_the_file_and_nobody_else_can_write_it(self, shared, umask):
        """Found: with a umask of 027, as many distributions set it, Prometheus found nothing."""

        def serve():
            folder = group_folder(shared / "dir", GROUP)
            Announcement(folder, shared).keep(Server(), FACTS)
            Announcement(folder, shared / "new").keep(Server(), FACTS)
            assert (folder / ADDRESS).stat().st_mode & 0o777 == 0o600

        as_user(VICTIM, serve, umask=umask)
        for path in (*published(shared), *published(shared / "new")):
            assert path.stat().st_mode & 0o777 == 0o644
            (target,) = json.loads(as_user(ATTACKER, path.read_bytes))
            assert target["targets"] == ["127.0.0.1:9464"]
            with pytest.raises(PermissionError):
                as_user(ATTACKER, path.unlink)
        assert (shared / "new").stat().st_mode & 0o777 == 0o755

    def test_files_of_another_user_are_left_alone_and_keep_ours_from_nothing(self, shared):
        def plant():
            for name in (GROUP, f"{VICTIM}-{GROUP}", "x"):
                path = shared / f"{discovery.PREFIX}{name}{discovery.SUFFIX}"
                path.write_text('[{"targets": ["evil:1"]}]')
                path.chmod(0o666)

        as_user(ATTACKER, plant)
        before = {path: path.read_bytes() for path in published(shared)}
        as_user(VICTIM, lambda: Announcement(group_folder(shared / "dir", GROUP), shared).keep(Server(), FACTS))
        assert {path: path.read_bytes() for path in before} == before
        (own,) = set(published(shared)) - set(before)
        assert json.loads(own.read_text())[0]["targets"] == ["127.0.0.1:9464"]

    def test_root_does_not_remove_what_a_user_left(self, shared):
        as_user(VICTIM, lambda: Announcement(group_folder(shared / "dir", GROUP), shared).keep(Server(), FACTS))
        discovery.tidy(shared)
        assert len(published(shared)) == 1

    def test_a_lock_that_anybody_may_take_does_not_keep_a_dead_file(self, shared):
        as_user(VICTIM, lambda: Announcement(group_folder(shared / "dir", GROUP), shared).keep(Server(), FACTS))
        (path,) = published(shared)
        with path.open("rb") as file:  # root's descriptor here, but a lock that only reads, as anybody's
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            as_user(VICTIM, discovery.tidy, shared)
        assert not path.exists()

    def test_own_commands_take_no_address_from_another_user(self, shared, monkeypatch):
        def plant():
            folder = group_folder(shared / "dir", GROUP)
            (folder / ADDRESS).write_text('{"address": "evil:1"}')
            assert FileLock(folder / LOCK_NAME).acquire()
            for path in (folder.parent, folder):
                path.chmod(0o755)

        as_user(ATTACKER, plant)
        monkeypatch.setenv("LIGHTLLM_OTEL_DIR", str(shared / "dir"))
        with pytest.raises(NoExporter, match=f"belongs to another user .uid {ATTACKER}"):
            only_address()


class Processes:
    """Model processes and exporters that can be killed; a killed one cleans nothing up."""

    def __init__(self, tmp_path):
        self.directory, self.targets = tmp_path / "dir", tmp_path / "targets"
        self._environ = {
            **os.environ, "LIGHTLLM_OTEL_DIR": str(self.directory), "LIGHTLLM_OTEL_TARGETS": str(self.targets),
        }  # fmt: skip
        self.running = []

    def _start(self, *command):
        self.running.append(
            subprocess.Popen(command, env=self._environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        )
        return self.running[-1]

    def rank(self, group, rank=0):
        code = (
            "import json, sys, time; from pathlib import Path; from lightllm_otel.records.writer import RingWriter\n"
            "ring = RingWriter(Path(sys.argv[1]), 1); ring.describe(json.loads(sys.argv[2]))\n"
            "sys.path.insert(0, sys.argv[3]); import records; ring.write(*records.step())\n"
            "print(flush=True); time.sleep(60)"
        )
        path = ring_path(group_folder(self.directory, group), rank)
        started = self._start(sys.executable, "-c", code, str(path), json.dumps({**records.FACTS, "rank": rank}), TESTS)
        assert started.stdout.readline()
        return started

    def exporter(self, group):
        before = set(published(self.targets))
        command = (sys.executable, "-m", "lightllm_otel", "exporter", "--folder", str(self.directory / group))
        started = self._start(*command)
        end = time.monotonic() + 30
        while not (set(published(self.targets)) - before and (self.directory / group / "positions.json").exists()):
            assert time.monotonic() < end, "it has not announced itself"
            assert started.poll() is None
            time.sleep(0.05)
        return started

    def kill(self, *processes):
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()


@pytest.fixture
def processes(tmp_path):
    started = Processes(tmp_path)
    yield started
    started.kill(*started.running)
    for process in started.running:
        process.stdout.close()


class TestAfterACrash:
    def test_whoever_starts_next_removes_what_the_dead_left_and_nothing_that_lives(self, processes, monkeypatch):
        """Found: rings and discovery files stayed for ever, and the next exporter took the same port: one server counted
        as two, and with another model it ended the rules of all."""
        # One server dies as a whole, of another one the exporter alone, and a third one lives.
        processes.kill(processes.rank("dead"), processes.exporter("dead"))
        rank = processes.rank("half")
        processes.kill(processes.exporter("half"))
        processes.rank("alive"), processes.exporter("alive")
        left = {group: (processes.directory / group) for group in ("dead", "half", "alive")}
        assert not ring_path(left["dead"], 0).exists()
        assert [(left[name] / "positions.json").exists() for name in left] == [False, True, True]
        assert ring_path(left["half"], 0).exists()
        assert rank.poll() is None

        monkeypatch.setenv("LIGHTLLM_OTEL_DIR", str(processes.directory))
        assert list(targets(processes.directory)) == ["alive"]
        assert only_address().endswith("/metrics")
        (path,) = published(processes.targets)
        assert json.loads(path.read_text())[0]["targets"] == [targets(processes.directory)["alive"]]

    def test_a_server_with_fewer_ranks_has_none_of_those_before_it(self, processes):
        processes.kill(processes.rank("one", 0), processes.rank("one", 1), processes.exporter("one"))
        processes.rank("one", 0)
        processes.exporter("one")
        assert [path.name for path in sorted((processes.directory / "one").glob("*.ring"))] == ["rank-0.ring"]

    def test_commands_skip_an_exporter_that_is_gone(self, processes, monkeypatch):
        """Found: top failed on the address of a killed one although another server answered."""
        processes.kill(processes.rank("a-dead-one"), processes.exporter("a-dead-one"))
        monkeypatch.setenv("LIGHTLLM_OTEL_DIR", str(processes.directory))
        with pytest.raises(NoExporter, match="no exporter has announced itself"):
            only_address()


def test_a_new_ring_is_not_mistaken_for_the_dead_one_whose_name_it_takes(tmp_path, monkeypatch):
    """A server that starts while another one's exporter sweeps."""
    from lightllm_otel.records import folder as folder_module

    folder = group_folder(tmp_path, GROUP)
    path = ring_path(folder, 0)
    RingWriter(path, 1).close()
    looked = []

    def looks_dead_at_first(path):
        looked.append(path)
        if len(looked) == 1:
            RingWriter(path, 1)  # its process holds it; we do not see our own locks
        return len(looked) > 1

    monkeypatch.setattr(folder_module, "is_locked", looks_dead_at_first)
    folder_module.remove_if_dead(path)
    assert len(looked) == 2
    assert [found.name for found in folder.iterdir()] == ["rank-0.ring"]
