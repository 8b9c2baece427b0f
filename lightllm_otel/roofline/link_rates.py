"""The table of links: what one NVLink and one lane of PCI Express carry, by generation, in one direction.

Data sheets of GPUs give all their links and both directions together; NVML gives generation and number. This is what
lies between the two.
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
    """``bytes_per_second`` of one link or lane in one direction, as it is advertised."""

    bytes_per_second: float
    source: str


# H800 and A800 have the links of H100 and A100, only fewer of them: NVML counts those that are there.
NVLINK = {
    1: LinkRate(20e9, _P100),
    2: LinkRate(25e9, _V100),
    3: LinkRate(25e9, _A100),
    4: LinkRate(25e9, _H100),
    5: LinkRate(50e9, _B200),
}
# A40, A6000, RTX 3090: third generation by name, with four narrow links of 14.0625 GB/s. A bridge of all four carries
# 56.25 GB/s each way, 112.5 GB/s in all: not 200, as four of A100's would.
NARROW_NVLINK = LinkRate(14.0625e9, _GA102)
NARROW_CAPABILITY = (8, 6)  # GA102
# What NVML calls versions (nvmlNvlinkVersion_t), as generations.
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
    """Of so many links, both directions together; 0 for a generation that is not in the table."""
    rate = NARROW_NVLINK if capability == NARROW_CAPABILITY else NVLINK.get(generation)
    return 2 * links * rate.bytes_per_second if rate is not None else 0.0


def pcie_bytes_per_second(generation: int, width: int) -> float:
    """Of so many lanes, both directions together; 0 for a generation that is not in the table."""
    rate = PCIE.get(generation)
    return 2 * width * rate.bytes_per_second if rate is not None else 0.0
