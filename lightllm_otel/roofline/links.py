"""Links between the GPUs of a group, and the ideal time of a collective over a link.

The model is: seconds = α per call + α per hop · hops + bytes / β, for each NCCL protocol. NCCL chooses the fastest protocol.
The latencies come from NCCL (``ncclTunerConstantsDefaults`` in src/graph/tuning.cc, at commit 5067397): seconds per call and
per hop of a ring. The LL protocol sends a flag with every four bytes of data, so half of the bandwidth is left. If
``lightllm-otel calibrate`` has measured the machine, the measured α per call replaces both latencies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from lightllm_otel.roofline.gpus import Gpu


@dataclasses.dataclass(frozen=True)
class NcclProtocol:
    """Latency and bandwidth of one NCCL protocol in a ring.

    ``call_seconds``: seconds per call. ``hop_seconds``: seconds per hop, by kind of link. ``bandwidth_share``: the share of the
    link's bandwidth that carries data, 0 to 1.
    """

    name: str
    call_seconds: float
    hop_seconds: dict[str, float]
    bandwidth_share: float


PROTOCOLS = (
    NcclProtocol("LL", 6.6e-6, {"nvlink": 0.6e-6, "pcie": 1.0e-6}, 0.5),
    NcclProtocol("Simple", 8.4e-6, {"nvlink": 3.4e-6, "pcie": 5.7e-6}, 1.0),
)
# Latency of a custom all_reduce (vllm, sgl_kernel) over NVLink: one kernel, one exchange of flags, and every rank reads the data
# of all peers at once. It was measured with 512 KiB in decode steps on two H100, less the transfer time of the payload
# (benchmarks/results/links.json, custom). For other GPUs and more ranks it is an assumption.
ONE_SHOT_CALL_SECONDS = 5.3e-6


class NoLink(ValueError):
    """Raised when the GPU does not have the requested link; the message says what to pass instead."""


@dataclasses.dataclass(frozen=True)
class Link:
    """Link that all ranks of a group share.

    ``kind``: ``nvlink`` or ``pcie``. ``bytes_per_second``: bandwidth of one GPU, both directions together, as in data sheets.
    ``alpha``: measured seconds of a call that transfers no data, by operator, between all ranks that share the link.
    """

    kind: str
    bytes_per_second: float
    alpha: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def one_way(self) -> float:
        """Bandwidth in one direction, in bytes per second. This is the one that bounds a collective."""
        return self.bytes_per_second / 2


def link_of(gpu: Gpu, ranks: int, kind: str | None = None) -> Link | None:
    """Return the link of this ``kind``, or the fastest link that all ``ranks`` share; None for a single rank.

    Four A40 are two pairs with NVLink, so a group of four uses PCI Express. Raises NoLink if the GPU has no NVLink, or if its
    file does not give the bandwidth of the link.
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
            f"{gpu.source} does not give the bandwidth between its GPUs; measure it with lightllm-otel calibrate "
            f"--ranks {ranks}, or write pcie_bytes_per_second into it"
        )
    # calibrate measures over NVLink if there is one, so its latencies do not apply to PCI Express then.
    return Link("pcie", gpu.pcie_bytes_per_second, {} if has_nvlink else alpha)


def traffic(operator: str, payload: float, ranks: int) -> float:
    """Return the bytes that each rank sends (and receives) in a ring collective. ``payload``: bytes.

    For t ranks, all_reduce sends 2(t-1)/t of the payload. all_gather, reduce_scatter and all_to_all send (t-1)/t; their
    payload is the data of all ranks together. These are the bus bandwidth factors of nccl-tests (doc/PERFORMANCE.md).
    """
    factor = 2 if operator == "all_reduce" else 1
    return factor * payload * (ranks - 1) / ranks


def hops(operator: str, ranks: int) -> int:
    """Return the number of ring hops of one collective: 2(t-1) for all_reduce, else t-1, with t ranks."""
    return (2 if operator == "all_reduce" else 1) * (ranks - 1)


def ring_seconds(operator: str, payload: float, ranks: int, link: Link) -> float:
    """Return the seconds of one ring collective. ``payload``: bytes.

    The latency is the measured one if the link has it, else that of the faster NCCL protocol.
    """
    sent = traffic(operator, payload, ranks)
    if operator in link.alpha:
        return link.alpha[operator] + sent / link.one_way
    return min(
        protocol.call_seconds + hops(operator, ranks) * protocol.hop_seconds[link.kind]
        + sent / (link.one_way * protocol.bandwidth_share)
        for protocol in PROTOCOLS
    )  # fmt: skip


def one_shot_seconds(payload: float, ranks: int, link: Link) -> float | None:
    """Return the seconds of an all_reduce in which every rank reads the whole payload of every peer. ``payload``: bytes.

    Return None over PCI Express, where its latency was not measured.
    """
    return ONE_SHOT_CALL_SECONDS + (ranks - 1) * payload / link.one_way if link.kind == "nvlink" else None


def takeover_payload(operator: str, ranks: int, link: Link) -> float:
    """Return the payload in bytes whose transfer takes as long as all latencies. Below it, more bandwidth hardly helps."""
    low, high = 1.0, 1e12
    for _ in range(80):
        middle = (low * high) ** 0.5
        moving = traffic(operator, middle, ranks) / link.one_way
        low, high = (middle, high) if moving < ring_seconds(operator, middle, ranks, link) / 2 else (low, middle)
    return low
