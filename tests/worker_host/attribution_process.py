"""Run the real layers of one LightLLM with all of their calls replaced, and print the operator of each call.

``python attribution_process.py MODE…``, with a LightLLM on the path. A mode is ``tp1``, ``tp2`` or ``tpsp`` (two
ranks that split the tokens), or, with a dense layer only, ``flashinfer`` or ``symm_mem`` (two ranks whose group has
that library) or ``balance`` (two groups that share their prompts). The last line of its output is JSON: mode → class
→ operator → names of what was called, and what doctor would say.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import pkgutil
import sys
import traceback
import types
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

import torch  # noqa: E402
from layer_stubs import LOG, InferState, Memory, Tensor, Weights, allocated, config, kernel  # noqa: E402

from lightllm_otel.contracts.patch_set import PatchSet  # noqa: E402
from lightllm_otel.guard import Guard  # noqa: E402
from lightllm_otel.records.vocabulary import Implementation, Site  # noqa: E402
from lightllm_otel.worker.gpu.boundaries import unpack  # noqa: E402
from lightllm_otel.worker.gpu.boundary_recorder import BoundaryRecorder  # noqa: E402
from lightllm_otel.worker.gpu.clock import HostClock  # noqa: E402
from lightllm_otel.worker.gpu.timer import Timer  # noqa: E402
from lightllm_otel.worker.host import operators  # noqa: E402
from lightllm_otel.worker.host.slots import GROUP_LEAVES, TORCH_LEAVES  # noqa: E402

LAYERS = 2
LIBRARIES = {"flashinfer": "flashinfer_reduce", "symm_mem": "symm_mem_reduce"}
BALANCE = "balance"
KERNELS = ("triton_kernel", "cuda_kernel", "fused_moe")  # in the names of modules
QUANTISED = {"AWquant": "ppl_w8a8", "Wquant": "triton_w8a16", "WQuant": "triton_w8a16"}  # 0.0.1's modes
COLLECTIVES = {leaf.name for leaf in TORCH_LEAVES}
ABSENT = ["torchvision"]
ABSENT_LATER = [
    "deep_gemm",
    "sgl_kernel",
    "lightllm_ppl_int8_kernel",
]  # asked for while a layer runs; at import LightLLM does without them


class Absent(types.ModuleType):
    """Missing package: everything that is imported from it is a kernel with any attribute."""

    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        made = kernel(name)
        made.BICUBIC = made.NEAREST = made.BILINEAR = None
        return made


class AbsentFinder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            return importlib.machinery.ModuleSpec(name, AbsentFinder)
        return None

    @staticmethod
    def create_module(spec):
        return Absent(spec.name)

    @staticmethod
    def exec_module(module):
        pass


class Arguments(types.SimpleNamespace):
    """Start arguments of the server. Those that are not named are off."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return False


class Recorder(BoundaryRecorder):
    """Recorder of boundaries without a clock."""

    def __init__(self, timer, pairs=False):
        super().__init__(4096, pairs)
        self.codes.append(timer.gap)

    def record(self, code):
        self.codes.append(code)


def classes(kind):
    """Return name → class for all classes of this LightLLM's models whose name ends with ``kind``."""
    import lightllm.models

    found = {}
    for package in pkgutil.iter_modules(lightllm.models.__path__):
        for part in ("transformer_layer_infer", "pre_layer_infer", "post_layer_infer"):
            try:
                module = importlib.import_module(f"lightllm.models.{package.name}.layer_infer.{part}")
            except ModuleNotFoundError as missing:
                if not str(missing.name).startswith("lightllm"):
                    raise
                continue
            found.update(
                (f"{package.name}.{name}", each) for name, each in vars(module).items()
                if isinstance(each, type) and kind in name and each.__module__ == module.__name__
            )  # fmt: skip
    return found


def import_kernels():
    """Import all modules of kernels, including those that a layer imports when it runs."""
    import lightllm

    root = Path(lightllm.__path__[0])
    for path in sorted([*root.glob("models/*/triton_kernel/*.py"), *root.glob("common/fused_moe/*.py")]):
        name = ".".join(path.relative_to(root.parent).with_suffix("").parts)
        with contextlib.suppress(ImportError, AttributeError):  # needs a package that is not there
            importlib.import_module(name)


def stub_kernels():
    """Replace every function of a module of kernels, wherever it was imported to."""
    for module in list(sys.modules.values()):
        if not getattr(module, "__name__", "").startswith("lightllm."):
            continue
        for name, value in list(vars(module).items()):
            origin = str(getattr(value, "__module__", "")) if callable(value) and not inspect.isclass(value) else ""
            # What tunes a kernel stands in the kernel's place, and is defined elsewhere.
            tuned = type(value).__name__ == "Autotuner"
            if tuned or (origin.startswith("lightllm.") and any(each in origin for each in KERNELS)):
                setattr(module, name, kernel(name))
            elif origin.startswith("einops"):  # other shapes of a tensor
                setattr(module, name, lambda tensor, *args, **kwargs: tensor)


