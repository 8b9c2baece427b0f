"""GPU table. Each row comes from a data sheet; a JSON file can describe a GPU that the table lacks.

FLOP/s are dense tensor FLOP/s in fp16 or bf16 with fp32 accumulation, never the figures with sparsity. NVLink bandwidth is in
bytes per second of one GPU, both directions together, as data sheets give it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

_NVIDIA = "https://www.nvidia.com/content/dam/en-zz/Solutions/"
_A100 = _NVIDIA + "Data-Center/a100/pdf/nvidia-a100-datasheet.pdf"
_A40 = _NVIDIA + "Data-Center/a40/proviz-print-nvidia-a40-datasheet.pdf"
_A10 = _NVIDIA + "Data-Center/a10/pdf/a10-datasheet.pdf"
_T4 = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/tesla-t4/t4-tensor-core-product-brief.pdf"
_V100 = "https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf"
_L4 = _NVIDIA + "data-center/l4/nvidia-l4-datasheet.pdf"
_L40S = _NVIDIA + "design-visualization/support-guide/NVIDIA-L40S-Datasheet.pdf"
_H100 = "https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet"
_H200 = "https://nvdam.widen.net/s/nb5zzzsjdf/hpc-datasheet-sc23-h200-datasheet-3002446"
_B200 = "https://resources.nvidia.com/en-us-blackwell-architecture/datasheet"
_AMPERE = "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf"
_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
GEN3, GEN4, GEN5 = 32e9, 64e9, 128e9  # PCI Express x16, both directions, PCI-SIG's raw rates


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Peak rates and memory of one GPU model.

    ``flops``: FLOP per second. ``memory_bytes``: bytes. ``*_bytes_per_second``: bytes per second; links count both directions.
    ``nvlink_group``: the number of GPUs that NVLink connects (a bridge connects two). ``words``: the words of NVML's device name
    that identify this GPU; all of them must occur. ``source``: the URL of the data sheet, or the path of the file.
    ``latencies``: pairs of operator and seconds of a call that transfers no data, between ``latency_ranks`` GPUs. Only
    ``lightllm-otel calibrate`` measures them; data sheets have none.
    """

    name: str
    flops: float
    memory_bytes_per_second: float
    memory_bytes: float
    nvlink_bytes_per_second: float
    nvlink_group: int
    pcie_bytes_per_second: float
    words: tuple[str, ...]
    source: str
    latencies: tuple[tuple[str, float], ...] = ()
    latency_ranks: int = 0


class UnknownGpu(LookupError):
    """Raised when a GPU is neither in the table nor in a readable file; the message says what to do."""


GPUS = (
    Gpu("A100-SXM-40GB", 312e12, 1.555e12, 40e9, 600e9, 8, GEN4, ("A100", "SXM4", "40GB"), _A100),
    Gpu("A100-SXM-80GB", 312e12, 2.039e12, 80e9, 600e9, 8, GEN4, ("A100", "SXM4", "80GB"), _A100),
    Gpu("A100-PCIE-40GB", 312e12, 1.555e12, 40e9, 600e9, 2, GEN4, ("A100", "PCIE", "40GB"), _A100),
    Gpu("A100-PCIE-80GB", 312e12, 1.935e12, 80e9, 600e9, 2, GEN4, ("A100", "80GB", "PCIE"), _A100),
    # One bridge carries 56.25 GB/s each way, half of what NVLink 3 suggests.
    Gpu("A40", 149.7e12, 0.696e12, 48e9, 112.5e9, 2, GEN4, ("A40",), _A40),
    Gpu("A10", 125e12, 0.600e12, 24e9, 0.0, 1, GEN4, ("A10",), _A10),
    Gpu("T4", 65e12, 0.320e12, 16e9, 0.0, 1, GEN3, ("T4",), _T4),
    Gpu("V100-SXM2", 125e12, 0.900e12, 32e9, 300e9, 8, GEN3, ("V100", "SXM2"), _V100),
    Gpu("V100-PCIE", 112e12, 0.900e12, 32e9, 0.0, 1, GEN3, ("V100", "PCIE"), _V100),
    Gpu("L4", 121e12, 0.300e12, 24e9, 0.0, 1, GEN4, ("L4",), _L4),
    Gpu("L40S", 362e12, 0.864e12, 48e9, 0.0, 1, GEN4, ("L40S",), _L40S),
    Gpu("H20", 148e12, 4.0e12, 96e9, 900e9, 8, GEN5, ("H20",), "https://www.techpowerup.com/gpu-specs/h20.c4286"),
    Gpu("H100-SXM", 989.4e12, 3.35e12, 80e9, 900e9, 8, GEN5, ("H100", "HBM3"), _H100),
    Gpu("H100-PCIE", 756e12, 2.0e12, 80e9, 600e9, 2, GEN5, ("H100", "PCIE"), _H100),
    Gpu("H200", 989.4e12, 4.8e12, 141e9, 900e9, 8, GEN5, ("H200",), _H200),
    Gpu("H800", 989.4e12, 3.35e12, 80e9, 400e9, 8, GEN5, ("H800",), "https://www.techpowerup.com/gpu-specs/h800-sxm5.c3975"),
    Gpu("B200", 2250e12, 8.0e12, 180e9, 1800e9, 8, GEN5, ("B200",), _B200),
    Gpu("RTX-3090", 71e12, 0.936e12, 24e9, 112.5e9, 2, GEN4, ("3090",), _AMPERE),
    Gpu("RTX-4090", 165.2e12, 1.008e12, 24e9, 0.0, 1, GEN4, ("4090",), _ADA),
)  # fmt: skip
BY_NAME = {gpu.name: gpu for gpu in GPUS}
_NUMBERS = ("flops", "memory_bytes_per_second", "memory_bytes", "nvlink_bytes_per_second", "pcie_bytes_per_second")
# calibrate with a single rank has no link to measure, so it writes 0.
_MAY_BE_ZERO = ("nvlink_bytes_per_second", "pcie_bytes_per_second")
_MOST = 1e20  # a larger number is in the wrong unit


