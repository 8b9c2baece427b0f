"""Tests of how the static model ends. Other tests run it with LightLLM."""

from types import SimpleNamespace

import pytest

from lightllm_otel.tools.benchmark.static_v1 import StaticModel


def ended(monkeypatch, tp, graphs):
    dist = pytest.importorskip("torch.distributed")
    done = []
    monkeypatch.setattr(dist, "destroy_process_group", lambda: done.append("group"))
    memory = SimpleNamespace(
        free_all=lambda: None,
        shared_can_use_token_num=SimpleNamespace(shm=SimpleNamespace(unlink=lambda: done.append("shared memory"))),
    )
    model = StaticModel.__new__(StaticModel)
    model.arguments = SimpleNamespace(tp=tp, disable_cudagraph=not graphs)
    model.model = SimpleNamespace(mem_manager=memory, req_manager=SimpleNamespace(free_all=lambda: None))
    model._steps = SimpleNamespace(close=memory.shared_can_use_token_num.shm.unlink, forget=lambda requests: None)
    model._requests = []
    model.close()
    return done


@pytest.mark.parametrize(("tp", "graphs"), [(1, True), (1, False), (2, False)])
def test_the_process_group_is_left_where_no_graph_has_collectives(monkeypatch, tp, graphs):
    assert ended(monkeypatch, tp, graphs) == ["shared memory", "group"]


def test_a_group_whose_collectives_are_in_graphs_is_not_waited_for(monkeypatch):
    assert ended(monkeypatch, 2, graphs=True) == ["shared memory"]
