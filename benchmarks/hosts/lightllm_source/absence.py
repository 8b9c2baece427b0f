"""Finders of what should not be in LightLLM's source: paths beside the hooks, whose time would be counted as their neighbour's.

Each finder yields places, in words that stay the same while the place does. :mod:`rules` says what each of them means.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from lightllm_source.calls import flow_of
from lightllm_source.forward import BASE_MODEL
from lightllm_source.scan import Scan
from lightllm_source.syntax import Class, dotted
from lightllm_source.tree import Tree

BACKEND = "lightllm.server.router.model_infer.mode_backend"
GROUP = ("lightllm.distributed.communication_op", "CustomProcessGroup")
_GRAPH_FILE = re.compile(r"lightllm/common/basemodel/\w+\.py|lightllm/.*graph.*\.py")
_CAPTURES = re.compile(r"_?capture_\w+")
_PIECES = re.compile(r"\w*graph_add_\w*func")


def forward_without_hook(scan: Scan) -> Iterator[str]:
    """Ways into a model's forward, taken by the code that runs steps, that are not hooked."""
    base = scan.tree.find(*BASE_MODEL)
    for path in sorted(scan.tree.paths):
        if path.startswith(BACKEND.replace(".", "/")) and path.endswith(".py"):
            for call in calls_of(scan, path[:-3].replace("/", ".")):
                before, _, last = call.rpartition(".")
                place = f"{BASE_MODEL[1]}.{last}"
                runs = before.endswith("model") and re.search("forward|microbatch", last) is not None
                if runs and base is not None and scan.tree.has(base, last) and place not in scan.assumed.hooked:
                    yield place


def calls_of(scan: Scan, module: str) -> Iterator[str]:
    """Yield what the functions and methods of a module call."""
    content = scan.tree.module(module)
    if content is not None:
        methods = [method for each in content.classes.values() for method in each.methods.values()]
        for function in (*content.functions.values(), *methods):
            yield from filter(None, flow_of(function).calls)


def graph_without_hook(scan: Scan) -> Iterator[str]:
    """Classes that capture CUDA graphs of a forward, without a hook at what captures or replays them."""
    for made, capturing in graph_classes(scan.tree):
        if not any(f"{made.name}.{name}" in scan.assumed.hooked for name in made.methods):
            yield f"{made.name}: {', '.join(capturing)}"


def graph_classes(tree: Tree) -> Iterator[tuple[Class, list[str]]]:
    """Yield the classes that capture graphs of a forward, and their methods that do."""
    for path in sorted(tree.paths):
        if _GRAPH_FILE.fullmatch(path):
            content = tree.module(path[:-3].replace("/", "."))
            for made in content.classes.values() if content is not None else ():
                capturing = sorted(name for name in made.methods if _CAPTURES.fullmatch(name))
                words = [made.name, *(call for name in capturing for call in flow_of(made.methods[name]).calls)]
                if capturing and any("graph" in word.lower() for word in words):
                    yield made, capturing


def piece_of_graph(scan: Scan) -> Iterator[str]:
    """Modules of layers whose graphs come back to Python for a part of a layer: between these the graph looks like that part."""
    for module in sorted({owner.module for model in scan.models for owner in scan.tree.mro(model.roles.layer)}):
        content = scan.tree.module(module)
        if content is not None and any(_PIECES.fullmatch(called) for called, _ in content.passed):
            yield module


def back_reference(scan: Scan) -> Iterator[str]:
    """Objects on the state of a forward that refer back to it: a shallow copy of the state shares them."""
    for path in sorted(scan.tree.paths):
        if path.startswith("lightllm/common/basemodel/attention/") and path.endswith(".py"):
            content = scan.tree.module(path[:-3].replace("/", "."))
            for made in content.classes.values() if content is not None else ():
                if {"infer_state", "infer_struct"} & {*made.values, *made.instance}:
                    yield made.name


def decode_without_tokens(scan: Scan) -> Iterator[str]:
    """Decode steps whose ``input_ids`` are None when the forward is entered."""
    content = scan.tree.module(f"{BACKEND}.generic_pre_process")
    for name, function in content.functions.items() if content is not None else ():
        for call in (each for each in ast.walk(function) if isinstance(each, ast.Call)):
            if dotted(call.func) == "ModelInput":
                given = {word.arg: word.value for word in call.keywords}
                tokens = given.get("input_ids", ast.Constant(value=None))
                if isinstance(tokens, ast.Constant) and tokens.value is None:
                    yield name


def port_unknown(scan: Scan) -> Iterator[str]:
    """Servers whose ``nccl_port`` is not in the arguments that every process of theirs has."""
    if _default(scan.tree, "nccl_port") is None and not _assigns(scan.tree, "nccl_port"):
        yield "nccl_port is None unless it is given"


def port_changes(scan: Scan) -> Iterator[str]:
    """Servers whose ``nccl_port`` is another free port at each start."""
    if _default(scan.tree, "nccl_port") is None and _assigns(scan.tree, "nccl_port"):
        yield "nccl_port is a free port, another one at each start"


def _default(tree: Tree, name: str) -> Any:
    """Return the default of an option of the server; a number where the tree has no such option."""
    for module in ("lightllm.server.api_cli", "lightllm.server.api_server"):
        content = tree.module(module)
        for call in (each for part in (content.body if content else ()) for each in ast.walk(part)):
            if isinstance(call, ast.Call) and dotted(call.func).endswith("add_argument") and call.args:
                option = call.args[0]
                if isinstance(option, ast.Constant) and option.value == f"--{name}":
                    given = {word.arg: word.value for word in call.keywords}.get("default", ast.Constant(value=None))
                    return given.value if isinstance(given, ast.Constant) else dotted(given)
    return 0


def _assigns(tree: Tree, name: str) -> bool:
    content = tree.module("lightllm.server.api_start")
    targets = [each for part in (content.body if content else ()) for each in ast.walk(part)
               if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store)]  # fmt: skip
    return any(dotted(each) == f"args.{name}" for each in targets)


def transport_not_told(scan: Scan) -> Iterator[str]:
    """Objects that move a collective's data for LightLLM's groups, which the plugin cannot tell from one another."""
    group = scan.tree.find(*GROUP)
    if group is not None and isinstance(group.what, Class):
        for name in scan.assumed.leaves():
            method = group.what.methods.get(name)
            for call in flow_of(method).calls if method is not None else ():
                owner = call.split(".")[1] if call.startswith("self.") and call.count(".") > 1 else ""
                if owner and owner not in scan.assumed.reads(GROUP[1]):
                    yield owner


def work_after_sample(scan: Scan) -> Iterator[str]:
    """Backends whose steps go on on the GPU after ``sample`` has returned, on a stream that nobody waits for."""
    if scan.tree.path(f"{BACKEND}.overlap_events"):
        yield "what follows sample on the overlap stream"


def mixed_batches(scan: Scan) -> Iterator[str]:
    """Prefill steps that decode as well."""
    found = scan.tree.find("lightllm.common.basemodel.batch_objs", "ModelInput")
    if found is not None and scan.tree.has(found, "b_is_decode_req"):
        yield "b_is_decode_req"
