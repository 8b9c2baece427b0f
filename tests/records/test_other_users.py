"""Tests of attacks: another user, who can write to /dev/shm and /tmp, cannot affect a server's files."""

import os
import time
from pathlib import Path

import pytest
from other_user import ATTACKER, VICTIM, as_user, needs_root

from lightllm_otel.records import profile_request
from lightllm_otel.records.control import ControlPage
from lightllm_otel.records.folder import FileLock, group_folder, is_locked, ring_path
from lightllm_otel.records.notes import NotesReader, NotesWriter
from lightllm_otel.records.reader import RingReader
from lightllm_otel.records.vocabulary import Level
from lightllm_otel.records.writer import RingWriter

pytestmark = needs_root
GROUP = "127.0.0.1-28765-dp0"
SECRET = b"not to be lost\n"


def open_to_all(path):
    path.mkdir(parents=True)
    path.chmod(0o777)
    return path


def precious(folder):
    """Create a file of the victim that the attacker knows."""
    path = folder / "precious"
    path.write_bytes(SECRET)
    path.chmod(0o666)
    return path


def make_ring(directory):
    """Create folder and ring, as a model process does at its start."""
    ring = RingWriter(ring_path(group_folder(directory, GROUP), 0), 1)
    ring.enter(1, 1, time.time())
    ring.close()


class TestPlantedFolders:
    def test_the_default_folder_of_another_user_is_refused(self, default_folder):
        as_user(ATTACKER, open_to_all, default_folder)
        with pytest.raises(PermissionError, match=f"belongs to another user .uid {ATTACKER}"):
            as_user(VICTIM, make_ring, default_folder)

    def test_a_default_folder_that_is_a_link_does_not_lead_to_the_victims_files(self, default_folder, shared):
        """Regression: a link to a folder of root was accepted, and a planted link in it was followed and truncated."""
        kept = as_user(VICTIM, precious, shared)

        def plant():
            default_folder.symlink_to(shared)
            group = open_to_all(shared / GROUP)
            for pid in range(os.getpid(), os.getpid() + 200):
                (group / f"rank-0.{pid}.new").symlink_to(kept)

        as_user(ATTACKER, plant)
        refused = None
        try:
            as_user(VICTIM, make_ring, default_folder)
        except PermissionError as error:
            refused = str(error)
        assert kept.read_bytes() == SECRET
        assert "is a symbolic link" in refused

    @pytest.mark.parametrize("directory_of", [0, VICTIM], ids=["root", "another"])
    def test_a_group_folder_of_another_user_is_refused(self, shared, directory_of):
        """The parent folder can be written by everybody, whoever owns it."""
        directory = as_user(directory_of, open_to_all, shared / "otel")
        as_user(ATTACKER, open_to_all, directory / GROUP)
        for closed in (False, True):
            with pytest.raises(PermissionError, match=r"another user|other users"):
                as_user(VICTIM, make_ring, directory)
            if directory_of == VICTIM and not closed:
                as_user(VICTIM, directory.chmod, 0o755)

    @pytest.mark.parametrize("uid", [0, VICTIM], ids=["root", "another"])
    def test_dev_shm_itself_is_refused_for_root_too(self, shared, uid):
        with pytest.raises(PermissionError, match=r"another user|can be written by other users"):
            as_user(uid, make_ring, shared)
        assert list(shared.iterdir()) == []

    def test_a_truncated_ring_ends_no_server(self, shared):
        """Regression: a planted file was used and truncated later, and the next step killed the process with SIGBUS."""

        def plant():
            group = open_to_all(shared / GROUP)
            for pid in range(os.getpid(), os.getpid() + 200):
                (group / f"rank-0.{pid}.new").touch()
                (group / f"rank-0.{pid}.new").chmod(0o666)

        def serve():
            ring = RingWriter(ring_path(group_folder(shared, GROUP), 0), 1)
            os.truncate(ring_path(shared / GROUP, 0), 0)  # as its owner could
            ring.enter(1, 1, time.time())

        as_user(ATTACKER, plant)
        with pytest.raises(PermissionError):
            as_user(VICTIM, serve)


