"""The table of all metrics: name, kind, labels, help, and what they are called over OTLP. Exporters, documentation and
dashboards derive from it.
"""

from __future__ import annotations

import dataclasses

COUNTER, GAUGE, HISTOGRAM, INFO = "counter", "gauge", "histogram", "info"


@dataclasses.dataclass(frozen=True)
class Metric:
    """``name`` as Prometheus shows it (counters with ``_total``, infos with ``_info``); the unit is part of it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str

    @property
    def unit(self) -> str:
        """As OpenTelemetry has it (UCUM); empty for what is counted."""
        return next((unit for suffix, unit in UNITS if self._base.endswith(suffix)), "")

    @property
    def otlp(self) -> str:
        """The name over OTLP. A receiver that translates to Prometheus' names, as collectors do, gets ``name`` again."""
        base = self._base
        base = next((base[: -len(suffix)] for suffix, _ in UNITS if base.endswith(suffix)), base)
        space = next((space for space in NAMESPACES if base.startswith(f"{space}_")), "lightllm")
        return f"{space.replace('_', '.')}.{base[len(space) + 1 :]}"

    @property
    def _base(self) -> str:
        return self.name[: -len("_total")] if self.kind == COUNTER else self.name


# The longer one first, where one ends like another.
UNITS = (
    ("_bytes_per_second", "By/s"), ("_seconds", "s"), ("_bytes", "By"), ("_ratio", "1"), ("_hertz", "Hz"), ("_celsius", "Cel"),
    ("_watts", "W"),
)  # fmt: skip
NAMESPACES = (
    "lightllm_gpu_operator", "lightllm_gpu_step", "lightllm_gpu_collective", "lightllm_gpu_peak", "lightllm_gpu",
    "lightllm_otel", "lightllm_server",
)  # fmt: skip

