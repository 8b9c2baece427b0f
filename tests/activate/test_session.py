"""A model process as a whole, with a fake model: the ring says what it should, and no folder is no reason to fail."""

import os

import pytest
from fake_host import InferReq, ModelInput, make

from lightllm_otel.activate import session as session_module
from lightllm_otel.activate.session import ServerSession
from lightllm_otel.guard import Guard
from lightllm_otel.measure.clock import HostClock
from lightllm_otel.patch import seams
from lightllm_otel.patch.ledger import Ledger
from lightllm_otel.ring import layout
from lightllm_otel.ring.reader import RingReader
from lightllm_otel.settings import Settings


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
        session = ServerSession(settings, Guard(), Ledger())
        seams.patch_model(host.basemodel, session)
        seams.patch_sample(host.post_process, session)
        seams.patch_rpc(host.model_rpc, session)
        sessions.append(session)
        return host, session, host.model_rpc.ModelRpcServer(host.basemodel.TpPartBaseModel())

    yield start
    for session in sessions:
        session.ledger.undo()


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


def test_no_room_anywhere_is_one_clear_line_and_the_server_runs(build, monkeypatch, caplog):
    def full(path, mebibytes):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(session_module, "RingWriter", full)
    _, session, rpc = build()
    rpc.waiting.append((ModelInput(1, 8, False), [InferReq(8)]))
    assert rpc.decode() == "logits"
    assert session.timer is None
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "LIGHTLLM_OTEL_DIR" in record.message


def test_level_steps_wraps_no_operator(build):
    _, session, rpc = build(LIGHTLLM_OTEL_LEVEL="steps")
    layer = rpc.model.layers_infer[0]
    assert "_get_qkv" not in vars(layer)
    assert session.timer is not None


def test_a_folder_of_somebody_else_is_not_used(tmp_path, monkeypatch):
    from lightllm_otel.ring.folder import group_folder

    monkeypatch.setattr(os, "getuid", lambda: 12345)
    if tmp_path.stat().st_uid == 0:
        os.chown(tmp_path, 54321, -1)
    with pytest.raises(PermissionError, match="belongs to another user"):
        group_folder(tmp_path, "group")


def test_an_exporter_that_cannot_be_started_does_not_end_the_measuring(build, monkeypatch):
    def broken(self, when):
        raise OSError("no such interpreter")

    monkeypatch.setattr(session_module.Supervisor, "check", broken)
    _, session, rpc = build()
    rpc.waiting.append((ModelInput(1, 8, False), [InferReq(8)]))
    assert rpc.decode() == "logits"
    assert not session.timer.failed
