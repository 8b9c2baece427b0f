"""Session of a model process with a fake model: the ring has the right contents, and a missing folder is no error."""

import os
import shutil
from pathlib import Path

import hooks
import pytest
from fake_host import InferReq, ModelInput, answer, make
from other_user import ATTACKER, VICTIM, needs_root

from lightllm_otel.contracts.patch_set import PatchSet
from lightllm_otel.guard import Guard
from lightllm_otel.records import control, layout
from lightllm_otel.records.control import ControlPage
from lightllm_otel.records.reader import RingReader
from lightllm_otel.records.vocabulary import Level
from lightllm_otel.settings import Settings
from lightllm_otel.worker import session as session_module
from lightllm_otel.worker.gpu.clock import HostClock
from lightllm_otel.worker.session import ServerSession


@pytest.fixture
def build(monkeypatch, tmp_path):
    now = [50.0]
    monkeypatch.setattr(session_module, "choose_clock", lambda: HostClock(lambda: now[0]))
    monkeypatch.setattr(session_module.operators, "install_all_collectives", lambda *args: None)
    monkeypatch.setattr(session_module.Supervisor, "check", lambda self, when: None)
    monkeypatch.setenv("_NCCL_PORT_", "28765")
    sessions = []

    def start(**environ):
        settings = Settings.from_env({"LIGHTLLM_OTEL": "1", "LIGHTLLM_OTEL_DIR": str(tmp_path / "dir"),
                                      "LIGHTLLM_OTEL_RING_MIB": "1", "LIGHTLLM_OTEL_SAMPLE_EVERY": "1", **environ})  # fmt: skip
        host = make(now)
        session = ServerSession(settings, Guard(), PatchSet(), live=PatchSet())
        hooks.hook(
            session,
            basemodel__basemodel=host.basemodel,
            generic_post_process=host.post_process,
            model_rpc=host.model_rpc,
        )
        sessions.append(session)
        return host, session, host.model_rpc.ModelRpcServer(host.basemodel.TpPartBaseModel())

    yield start
    for session in sessions:
        for patch_set in (session.operator_patches, session.live, session.patch_set):
            patch_set.undo()


def test_steps_of_a_server_arrive_in_its_ring(build, tmp_path):
    _, session, rpc = build()
    rpc.waiting.append((ModelInput(1, 8, False), [InferReq(8)]))
    rpc.decode()
    reader = RingReader(tmp_path / "dir" / "127.0.0.1-28765-dp0" / "rank-0.ring")
    ((step, intervals),) = layout.steps_in(reader.read())
    assert step["number"] == 0  # forwards before the model serves are no steps
    assert len(intervals) > 10
    facts = reader.facts()
    assert (facts["model"], facts["tp"], facts["level"], facts["clock"]) == ("fake", 1, "operators", "host")
    assert set(facts["slots"].values()) == {"installed"}
    assert session.guard.errors == [0] * 4


def live_control(session):
    """Write an order as the exporter does. The first rank reads it at its next forward."""
    return ControlPage(session._folder / control.NAME)


def decode(rpc):
    rpc.waiting.append((ModelInput(1, 8, False), [InferReq(8)]))
    assert rpc.decode() == answer(ModelInput(1, 8, False))


def test_live_control_off_undoes_every_patch_but_the_one_that_counts(build, tmp_path):
    host, session, rpc = build()
    layer, model = rpc.model.layers_infer[0], host.basemodel.TpPartBaseModel
    before = dict(vars(layer))
    forward = model.forward
    page = live_control(session)
    page.request(Level.OFF, 1)
    decode(rpc)
    assert "_get_qkv" not in vars(layer)
    assert vars(layer)["_att_norm"].func is host.classes[2]._rms_norm
    assert not hasattr(host.post_process.sample, "__wrapped__")
    assert model.forward is forward
    counted = session.forwards.completed
    decode(rpc)
    assert session.forwards.completed == counted + 1
    page.request(Level.OPERATORS, 1)
    decode(rpc)
    assert dict(vars(layer)) == before
    steps = layout.steps_in(RingReader(tmp_path / "dir" / "127.0.0.1-28765-dp0" / "rank-0.ring").read())
    assert [int(step["number"]) for step, _ in steps] == [2]  # nothing while it was off
    assert len(steps[-1][1]) > 10
    page.close()


def test_live_control_steps_keeps_steps(build, tmp_path):
    _, session, rpc = build()
    page = live_control(session)
    page.request(Level.STEPS, 1)
    decode(rpc)
    rpc.decode()  # nothing to do: what is unread is read
    reader = RingReader(tmp_path / "dir" / "127.0.0.1-28765-dp0" / "rank-0.ring")
    ((step, intervals),) = layout.steps_in(reader.read())
    assert (step["seconds"] > 0, len(intervals)) == (True, 0)
    header = reader.header
    assert (Level.of(int(header["level"])), int(header["control_seq"])) == (Level.STEPS, 1)
    page.close()


