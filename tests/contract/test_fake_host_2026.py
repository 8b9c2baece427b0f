"""Comparison of the fake host of 2026 with LightLLM's source: names, parameters, fields, and the order of calls.

It reads both as source, so it needs neither torch nor a GPU. Set LIGHTLLM_SRC to a checkout of LightLLM's main branch.
"""

import ast
import builtins
import functools
import os
from pathlib import Path

import fake_host_2026
import pytest

BASE, BACKEND = "common/basemodel", "server/router/model_infer/mode_backend"
ATTENTION, LLAMA = f"{BASE}/attention", "models/llama/layer_infer"
KERNELS = f"{BASE}/triton_kernel"
REAL = {
    "overlap_events": [f"{BACKEND}/overlap_events.py"],
    "batch_objs": [f"{BASE}/batch_objs.py"],
    "base_att": [
        f"{ATTENTION}/base_att.py", f"{ATTENTION}/triton/fp.py", f"{ATTENTION}/linear/gdn.py",
        f"{KERNELS}/att/decode_att/gqa/flash_decoding/gqa_flash_decoding_vsm.py",
    ],
    "infer_struct": [f"{BASE}/infer_struct.py"],
    "communication_op": [
        "distributed/communication_op.py", "distributed/flashinfer_all_reduce.py", "distributed/symm_mem_all_reduce.py",
    ],
    "layer_infer": [
        f"{BASE}/layer_infer/base_layer_infer.py", f"{BASE}/layer_infer/transformer_layer_infer.py",
        f"{BASE}/layer_infer/template/transformer_layer_infer_template.py",
        f"{LLAMA}/transformer_layer_infer.py", f"{LLAMA}/pre_layer_infer.py", f"{LLAMA}/post_layer_infer.py",
        "models/qwen3next/layer_infer/transformer_layer_infer.py", "models/deepseek_mtp/layer_infer/pre_layer_infer.py",
    ],
    "cuda_graph": [f"{BASE}/cuda_graph.py", "utils/torch_memory_saver_utils.py"],
    "prefill_cuda_graph": [f"{BASE}/prefill_cuda_graph.py"],
    "gather_token_id": [
        f"{KERNELS}/gather_token_id.py", f"{KERNELS}/mtp_utils.py", f"{KERNELS}/copy_kv_index_to_req.py", "common/infer_utils.py",
    ],
    "req_manager": ["common/req_manager.py", "common/kv_cache_mem_manager/mem_manager.py"],
    "basemodel": [f"{BASE}/basemodel.py"],
    "models": ["models/qwen3next/model.py", "models/deepseek_mtp/model.py", "models/registry.py"],
    "infer_batch": [
        "server/router/model_infer/infer_batch.py", "server/router/model_infer/pin_mem_manager.py", "server/core/objs/req.py",
    ],
    "generic_pre_process": [
        f"{BACKEND}/generic_pre_process.py", f"{BACKEND}/generic_padded_pre_process.py", f"{BACKEND}/mtp_pre_process.py",
    ],
    "generic_post_process": [f"{BACKEND}/generic_post_process.py"],
    "base_backend": [f"{BACKEND}/base_backend.py", "server/core/objs/shm_objs_io_buffer.py"],
    "chunked_prefill": [f"{BACKEND}/chunked_prefill/impl.py"],
    "dp_backend": [f"{BACKEND}/dp_backend/impl.py"],
    "model_rpc": ["server/router/model_infer/model_rpc.py"],
    "httpserver": ["server/httpserver/manager.py"],
    "health_monitor": ["server/health_monitor/manager.py"],
}  # fmt: skip


@functools.cache
def root():
    source = os.environ.get("LIGHTLLM_SRC")
    if not source:
        pytest.skip("LIGHTLLM_SRC names no checkout of LightLLM")
    package = Path(source) / "lightllm"
    if not (package / "utils/shm_port_args.py").exists():
        pytest.skip("LIGHTLLM_SRC is older than July 2026; the fake host of 2026 stands for what came after")
    return package


class Source(ast.NodeVisitor):
    """Functions by ``Class.name`` or ``name``, and classes, of some files."""

    def __init__(self, paths):
        self.functions, self.classes, self._around = {}, {}, []
        for path in paths:
            self.visit(ast.parse(path.read_text()))

    def visit_ClassDef(self, node):
        self.classes[node.name] = node
        self._around.append(node.name)
        self.generic_visit(node)
        self._around.pop()

    def visit_FunctionDef(self, node):
        if len(self._around) < 2:  # what lies in a function is no name of its module
            self.functions[".".join([*self._around, node.name])] = node

    visit_AsyncFunctionDef = visit_FunctionDef


@functools.cache
def fake(stem):
    return Source([Path(fake_host_2026.__file__).parent / f"{stem}.py"])


@functools.cache
def real(stem):
    return Source([root() / path for path in REAL[stem]])


# What the fake host has and LightLLM has not: parts of functions that LightLLM writes out, and what stands for kernels.
OWN = {
    "serve",
    "_of_cpu", "_recur", "TransformerLayerInferTpl._cut", "LlamaTransformerLayerInfer._matrix",
    "Qwen3NextTransformerLayerInfer._attend_linear", "LlamaPreLayerInfer._embed", "CudaGraph._dummy",
    "MemoryManager._copy_kv_to_mem_manager", "TpPartBaseModel._gather_mixed", "TpPartBaseModel._index_prefill",
    "TpPartBaseModel._gather", "TpPartBaseModel._fill", "TpPartBaseModel._heads", "TpPartBaseModel._dummy_prefill",
    "ShmReq", "ShmReq.__init__", "ShmReq.out", "_prefill_input", "_row_of", "_decode_input", "_halves",
    "ModeBackend._model_kvargs", "ModeBackend._decodes", "ChunkedPrefillBackend._scatter",
    "DPChunkedPrefillBackend._joined", "DPChunkedPrefillBackend._sampled", "DPChunkedPrefillBackend._finished",
}  # fmt: skip