METRICS = (
    Metric("lightllm_gpu_operator_duration_seconds", HISTOGRAM, ("operator", "phase", "mode"),
           "GPU time of one call of an operator on one rank, in sampled steps; gap is what is left of a step."),
    Metric("lightllm_gpu_operator_seconds_total", COUNTER, ("operator", "phase", "rank"),
           "GPU time of an operator in sampled steps, per rank."),
    Metric("lightllm_gpu_operator_estimated_seconds_total", COUNTER, ("operator", "phase"),
           "GPU time of an operator in all steps of all ranks: shares of recent samples of that size times whole-step seconds. "
           "Time of steps that no sample speaks for is unattributed. Sums to the seconds of the steps."),
    Metric("lightllm_gpu_operator_compared_seconds_total", COUNTER, ("operator", "phase"),
           "GPU time of an operator in those sampled steps that have an expectation and in which it did not wait for the host."),
    Metric("lightllm_gpu_operator_expected_seconds_total", COUNTER, ("operator", "phase"),
           "What the operator was expected to take in the same steps: learned once for each load, then frozen. Compared by "
           "expected is the slowdown, which load does not move."),
    Metric("lightllm_gpu_operator_flops_total", COUNTER, ("operator", "phase"),
           "Operations that an operator had to do in all steps, all ranks together, by the analytic model (a multiply-add is "
           "two); requests of a prefill taken as equally long. Divide by the estimated seconds."),
    Metric("lightllm_gpu_operator_memory_bytes_total", COUNTER, ("operator", "phase"),
           "Bytes that an operator had to move in all steps, all ranks together, by the analytic model."),
    Metric("lightllm_gpu_operator_starved_seconds_total", COUNTER, ("operator", "phase"),
           "Part of the operator's time in sampled eager steps in which the GPU had to wait for the host at its start."),
    Metric("lightllm_gpu_step_duration_seconds", HISTOGRAM, ("phase", "mode"),
           "GPU time from the entry of a forward to the end of sampling; every step, each rank an observation."),
    Metric("lightllm_gpu_step_tokens_total", COUNTER, ("phase",),
           "New tokens computed, health checks and padding not counted."),
    Metric("lightllm_gpu_step_requests_total", COUNTER, ("phase",),
           "Requests in steps, summed over steps, health checks and padding not counted."),
    Metric("lightllm_gpu_idle_seconds_total", COUNTER, ("reason", "rank"),
           "Time between the end of a step and the start of the next one, by what the GPU waited for."),
    Metric("lightllm_gpu_step_in_flight_seconds", GAUGE, ("rank",),
           "How long the step that is now on the GPU has been there; 0 when none is."),
    Metric("lightllm_gpu_step_number", GAUGE, ("rank",), "Number of the step that is or was last on the GPU."),
    Metric("lightllm_gpu_collective_transfer_seconds", HISTOGRAM, ("site", "phase"),
           "Shortest time of one collective over the ranks of its group, in sampled steps: what moving the data took. Biased"
           " low by noise, the more the more ranks there are, by less than lightllm_otel_collective_noise_seconds. Without calls "
           "whose last rank is not known, or had a GPU that waited for its host."),
    Metric("lightllm_gpu_collective_wait_seconds", HISTOGRAM, ("site", "phase"),
           "What a rank's collective took beyond the shortest, each rank an observation: it waited for the last rank. Without "
           "the time that its own launching may have taken."),
    Metric("lightllm_gpu_collective_rank_wait_seconds_total", COUNTER, ("site", "phase", "rank"),
           "Time that a rank waited in collectives for the others, at least; only waits above the noise."),
    Metric("lightllm_gpu_collective_last_arrivals_total", COUNTER, ("site", "phase", "rank"),
           "Collectives to which this rank is known to have come last while all others waited longer than the noise. Not of the "
           "embedding's, whose wait is that for the host's wake-up."),
    Metric("lightllm_gpu_collective_payload_bytes_total", COUNTER, ("operator", "site", "phase", "implementation"),
           "Bytes of the collectives whose transfer is known, each call of the group once, by who moved them. Divided by the "
           "seconds of that transfer: nccl-tests' algorithm bandwidth."),
    Metric("lightllm_gpu_collective_bus_bytes_total", COUNTER, ("site", "phase"),
           "The same by nccl-tests' factors: all_reduce times 2(n-1)/n, the others times (n-1)/n. Divided by the seconds of "
           "their transfer: bus bandwidth, to be compared with half of lightllm_gpu_peak_link_bytes_per_second."),
    Metric("lightllm_gpu_collective_variation_ratio", GAUGE, ("site", "phase"),
           "Standard deviation by mean of the last transfers (4096 at most), each against the median of its payload size."),
    Metric("lightllm_gpu_collective_tail_ratio", GAUGE, ("site", "phase"),
           "99th percentile by median of the same transfers."),
    Metric("lightllm_gpu_collective_local_minimum_seconds_total", COUNTER, ("site", "phase", "scope"),
           "Of a group that spans hosts: shortest time of each collective over the ranks of this host alone, which is no "
           "transfer."),
    Metric("lightllm_gpu_collective_local_calls_total", COUNTER, ("site", "phase", "scope"),
           "How many collectives that is the sum of."),
    Metric("lightllm_gpu_peak_flops", GAUGE, (), "Dense 16-bit tensor FLOP/s of one GPU of the server, by its data sheet."),
    Metric("lightllm_gpu_peak_memory_bytes_per_second", GAUGE, (), "Memory bandwidth of one GPU, by its data sheet."),
    Metric("lightllm_gpu_peak_link_bytes_per_second", GAUGE, ("link",),
           "Bandwidth of one GPU on the link that the ranks share, both directions together: what NVML counts of it "
           "times what its generation carries."),
    Metric("lightllm_server_info", INFO,
           ("server", "model", "gpu", "tp", "dp", "dp_rank", "dtype", "link", "scope", "level", "clock", "lightllm",
            "torch", "cuda", "plugin"),
           "What is served, under which name (LIGHTLLM_OTEL_SERVER), on what, and by which versions."),
    Metric("lightllm_gpu_info", INFO, ("rank", "uuid", "name", "nvlink", "pcie", "path"),
           "Which GPU a rank uses; its NVLinks into the group and its PCI Express (generation x number), and the longest way to "
           "another GPU of the group: PIX, PXB, PHB, NODE or SYS, as nvidia-smi topo has it."),
    Metric("lightllm_gpu_clock_hertz", GAUGE, ("rank", "clock"), "Clock of a rank's GPU: sm or memory."),
    Metric("lightllm_gpu_temperature_celsius", GAUGE, ("rank",), "Temperature of a rank's GPU."),
    Metric("lightllm_gpu_power_watts", GAUGE, ("rank",), "Power that a rank's GPU draws."),
    Metric("lightllm_gpu_throttled_seconds_total", COUNTER, ("rank", "reason"),
           "Time in which the clock of a rank's GPU was held down by heat, its power limit, or the board, read once a second."),
    Metric("lightllm_gpu_link_errors_total", COUNTER, ("rank", "link"),
           "Errors on a GPU's NVLinks (CRC, replays, recoveries) and replays on its PCI Express, since its driver was loaded."),
    Metric("lightllm_otel_slot_installed", GAUGE, ("operator",),
           "1 when the operator was found in the model and is timed on every rank, else 0."),
    Metric("lightllm_otel_feature_available", GAUGE, ("feature",),
           "1 when this LightLLM has everything that the feature needs, else 0; lightllm-otel doctor says what is not there."),
    Metric("lightllm_otel_steps_sampled_total", COUNTER, (), "Steps whose operators were timed, over all ranks."),
    Metric("lightllm_otel_records_dropped_total", COUNTER, ("reason",), "Steps or their operators that were lost."),
    Metric("lightllm_otel_steps_whole_only_total", COUNTER, ("reason",),
           "Sampled steps for which only the total step time could be measured: the graph is not instrumented, "
           "microbatches overlap, or (draft) the step is a draft model's."),
    Metric("lightllm_otel_instrumented_graphs", GAUGE, (), "Batch sizes with an instrumented graph on every rank."),
    Metric("lightllm_otel_distortion_ratio", GAUGE, (),
           "Mean time of decode steps in instrumented graphs, divided by that of their neighbours of the same batch "
           "in plain graphs."),
    Metric("lightllm_otel_steps_unmatched_total", COUNTER, ("reason",),
           "Sampled steps whose collectives were not compared over the ranks, because they did not belong together: a rank "
           "lacked the step, was late, had restarted, or computed something different."),
    Metric("lightllm_otel_collective_noise_seconds", GAUGE, ("mode",),
           "Waits up to this are taken for noise: four steps of the clock and the cost of a boundary, as calibrated."),
    Metric("lightllm_otel_errors_total", COUNTER, ("stage",),
           "Failures of the plugin; none of them reached the server. activate, patch, measure and ring are of the model "
           "processes; the others are parts of the exporter, shown once they have failed."),
    Metric("lightllm_otel_hook_seconds_total", COUNTER, (),
           "CPU time of the model threads spent in the plugin, over all ranks."),
    Metric("lightllm_otel_clock_quantum_seconds", GAUGE, ("mode",),
           "The step of the GPU clock that is used in steps of this mode."),
    Metric("lightllm_otel_boundary_cost_seconds", GAUGE, ("mode",),
           "GPU time that a boundary adds to an interval; subtracted. Of the dearer kind where a graph has two."),
    Metric("lightllm_otel_export_errors_total", COUNTER, (),
           "Batches of metrics or spans that no receiver took: it refused them, was gone, or was too slow; the log says which. "
           "Only where the OTEL_* variables ask for a receiver."),
    Metric("lightllm_otel_spans_dropped_total", COUNTER, ("reason",),
           "Spans, or notes for them, that were lost; reasons that have occurred."),
    Metric("lightllm_otel_data_age_seconds", GAUGE, (), "Age of the oldest step that is not counted yet; 0 when all are."),
)  # fmt: skip
BY_NAME = {metric.name: metric for metric in METRICS}
