"""Rules of absence on made-up layers: the faults that they find, and layers in which they find none."""

import dataclasses

import contract
import made_up
import pytest
from lightllm_source.calls import Flow
from lightllm_source.syntax import parse
from made_up import BASE, MODEL, TEMPLATE
from version1 import VERSION1, Fixed


def found(layer, assumed=VERSION1, template=TEMPLATE, **modules):
    """Return the faults of a model whose layer is this class."""
    tree = made_up.tree(common__basemodel__basemodel=BASE, models__new__model=MODEL,
                        models__new__layer=template + layer, **modules)  # fmt: skip
    return [f"{each.rule}: {each.place}" for each in contract.check(tree, assumed).findings if not each.known]


def test_a_layer_of_the_template_is_all_right():
    assert found("class NewLayer(Template): ...") == []


def test_work_that_no_slot_holds_counts_as_the_operator_that_it_precedes():
    layer = """
class NewLayer(Template):
    def attend(self, x, s, w):
        q, kv = self._get_qkv(x, s, w)
        self._copy_kv_to_mem_cache(kv, s)
        q = w.rotate.mm(q)
        return self._get_o(self._token_attention_kernel(q, s, w), s, w)
"""
    assert found(layer) == ["work_outside_slots: NewLayer.attend: w.rotate.mm as attention"]


def test_work_before_a_collective_counts_as_the_collective_and_without_one_as_what_follows():
    layer = """
class NewLayer(Template):
    def attend(self, x, s, w):
        if self.full:
            return super().attend(x, s, w)
        return w.linear.mm(x)
"""
    places = ["NewLayer.attend: w.linear.mm as all_reduce", "NewLayer.attend: w.linear.mm as residual"]
    assert found(layer) == [f"work_outside_slots: {place}" for place in places]


def test_work_at_the_end_of_a_layer_counts_as_the_next_ones_residual():
    layer = """
class NewLayer(Template):
    def token_forward(self, x, s, w):
        return mix_streams(super().token_forward(x, s, w))
"""
    assert found(layer) == ["work_outside_slots: NewLayer.token_forward: mix_streams as residual"]


def test_work_that_counts_as_other_is_nobodys():
    class Honest(Fixed):
        def counted(self, before, at):
            return "other"

    layer = "class NewLayer(Template):\n    def attend(self, x, s, w): return w.linear.mm(x)"
    assert found(layer) != []
    lost = [f"operators_without_slot: {name}: every class" for name in ("qkv_proj", "kv_write", "attention", "o_proj")]
    assert found(layer, dataclasses.replace(VERSION1, attribution=Honest)) == lost


@pytest.mark.parametrize(
    "body",
    [
        "self._ffn = self._ffn_fast if fast else partial(Template._ffn, self)",
        "self._ffn = partial(NewLayer._ffn_fast, self)",
    ],
)
def test_what_a_layer_binds_to_itself_is_its_slot(body):
    """A bound function is inspected as well: it contains a collective of an unknown kind."""
    layer = f"""
class NewLayer(Template):
    def _bind(self): {body}
    def _ffn_fast(self, x, s, w): dist.all_to_all_single(x)
"""
    tree = made_up.tree(
        common__basemodel__basemodel=BASE, models__new__model=MODEL, models__new__layer=TEMPLATE + layer
    )
    assert [each.place for each in contract.check(tree, VERSION1).findings] == [
        "NewLayer._ffn_fast: dist.all_to_all_single"
    ]


def test_a_collective_of_a_new_kind_is_wrong():
    layer = "class NewLayer(Template):\n    def _ffn(self, x, s, w): dist.reduce(x)"
    assert found(layer) == ["collective_without_leaf: NewLayer._ffn: dist.reduce"]


def test_a_collective_of_the_states_is_looked_into():
    state = "class InferStateInfo:\n    def _all_to_all_get(self, data): dist.all_to_all_single(data)"
    layer = "class NewLayer(Template):\n    def _ffn(self, x, s, w): infer_state._all_to_all_get(x)"
    there = {"common__basemodel__infer_struct": state}
    plugin = contract.Contract.of_plugin()
    assert found(layer, **there) == ["collective_without_leaf: InferStateInfo._all_to_all_get: dist.all_to_all_single"]
    assert found(layer, plugin, **there) == []
    assert found(layer, plugin) == ["collective_without_leaf: NewLayer._ffn: infer_state._all_to_all_get"]


def test_a_call_by_class_or_super_goes_past_the_slot():
    """The plugin wraps attributes of instances; these calls do not use them."""
    layer = """
class NewLayer(Template):
    def token_forward(self, x, s, w):
        return self._ffn(Template._ffn_norm(self, x, s, w), s, w)
"""
    assert "work_outside_slots: Template._ffn_norm: w.norm as ffn" in found(layer)


def test_an_operator_that_moved_is_lost_and_its_work_is_counted_as_another():
    """January 2026: the copy of the keys and values has another name."""
    moved = TEMPLATE.replace("_copy_kv_to_mem_cache", "_post_cache_kv")
    assert found("class NewLayer(Template): ...", template=moved) == [
        "work_outside_slots: Template._post_cache_kv: copy_kernel as attention",
        "operators_without_slot: kv_write: every class",
    ]


def test_code_that_runs_while_a_graph_is_captured_is_not_on_the_way():
    layer = """
class NewLayer(Template):
    def attend(self, x, s, w):
        if torch.cuda.is_current_stream_capturing():
            return capture_pieces(x)
        else:
            return super().attend(x, s, w)
"""
    assert found(layer) == []


