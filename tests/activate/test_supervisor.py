"""The exporter is kept running: started once, started again with a back-off, not for ever."""

import pytest

from lightllm_otel.activate import supervisor
from lightllm_otel.activate.supervisor import BACK_OFF_SECONDS, CHECK_SECONDS, Supervisor


@pytest.fixture
def exporter(monkeypatch):
    """What the operating system would do: ``alive`` and ``started`` (when)."""

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


def test_one_that_dies_is_started_again_with_a_back_off_and_then_given_up(exporter, tmp_path, caplog):
    watcher = Supervisor(tmp_path, eager=True)
    run(watcher, exporter, 1000)
    waits = [later - earlier for earlier, later in zip(exporter.started, exporter.started[1:])]
    assert waits == list(BACK_OFF_SECONDS[:-1])
    assert len([record for record in caplog.records if "not started again" in record.message]) == 1


def test_one_that_dies_long_after_is_noticed(exporter, tmp_path):
    watcher = Supervisor(tmp_path, eager=True)
    run(watcher, exporter, 1)
    exporter.alive = True
    run(watcher, exporter, 500)
    exporter.alive = False
    run(watcher, exporter, CHECK_SECONDS + 1)
    assert len(exporter.started) == 2