def find(name: str) -> Gpu:
    """Return the GPU with this name in the table, with this NVML device name, or from this ``.json`` file.

    The file has the fields of :class:`Gpu`. Raises UnknownGpu.
    """
    if name in BY_NAME:
        return BY_NAME[name]
    if name.endswith(".json"):
        return read(Path(name))
    words = set(name.upper().replace("-", " ").replace("_", " ").split())
    matching = [gpu for gpu in GPUS if set(gpu.words) <= words]
    if matching:
        return max(matching, key=lambda gpu: len(gpu.words))
    raise UnknownGpu(
        f"GPU {name!r} is not known; known: {', '.join(BY_NAME)}. Describe it in a .json file with "
        f"name, {', '.join(_NUMBERS)} and nvlink_group, and pass the path of that file"
    )


def read(path: Path) -> Gpu:
    """Read a GPU from a JSON file. Raises UnknownGpu if the file is unreadable, or if a field is missing or out of range."""
    try:
        given: Any = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UnknownGpu(f"{path} cannot be read as the description of a GPU: {error}") from error
    if not isinstance(given, dict):
        raise UnknownGpu(f"{path} does not describe a GPU: write a JSON object with {', '.join(_NUMBERS)}")
    missing = [field for field in _NUMBERS if not isinstance(given.get(field), (int, float))]
    if missing:
        raise UnknownGpu(f"{path} lacks {', '.join(missing)}: numbers in bytes, bytes per second and FLOP per second")
    wrong = [field for field in _NUMBERS if not (0 if field in _MAY_BE_ZERO else 1) <= given[field] <= _MOST]
    if wrong:
        raise UnknownGpu(
            f"{path} has {wrong[0]} {given[wrong[0]]}, which no GPU has; "
            "write the value in bytes, bytes per second or FLOP per second"
        )
    group = given.get("nvlink_group", 1)
    if not isinstance(group, int) or group < 1:
        raise UnknownGpu(f"{path} has nvlink_group {group!r}; write how many GPUs NVLink connects, or 1 for none")
    ranks = given.get("ranks")
    return Gpu(
        name=str(given.get("name", path.stem)), nvlink_group=group, words=(), source=str(path),
        latencies=_latencies(given.get("collectives"), path), latency_ranks=ranks if isinstance(ranks, int) else 0,
        **{field: float(given[field]) for field in _NUMBERS},
    )  # fmt: skip


def _latencies(collectives: Any, path: Path) -> tuple[tuple[str, float], ...]:
    """Return the latencies that calibrate measured; a file written by hand may have none. Raises UnknownGpu."""
    if not isinstance(collectives, dict):
        return ()
    found = []
    for name, fit in collectives.items():
        seconds = fit.get("alpha_seconds") if isinstance(fit, dict) else None
        if not isinstance(seconds, (int, float)) or not 0 <= seconds < 1:
            raise UnknownGpu(
                f"{path} has no alpha_seconds below one second for {name}; "
                "run calibrate again, or remove collectives from the file"
            )
        found.append((str(name), float(seconds)))
    return tuple(found)
