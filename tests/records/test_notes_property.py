"""Notes arrive whole and in order, or are counted as lost, whatever writer and readers do meanwhile."""

import json
import multiprocessing
import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightllm_otel.records.notes import NotesReader, NotesWriter

FEW = settings(
    max_examples=60, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck),
)  # fmt: skip
CAPACITY = 256
STRESS_SECONDS = 0.7

NOTES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ACTIONS = st.one_of(
    st.tuples(st.just("write"), NOTES),
    st.tuples(st.just("write"), NOTES),
    st.tuples(st.just("write_while_reading"), NOTES),
    st.tuples(st.just("read")),
    st.tuples(st.just("restart_reader")),
    st.tuples(st.just("restart_writer")),
)


class Paused:
    """The writer's map, with a call in the middle of each change and after it."""

    def __init__(self, real, meanwhile):
        self._real, self._meanwhile = real, meanwhile

    def __setitem__(self, at, value):
        middle = at.start + len(value) // 2
        self._real[at.start : middle] = value[: len(value) // 2]
        self._meanwhile()
        self._real[middle : at.stop] = value[len(value) // 2 :]
        self._meanwhile()


class Pair:
    """A writer, its reader, and the notes that the reader has not seen yet."""

    def __init__(self, path):
        self.path = path
        self.writer, self.reader = NotesWriter(path, CAPACITY), NotesReader(path)
        self.unread = []

    def close(self):
        self.writer.close()
        self.reader.close()

    def expect(self, note):
        if len(json.dumps(note, separators=(",", ":")).encode()) <= CAPACITY // 4:
            self.unread.append(note)

    def write(self, note):
        self.writer.write(note)
        self.expect(note)

    def write_while_reading(self, note):
        mapped = self.writer._map
        self.writer._map = Paused(mapped, self.read)
        try:
            self.writer.write(note)
        finally:
            self.writer._map = mapped
        self.expect(note)

    def read(self):
        """All notes since the last call and in order, or none of them and a count."""
        lost = self.reader.lost
        found = self.reader.read()
        taken = sum(4 + len(json.dumps(note, separators=(",", ":")).encode()) for note in self.unread)
        assert self.reader.lost - lost in ((0, 1) if taken + CAPACITY // 4 + 4 > CAPACITY else (0,))
        assert found == ([] if self.reader.lost > lost else self.unread)
        self.unread = []

    def restart_reader(self):
        self.reader.close()
        self.reader = NotesReader(self.path)


@FEW
@given(actions=st.lists(ACTIONS, max_size=40))
def test_any_sequence_gives_whole_notes_in_order_or_counts_a_loss(actions):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "http-1.notes"
        pair = Pair(path)
        for action, *arguments in actions:
            if action == "restart_writer":
                pair.close()
                pair = Pair(path)
            else:
                getattr(pair, action)(*arguments)
        pair.read()
        pair.close()


def test_a_reader_that_comes_while_its_oldest_note_is_overwritten_counts_a_loss(tmp_path):
    """Found: half of a new note was taken for the oldest one, and reading it raised."""
    pair = Pair(tmp_path / "http-1.notes")
    for _ in range(4):
        pair.write("x" * 58)  # 64 bytes with quotes and length: the file is full
    assert pair.writer._written == CAPACITY
    pair.write_while_reading("y" * 40)
    assert pair.reader.lost == 1
    pair.read()
    pair.close()


def write_for_a_while(path, ready, go, done):
    writer = NotesWriter(path, 1 << 14)
    ready.set()
    go.wait(30)
    number, end = 0, time.monotonic() + STRESS_SECONDS
    while time.monotonic() < end:
        for _ in range(100):
            writer.write({"number": number, "text": "x" * (number % 97), "length": number % 97})
            number += 1
    writer.write({"number": number, "text": "", "length": 0})
    ready.clear()
    done.wait(30)


def test_a_reader_beside_a_writer_at_full_speed_reads_whole_notes_in_order(tmp_path):
    process = multiprocessing.get_context("fork")
    ready, go, done = process.Event(), process.Event(), process.Event()
    path = tmp_path / "http-1.notes"
    child = process.Process(target=write_for_a_while, args=(path, ready, go, done))
    child.start()
    try:
        assert ready.wait(30)
        reader = NotesReader(path)
        go.set()
        last, missing, goes_on = -1, 0, True
        while goes_on:
            goes_on = ready.is_set()  # read once more after the last note
            lost = reader.lost
            for note in reader.read():
                assert len(note["text"]) == note["length"]
                assert note["number"] == last + 1 or (note["number"] > last and missing)
                last, missing = note["number"], 0
            missing += reader.lost - lost
    finally:
        done.set()
        child.join(30)
    assert child.exitcode == 0
    assert last > 1000 or missing
