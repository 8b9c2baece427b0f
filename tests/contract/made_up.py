"""Made-up trees of LightLLM: a few lines each, or a tree in which exactly the rows of one version, or one row, fit."""

from __future__ import annotations

import textwrap

from lightllm_source.tree import Tree

from lightllm_otel.contracts.table import ENVIRONMENT, OPTIONS, VERSIONS, Hook
from lightllm_otel.records.vocabulary import Operator
from lightllm_otel.worker.host.slots import ENTRIES, WEIGHTS

BASEMODEL = "lightllm.common.basemodel"
BASE = """
class TpPartBaseModel:
    pre_layer_infer_class = None
    post_layer_infer_class = None
    transformer_layer_infer_class = None
"""
MODEL = """
from lightllm.common.basemodel.basemodel import TpPartBaseModel
from lightllm.models.new.layer import NewLayer

class NewModel(TpPartBaseModel):
    transformer_layer_infer_class = NewLayer
"""
TEMPLATE = """
class Template:
    def __init__(self, number, config): self.tp_world_size_ = 2
    def _att_norm(self, x, s, w): return w.norm(x)
    def _get_qkv(self, x, s, w): return w.qkv.mm(x)
    def _copy_kv_to_mem_cache(self, kv, s): copy_kernel(kv)
    def _token_attention_kernel(self, q, s, w): return s.decode(q)
    def _get_o(self, o, s, w): return w.o.mm(o)
    def _ffn_norm(self, x, s, w): return w.norm(x)
    def _ffn(self, x, s, w): return w.down.mm(x)
    def alloc(self, shape): return manager.alloc_tensor(shape)

    def attend(self, x, s, w):
        q, kv = self._get_qkv(x, s, w)
        self._copy_kv_to_mem_cache(kv, s)
        o = self._token_attention_kernel(q, s, w)
        return self._get_o(o, s, w)

    def token_forward(self, x, s, w):
        o = self.attend(self._att_norm(x, s, w), s, w)
        if self.tp_world_size_ > 1:
            all_reduce(o, group=s.dist_group)
        x.add_(o.view(-1, self.width))
        x.add_(self._ffn(self._ffn_norm(x, s, w), s, w))
        return x
"""
# The same with what comes before and after the layers.
_STEP = """
    def _token_forward(self, infer_state):
        x = self.pre_infer.token_forward(infer_state.input_ids, infer_state, self.weights)
        {before}
        for layer in self.layers_infer:
            x = layer.token_forward(x, infer_state, self.weights)
        {after}
        return self.post_infer.token_forward(x, infer_state, self.weights)
"""
_ENDS = """
    pre_layer_infer_class = NewPre
    post_layer_infer_class = NewPost
    transformer_weight_class = NewWeight

class NewPre:
    def token_forward(self, x, s, w): return w.embed.mm(x)

class NewPost:
    def token_forward(self, x, s, w): return w.head.mm(x)

class Norm:
    def __init__(self): self._forward = self._choose()
    def __call__(self, x): return self._forward(x)

class NewWeight:
    def __init__(self):
        self.other = matrix()
"""
_OF_THE_TEMPLATE = {
    Operator.ATTN_NORM: ("_att_norm",), Operator.QKV_PROJ: ("_get_qkv",), Operator.KV_WRITE: ("_copy_kv_to_mem_cache",),
    Operator.ATTENTION: ("_token_attention_kernel",), Operator.O_PROJ: ("_get_o",), Operator.RESIDUAL: ("add_",),
    Operator.FFN_NORM: ("_ffn_norm",), Operator.FFN: ("_ffn",), Operator.OTHER: (),
}  # fmt: skip


def tree(**modules):
    """Return a tree; each keyword is a module below ``lightllm``, with ``__`` for a dot."""
    return Tree({f"lightllm/{name.replace('__', '/')}.py": textwrap.dedent(text) for name, text in modules.items()})


def layers(layer, template=TEMPLATE, weights="", before="", after=""):
    """Return a tree with a model whose layer is this class. ``before``, ``after``: code of a step around all layers."""
    return tree(
        common__basemodel__basemodel=BASE + _STEP.format(before=before or "pass", after=after or "pass"),
        models__new__model=MODEL + _ENDS + weights, models__new__layer=template + layer,
    )  # fmt: skip


