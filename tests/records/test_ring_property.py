"""Any sequence of writes, reads and restarts gives whole steps in order, and every step that is missing is counted."""

import contextlib
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import records
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightllm_otel.records import layout
from lightllm_otel.records.folder import ring_path
from lightllm_otel.records.reader import RingReader
from lightllm_otel.records.writer import RingWriter

FEW = settings(
    max_examples=60, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck),
)  # fmt: skip
# The smallest ring has 63488 cells: a handful of large steps goes once around it.
SIZES = st.sampled_from((0, 1, 300, 4092, 7932, 15868))
STRESS_SECONDS = 0.7


def made(number, count):
    """One step whose content says which one it is."""
    intervals = np.zeros(count, layout.INTERVAL)
    intervals["operator"], intervals["seconds"], intervals["layer"] = 1, number, np.arange(count) % 1000
    step, _ = records.step(number=number, seconds=float(number))
    header = np.frombuffer(step, layout.STEP).copy()
    header["intervals"] = count
    return header.tobytes(), intervals


def check_whole(cells):
    """Return ``(number, intervals)`` of the steps in ``cells``, each of which must be one that was written."""
    steps = layout.steps_in(cells)
    assert sum(layout.STEP_CELLS + len(intervals) for _, intervals in steps) == len(cells)
    for step, intervals in steps:
        assert step["seconds"] == step["number"]
        assert (intervals["seconds"] == np.float32(step["number"])).all()
        assert (intervals["layer"] == np.arange(len(intervals)) % 1000).all()
    return [(int(step["number"]), len(intervals)) for step, intervals in steps]


@contextlib.contextmanager
def opened(path):
    writer = RingWriter(path, 1)
    try:
        yield writer
    finally:
        os.close(writer._descriptor)


