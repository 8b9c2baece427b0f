"""Attribution on the real layers of LightLLM, with all of their calls replaced: each call must fall into its operator.

PyPI's LightLLM is always there; ``LIGHTLLM_SRC`` adds a checkout: v1.1.0, v1.2.0, main, or that of July 2025.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import attribution_tables as tables
import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "benchmarks" / "hosts"))
from lightllm_source import origin  # noqa: E402
from lightllm_source.attribution import Plugin  # noqa: E402
from lightllm_source.forward import models  # noqa: E402

SOURCE = os.environ.get("LIGHTLLM_SRC")
LIBRARIES = ("flashinfer", "symm_mem")  # beside torch, that LightLLM's group may choose for an all_reduce
BALANCE = "balance"


class Host:
    """One LightLLM: its place, the tables of its classes, and the attribution by the hooks.

    ``collectives`` and ``calls``: by class and mode, where they differ between classes.
    """

    shared = {"tp2": tables.ALL_REDUCES, "tpsp": tables.SPLIT_TOKENS}  # noqa: RUF012 - never changed

    def __init__(self, version, source, dense, classes, modes, collectives=None, calls=None, others=()):
        self.version, self.source, self.dense, self.classes, self.modes = version, source, dense, classes, modes
        self.collectives, self.calls, self.others = collectives or {}, calls or {}, others

    @functools.cached_property
    def said(self):
        path = [*([self.source] if self.source else []), str(HERE.parents[1]), str(HERE.parents[0])]
        done = subprocess.run(
            [sys.executable, str(HERE / "attribution_process.py"), *self.modes, *self.others],
            check=False, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)}, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    def expected(self, mode, name):
        """Return operator → names of calls, with the collectives of this mode."""
        every = {
            **self.dense,
            **self.shared.get(mode, {}),
            **self.collectives.get(name, {}).get(mode, {}),
            **self.classes[name],
        }
        calls = {**(tables.SPLIT_TOKENS_CALLS if mode == "tpsp" else {}), **self.calls.get(name, {}).get(mode, {})}
        return {
            operator: sorted({*names.split(), *calls.get(operator, "").split()})
            for operator, names in every.items() if names is not None
        }  # fmt: skip


def checkout():
    """Return the checkout in LIGHTLLM_SRC. Its contents show its version."""
    package = Path(SOURCE) / "lightllm"
    if (package / "common/basemodel/prefill_cuda_graph.py").exists():
        modes = ["tp1", "tp2", "tpsp"]
        return Host(
            "v1.2.0", SOURCE, tables.DENSE, tables.MAIN, modes, tables.COLLECTIVES, tables.CALLS, (*LIBRARIES, BALANCE)
        )
    threads = (package / "server/router/model_infer/mode_backend/overlap_events.py").exists()
    classes = tables.V1_1 if threads else tables.JULY_2025
    return Host("v1.1.0", SOURCE, tables.DENSE_2025, classes, ["tp1", "tp2"], tables.COLLECTIVES_2025)


OLD = Host("0.0.1", None, tables.DENSE_2024, tables.V0_0_1, ["tp1", "tp2"])
NEW = checkout() if SOURCE else None


@pytest.fixture
def old():
    pytest.importorskip("torch")
    pytest.importorskip("lightllm", reason="LightLLM 0.0.1 is not installed here")
    return OLD


@pytest.fixture
def new():
    pytest.importorskip("torch")
    return NEW


def cases(host):
    return [(mode, name) for mode in host.modes for name in host.classes] if host else []


def holds(host, mode, name):
    said = host.said[mode][name]
    if (host.version, mode, name) in tables.NOT_RUN:
        assert "failed" in said
        return
    assert said.get("operators") == host.expected(mode, name), said.get("failed")
    for kind, layer in said["layers"].items():
        assert "unread" not in layer, (kind, layer)


@pytest.mark.parametrize(("mode", "name"), cases(OLD))
def test_every_call_of_a_layer_of_0_0_1_falls_into_its_operator(old, mode, name):
    holds(old, mode, name)


def test_the_table_of_0_0_1_names_every_class(old):
    assert {name for mode in old.said.values() for name in mode} == set(old.classes)


@pytest.mark.skipif(NEW is None, reason="LIGHTLLM_SRC names no checkout of LightLLM")
@pytest.mark.parametrize(("mode", "name"), cases(NEW) or [("", "")])
def test_every_call_of_a_layer_falls_into_its_operator(new, mode, name):
    holds(new, mode, name)


@pytest.mark.skipif(NEW is None, reason="LIGHTLLM_SRC names no checkout of LightLLM")
def test_the_table_names_every_class(new):
    for mode in map(new.said.get, new.modes):
        assert {*new.classes, *tables.NEVER_RUN} == set(mode)
        assert {name for name, said in mode.items() if "failed" in said} >= set(tables.NEVER_RUN)


@pytest.mark.skipif(NEW is None, reason="LIGHTLLM_SRC names no checkout of LightLLM")
def test_no_operator_of_a_layer_is_missing_where_it_has_attention(new):
    """The classes of drafts have none, cohere has no norm before its feed-forward."""
    missing = {
        name: layer["missing"] for name, said in new.said["tp1"].items() if "layers" in said
        for layer in said["layers"].values() if "missing" in layer
    }  # fmt: skip
    assert set(missing) <= {
        "mistral_mtp.MistralMTPTransformerLayerInfer",
        "qwen3_moe_mtp.Qwen3MOEMTPTransformerLayerInfer",
    }


@pytest.mark.skipif(NEW is None, reason="LIGHTLLM_SRC names no checkout of LightLLM")
@pytest.mark.parametrize(("mode", "of_a_layer"), [("tp1", 9), ("tp2", 13)])
def test_a_dense_layer_has_a_second_boundary_only_before_its_norms(new, mode, of_a_layer):
    """The adds are there. A collective has a boundary, and one before it if it is called inside an operator."""
    inside = new.version != "v1.1.0" or mode == "tp1"
    around = {"tp1": 6, "tp2": 10}[mode]
    for name in (
        "llama.LlamaTransformerLayerInfer",
        "qwen3.Qwen3TransformerLayerInfer",
        "bloom.BloomTransformerLayerInfer",
    ):
        said = new.said[mode][name]["boundaries"]
        assert set(said.values()) == {2 * (of_a_layer if inside else of_a_layer - 2) + around}, name


@pytest.mark.skipif(NEW is None or not NEW.others, reason="LIGHTLLM_SRC names no LightLLM that has these libraries")
@pytest.mark.parametrize("library", LIBRARIES)
def test_an_all_reduce_says_which_library_the_group_has_chosen(new, library):
    """The test uses LightLLM's own group class. FlashInfer puts the sum into new memory."""
    said = new.said[library]["llama.LlamaTransformerLayerInfer"]
    assert said["moved"] == [
        "all_gather lm_head nccl",
        f"all_reduce attention {library}",
        f"all_reduce embedding {library}",
        f"all_reduce ffn {library}",
    ]
    assert said["operators"] == new.said["tp2"]["llama.LlamaTransformerLayerInfer"]["operators"]