def stub_host(mode):
    """Replace the process around the layers: ranks, arguments, memory, torch's collectives."""
    ranks = 1 if mode == "tp1" else 2
    arguments = Arguments(
        enable_tpsp_mix_mode=mode == "tpsp", enable_ep_moe=False, mtp_step=0, enable_dp_prefill_balance=False,
        hardware_platform="cuda", data_type="bfloat16",
    )  # fmt: skip
    answers = {
        "get_current_rank_in_dp": lambda: 0, "get_dp_world_size": lambda: ranks, "get_env_start_args": lambda: arguments,
        "get_global_world_size": lambda: ranks, "tensor_to_no_ref_tensor": lambda tensor: tensor,
    }  # fmt: skip
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("lightllm."):
            for name, answer in answers.items():
                if callable(vars(module).get(name)):
                    setattr(module, name, answer)
    for name in ("empty", "zeros", "empty_like"):
        setattr(torch, name, allocated)
    torch.tensor = allocated
    torch.cuda.synchronize = lambda *args: None
    torch.cuda.is_current_stream_capturing = lambda: False
    dist = torch.distributed
    dist.get_rank = lambda *args: 0
    dist.get_world_size = lambda *args, **kwargs: ranks
    for name in COLLECTIVES:
        if not hasattr(getattr(dist, name), "stub"):
            setattr(dist, name, collective(name, getattr(dist, name)))
    return ranks


def collective(name, real):
    def launch(*args, **kwargs):
        LOG.say(name)

    launch.__signature__ = inspect.signature(real)
    launch.stub = True
    return launch


class Library:
    """Library other than torch of LightLLM's group. One of them returns the sum in new memory."""

    def __init__(self, name):
        self.name = name

    def should_use(self, tensor):
        return True

    def all_reduce(self, tensor):
        LOG.say("all_reduce")
        return Tensor()


def group_of(ranks, mode):
    module = sys.modules.get("lightllm.distributed.communication_op")
    if module is None:
        return None, None
    group = object.__new__(module.CustomProcessGroup)
    vars(group).update(
        device_group=None,
        dp_world_size=ranks,
        flashinfer_reduce=None,
        symm_mem_reduce=None,
        custom_reduce=None,
        custom_gather=None,
    )
    if mode in LIBRARIES:
        setattr(group, LIBRARIES[mode], Library(mode))
    return module.CustomProcessGroup, group


def construct(kind, ranks, number=None):
    """Return a layer as the model creates it. The parameters of its constructor differ between versions."""
    quantised = next((mode for name, mode in QUANTISED.items() if name in kind.__name__), None)
    given = {
        "layer_num": number, "network_config": config(LAYERS), "mode": [quantised] if quantised else [], "tp_rank": 0,
        "world_size": ranks,
    }  # fmt: skip
    names = [name for name in inspect.signature(kind.__init__).parameters if name in given]
    layer = kind(**{name: given[name] for name in names})
    layer.alloc_tensor = allocated
    layer.ple_static_buffer = Tensor()
    return layer


def memory_for(layer_class):
    """Return the memory manager that the layer needs."""
    module = sys.modules.get("lightllm.common.kv_cache_mem_manager")
    kind = getattr(module, "Qwen3NextMemManager", None) if "linear" in "".join(dir(layer_class)) else None
    if kind is None:
        return Memory()
    return object.__new__(type("Memory", (Memory, kind), {}))


def norm_class():
    """Return LightLLM's class of norms, if its objects call one of their attributes when they are called."""
    module = sys.modules.get("lightllm.common.basemodel.layer_weights.meta_weights.norm_weight")
    kind = getattr(module, "RMSNormWeight", None)
    return kind if kind is not None and "_forward" in kind.__call__.__code__.co_names else None


def model_of(layer_class, pre_class, post_class, mode, ranks):
    norms = norm_class()
    return types.SimpleNamespace(
        pre_infer=construct(pre_class, ranks), post_infer=construct(post_class, ranks), layers_num=LAYERS,
        layers_infer=[construct(layer_class, ranks, number) for number in range(LAYERS)],
        trans_layers_weight=[Weights(norms) for _ in range(LAYERS)], pre_post_weight=Weights(),
        args=types.SimpleNamespace(enable_dp_prefill_balance=mode == BALANCE, enable_prefill_cudagraph=False), prefill_graph=None,
        is_mtp_mode=False, is_deepseekv3_mtp_mode=False, graph_max_batch_size=2,
        enable_tpsp_mix_mode=mode == "tpsp",
    )  # fmt: skip


