import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fake_host
import fakes
import pytest


@pytest.fixture
def now():
    return [1000.0]


@pytest.fixture
def serve(now, host_untouched):
    """Return ``serve(tp=…, every=…)`` → (host, session, rpc): a fake host with hooks, and a model that serves."""
    sessions = []

    def start(tp=1, layers=2, old=False, kvargs=None, host_options=None, **options):
        host = fake_host.make_old(now, layers) if old else fake_host.make(now, tp, layers, **(host_options or {}))
        for owner in (*host.classes, host.dist, host.post_process, host.cuda_graph, host.basemodel):
            host_untouched(owner)
        session = fakes.FakeSession(host, **options).patch()
        sessions.append(session)
        model = host.basemodel.TpPartBaseModel(kvargs)
        return host, session, host.model_rpc.ModelRpcServer(model)

    yield start
    for session in sessions:
        session.undo()
