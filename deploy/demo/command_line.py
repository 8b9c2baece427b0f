"""The command line for a LightLLM server, with the options that this LightLLM knows and no others."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

OLD_CPU = "--max_total_token_num 9000 --max_req_input_len 200 --max_req_total_len 400 --tokenizer_mode auto"
# A LightLLM that has no such option is started without it.
NEW_CPU = (
    "--max_total_token_num 9000 --max_req_total_len 400 --chunked_prefill_size 128 --batch_max_tokens 128"
    " --running_max_req_size 16 --data_type float32"
    " --llm_prefill_att_backend triton --llm_decode_att_backend triton --disable_cudagraph"
)
OLD_GPU = "--max_total_token_num 60000 --max_req_input_len 2048 --max_req_total_len 4096 --tokenizer_mode auto"
NEW_GPU = "--max_total_token_num 60000 --max_req_total_len 4096 --data_type fp16 --graph_max_batch_size 32"
FLAGS = {("old", True): OLD_CPU, ("new", True): NEW_CPU, ("old", False): OLD_GPU, ("new", False): NEW_GPU}
# A larger batch is computed without a graph. LightLLM need not try out all_reduces that there cannot be.
GRAPHS_ON_CPU = ["--graph_max_batch_size", "2", "--disable_flashinfer_allreduce", "--disable_symm_mem_allreduce"]

API = Path("server", "api_cli.py")


def options_of(package: Path) -> dict[str, object]:
    """Return option → default of api_server's parser, read from the source of the package ``lightllm``.

    The default is None where there is none, or where it is no literal. Empty for LightLLM 0.0.1, which has no such file.
    """
    path = package / API
    if not path.exists():
        return {}
    options: dict[str, object] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if node.func.attr != "add_argument" or not node.args:
            continue
        name = node.args[0]
        if isinstance(name, ast.Constant) and str(name.value).startswith("--"):
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            default = given.get("default")
            options[str(name.value)] = default.value if isinstance(default, ast.Constant) else None
    return options


def package_of(python: str, source: Path | None) -> Path:
    """Return the folder of the package ``lightllm`` that this interpreter would import, ``source`` first on its path."""
    if source is not None:
        return source / "lightllm"
    probe = "import importlib.util; print(*importlib.util.find_spec('lightllm').submodule_search_locations)"
    done = subprocess.run([python, "-c", probe], check=False, capture_output=True, text=True)
    return Path(done.stdout.strip() or "lightllm")


def known(words: list[str], options: Mapping[str, object]) -> list[str]:
    """Return the words without the options that are not among ``options``, and without their values."""
    kept, keep = [], True
    for word in words:
        if word.startswith("--"):
            keep = word in options
        if keep:
            kept.append(word)
    return kept


def flags(
    version: str, cpu: bool, graphs: bool, options: Mapping[str, object], nccl_port: int | None, port: Callable[[], int]
) -> list[str]:
    """Return the options behind model, address and ``--tp``. ``port`` returns a free port at each call."""
    words = FLAGS[version, cpu].split()
    if version == "old":
        return ["--nccl_port", str(nccl_port), *words]
    if graphs and "--disable_cudagraph" in words:
        words[words.index("--disable_cudagraph") :] = GRAPHS_ON_CPU
    if "--visual_nccl_ports" in options:  # its default, 29500, is also many a program's default for something else
        words += ["--visual_nccl_ports", str(port())]
    if nccl_port is not None:
        words += ["--nccl_port", str(nccl_port)]
    return known(words, options)


def chooses_nccl_port(options: Mapping[str, object]) -> bool:
    """Whether a server that is not given ``--nccl_port`` finds a free one; if not, two such servers cannot share a host."""
    return "--nccl_port" in options and options["--nccl_port"] is None
