"""The checker's model of the plugin's hooks, on made-up layers and on those of a checkout."""

import dataclasses
import os
from pathlib import Path

import contract
import made_up
import pytest
from lightllm_source import origin
from lightllm_source.attribution import COLLECTIVE, END, LAYER, POST, PRE, Plugin, Point
from lightllm_source.forward import models
from lightllm_source.objects import Objects

from lightllm_otel.records.vocabulary import Operator
from lightllm_otel.worker.gpu.boundaries import DIRECTLY, BoundaryCodes
from lightllm_otel.worker.host import between, layers
from lightllm_otel.worker.host.slots import LAYER_SLOTS, OF_A_LAYER, POST_SLOTS, PRE_SLOTS

PLUGIN = contract.Contract.of_plugin()


def model(layer="class NewLayer(Template): ...", **others):
    """Return the plugin's hooks in a model whose layer is this class."""
    return of(made_up.layers(layer, **others))


def of(tree):
    (roles,) = models(tree)
    return Plugin(tree, roles)


def wrong(layer="class NewLayer(Template): ...", **others):
    verdict = contract.check(made_up.layers(layer, **others), PLUGIN)
    return [each.place for each in verdict.wrong]


def layer(name, number=1, variant=0):
    return Point(LAYER, name, variant, number)


# What the hooks do ----------------------------------------------------------------------------------------------------


def test_attribution_is_what_the_hooks_do():
    found = model()
    assert found.counted(layer("_get_o"), layer("_ffn_norm")) == "residual"
    assert found.counted(layer("_ffn"), layer("_att_norm", 2)) == "residual"
    assert found.counted(layer("_ffn"), Point(POST, "token_forward")) == "residual"
    assert found.counted(Point(PRE, "token_forward"), layer("_att_norm", 0)) == "gap"
    assert found.counted(Point(END, ""), Point(PRE, "token_forward")) == "gap"
    assert found.counted(Point(POST, "token_forward"), Point(END, "")) == "gap"
    # Nothing lies there in this layer, so one boundary ends the one operator and begins the other.
    assert found.counted(layer("_att_norm"), layer("_get_qkv")) == "qkv_proj"
    assert found.counted(layer("_get_o"), Point(COLLECTIVE, "all_reduce")) == "all_reduce"


def test_work_before_an_operator_is_the_plugins_other():
    body = "def attend(self, x, s, w):\n        return self._get_o(w.rotate.mm(self._token_attention_kernel(x, s, w)), s, w)"
    found = model(f"class NewLayer(Template):\n    {body}")
    assert found.counted(layer("_token_attention_kernel"), layer("_get_o")) == "other"
    assert found.unclaimed == ["mm"]
    assert wrong(f"class NewLayer(Template):\n    {body}") == []


def test_a_plugin_that_does_not_see_what_lies_between_is_found_wrong(monkeypatch):
    stock = between.read

    def blind(*args):
        found = stock(*args)
        return dataclasses.replace(found, before=dict.fromkeys(found.before, frozenset()), left=frozenset())

    assert wrong() == []
    monkeypatch.setattr(between, "read", blind)
    assert wrong() == [
        "Template.token_forward: x.add_ as ffn_norm", "Template.token_forward: x.add_ as attn_norm",
        "TpPartBaseModel._token_forward: the last add_ as lm_head",
    ]  # fmt: skip


def test_a_plugin_whose_collectives_begin_at_the_last_boundary_is_found_wrong(monkeypatch):
    body = "def attend(self, x, s, w):\n        return w.rotate.mm(self._get_qkv(x, s, w))"
    assert wrong(f"class NewLayer(Template):\n    {body}") == []
    monkeypatch.setattr(BoundaryCodes, "before_collective", lambda self, last: DIRECTLY)
    assert wrong(f"class NewLayer(Template):\n    {body}") == ["NewLayer.attend: w.rotate.mm as all_reduce"]


def test_a_layer_whose_code_the_plugin_does_not_understand_is_said_to_be(monkeypatch):
    monkeypatch.setattr(between, "read", lambda *args: 1 / 0)
    findings = contract.check(made_up.layers("class NewLayer(Template): ..."), PLUGIN).findings
    assert [each.place for each in findings if each.rule == "layers_not_read"] == [
        "NewLayer: its source is not understood (ZeroDivisionError('division by zero'))"
    ]


def test_layers_of_a_class_that_differ_are_looked_at_one_by_one():
    found = model("""
class NewLayer(Template):
    def __init__(self, number, config):
        self.linear = number % config["every"] != 0

    def attend(self, x, s, w):
        if not self.linear:
            return super().attend(x, s, w)
        return self._linear_post(mix(self._linear_in_proj(x)))

    def _linear_in_proj(self, x): return w.linear.mm(x)
    def _linear_post(self, x): return w.linear.mm(x)
""")
    assert [each.flags for each in found.variants] == [{"linear": True}, {"linear": False}]
    assert found.counted(layer("_linear_in_proj"), layer("_linear_post")) == "other"
    assert found.counted(layer("_get_qkv", variant=1), layer("_copy_kv_to_mem_cache", variant=1)) == "kv_write"
    # In this one nobody comes there.
    assert found.counted(layer("_get_qkv"), layer("_copy_kv_to_mem_cache")) == "other"