def parameters(function):
    """Return the names in order, which of them have a default, and which are positional-only or keyword-only."""
    given = function.args
    positional = [each.arg for each in (*given.posonlyargs, *given.args)]
    first_default = len(positional) - len(given.defaults)
    by_name = [(each.arg, default is not None) for each, default in zip(given.kwonlyargs, given.kw_defaults)]
    return (
        [(name, at >= first_default) for at, name in enumerate(positional)], len(given.posonlyargs), by_name,
        given.vararg is not None, given.kwarg is not None,
    )  # fmt: skip


# Python's own: how a list is put together says nothing about the host.
PLAIN = {*dir(builtins), *dir(list), *dir(dict), *dir(set), "copy", "tensor"}


def calls(function, source, inside=()):
    """Return the names that a function calls, in Python's order. Calls of the fake host's own parts are expanded."""
    own = {name.split(".")[-1]: node for name, node in source.functions.items() if name in OWN}
    found = [node for node in ast.walk(function) if isinstance(node, ast.Call) and node not in function.decorator_list]
    for node in sorted(found, key=lambda node: (node.end_lineno, node.end_col_offset)):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in own and name not in inside:
            yield from calls(own[name], source, (*inside, name))
        elif name not in PLAIN:
            yield name


def is_subsequence(part, whole):
    rest = iter(whole)
    return all(each in rest for each in part)


STEMS = pytest.mark.parametrize("stem", REAL)


def test_every_module_of_the_fake_host_is_held_against_its_source():
    assert list(REAL) == [*fake_host_2026.MODULES, *fake_host_2026.HTTP_MODULES]


@STEMS
def test_what_the_fake_host_has_exists(stem):
    ours, theirs = fake(stem), real(stem)
    names = {*ours.classes, *ours.functions} - OWN
    assert names - {*theirs.classes, *theirs.functions} == set()


@STEMS
def test_functions_take_the_same_parameters(stem):
    ours, theirs = fake(stem).functions, real(stem).functions
    shared = [name for name in ours if name in theirs]
    differ = {name: (ast.unparse(ours[name].args), ast.unparse(theirs[name].args)) for name in shared
              if parameters(ours[name]) != parameters(theirs[name])}  # fmt: skip
    assert differ == {}


@STEMS
def test_decorators_that_hide_a_signature_are_where_they_are_in_the_source(stem):
    ours, theirs = fake(stem).functions, real(stem).functions

    def no_grad(function):
        return any("no_grad" in ast.unparse(each) for each in function.decorator_list)

    shared = [name for name in ours if name in theirs]
    assert [name for name in shared if no_grad(ours[name]) != no_grad(theirs[name])] == []


@pytest.mark.parametrize(("stem", "name"), [("batch_objs", "ModelInput"), ("batch_objs", "ModelOutput"),
                                            ("overlap_events", "OverlapEventPack")])  # fmt: skip
def test_dataclasses_have_the_same_fields_with_the_same_defaults(stem, name):
    def fields(source):
        return [(each.target.id, each.value and ast.unparse(each.value)) for each in source.classes[name].body
                if isinstance(each, ast.AnnAssign)]  # fmt: skip

    assert fields(fake(stem)) == fields(real(stem))


@STEMS
def test_attributes_that_an_object_gets_are_those_of_the_source(stem):
    ours, theirs = fake(stem), real(stem)

    def attributes(function):
        stored = [node for node in ast.walk(function) if isinstance(getattr(node, "ctx", None), ast.Store)]
        return {node.attr for node in stored if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"}

    extra = {}
    for name in ours.classes:
        mine = {
            each for path, node in ours.functions.items() if path.startswith(f"{name}.") for each in attributes(node)
        }
        known = {each for path, node in theirs.functions.items() for each in attributes(node)}
        public = {each for each in mine - known if name not in OWN and not each.startswith("_")}
        if public:
            extra[name] = public
    assert extra == {}


@STEMS
def test_functions_call_the_same_things_in_the_same_order(stem):
    ours, theirs = fake(stem), real(stem)
    differ = {}
    for name in ours.functions:
        if name in theirs.functions:
            wanted = list(calls(theirs.functions[name], theirs))
            made = [each for each in calls(ours.functions[name], ours) if each in wanted]
            if not is_subsequence(made, wanted):
                differ[name] = (made, [each for each in wanted if each in made])
    assert differ == {}


def test_a_function_that_took_another_parameter_would_be_found(monkeypatch):
    changed = ast.parse("def _replay(self, input_ids, infer_state): pass").body[0]
    monkeypatch.setitem(real("cuda_graph").functions, "CudaGraph._replay", changed)
    with pytest.raises(AssertionError, match="_replay"):
        test_functions_take_the_same_parameters("cuda_graph")


def test_calls_in_another_order_would_be_found(monkeypatch):
    changed = ast.parse("def replay(self):\n self.graph_obj.replay()\n self.state.copy_for_cuda_graph()").body[0]
    monkeypatch.setitem(fake("cuda_graph").functions, "CudaGraph._replay", changed)
    root()
    with pytest.raises(AssertionError, match="_replay"):
        test_functions_call_the_same_things_in_the_same_order("cuda_graph")
