"""Links between the GPUs of a group, and how long a collective must take over one.

Time of a collective = α per call + α per hop · hops + bytes / β, for each algorithm and protocol; NCCL takes the best.
The latencies are NCCL's own (``ncclTunerConstantsDefaults`` in src/graph/tuning.cc, at 5067397): seconds per call and
per hop of a ring. Its LL protocol sends a flag with every four bytes of data, so half of the bandwidth is left. Where
calibrate has measured a machine, its own α per call stands in the place of both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from lightllm_otel.roofline.gpus import Gpu


@dataclasses.dataclass(frozen=True)
class NcclProtocol:
    name: str
    call_seconds: float
    hop_seconds: dict[str, float]
    bandwidth_share: float


PROTOCOLS = (
    NcclProtocol("LL", 6.6e-6, {"nvlink": 0.6e-6, "pcie": 1.0e-6}, 0.5),
    NcclProtocol("Simple", 8.4e-6, {"nvlink": 3.4e-6, "pcie": 5.7e-6}, 1.0),
)
# A custom all_reduce (vllm, sgl_kernel) over NVLink: one kernel, one exchange of flags, every rank reads all peers' data at once.
# What is left of 512 KiB in a decode step between two H100 without the payload's way (benchmarks/results/links.json, custom);
# for other GPUs and more ranks it is an assumption.
ONE_SHOT_CALL_SECONDS = 5.3e-6


class NoLink(ValueError):
    """The GPU does not have the link that is asked for; the message says what to give instead."""


@dataclasses.dataclass(frozen=True)
class Link:
    """``bytes_per_second``: of one GPU, both directions together, as in data sheets; a collective uses one at a time.

    ``alpha``: operator → measured seconds of a call that moves nothing, between as many ranks as share the link.
    """

    kind: str
    bytes_per_second: float
    alpha: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def one_way(self) -> float:
        return self.bytes_per_second / 2


def link_of(gpu: Gpu, ranks: int, kind: str | None = None) -> Link | None:
    """The fastest link that all ``ranks`` share, or the one that is asked for; None for a single rank.

    Four A40s are two pairs with NVLink, so a group of four crosses PCI Express. Raises NoLink for an NVLink that the
    GPU does not have, and where its file does not know the link.
    """
    if ranks == 1:
        return None
    alpha = dict(gpu.latencies) if ranks == gpu.latency_ranks else {}
    has_nvlink = gpu.nvlink_bytes_per_second > 0 and ranks <= gpu.nvlink_group
    if kind == "nvlink" and gpu.nvlink_bytes_per_second == 0:
        raise NoLink(f"{gpu.name} has no NVLink; give --link pcie")
    if kind == "nvlink" or (kind is None and has_nvlink):
        return Link("nvlink", gpu.nvlink_bytes_per_second, alpha)
    if gpu.pcie_bytes_per_second == 0:
        raise NoLink(
            f"{gpu.source} does not say what the link between its GPUs carries; measure it with lightllm-otel calibrate "
            f"--ranks {ranks}, or write pcie_bytes_per_second into it"
        )
    # What was measured was measured over NVLink, where there is one.
    return Link("pcie", gpu.pcie_bytes_per_second, {} if has_nvlink else alpha)


def traffic(operator: str, payload: float, ranks: int) -> float:
    """Bytes that each rank sends (and receives) in a ring, of a collective with this payload.

    all_reduce: 2(t-1)/t of the payload; all_gather, reduce_scatter and all_to_all: (t-1)/t, where the payload is all of the data
    (nccl-tests, doc/PERFORMANCE.md: the factors of bus bandwidth).
    """
    factor = 2 if operator == "all_reduce" else 1
    return factor * payload * (ranks - 1) / ranks


def hops(operator: str, ranks: int) -> int:
    return (2 if operator == "all_reduce" else 1) * (ranks - 1)


def ring_seconds(operator: str, payload: float, ranks: int, link: Link) -> float:
    """Of one call: as it was measured, or else by the better protocol."""
    sent = traffic(operator, payload, ranks)
    if operator in link.alpha:
        return link.alpha[operator] + sent / link.one_way
    return min(
        protocol.call_seconds + hops(operator, ranks) * protocol.hop_seconds[link.kind]
        + sent / (link.one_way * protocol.bandwidth_share)
        for protocol in PROTOCOLS
    )  # fmt: skip


def one_shot_seconds(payload: float, ranks: int, link: Link) -> float | None:
    """Of one all_reduce in which every rank reads the whole payload of every peer; None over PCI Express: not measured."""
    return ONE_SHOT_CALL_SECONDS + (ranks - 1) * payload / link.one_way if link.kind == "nvlink" else None


def takeover_payload(operator: str, ranks: int, link: Link) -> float:
    """The payload in bytes at which moving it takes as long as all latencies: below it, more bandwidth hardly helps."""
    low, high = 1.0, 1e12
    for _ in range(80):
        middle = (low * high) ** 0.5
        moving = traffic(operator, middle, ranks) / link.one_way
        low, high = (middle, high) if moving < ring_seconds(operator, middle, ranks, link) / 2 else (low, middle)
    return low
