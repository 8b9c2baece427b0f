"""Tests of rings: the reader reads what the writer writes, and counts what it misses."""

import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
import records

from lightllm_otel.records import layout
from lightllm_otel.records.folder import FileLock, group_folder, group_key, is_locked, remove_if_dead, ring_path, sweep
from lightllm_otel.records.reader import RingReader, rings_in
from lightllm_otel.records.vocabulary import Operator
from lightllm_otel.records.writer import RingWriter


@pytest.fixture
def ring(tmp_path):
    writer = RingWriter(ring_path(tmp_path, 0), 1)
    yield writer, RingReader(ring_path(tmp_path, 0))
    os.close(writer._descriptor)  # the arrays keep the mapping open


def write(writer, count, first=0, intervals=300):
    for number in range(first, first + count):
        writer.write(*records.step(number=number, operators=[(Operator.FFN, float(number))] * intervals))


def numbers(cells):
    return [int(step["number"]) for step, _ in layout.steps_in(cells)]


def test_steps_arrive_whole_and_in_order(ring):
    writer, reader = ring
    write(writer, 10)
    cells = reader.read()
    assert numbers(cells) == list(range(10))
    assert layout.steps_in(cells)[7][1]["seconds"].tolist() == [7.0] * 300
    assert len(reader.read()) == 0


def test_reading_goes_on_across_the_end_of_the_ring(ring):
    writer, reader = ring
    seen = []
    for first in range(0, 1000, 100):
        write(writer, 100, first)
        seen += numbers(reader.read())
    assert seen == list(range(1000))
    assert reader.overwrites == 0


def test_what_was_overwritten_is_counted_and_the_rest_begins_with_a_whole_step(ring):
    writer, reader = ring
    write(writer, 1000)
    seen = numbers(reader.read())
    assert seen == list(range(1000 - len(seen), 1000))
    assert 200 < len(seen) < 216
    assert reader.overwrites == 1000 - len(seen)


def test_a_reader_goes_on_where_its_predecessor_stopped(ring, tmp_path):
    writer, reader = ring
    write(writer, 5)
    reader.read()
    write(writer, 3, 5)
    assert numbers(RingReader(ring_path(tmp_path, 0), reader.position).read()) == [5, 6, 7]


def test_facts_are_read_back_and_too_many_are_refused(ring):
    writer, reader = ring
    assert reader.facts() == {}
    writer.describe({"model": "llama"})
    assert reader.facts() == {"model": "llama"}
    with pytest.raises(ValueError, match="28672 fit"):
        writer.describe({"much": "x" * 40_000})
    assert reader.facts() == {"model": "llama"}


def test_the_step_in_flight_is_visible(ring):
    writer, reader = ring
    writer.enter(7, 1, 123.5)
    header = reader.header
    assert (header["in_flight"], header["in_flight_number"], header["in_flight_since"]) == (1, 7, 123.5)
    writer.leave()
    assert reader.header["in_flight"] == 0


class Header:
    """Header that changes while it is copied: each copy has the next of ``numbers`` and ``sinces``."""

    def __init__(self, *seen):
        self._seen = list(seen)

    def copy(self):
        header = np.zeros(1, layout.HEADER)
        header["in_flight"], (header["in_flight_number"], header["in_flight_since"]) = 1, self._seen.pop(0)
        return header


def test_a_step_that_begins_while_the_header_is_read_has_not_the_time_of_the_one_before(ring):
    _, reader = ring
    reader._header = Header((8, 100.0), (8, 130.0), (8, 130.0))
    assert float(reader.header["in_flight_since"]) == 130.0


def test_what_was_not_read_yet_is_as_old_as_its_first_step(ring):
    writer, reader = ring
    assert reader.unread_since() == 0.0
    for number in range(3):
        writer.write(
            *records.step(number=number, seconds=0.5, wall_time=100.0 + number, operators=[(Operator.FFN, 0.5)])
        )
    assert reader.unread_since() == 100.5
    reader.read()
    assert reader.unread_since() == 0.0


def test_what_was_overwritten_before_it_was_read_does_not_hide_how_old_the_rest_is(ring):
    writer, reader = ring
    for number in range(1000):
        step = records.step(number=number, wall_time=float(number + 1), operators=[(Operator.FFN, 0.5)] * 300)
        writer.write(*step)
    oldest = reader.unread_since()
    first = layout.steps_in(reader.read())[0][0]
    assert oldest == float(first["wall_time"]) + 1.0


@pytest.mark.parametrize("cells", [0, 1 << 40])
def test_a_ring_with_an_impossible_number_of_cells_is_refused_in_one_sentence(ring, tmp_path, cells):
    ring[0].header["cells"] = cells
    with pytest.raises(ValueError, match=rf"rank-0.ring is damaged: its header says {cells} cells"):
        RingReader(ring_path(tmp_path, 0))


@pytest.mark.parametrize("position", [-5, 1 << 70])
def test_a_position_that_cannot_be_is_put_right(ring, tmp_path, position):
    write(ring[0], 2)
    assert 0 <= RingReader(ring_path(tmp_path, 0), position).position <= ring[1]._header["written"][0]