def with_row(table, row):
    """Return a tree in which only this row of the slots gives its operator."""
    (name, *_) = row.names
    if table != "LAYER_SLOTS":
        role, side = ("pre", "before") if table == "PRE_SLOTS" else ("post", "after")
        call = f"x = self.{role}_infer.{name}(x)"
        made = layers("class NewLayer(Template): ...", **({} if name in ENTRIES else {side: call}))
        owner = "class NewPost" if role == "pre" else "class Norm"
        model = "lightllm/models/new/model.py"
        paths = dict(made.paths)
        if name not in ENTRIES:
            paths[model] = paths[model].replace(
                f"\n{owner}", f"    def {name}(self, x): return split_kernel(x)\n\n{owner}"
            )
        return Tree(paths)
    parts = _OF_THE_TEMPLATE if row.inside else {**_OF_THE_TEMPLATE, row.operator: row.names}
    lines = ["def __init__(self): self.indexer = Indexer()", "def token_forward(self, x, s, w):"]
    for operator, names in parts.items():
        owner = "x" if operator is Operator.RESIDUAL else "w" if row.on == WEIGHTS and names is row.names else "self"
        lines += [f"    x = {owner}.{each}(x)" for each in names]
    lines += ["    x.add_(x)", "    return x"]
    for name in [each for names in parts.values() for each in names if each.startswith("_")]:
        lines += [f"def {name}(self, x):"]
        lines += [f"    x = self.{row.on}.{each}(x)" for each in row.names if row.inside and "attention" in name]
        lines += ["    return launch(x)"]
    indexer = f"class Indexer:\n    def {row.names[0] if row.inside else 'f'}(self, x): return launch(x)\n"
    weights = "".join(f"        self.{each} = Norm()\n" for each in row.names if row.on == WEIGHTS)
    text = indexer + "class NewLayer:\n" + "\n".join(f"    {line}" for line in lines) + "\n"
    return layers(text, template="", weights=weights)


def version(name, rows):
    """Return a tree in which exactly the rows fit that were seen in this version."""
    place = VERSIONS.index(name)
    modules: dict[str, dict[str, dict[str, set[str]]]] = {}
    for row in rows:
        found = modules.setdefault(row.module, {})
        if not VERSIONS.index(row.since) <= place <= VERSIONS.index(row.until):
            continue
        if isinstance(row, Hook):
            owner, _, method = row.place.partition(".")
            words = {word for each in row.reads for word in each}
            found.setdefault(owner, {}).setdefault(method or "()", set()).update(words)
        elif row.owner in (ENVIRONMENT, OPTIONS):
            prefix = "--" if row.owner == OPTIONS else ""
            found.setdefault("WORDS", {}).setdefault("words", set()).update(
                f"{prefix}{word}" for word in row.attributes
            )
        elif not row.owner:
            for word in row.attributes:
                found.setdefault(word, {}).setdefault("()", set())
        else:
            owner, _, method = row.owner.partition(".")
            found.setdefault(owner, {}).setdefault(method or "fields", set()).update(row.attributes)
    modules.setdefault("lightllm.server.api_cli", {}).setdefault("WORDS", {}).setdefault("words", set())
    if place >= VERSIONS.index("v1.2.0"):
        modules["lightllm.server.api_cli"]["WORDS"]["words"].add("--enable_prefill_cudagraph")
    return Tree({f"{module.replace('.', '/')}.py": _module(owners) for module, owners in modules.items() if owners})


def _module(owners):
    lines = []
    for owner, parts in owners.items():
        if "words" in parts:
            lines += [f"{owner} = {sorted(parts['words'])!r}"]
        elif set(parts) == {"()"} and owner[0].islower():  # behind a first parameter, as sample has them
            lines += [f"def {owner}(first, {', '.join(sorted(parts['()']))}): pass"]
        else:
            lines += [f"class {owner}:", "    pass"]
            for method, names in parts.items():
                if method == "fields":
                    lines += [f"    {name}: object = None" for name in sorted(names)]
                elif method != "()":
                    lines += [f"    def {method}(self, {', '.join(sorted(names))}): pass"]
    return "\n".join(lines) + "\n"
