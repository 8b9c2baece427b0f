"""Rows of metrics: label values in the order of the table, and the value."""

from __future__ import annotations

from typing import Union

from lightllm_otel.exporter.hardware import Hardware
from lightllm_otel.records.vocabulary import Implementation, Operator, Phase, Scope, Site
from lightllm_otel.reduce.collectives import Collectives
from lightllm_otel.reduce.histogram import Histogram

Value = Union[float, Histogram, None]
Row = tuple[tuple[str, ...], Value]
"""Label values in the order of the metric's table row, and the value; None for infos."""


def of_collectives(found: Collectives) -> dict[str, list[Row]]:
    """Return the rows of the metrics on collectives."""
    name = "lightllm_gpu_collective"
    stable = [(at, window.stability) for at, window in sorted(found.windows.items())]
    return {
        f"{name}_transfer_seconds": [(_at(*at), histogram) for at, histogram in sorted(found.transfer.items())],
        f"{name}_wait_seconds": [(_at(*at), histogram) for at, histogram in sorted(found.wait.items())],
        f"{name}_rank_wait_seconds_total": [
            ((*_at(site, phase), str(rank)), waited)
            for (site, phase, rank), waited in sorted(found.wait_seconds.items())
        ],
        f"{name}_last_arrivals_total": [
            ((*_at(site, phase), str(rank)), times)
            for (site, phase, rank), times in sorted(found.last_arrivals.items())
        ],
        f"{name}_payload_bytes_total": [
            ((Operator.of(operator).value, *_at(site, phase), Implementation.of(how).value), amount)
            for (operator, site, phase, how), amount in sorted(found.payload_bytes.items())
        ],
        f"{name}_bus_bytes_total": [(_at(*at), amount) for at, amount in sorted(found.bus_bytes.items())],
        f"{name}_variation_ratio": [(_at(*at), each.variation) for at, each in stable if each is not None],
        f"{name}_tail_ratio": [(_at(*at), each.tail) for at, each in stable if each is not None],
        f"{name}_local_minimum_seconds_total": [
            ((*_at(*at), Scope.NODE.value), seconds) for at, seconds in sorted(found.local_seconds.items())
        ],
        f"{name}_local_calls_total": [
            ((*_at(*at), Scope.NODE.value), calls) for at, calls in sorted(found.local_calls.items())
        ],
    }  # fmt: skip


def of_hardware(hardware: Hardware) -> dict[str, list[Row]]:
    """Return the rows of the metrics on the state of the GPUs."""
    states = [(str(rank), state) for rank, state in sorted(hardware.states.items())]
    clocks = [((rank, "sm"), state.sm_hertz) for rank, state in states]
    clocks += [((rank, "memory"), state.memory_hertz) for rank, state in states]
    errors = [((rank, "nvlink"), state.nvlink_errors) for rank, state in states]
    errors += [((rank, "pcie"), state.pcie_errors) for rank, state in states]
    return {
        "lightllm_gpu_clock_hertz": [*clocks],
        "lightllm_gpu_temperature_celsius": [((rank,), state.celsius) for rank, state in states],
        "lightllm_gpu_power_watts": [((rank,), state.watts) for rank, state in states],
        "lightllm_gpu_throttled_seconds_total": [
            ((str(rank), reason.value), seconds) for (rank, reason), seconds in sorted(hardware.throttled.items())
        ],
        "lightllm_gpu_link_errors_total": [*errors],
    }


def _at(site: int, phase: int) -> tuple[str, str]:
    return Site.of(site).value, Phase.of(phase).value