def test_facts_that_are_something_else_are_none(ring):
    writer, reader = ring
    for text in (b"[1]", b"[" * 20_000, b"\xff"):
        writer._map[layout.JSON_OFFSET : layout.JSON_OFFSET + len(text)] = text
        writer.header["json_bytes"] = len(text)
        assert reader.facts() == {}


def test_rings_are_told_from_what_only_looks_like_one(tmp_path):
    for name in (
        "rank-10.ring",
        "rank-2.ring",
        "rank-0.bak.ring",
        "rank-.ring",
        "rank-01.ring",
        "rank-3.123.new",
        "other",
    ):
        (tmp_path / name).touch()
    rings, strays = rings_in(tmp_path)
    assert [(rank, path.name) for rank, path in rings] == [(2, "rank-2.ring"), (10, "rank-10.ring")]
    assert [path.name for path in strays] == ["rank-.ring", "rank-0.bak.ring", "rank-01.ring"]


@pytest.mark.parametrize("content", [b"", b"x" * 40_000_0])
def test_a_file_that_is_no_ring_is_refused_in_one_sentence(tmp_path, content):
    path = tmp_path / "rank-0.ring"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a ring"):
        RingReader(path)


def test_a_step_cut_short_is_left_out():
    cells = records.cells(records.step(number=1), records.step(number=2, operators=[(Operator.FFN, 1.0)] * 3))
    assert numbers(cells[:-1]) == [1]
    assert numbers(cells) == [1, 2]


def test_a_lock_is_freed_when_its_process_is_killed(tmp_path):
    path = tmp_path / "lock"
    hold = (
        "import sys, time; from pathlib import Path; from lightllm_otel.records.folder import FileLock;"
        "print(FileLock(Path(sys.argv[1])).acquire(), flush=True); time.sleep(60)"
    )
    # The lock object is not kept: the descriptor must not be closed by garbage collection either.
    with subprocess.Popen([sys.executable, "-c", hold, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "True\n"
        assert is_locked(path)
        assert not FileLock(path).acquire()
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
    assert not is_locked(path)


@pytest.mark.parametrize("free", [0, 1], ids=["no descriptor", "one for the folder and none for the file"])
def test_a_file_that_cannot_be_asked_for_lack_of_descriptors_is_not_taken_for_dead(tmp_path, free):
    path = tmp_path / "rank-0.ring"
    path.touch(0o600)
    assert not is_locked(path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)  # descriptors below it are taken
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + free, limits[1]))
    try:
        assert is_locked(path)
        remove_if_dead(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert path.exists()
    remove_if_dead(path)
    assert not path.exists()


def test_a_sweep_leaves_what_only_looks_like_a_ring(tmp_path):
    folder = group_folder(tmp_path, "group")
    for name in ("rank-0.ring", "rank-0.bak.ring", "rank-٣.ring", "positions.json"):
        (folder / name).touch(0o600)
    sweep(tmp_path, folder, ("positions.json",))
    assert sorted(path.name for path in folder.iterdir()) == ["rank-0.bak.ring", "rank-٣.ring"]


def test_group_keys_are_file_names():
    assert group_key("10.0.0.1", 28765, 2) == "10.0.0.1-28765-dp2"
    assert "/" not in group_key("fe80::1/64", 1, 0)


def test_a_full_file_system_is_an_error_and_not_a_bus_error(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        with pytest.raises(OSError, match="No space left"):
            RingWriter(ring_path(folder, 0), 1)
        assert list(folder.iterdir()) == []
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_records_have_the_documented_size():
    assert layout.STEP.itemsize == 64
    assert layout.INTERVAL.itemsize == 16
    assert np.dtype(layout.HEADER).itemsize <= layout.JSON_OFFSET


class TestColumns:
    """Tests that reading by columns gives the same as reading step by step."""

    STEPS = tuple(records.step(number=number, operators=[(Operator.FFN, 0.5)] * (number % 3)) for number in range(7))

    def same(self, cells):
        starts, used = layout.starts_in(cells)
        slow = layout.steps_in(cells)
        steps, intervals, of = layout.columns(cells)
        assert len(starts) == len(steps) == len(slow)
        assert used == sum(layout.STEP_CELLS + len(each) for _, each in slow)
        assert steps["number"].tolist() == [int(step["number"]) for step, _ in slow]
        assert np.bincount(of, minlength=len(slow)).tolist() == [len(each) for _, each in slow]
        assert len(intervals) == sum(len(each) for _, each in slow)

    def test_whole_and_torn(self):
        whole = records.cells(*self.STEPS)
        for cut in range(len(whole) + 1):
            self.same(whole[:cut])

    def test_an_interval_that_looks_like_a_step(self):
        step, intervals = records.step(operators=[(Operator.FFN, 0.5)] * 2)
        intervals.view(np.uint8).reshape(-1, layout.CELL_BYTES)[0, :4] = np.frombuffer(b"SLLO", np.uint8)
        self.same(records.cells((step, intervals), *self.STEPS))

    def test_damage_ends_it(self):
        cells = records.cells(*self.STEPS).copy()
        cells[layout.STEP_CELLS, 0] ^= 0xFF  # the magic number of the second step
        self.same(cells)
        cells[0, 0] ^= 0xFF
        self.same(cells)