@pytest.mark.skipif(NEW is None or not NEW.others, reason="LIGHTLLM_SRC names no LightLLM that balances prompts")
def test_prompts_that_are_shared_between_groups_are_exchanged_by_all_to_all(new):
    """The exchange is around all layers, and inside of two operators of each layer."""
    said = new.said[BALANCE]["llama.LlamaTransformerLayerInfer"]["operators"]
    exchanged = {f"all_to_all{site}": ["all_to_all_single"] for site in (" embedding", " attention", "")}
    dense = new.said["tp2"]["llama.LlamaTransformerLayerInfer"]["operators"]
    assert said == {**dense, **exchanged, "other": ["prepare_prefill_dp_balance"]}


def is_known_without_running(host, folder):
    """Check that the checker of contracts, which reads only the source of layers, finds the same as a server."""
    tree = origin.of_folder(Path(folder))
    made = {}
    for roles in models(tree):
        made.update(Plugin(tree, roles).found.layers)
    compared = set()
    for mode in host.modes:
        for name, said in host.said[mode].items():
            for kind, layer in said.get("layers", {}).items():
                if kind in made:
                    compared.add(kind)
                    for fact in ("operators", "other", "missing", "unread"):
                        assert set(layer.get(fact, ())) == set(made[kind].get(fact, ())), (mode, name, kind, fact)
    assert compared == set(made)


def test_what_is_found_in_layers_of_0_0_1_is_known_without_running_them(old):
    is_known_without_running(old, origin.installed())


@pytest.mark.skipif(NEW is None, reason="LIGHTLLM_SRC names no checkout of LightLLM")
def test_what_is_found_in_layers_is_known_without_running_them(new):
    is_known_without_running(new, SOURCE)