def test_live_control_operators_works_where_the_server_started_at_level_steps(build, tmp_path):
    _, session, rpc = build(LIGHTLLM_OTEL_LEVEL="steps")
    page = live_control(session)
    page.request(Level.OPERATORS, 1)
    decode(rpc)
    steps = layout.steps_in(RingReader(tmp_path / "dir" / "127.0.0.1-28765-dp0" / "rank-0.ring").read())
    assert len(steps[-1][1]) > 10
    page.close()


def test_live_control_changes_how_many_steps_are_sampled(build, tmp_path):
    _, session, rpc = build()
    page = live_control(session)
    page.request(Level.OPERATORS, 1 << 30)
    for _ in range(20):
        decode(rpc)
    steps = layout.steps_in(RingReader(tmp_path / "dir" / "127.0.0.1-28765-dp0" / "rank-0.ring").read())
    assert sum(bool(len(intervals)) for _, intervals in steps) <= 1  # number 0 is a multiple of everything
    page.close()


def test_no_room_anywhere_is_one_clear_line_and_the_server_runs(build, monkeypatch, caplog):
    def full(path, mebibytes):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(session_module, "RingWriter", full)
    _, session, rpc = build()
    rpc.waiting.append((ModelInput(1, 8, False), [InferReq(8)]))
    assert rpc.decode() == answer(ModelInput(1, 8, False))
    assert session.timer is None
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "LIGHTLLM_OTEL_DIR" in record.message


def test_level_steps_wraps_no_operator(build):
    _, session, rpc = build(LIGHTLLM_OTEL_LEVEL="steps")
    layer = rpc.model.layers_infer[0]
    assert "_get_qkv" not in vars(layer)
    assert session.timer is not None


@needs_root
def test_where_both_folders_belong_to_another_user_it_stays_off_with_one_line_and_the_server_runs(
    build, tmp_path, monkeypatch, caplog
):
    os.chown(tmp_path, ATTACKER, -1)
    (tmp_path / "dir").mkdir()
    os.chown(tmp_path / "dir", ATTACKER, -1)
    monkeypatch.setattr(session_module.os, "getuid", lambda: ATTACKER)  # the fallback is one in /tmp, by user
    fallback = Path(f"/tmp/lightllm-otel-{ATTACKER}")
    fallback.mkdir(exist_ok=True)
    os.chown(fallback, ATTACKER, -1)
    try:
        _, session, rpc = build()
        rpc.waiting.append((ModelInput(1, 8, False), [InferReq(8)]))
        assert rpc.decode() == answer(ModelInput(1, 8, False))
    finally:
        fallback.rmdir()
    assert session.timer is None
    (record,) = caplog.records
    assert f"{tmp_path / 'dir'} belongs to another user (uid {ATTACKER})" in record.message
    assert f"{fallback} belongs to another user" in record.message
    assert "LIGHTLLM_OTEL_DIR" in record.message


@needs_root
def test_where_the_folder_belongs_to_another_user_the_next_one_is_used_and_one_line_says_so(
    build, tmp_path, monkeypatch, caplog
):
    (tmp_path / "dir").mkdir()
    os.chown(tmp_path / "dir", ATTACKER, -1)
    monkeypatch.setattr(session_module.os, "getuid", lambda: VICTIM)
    fallback = Path(f"/tmp/lightllm-otel-{VICTIM}")
    try:
        _, session, rpc = build()
        rpc.waiting.append((ModelInput(1, 8, False), [InferReq(8)]))
        rpc.decode()
        assert session.timer is not None
        (ring,) = fallback.glob("*/rank-0.ring")
        assert len(layout.steps_in(RingReader(ring).read())) == 1
    finally:
        shutil.rmtree(fallback)
    (record,) = caplog.records
    assert record.message.startswith(f"measurements are kept in {fallback}")
    assert f"{tmp_path / 'dir'} belongs to another user" in record.message


def test_an_exporter_that_cannot_be_started_does_not_end_the_measuring(build, monkeypatch):
    def broken(self, when):
        raise OSError("no such interpreter")

    monkeypatch.setattr(session_module.Supervisor, "check", broken)
    _, session, rpc = build()
    rpc.waiting.append((ModelInput(1, 8, False), [InferReq(8)]))
    assert rpc.decode() == answer(ModelInput(1, 8, False))
    assert not session.timer.failed
