"""Supervisor of the exporter: it starts it once, restarts it with growing pauses, and never gives up."""

import pytest

from lightllm_otel.worker import supervisor
from lightllm_otel.worker.supervisor import (
    BACK_OFF_SECONDS,
    CHECK_SECONDS,
    HEALTHY_SECONDS,
    PAUSE_SECONDS,
    Supervisor,
)


@pytest.fixture
def exporter(monkeypatch):
    """Replace the operating system. ``alive``: the exporter runs. ``started``: the times of its starts."""

    class World:
        alive = False
        started: list[float] = []  # noqa: RUF012
        now = 0.0

    World.started = []
    monkeypatch.setattr(supervisor, "is_locked", lambda path: World.alive)
    monkeypatch.setattr(supervisor, "spawn_exporter", lambda folder: World.started.append(World.now) or 1)
    monkeypatch.setattr(supervisor.os, "waitpid", lambda pid, flags: (pid, 0))
    return World


def run(watcher, world, seconds):
    end = world.now + seconds
    while world.now < end:
        watcher.check(world.now)
        world.now += 1.0


def test_the_first_rank_starts_it_at_once_and_others_look_later(exporter, tmp_path):
    run(Supervisor(tmp_path, eager=True), exporter, 1)
    assert exporter.started == [0.0]
    exporter.started.clear()
    exporter.now = 0.0
    run(Supervisor(tmp_path, eager=False), exporter, CHECK_SECONDS + 1)
    assert exporter.started == [CHECK_SECONDS]


def test_a_running_exporter_is_left_alone(exporter, tmp_path):
    exporter.alive = True
    run(Supervisor(tmp_path, eager=True), exporter, 100)
    assert exporter.started == []


def test_one_that_dies_is_started_again_with_a_back_off_and_then_seldom(exporter, tmp_path, caplog):
    run(Supervisor(tmp_path, eager=True), exporter, 4000)
    waits = [later - earlier for earlier, later in zip(exporter.started, exporter.started[1:])]
    assert waits == [*BACK_OFF_SECONDS, *[PAUSE_SECONDS] * 6]
    said = [record.message for record in caplog.records]
    assert len(said) == 1
    assert "started only every 10 minutes" in said[0]


def test_what_ended_it_may_go_away_hours_later_and_it_is_there_again(exporter, tmp_path):
    watcher = Supervisor(tmp_path, eager=True)
    run(watcher, exporter, 10 * 3600)  # every one ends at once
    starts = len(exporter.started)
    run(watcher, exporter, PAUSE_SECONDS + 1)
    assert len(exporter.started) == starts + 1


@pytest.mark.parametrize("hours", [1, 24, 24 * 30])
def test_ends_that_lie_far_apart_are_always_followed_by_a_start(exporter, tmp_path, caplog, hours):
    watcher = Supervisor(tmp_path, eager=True)
    watcher.check(exporter.now)
    for end in range(1, 3 * len(BACK_OFF_SECONDS)):
        exporter.alive = True
        for _ in range(2 * int(HEALTHY_SECONDS)):
            exporter.now += 1.0
            watcher.check(exporter.now)
        exporter.now += hours * 3600.0
        watcher.check(exporter.now)
        exporter.alive = False
        run(watcher, exporter, CHECK_SECONDS + 1)
        assert len(exporter.started) == end + 1
    assert not caplog.records


def test_a_start_that_fails_is_said_once_and_tried_again(exporter, tmp_path, caplog, monkeypatch):
    tries = []

    def no_room(folder):
        tries.append(exporter.now)
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(supervisor, "spawn_exporter", no_room)
    watcher = Supervisor(tmp_path, eager=True)
    run(watcher, exporter, 40)
    assert tries == [0.0, 5.0, 15.0, 35.0]
    assert ["cannot be started" in record.message for record in caplog.records] == [True]


def test_one_that_dies_long_after_is_noticed(exporter, tmp_path):
    watcher = Supervisor(tmp_path, eager=True)
    run(watcher, exporter, 1)
    exporter.alive = True
    run(watcher, exporter, 500)
    exporter.alive = False
    run(watcher, exporter, CHECK_SECONDS + 1)
    assert len(exporter.started) == 2