@pytest.mark.parametrize(
    ("module", "text", "finding"),
    [
        ("common__basemodel__prefill_cuda_graph", "class PrefillCudaGraph:\n    def _capture_prefill(self): ...",
         "graph_without_hook: PrefillCudaGraph: _capture_prefill"),
        ("common__basemodel__attention__base", "@dataclass\nclass DecodeState:\n    infer_state: object = None",
         "back_reference: DecodeState"),
        ("server__router__model_infer__mode_backend__generic_pre_process",
         "def prepare_decode_inputs(reqs):\n    return ModelInput(batch_size=1, input_ids=None)",
         "decode_without_tokens: prepare_decode_inputs"),
        ("server__api_cli", "def make(p):\n    p.add_argument('--nccl_port', type=int, default=None)",
         "port_unknown: nccl_port is None unless it is given"),
        ("distributed__communication_op",
         "class CustomProcessGroup:\n    def all_reduce(self, input_):\n        self.fast_reduce.all_reduce(input_)",
         "transport_not_told: fast_reduce"),
        ("server__router__model_infer__mode_backend__overlap_events", "class OverlapEventPack: ...",
         "work_after_sample: what follows sample on the overlap stream"),
        ("common__basemodel__batch_objs", "class ModelInput:\n    b_is_decode_req: object = None",
         "mixed_batches: b_is_decode_req"),
    ],
)  # fmt: skip
def test_a_path_beside_the_hooks_is_found(module, text, finding):
    assert finding not in found("class NewLayer(Template): ...")
    assert finding in found("class NewLayer(Template): ...", **{module: text})


def test_a_port_that_the_start_chooses_changes_with_it():
    cli = "def make(p):\n    p.add_argument('--nccl_port', default=None)"
    start = "def launch(args):\n    args.nccl_port = free()"
    assert found("class NewLayer(Template): ...", server__api_cli=cli, server__api_start=start) == [
        "port_changes: nccl_port is a free port, another one at each start"
    ]
    fixed = cli.replace("None", "28765")
    assert found("class NewLayer(Template): ...", server__api_cli=fixed, server__api_start="") == []


def test_a_part_of_a_layer_that_a_graph_comes_back_for_is_found_until_the_replay_is_hooked():
    layer = """
class NewLayer(Template):
    def attend(self, x, s, w):
        if torch.cuda.is_current_stream_capturing():
            s.prefill_cuda_graph_add_cpu_runnning_func(func=again)
        return super().attend(x, s, w)
"""
    plugin = contract.Contract.of_plugin()
    graph = {
        "common__basemodel__prefill_cuda_graph": "class PrefillCudaGraph:\n    def _replay(self, inputs, state): ..."
    }
    finding = "piece_of_graph: lightllm.models.new.layer"
    assert finding in found(layer, **graph)
    assert finding in found(layer, plugin)
    assert finding not in found(layer, plugin, **graph)


def test_a_new_way_into_a_forward_is_found():
    backend = "class Backend:\n    def decode(self):\n        self.model.forward_many(1)\n        self.model.forward(2)"
    base = BASE + "    def forward(self, model_input): ...\n    def forward_many(self, inputs): ...\n"
    tree = made_up.tree(common__basemodel__basemodel=base,
                        server__router__model_infer__mode_backend__new__impl=backend)  # fmt: skip
    places = [each.place for each in contract.check(tree, VERSION1).findings if each.rule == "forward_without_hook"]
    assert places == ["TpPartBaseModel.forward_many"]


def test_a_row_that_fits_covers_what_it_is_there_for():
    plugin = contract.Contract.of_plugin()
    text = {"common__basemodel__batch_objs": "class ModelInput:\n    b_is_decode_req: object = None"}
    assert "mixed_batches: b_is_decode_req" not in found("class NewLayer(Template): ...", plugin, **text)
    assert "mixed_batches: b_is_decode_req" in found("class NewLayer(Template): ...", plugin.without("mixed"), **text)


# Calls ----------------------------------------------------------------------------------------------------------------


def ways(body):
    """Return every sequence of calls through a function."""
    (function,) = parse("def f(self):\n" + "\n".join(f"    {line}" for line in body.splitlines())).functions.values()
    flow, found = Flow(function), set()

    def walk(node, path):
        path = (*path, flow.calls[node]) if flow.calls[node] else path
        if node == Flow.END:
            found.add(path)
        for after in flow.follows[node]:
            walk(after, path)

    walk(Flow.BEGIN, ())
    return found


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("a(b(), c=d())", {("b", "d", "a")}),
        ("if a(): b()\nelse: c()\nd()", {("a", "b", "d"), ("a", "c", "d")}),
        ("if a(): return b()\nc()", {("a", "b"), ("a", "c")}),
        ("if a: raise b()\nc()", {("c",)}),
        ("raise a()", set()),
        ("for x in a(): b(x)\nc()", {("a", "b", "c")}),
        ("with a() as x: b()", {("a", "b")}),
        ("try:\n    a()\nexcept Exception:\n    b()\nfinally:\n    c()", {("a", "c")}),
        ("def inner():\n    a()\nb()", {("b",)}),
        ("def inner():\n    a()\ninner()\nb()", {("a", "b")}),
        ("m = (self.x.a, self.x.b)[mode]\nm()", {("self.x.a",), ("self.x.b",)}),
        ("y = a() if b() else c()", {("b", "a"), ("b", "c")}),
        ("x = y @ z", {("@",)}),
        ("f = lambda: a()\nb()", {("b",)}),
        ("a().b.c()", {("a", "a().b.c")}),
    ],
)
def test_calls_follow_each_other_as_they_run(body, expected):
    assert ways(body) == expected