class TestPlantedFiles:
    """Tests in a folder that other users could write for some time."""

    @pytest.fixture
    def group(self, shared):
        return as_user(VICTIM, lambda: group_folder(shared / "otel", GROUP))

    def plant(self, group, name, kind):
        """Plant a file as the attacker, while the folder is writable."""
        kept = as_user(VICTIM, precious, group.parents[1])
        opened = (group.parent, group)
        for folder in opened:
            folder.chmod(0o777)
        path = group / name

        def make():
            if kind == "file":
                path.write_bytes(bytes(1 << 20))
                path.chmod(0o666)
            elif kind == "link":
                path.symlink_to(kept)
            elif kind == "pipe":
                os.mkfifo(path)
                path.chmod(0o666)

        as_user(ATTACKER, make)
        if kind == "hard link":  # the kernel may forbid it to the attacker
            path.hardlink_to(kept) if hasattr(path, "hardlink_to") else os.link(kept, path)
        for folder in opened:
            folder.chmod(0o700)
        return kept

    KINDS = ("file", "link", "pipe", "hard link")

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(
        ("name", "use"),
        [
            ("control", lambda path: ControlPage(path).request(Level.OFF, 1)),
            ("exporter.lock", lambda path: FileLock(path).acquire()),
            ("http-1.notes", NotesReader),
            ("rank-0.ring", RingReader),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_is_opened_must_be_ours(self, group, name, use, kind):
        kept = self.plant(group, name, kind)
        with pytest.raises(PermissionError, match=r"another user|symbolic link|plain file|hard links|other users"):
            as_user(VICTIM, use, group / name)
        assert kept.read_bytes() == SECRET

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(
        ("name", "make"),
        [
            ("rank-0.ring", lambda path: RingWriter(path, 1).close()),
            ("http-1.notes", lambda path: NotesWriter(path).close()),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_is_made_replaces_what_was_planted(self, group, name, make, kind):
        kept = self.plant(group, name, kind)
        as_user(VICTIM, make, group / name)
        found = (group / name).lstat()
        assert (found.st_uid, found.st_mode & 0o7777) == (VICTIM, 0o600)
        assert kept.read_bytes() == SECRET

    @pytest.mark.parametrize("kind", ["file", "link"])
    def test_a_profile_request_of_another_user_is_refused(self, group, kind):
        """Regression: a planted errand.json made the server's profiler write to any path."""
        wanted = b'{"path": "/etc/passwd", "seconds": 1}'
        self.plant(group, profile_request.ASKED, kind)
        (group / profile_request.ASKED).write_bytes(wanted)
        assert as_user(VICTIM, profile_request.take, group) is None
        (group / profile_request.ASKED).unlink()
        as_user(VICTIM, profile_request.ask, group, {"path": "/tmp/own", "seconds": 1})
        assert as_user(VICTIM, profile_request.take, group) == {"path": "/tmp/own", "seconds": 1}


class TestOwnFolders:
    @pytest.mark.parametrize("umask", [0o000, 0o027, 0o077])
    def test_nobody_else_can_open_them_whatever_the_umask_is(self, shared, umask):
        def serve():
            folder = group_folder(shared / "a" / "b", GROUP)
            RingWriter(ring_path(folder, 0), 1).close()
            NotesWriter(folder / "http-1.notes").close()
            ControlPage(folder / "control").close()
            assert FileLock(folder / "exporter.lock").acquire()
            return folder

        folder = as_user(VICTIM, serve, umask=umask)
        assert [path.stat().st_mode & 0o777 for path in (folder.parent, folder)] == [0o700, 0o700]
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
        assert folder.parents[1].stat().st_mode & 0o022 == 0  # parent folders that were created

    def test_no_lock_of_another_user_keeps_an_exporter_from_starting(self, shared):
        """Regression: a read lock needs no write permission, and the lock file had mode 0644."""
        folder = as_user(VICTIM, lambda: group_folder(shared / "otel", GROUP))

        def left_by_an_earlier_version():
            folder.chmod(0o755)
            folder.parent.chmod(0o755)
            (folder / "exporter.lock").touch(0o644)
            (folder / "exporter.lock").chmod(0o644)

        as_user(VICTIM, left_by_an_earlier_version)
        as_user(VICTIM, lambda: FileLock(group_folder(shared / "otel", GROUP) / "exporter.lock").acquire())
        with pytest.raises(PermissionError):
            as_user(ATTACKER, (folder / "exporter.lock").read_bytes)
        assert (folder / "exporter.lock").stat().st_mode & 0o777 == 0o600

    def test_root_does_not_take_another_users_group_for_its_own(self, shared):
        def serve():
            RingWriter(ring_path(group_folder(shared / "otel", GROUP), 0), 1).close()

        as_user(VICTIM, serve)
        with pytest.raises(PermissionError, match="belongs to another user"):
            group_folder(shared / "otel", GROUP)
        with pytest.raises(PermissionError, match="belongs to another user"):
            RingReader(ring_path(shared / "otel" / GROUP, 0))
        assert not is_locked(ring_path(shared / "otel" / GROUP, 0))

    def test_a_refusal_is_one_sentence_with_the_place_and_what_to_do(self, shared):
        as_user(ATTACKER, open_to_all, shared / "otel")
        with pytest.raises(PermissionError) as refused:
            as_user(VICTIM, make_ring, shared / "otel")
        assert str(refused.value) == (
            f"{shared / 'otel'} belongs to another user (uid {ATTACKER}), so it is not used; "
            "remove it, or use a folder of your own"
        )


def test_a_folder_that_a_person_made_for_it_may_be_listed_by_others(tmp_path):
    directory = tmp_path / "otel"
    directory.mkdir()
    directory.chmod(0o755)
    folder = group_folder(directory, GROUP)
    assert (directory.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o755, 0o700)


def test_paths_above_may_be_links(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert group_folder(tmp_path / "link" / "otel", GROUP) == Path(tmp_path / "link" / "otel" / GROUP)
