"""Identity of a rank, from the environment and the model of each LightLLM version."""

import importlib.metadata
import json
import sys
import types

import pytest

from lightllm_otel.contracts.start_arguments import meeting_place
from lightllm_otel.records.folder import group_key
from lightllm_otel.worker.host.identity import describe_host, describe_model, identify, lightllm_version


def test_new_keeps_it_in_the_environment():
    environ = {
        "LIGHTLLM_CURRENT_RANK_IN_DP": "1", "LIGHTLLM_DP_WORLD_SIZE": "2", "LIGHTLLM_GLOBAL_DP_RANK": "3",
        "LIGHTLLM_DP_SIZE": "4",
        "LIGHTLLM_START_ARGS": json.dumps(
            {"nccl_host": "10.0.0.1", "nccl_port": 28765, "node_rank": 1, "nnodes": 2, "port": 8000}
        ),
    }  # fmt: skip
    identity = identify(object(), environ)
    assert (identity.rank, identity.tp, identity.dp_rank, identity.dp) == (1, 2, 3, 4)
    assert (identity.host, identity.port, identity.node_rank) == ("10.0.0.1", 28765, 1)


def test_all_servers_of_a_group_on_a_host_have_one_folder_and_know_how_many_they_are():
    nodes = [
        identify(object(), {
            "LIGHTLLM_CURRENT_RANK_IN_DP": str(rank), "LIGHTLLM_DP_WORLD_SIZE": "2",
            "LIGHTLLM_START_ARGS": json.dumps({"nccl_host": "127.0.0.1", "nccl_port": 1, "node_rank": rank, "nnodes": 2}),
        })
        for rank in range(2)
    ]  # fmt: skip
    assert len({group_key(node.host, node.port, node.dp_rank) for node in nodes}) == 1
    assert [(node.rank, node.node_rank, node.nodes) for node in nodes] == [(0, 0, 2), (1, 1, 2)]


def test_old_keeps_it_on_the_model():
    model = types.SimpleNamespace(tp_rank_=1, world_size_=2)
    identity = identify(model, {"_NCCL_PORT_": "28765"})
    assert (identity.rank, identity.tp, identity.host, identity.port) == (1, 2, "127.0.0.1", 28765)


def test_a_model_built_by_hand_has_a_group_of_its_own():
    assert identify(object(), {}).port > 0


def test_a_model_is_described_by_what_it_has():
    model = types.SimpleNamespace(
        weight_dir_="/models/llama-7b",
        config={"model_type": "llama", "hidden_size": 64, "secret": "x"},
        data_type="torch.float16",
        layers_infer=[1, 2],
    )
    assert describe_model(model, {}) == {
        "model": "llama-7b", "model_type": "llama", "dtype": "float16", "layers": 2, "config": {"hidden_size": 64},
    }  # fmt: skip
    assert describe_model(object(), {})["model"] == "object"


def test_the_host_is_described_without_a_gpu():
    assert describe_host()["python"].count(".") == 2


@pytest.mark.parametrize(("used", "version"), [("site/lightllm", "0.0.1"), ("checkout/lightllm", "source")])
def test_a_checkout_on_the_path_is_not_the_installed_version(monkeypatch, tmp_path, used, version):
    distribution = types.SimpleNamespace(version="0.0.1", locate_file=lambda name: tmp_path / "site" / name)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: distribution)
    monkeypatch.setitem(sys.modules, "lightllm", types.SimpleNamespace(__path__=[str(tmp_path / used)]))
    assert lightllm_version() == version


@pytest.mark.parametrize(
    ("start", "place"),
    [
        (
            {"port": 8000, "nccl_port": None, "nnodes": 1},
            ("127.0.0.1", 8000),
        ),  # since July 2026, where the user gives none
        ({"port": 8000, "nccl_port": 43127, "nnodes": 1}, ("127.0.0.1", 8000)),  # since January 2026: a free one
        ({"port": 8000, "nccl_port": 28765, "nccl_host": "10.0.0.1", "nnodes": 2}, ("10.0.0.1", 28765)),
        ({"port": 8000, "nccl_port": 28765}, ("127.0.0.1", 28765)),  # 0.0.1: its model processes know this one alone
        ({}, ("127.0.0.1", 0)),
    ],
)
def test_a_server_is_named_by_its_own_port_and_a_group_of_servers_by_where_they_meet(start, place):
    assert meeting_place(start) == place


def test_a_model_is_called_as_the_server_was_told_to_call_it():
    model = types.SimpleNamespace(weight_dir_="/models/qwen3-8b")
    given = {"LIGHTLLM_START_ARGS": json.dumps({"model_name": "assistant"})}
    untold = {"LIGHTLLM_START_ARGS": json.dumps({"model_name": "default_model_name"})}
    assert describe_model(model, given)["model"] == "assistant"
    assert describe_model(model, untold)["model"] == "qwen3-8b"