class Paused:
    """The writer's map, with a call before each change of a slice: a reader may come at any moment."""

    def __init__(self, real, meanwhile):
        self._real, self._meanwhile = real, meanwhile

    def __getattr__(self, name):
        return getattr(self._real, name)

    def __setitem__(self, at, value):
        if isinstance(at, slice):
            middle = (at.start or 0) + len(value) // 2
            self._real[at.start : middle] = value[: len(value) // 2]
            self._meanwhile()
            self._real[middle : at.stop] = value[len(value) // 2 :]
        else:
            self._real[at] = value
        self._meanwhile()


class Ring:
    """One ring with its reader, and what both should know."""

    def __init__(self, path):
        self.path = path
        self.writer = RingWriter(path, 1)
        self.reader = RingReader(path)
        self.capacity = int(self.reader.header["cells"])
        self.sizes = []
        self.read, self.overwritten, self.overtaken = [], 0, False
        self.restarted_behind = False

    def close(self):
        os.close(self.writer._descriptor)

    def write(self, count):
        self.writer.write(*made(len(self.sizes), count))
        self.sizes.append(count)

    def write_while_reading(self, count):
        """The reader comes at every moment of the writing."""
        writer, cells, mapped = self.writer, self.writer._cells, self.writer._map
        writer._cells, writer._map = Paused(cells, self.poll), Paused(mapped, self.poll)
        step = made(len(self.sizes), count)
        self.sizes.append(count)
        try:
            writer.write(*step)
        finally:
            writer._cells, writer._map = cells, mapped
        self.poll()

    def poll(self):
        before = self.reader.overwrites
        found = check_whole(self.reader.read())
        self.overtaken = self.overtaken or self.reader.overwrites > before
        assert all(self.sizes[number] == count for number, count in found)
        if found:
            numbers = [number for number, _ in found]
            expected = self.read[-1] + 1 if self.read else 0
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            assert numbers[0] > expected if self.overtaken else numbers[0] == expected
            self.read, self.overtaken = self.read + numbers, False

    def restart_reader(self):
        self.overwritten += self.reader.overwrites
        position = self.reader.position
        self.reader = RingReader(self.path, position)
        written = sum(self.sizes) + layout.STEP_CELLS * len(self.sizes)
        # Such a reader cannot know how many steps it has missed if it misses any at once.
        self.restarted_behind = self.restarted_behind or position < written - self.capacity

    def check_all_counted(self):
        self.poll()
        assert self.reader.position == sum(self.sizes) + layout.STEP_CELLS * len(self.sizes)
        missing = len(self.sizes) - len(self.read)
        counted = self.overwritten + self.reader.overwrites
        assert counted == missing or (0 < counted < missing and self.restarted_behind)


ACTIONS = st.one_of(
    st.tuples(st.just("write"), SIZES),
    st.tuples(st.just("write"), SIZES),
    st.tuples(st.just("write_while_reading"), SIZES),
    st.tuples(st.just("poll")),
    st.tuples(st.just("restart_reader")),
    st.tuples(st.just("restart_writer")),
)


@FEW
@given(actions=st.lists(ACTIONS, max_size=40))
def test_any_sequence_gives_whole_steps_in_order_and_counts_what_is_missing(actions):
    with tempfile.TemporaryDirectory() as folder:
        path = ring_path(Path(folder), 0)
        ring = Ring(path)
        for action, *arguments in actions:
            if action == "restart_writer":
                ring.check_all_counted()  # as the exporter does before it turns to the new file
                ring.close()
                ring = Ring(path)
            else:
                getattr(ring, action)(*arguments)
        ring.check_all_counted()
        ring.close()


@FEW
@given(sizes=st.lists(SIZES, min_size=1, max_size=12))
def test_nothing_is_lost_to_a_reader_that_keeps_up(sizes):
    with tempfile.TemporaryDirectory() as folder:
        ring = Ring(ring_path(Path(folder), 0))
        for count in sizes * 4:
            ring.write(count)
            ring.poll()
        assert (len(ring.read), ring.reader.overwrites) == (4 * len(sizes), 0)
        ring.close()


def test_a_reader_that_comes_while_its_oldest_step_is_overwritten_takes_no_part_of_it(tmp_path):
    """Found: the ring was full and unread, and the writer was in the middle of the next step."""
    ring = Ring(ring_path(tmp_path, 0))
    for _ in range(4):
        ring.write(15868)  # a quarter of the ring: the next step begins where the first one did
    ring.write_while_reading(300)
    ring.check_all_counted()
    ring.close()


# In two processes -------------------------------------------------------------------------------------------------------


def write_for_a_while(path, size, ready, go, done):
    writer = RingWriter(path, 1)
    ready.set()
    go.wait(30)
    number, end = 0, time.monotonic() + STRESS_SECONDS
    steps = [made(number, size) for number in range(64)]
    while time.monotonic() < end:
        for step, intervals in steps:
            # The bytes of number, seconds and of the intervals' seconds: making a step anew takes longer than writing it.
            header = np.frombuffer(bytearray(step), layout.STEP)
            header["number"] = header["seconds"] = number
            intervals["seconds"] = number
            writer.write(header.tobytes(), intervals)
            number += 1
    ready.clear()
    done.wait(30)


def count_for_a_while(path, ready, go, done):
    """Only the words of the header, so that a reader meets their changes often."""
    writer = RingWriter(path, 1)
    nothing = np.zeros(0, layout.INTERVAL)
    step, _ = made(0, 0)
    ready.set()
    go.wait(30)
    number, end = 0, time.monotonic() + STRESS_SECONDS
    while time.monotonic() < end:
        for _ in range(100):
            number += 1
            writer.enter(number, 1, float(number))
            writer.count([0], [0], number, float(number), 1.0)
            writer.write(step, nothing)
    ready.clear()
    done.wait(30)


@pytest.fixture
def beside(tmp_path):
    """``start(target, *arguments)``: a process with a ring; gives its reader and whether the process is still writing."""
    process = multiprocessing.get_context("fork")
    ready, go, done = process.Event(), process.Event(), process.Event()
    children = []

    def start(target, *arguments):
        path = ring_path(tmp_path, 0)
        children.append(process.Process(target=target, args=(path, *arguments, ready, go, done)))
        children[0].start()
        assert ready.wait(30)
        reader = RingReader(path)
        go.set()
        return reader, ready.is_set

    yield start
    done.set()
    for child in children:
        child.join(30)
        assert child.exitcode == 0


@pytest.mark.parametrize("size", [12, 3964], ids=["small steps", "steps that fit the ring exactly"])
def test_a_reader_beside_a_writer_at_full_speed_reads_whole_steps_and_counts_all_others(beside, size):
    reader, is_writing = beside(write_for_a_while, size)
    last, delivered = -1, 0
    goes_on = True
    while goes_on:
        goes_on = is_writing()  # read once more after the last step
        numbers = [number for number, _ in check_whole(reader.read())]
        if numbers:
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            assert numbers[0] > last
            last = numbers[-1]
        delivered += len(numbers)
    header = reader.header
    assert int(header["written"]) == (size + layout.STEP_CELLS) * int(header["steps"]) == reader.position
    assert delivered + reader.overwrites == int(header["steps"])
    assert last == int(header["steps"]) - 1


@pytest.mark.parametrize("name", ["written", "steps", "sampled_steps", "oldest_unread", "in_flight_since", "heartbeat"])
def test_a_word_of_the_header_never_goes_down_while_it_is_set(beside, name):
    """Found: it was 0 for some nanoseconds at each change, and what read it then counted everything once more."""
    reader, is_writing = beside(count_for_a_while)
    while is_writing():
        seen = [reader._header[name][0] for _ in range(1000)]
        assert seen == sorted(seen)