def attribution(model, group_class, group):
    """Return operator → names of its calls, in prefill and decode of this model, and the facts for doctor."""
    from lightllm.common.basemodel.basemodel import TpPartBaseModel

    timer, patch_set, guard = Timer(HostClock(), types.SimpleNamespace(fits=4096)), PatchSet(), Guard(strict=True)
    found = operators.install(model, timer, patch_set, guard)
    transport = operators.Transport(lambda: "nccl")
    operators.install_collectives(torch.distributed, TORCH_LEAVES, timer, patch_set, guard, transport)
    if group_class is not None:
        operators.install_collectives(group_class, GROUP_LEAVES, timer, patch_set, guard, transport)
        operators.install_providers(group, timer, patch_set, guard, transport)
    fell, boundaries, moved = {}, {}, set()
    for forward in ("_context_forward", "_token_forward"):
        host = getattr(TpPartBaseModel, forward)
        state = InferState(group, forward == "_context_forward", memory_for(type(model.layers_infer[0])))
        state.need_dp_prefill_balance = state.is_prefill and getattr(model.args, "enable_dp_prefill_balance", False)
        given = [model, Tensor(), state] if len(inspect.signature(host).parameters) > 2 else [model, state]
        # 0.0.1 synchronises between the operators of a prefill.
        pairs = forward == "_context_forward" and not hasattr(model.layers_infer[0], "tp_world_size_")
        recorder = Recorder(timer, pairs)
        LOG.calls, LOG.boundaries = [], lambda recorder=recorder: len(recorder.codes)
        timer.recorder = recorder
        try:
            host(*given)
        finally:
            timer.recorder = None
        recorder.record(timer.gap)
        boundaries[forward] = len(recorder.codes)
        for at, packed in recorder.payloads:
            payload, how = unpack(packed)
            assert payload > 0
            moved.add(f"{named(timer, recorder.codes[at])} {Implementation.of(how)}")
        for name, at in LOG.calls:
            fell.setdefault(named(timer, recorder.codes[at]), set()).add(name)
    patch_set.undo()
    return {
        "operators": {operator: sorted(names) for operator, names in fell.items()},
        "layers": found.layers, "boundaries": boundaries, "moved": sorted(moved),
        "missing": [operator for operator, state in found.items() if state != operators.INSTALLED],
    }  # fmt: skip


def named(timer, code):
    boundary = timer.boundary_codes.boundary(code)
    return (
        f"{boundary.operator.value} {boundary.site.value}"
        if boundary.site is not Site.NONE
        else boundary.operator.value
    )


def main():
    sys.meta_path.append(AbsentFinder)
    torch.cuda.get_device_name = lambda *args: "none"
    torch.cuda.get_device_capability = lambda *args: (9, 0)
    with contextlib.suppress(ModuleNotFoundError):  # None where there is no GPU, which older versions put into a path
        importlib.import_module("lightllm.utils.device_utils").get_current_device_name = lambda: "none"
    layers, pres, posts = (classes(kind) for kind in ("TransformerLayerInfer", "PreLayerInfer", "PostLayerInfer"))
    importlib.import_module("lightllm.common.basemodel.basemodel")
    import_kernels()
    stub_kernels()
    ABSENT.extend(ABSENT_LATER)
    llama = [
        kinds[f"llama.Llama{part}LayerInfer"]
        for kinds, part in ((layers, "Transformer"), (pres, "Pre"), (posts, "Post"))
    ]
    said = {}
    for mode in sys.argv[1:]:
        ranks = stub_host(mode)
        group_class, group = group_of(ranks, mode)
        said[mode] = {
            name: attempt([*llama[:at], kind, *llama[at + 1 :]], mode, ranks, group_class, group)
            for at, kinds in enumerate((layers, pres, posts)) for name, kind in kinds.items()
            if (mode not in LIBRARIES and mode != BALANCE) or name == "llama.LlamaTransformerLayerInfer"
        }  # fmt: skip
    print(json.dumps(said))


def attempt(kinds, mode, ranks, group_class, group):
    try:
        return attribution(model_of(*kinds, mode, ranks), group_class, group)
    except Exception as error:  # noqa: BLE001 - the test says of which classes that is known
        places = [each for each in traceback.extract_tb(error.__traceback__) if "/lightllm/" in each.filename]
        place = f"{places[-1].filename.rsplit('/lightllm/', 1)[-1]}:{places[-1].lineno}" if places else ""
        return {"failed": f"{type(error).__name__}: {error} ({place})"}


if __name__ == "__main__":
    main()
