"""Tests of notes: they reach the reader, or are counted as lost."""

import fcntl
import os
import stat
import struct

import pytest

from lightllm_otel.records import notes
from lightllm_otel.records.folder import lock_owner
from lightllm_otel.records.notes import NotesReader, NotesWriter


@pytest.fixture
def writer(tmp_path):
    made = NotesWriter(tmp_path / "http-1.notes", capacity=256)
    yield made
    made.close()


def test_notes_are_read_once_and_in_order(writer):
    reader = NotesReader(writer.path)
    writer.write({"k": "b", "id": 8})
    writer.write([1, "two", None])
    assert reader.read() == [{"k": "b", "id": 8}, [1, "two", None]]
    assert reader.read() == []


def test_notes_go_on_at_the_beginning_of_the_file(writer):
    reader = NotesReader(writer.path)
    for number in range(100):
        writer.write({"number": number, "text": "x" * (number % 17)})
        assert [note["number"] for note in reader.read()] == [number]
    assert reader.lost == 0


def test_a_writer_that_is_quicker_is_counted_and_what_follows_is_read(writer):
    reader = NotesReader(writer.path)
    for number in range(100):
        writer.write(number)
    assert reader.read() == []
    assert reader.lost == 1
    writer.write("after")
    assert reader.read() == ["after"]


def test_a_note_that_would_fill_the_file_is_not_written(writer):
    reader = NotesReader(writer.path)
    writer.write("x" * 300)
    writer.write("y")
    assert reader.read() == ["y"]


def test_a_successor_goes_on_where_the_last_reader_stopped(writer):
    writer.write(1)
    assert NotesReader(writer.path).read() == [1]
    writer.write(2)
    assert NotesReader(writer.path).read() == [2]


def test_a_file_of_notes_is_its_owners_alone_and_locked_while_the_process_lives(writer):
    assert stat.S_IMODE(writer.path.stat().st_mode) == 0o600
    child = os.fork()
    if child == 0:
        os._exit(0 if lock_owner(writer.path) == os.getppid() else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_full_file_system_is_an_error_before_anything_is_mapped(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(notes.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        NotesWriter(tmp_path / "http-1.notes")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"x" * 200, struct.pack("<8sIIQ", b"LLMNOTE1", 1, 0, 10**6) + b"\0" * 100])
def test_any_other_file_is_refused(tmp_path, content):
    path = tmp_path / "http-1.notes"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a notes file"):
        NotesReader(path)


def test_the_lock_is_free_when_the_writer_is_gone(tmp_path):
    path = tmp_path / "http-1.notes"
    NotesWriter(path).close()
    with path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