def test_work_of_a_way_that_a_layer_does_not_take_is_not_held_against_it():
    body = """
class NewLayer(Template):
    def __init__(self, number): self.sparse = number > 3

    def attend(self, x, s, w):
        x = self._get_qkv(x, s, w)
        if self.sparse:
            x = choose(x)
        else:
            self._copy_kv_to_mem_cache(x, s)
        return self._get_o(self._token_attention_kernel(x, s, w), s, w)
"""
    assert wrong(body) == []
    sparse, dense = (model(body).counted(layer("_get_qkv", variant=variant), layer("_token_attention_kernel", variant=variant))
                     for variant in (0, 1))  # fmt: skip
    assert (sparse, dense) == ("other", "attention")


# Objects --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def thing():
    tree = made_up.tree(a="from lightllm.b import Base\nclass Thing(Base):\n"
                          "    def f(self, x):\n        return launch(x)\n"
                          "    def bind(self):\n"
                          "        self.bound = partial(Base.f, self)\n"
                          "        self.chosen = self.f if self.fast else Base.g\n"
                          "        self.flag, self.heads, self.text = config['f'] > 1, config['heads'] // 2, name()\n",
                        b="class Base:\n    def f(self, x): ...\n    def g(self): ...\n"
                          "    @property\n    def h(self): ...\n")  # fmt: skip
    objects = Objects(tree)
    return objects.make(tree.find("lightllm.a", "Thing"), {"flag": True})


def test_an_object_has_what_its_class_binds_and_nothing_else(thing):
    assert sorted(vars(thing)) == ["bound", "chosen", "flag", "heads"]
    assert thing.bound.func is type(thing).__mro__[1].f
    assert thing.chosen.__func__ is type(thing).f
    assert (thing.flag, thing.heads) == (True, 1)
    assert isinstance(type(thing).h, property)


def test_a_function_has_the_hosts_text_and_does_nothing(thing):
    from lightllm_otel.worker.host.source import definition, resolve

    function, owner = resolve(thing, "f")
    assert owner is type(thing)
    assert definition(function).body[0].value.func.id == "launch"
    assert thing.f(3) == 3
    assert resolve(thing, "bound") == (type(thing).__mro__[1].f, type(thing).__mro__[1])
    assert function.__globals__.get("Base") is type(thing).__mro__[1]
    assert function.__globals__.get("launch") is None


# Deleting rows of the slots -------------------------------------------------------------------------------------------

ROWS = [
    *(pytest.param("LAYER_SLOTS", slot, id=f"layer-{slot.names[0]}") for slot in LAYER_SLOTS),
    *(pytest.param("PRE_SLOTS", slot, id=f"pre-{slot.names[0]}") for slot in PRE_SLOTS),
    *(pytest.param("POST_SLOTS", slot, id=f"post-{slot.names[0]}") for slot in POST_SLOTS),
]


# What is cut out of another operator would be that one's, and what follows an add directly the add's.
SOMEONE_ELSES = {
    ("LAYER_SLOTS", "_get_indices"): ["NewLayer._token_attention_kernel: self.indexer._get_indices as attention"],
    ("POST_SLOTS", "_tpsp_allgather"): ["NewPost._tpsp_allgather: split_kernel as residual"],
}


def operators_of(tree):
    plugin = of(tree)
    (facts,) = plugin.found.layers.values()
    return {name for name, state in plugin.found.items() if state == "installed"} | set(facts["operators"])


@pytest.mark.parametrize(("table", "row"), ROWS)
def test_deleting_a_row_of_the_slots_removes_exactly_its_operator(table, row, monkeypatch):
    """The layer has the operator by this row alone. Without it, the time is mostly ``other`` or ``gap``."""
    tree = made_up.with_row(table, row)
    before = operators_of(tree)
    whole = row.operator is not Operator.OTHER and not row.part
    assert row.operator.value in before or not whole
    monkeypatch.setattr(layers, table, tuple(each for each in getattr(layers, table) if each is not row))
    assert before - operators_of(tree) == ({row.operator.value} if whole else set())
    assert operators_of(tree) <= before
    verdict = contract.check(tree, PLUGIN)
    lost = [f"{row.operator.value}: every class"] if row.operator in OF_A_LAYER else []
    assert [each.place for each in verdict.findings if each.rule == "operators_without_slot"] == lost
    assert [each.place for each in verdict.wrong] == SOMEONE_ELSES.get((table, row.names[0]), [])


@pytest.fixture(scope="module")
def checkout():
    if "LIGHTLLM_SRC" not in os.environ:
        pytest.skip("LIGHTLLM_SRC is not set")
    tree = origin.of_folder(Path(os.environ["LIGHTLLM_SRC"]))
    return tree, {roles.layer.what.name: roles for roles in models(tree)}


@pytest.mark.parametrize("row", [pytest.param(slot, id=slot.names[0]) for slot in LAYER_SLOTS if not slot.group])
def test_deleting_a_row_takes_no_other_operator_from_the_layers_of_a_checkout(row, checkout, monkeypatch):
    tree, every = checkout
    named = {name: roles for name, roles in every.items() if any(tree.member(roles.layer, each) for each in row.names)}
    some = dict(list(named.items())[-4:]) if not row.on else every
    before = {name: set(Plugin(tree, roles).found.layers[name]["operators"]) for name, roles in some.items()}
    monkeypatch.setattr(layers, "LAYER_SLOTS", tuple(each for each in LAYER_SLOTS if each is not row))
    for name, roles in some.items():
        after = set(Plugin(tree, roles).found.layers[name]["operators"])
        # An add beside work that nobody claims any more is nobody's either; no row stands for adds.
        assert before[name] - after <= {row.operator.value, Operator.RESIDUAL.value}, name
        assert after <= before[name], name
