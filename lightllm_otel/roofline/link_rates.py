"""Bandwidth of one NVLink and of one PCI Express lane, by generation and in one direction.

Data sheets of GPUs give the sum over all links and both directions. NVML gives the generation and the number of links.
This table converts between the two.
"""

from __future__ import annotations

import dataclasses

_P100 = "https://images.nvidia.com/content/pdf/tesla/whitepaper/pascal-architecture-whitepaper.pdf"
_V100 = "https://images.nvidia.com/content/volta-architecture/pdf/volta-architecture-whitepaper.pdf"
_A100 = "https://images.nvidia.com/aem-dam/en-zz/Solutions/data-center/nvidia-ampere-architecture-whitepaper.pdf"
_GA102 = "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf"
_H100 = "https://resources.nvidia.com/en-us-tensor-core/gtc22-whitepaper-hopper"
_B200 = "https://resources.nvidia.com/en-us-blackwell-architecture/datasheet"
_PCI_SIG = "https://pcisig.com/specifications"


@dataclasses.dataclass(frozen=True)
class LinkRate:
    """Advertised ``bytes_per_second`` of one NVLink or PCI Express lane in one direction, with the URL of its source."""

    bytes_per_second: float
    source: str


# H800 and A800 have the links of H100 and A100, only fewer of them: NVML counts the links that exist.
NVLINK = {
    1: LinkRate(20e9, _P100),
    2: LinkRate(25e9, _V100),
    3: LinkRate(25e9, _A100),
    4: LinkRate(25e9, _H100),
    5: LinkRate(50e9, _B200),
}
# A40, A6000 and RTX 3090 report generation 3, but have four narrow links of 14.0625 GB/s. A bridge of all four carries
# 56.25 GB/s each way, 112.5 GB/s in total. Four links of an A100 would carry 200 GB/s.
NARROW_NVLINK = LinkRate(14.0625e9, _GA102)
NARROW_CAPABILITY = (8, 6)  # GA102
# NVML reports versions (nvmlNvlinkVersion_t); this maps them to generations.
NVLINK_GENERATION = {1: 1, 2: 2, 3: 2, 4: 3, 5: 3, 6: 4, 7: 5}

PCIE = {
    1: LinkRate(0.25e9, _PCI_SIG),
    2: LinkRate(0.5e9, _PCI_SIG),
    3: LinkRate(1e9, _PCI_SIG),
    4: LinkRate(2e9, _PCI_SIG),
    5: LinkRate(4e9, _PCI_SIG),
    6: LinkRate(8e9, _PCI_SIG),
}


def nvlink_bytes_per_second(generation: int, links: int, capability: tuple[int, int]) -> float:
    """Return the bandwidth of ``links`` NVLinks, both directions together; 0 for an unknown generation.

    ``capability``: the compute capability of the GPU, as ``(major, minor)``.
    """
    rate = NARROW_NVLINK if capability == NARROW_CAPABILITY else NVLINK.get(generation)
    return 2 * links * rate.bytes_per_second if rate is not None else 0.0


def pcie_bytes_per_second(generation: int, width: int) -> float:
    """Return the bandwidth of ``width`` PCI Express lanes, both directions together; 0 for an unknown generation."""
    rate = PCIE.get(generation)
    return 2 * width * rate.bytes_per_second if rate is not None else 0.0
