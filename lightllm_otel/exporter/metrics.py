"""The table of all metrics: name, kind, labels, help, bounds, and the name over OTLP.

Exporters, documentation and dashboards derive from it. docs/metrics-schema.json records it, and docs/metrics.md has the rule
for changes.
"""

from __future__ import annotations

import dataclasses

from lightllm_otel.reduce.histogram import OPERATOR_BOUNDS, STEP_BOUNDS, TRANSFER_BOUNDS, WAIT_BOUNDS

COUNTER, GAUGE, HISTOGRAM, INFO = "counter", "gauge", "histogram", "info"


@dataclasses.dataclass(frozen=True)
class Metric:
    """One row. ``name`` is as Prometheus shows it: counters end with ``_total``, infos with ``_info``, and it contains the unit.

    ``help`` is one sentence, for ``# HELP`` and the description over OTLP. ``detail`` is what docs/metrics.md says beyond it.
    ``bounds``: of a histogram, in seconds.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str
    detail: str = ""
    bounds: tuple[float, ...] = ()

    @property
    def unit(self) -> str:
        """Return the unit as OpenTelemetry writes it (UCUM); empty for counts."""
        return next((unit for suffix, unit in UNITS if self._base.endswith(suffix)), "")

    @property
    def otlp(self) -> str:
        """Return the name over OTLP, which a receiver that translates to Prometheus' names turns into ``name`` again."""
        base = self._base
        base = next((base[: -len(suffix)] for suffix, _ in UNITS if base.endswith(suffix)), base)
        space = next((space for space in NAMESPACES if base.startswith(f"{space}_")), "lightllm")
        return f"{space.replace('_', '.')}.{base[len(space) + 1 :]}"

    @property
    def _base(self) -> str:
        return self.name[: -len("_total")] if self.kind == COUNTER else self.name


# The longer one comes first where one ends like another.
UNITS = (
    ("_bytes_per_second", "By/s"), ("_per_second", "{flop}/s"), ("_seconds", "s"), ("_bytes", "By"), ("_ratio", "1"),
    ("_hertz", "Hz"), ("_celsius", "Cel"), ("_watts", "W"),
)  # fmt: skip
NAMESPACES = (
    "lightllm_gpu_operator", "lightllm_gpu_step", "lightllm_gpu_collective", "lightllm_gpu_peak", "lightllm_gpu",
    "lightllm_otel", "lightllm_server",
)  # fmt: skip
_OPERATOR, _STEP = tuple(OPERATOR_BOUNDS.tolist()), tuple(STEP_BOUNDS.tolist())
_TRANSFER, _WAIT = tuple(TRANSFER_BOUNDS.tolist()), tuple(WAIT_BOUNDS.tolist())

METRICS = (
    Metric("lightllm_gpu_operator_duration_seconds", HISTOGRAM, ("operator", "phase", "mode"),
           "GPU time of one call of an operator on one rank, in sampled steps.",
           "`gap` is the part of a step that belongs to no operator.", _OPERATOR),
    Metric("lightllm_gpu_operator_seconds_total", COUNTER, ("operator", "phase", "rank"),
           "GPU time of an operator in sampled steps, per rank."),
    Metric("lightllm_gpu_operator_estimated_seconds_total", COUNTER, ("operator", "phase"),
           "Estimated GPU time of an operator in all steps of all ranks.",
           "The shares of recent samples of that size, times the seconds of whole steps. Time of steps that no sample describes "
           "is `unattributed`. The sum over operators is the seconds of the steps."),
    Metric("lightllm_gpu_operator_compared_seconds_total", COUNTER, ("operator", "phase"),
           "GPU time of an operator in the sampled steps that have a learned baseline.",
           "Without the steps in which the operator waited for the host."),
    Metric("lightllm_gpu_operator_expected_seconds_total", COUNTER, ("operator", "phase"),
           "GPU time that the learned baseline expects of an operator in the compared steps.",
           "The baseline is learned once for each load, then frozen. `compared` divided by `expected` is the slowdown; load does "
           "not move it."),
    Metric("lightllm_gpu_operator_flops_total", COUNTER, ("operator", "phase"),
           "Floating-point operations of an operator in all steps of all ranks, by the analytic model.",
           "A multiply-add counts as two. The requests of a prefill are assumed to be equally long. Divide by the estimated "
           "seconds."),
    Metric("lightllm_gpu_operator_memory_bytes_total", COUNTER, ("operator", "phase"),
           "Bytes that an operator moved in all steps of all ranks, by the analytic model."),
    Metric("lightllm_gpu_operator_starved_seconds_total", COUNTER, ("operator", "phase"),
           "GPU time of operator calls before which the GPU waited for the host, in sampled eager steps."),
    Metric("lightllm_gpu_step_duration_seconds", HISTOGRAM, ("phase", "mode"),
           "GPU time from the start of a forward to the end of sampling.",
           "Every step; each rank is one observation.", _STEP),
    Metric("lightllm_gpu_step_tokens_total", COUNTER, ("phase",),
           "New tokens that steps computed.", "Health checks and padding do not count."),
    Metric("lightllm_gpu_step_requests_total", COUNTER, ("phase",),
           "Requests in a step, summed over the steps.", "Health checks and padding do not count."),
    Metric("lightllm_gpu_steps_total", COUNTER, ("rank",),
           "Steps that a rank has started.", "With a step in flight, that one is the last."),
    Metric("lightllm_gpu_step_in_flight_seconds", GAUGE, ("rank",),
           "Time since the start of the step that is now on the GPU, or 0 without one."),
    Metric("lightllm_gpu_idle_seconds_total", COUNTER, ("reason", "rank"),
           "Time between the end of a step and the start of the next, by what the GPU waited for."),
    Metric("lightllm_gpu_collective_transfer_seconds", HISTOGRAM, ("site", "phase"),
           "Transfer time of one collective: the shortest time over the ranks of its group, in sampled steps.",
           "Noise biases it low, more with more ranks, by less than `lightllm_otel_collective_noise_seconds`. Calls are left out "
           "if the last rank is not known, or if its GPU waited for its host.", _TRANSFER),
    Metric("lightllm_gpu_collective_wait_seconds", HISTOGRAM, ("site", "phase"),
           "Time that a rank waited for the last rank in one collective, in sampled steps.",
           "What the rank's collective took beyond the transfer; each rank is one observation. Time that its own launch may have "
           "taken is left out.", _WAIT),
    Metric("lightllm_gpu_collective_rank_wait_seconds_total", COUNTER, ("site", "phase", "rank"),
           "Time that a rank at least waited for other ranks in collectives, without waits below the noise."),
    Metric("lightllm_gpu_collective_last_arrivals_total", COUNTER, ("site", "phase", "rank"),
           "Collectives to which this rank came last while all other ranks waited longer than the noise.",
           "Not counted at the embedding, where the wait is for the host to wake up."),
    Metric("lightllm_gpu_collective_payload_bytes_total", COUNTER, ("operator", "site", "phase", "implementation"),
           "Payload bytes of the collectives whose transfer time is known, each call of the group once.",
           "Divided by the seconds of the transfer: the algorithm bandwidth of nccl-tests."),
    Metric("lightllm_gpu_collective_bus_bytes_total", COUNTER, ("site", "phase"),
           "Payload bytes of collectives times the bus factor of nccl-tests.",
           "The factor is 2(n-1)/n for all_reduce and (n-1)/n for others. Divided by the seconds of the transfer: the bus "
           "bandwidth, to be compared with half of `lightllm_gpu_peak_link_bytes_per_second`."),
    Metric("lightllm_gpu_collective_variation_ratio", GAUGE, ("site", "phase"),
           "Standard deviation divided by the mean of recent transfer times.",
           "Of the last 4,096 at most; each is divided by the median of its payload size first."),
    Metric("lightllm_gpu_collective_tail_ratio", GAUGE, ("site", "phase"),
           "99th percentile divided by the median of recent transfer times.", "Of the same transfers as the variation."),
    Metric("lightllm_gpu_collective_local_minimum_seconds_total", COUNTER, ("site", "phase", "scope"),
           "Shortest time of each collective over the ranks of this host, in a group that spans hosts.",
           "It is not a transfer time, since a rank of another host may have been last."),
    Metric("lightllm_gpu_collective_local_calls_total", COUNTER, ("site", "phase", "scope"),
           "Collectives in lightllm_gpu_collective_local_minimum_seconds_total."),
    Metric("lightllm_gpu_peak_flops_per_second", GAUGE, (),
           "Dense 16-bit tensor FLOP/s of one GPU of the server, from its data sheet."),
    Metric("lightllm_gpu_peak_memory_bytes_per_second", GAUGE, (),
           "Memory bandwidth of one GPU of the server, from its data sheet."),
    Metric("lightllm_gpu_peak_link_bytes_per_second", GAUGE, ("link",),
           "Bandwidth of one GPU on the link between the ranks, both directions together.",
           "The number of links that NVML reports, times what a link of that generation carries."),
    Metric("lightllm_server_info", INFO,
           ("server", "model", "gpu", "tp", "dp", "dp_rank", "dtype", "lightllm", "torch", "cuda", "plugin"),
           "Identity of the server: its name, the model, the GPU, parallelism and versions.",
           "`server` is LIGHTLLM_OTEL_SERVER, or host and group. `plugin` is the version in the model processes."),
    Metric("lightllm_gpu_info", INFO, ("rank", "uuid", "name", "nvlink", "pcie", "path"),
           "GPU of a rank, and its links to the other GPUs of the group.",
           "`nvlink` is the number of NVLinks into the group, `pcie` is generation x lanes, and `path` is the longest path to "
           "another GPU of the group: PIX, PXB, PHB, NODE or SYS, as in nvidia-smi topo."),
    Metric("lightllm_gpu_clock_hertz", GAUGE, ("rank", "clock"),
           "Clock frequency of a rank's GPU.", "`clock` is `sm` or `memory`."),
    Metric("lightllm_gpu_temperature_celsius", GAUGE, ("rank",), "Temperature of a rank's GPU."),
    Metric("lightllm_gpu_power_watts", GAUGE, ("rank",), "Power draw of a rank's GPU."),
    Metric("lightllm_gpu_throttled_seconds_total", COUNTER, ("rank", "reason"),
           "Time in which heat, the power limit or the board held down the clock of a rank's GPU.",
           "NVML is asked once a second."),
    Metric("lightllm_gpu_link_errors_total", COUNTER, ("rank", "link"),
           "Errors on the NVLinks or the PCI Express link of a rank's GPU since its driver was loaded.",
           "On NVLink: CRC errors, replays and recoveries. On PCI Express: replays."),
    Metric("lightllm_otel_build_info", INFO, ("version", "python"),
           "Versions of the exporter: of the plugin and of Python."),
    Metric("lightllm_otel_start_time_seconds", GAUGE, (),
           "Start time of the exporter process in seconds of Unix time.", "Counters of `/metrics` begin at 0 then."),
    Metric("lightllm_otel_state_info", INFO, ("level", "link", "scope", "clock"),
           "Changing state of the server: what is measured, and how.",
           "`level` is the level that live control has set, `link` what connects the GPUs, `scope` whether the ranks of all "
           "hosts are compared (`group`) or those of this host (`node`), `clock` what takes the times."),
    Metric("lightllm_otel_slot_installed", GAUGE, ("operator",),
           "1 if every rank times this operator of the model, otherwise 0."),
    Metric("lightllm_otel_feature_available", GAUGE, ("feature",),
           "1 if this LightLLM has everything that the feature needs, otherwise 0.",
           "`lightllm-otel doctor` says what is missing."),
    Metric("lightllm_otel_steps_sampled_total", COUNTER, (), "Steps whose operators were timed, over all ranks."),
    Metric("lightllm_otel_records_dropped_total", COUNTER, ("reason",), "Steps, or the operators of steps, that were lost."),
    Metric("lightllm_otel_steps_whole_only_total", COUNTER, ("reason",),
           "Sampled steps for which only the total step time could be measured.",
           "`not_instrumented`: the graph is not instrumented. `overlap`: microbatches overlap. `draft`: a step of a draft "
           "model. `prefill_graph`: a graph in which the operators cannot be seen."),
    Metric("lightllm_otel_instrumented_graphs", GAUGE, (), "Batch sizes with an instrumented graph on every rank."),
    Metric("lightllm_otel_distortion_ratio", GAUGE, (),
           "Mean time of decode steps in instrumented graphs divided by that of their neighbours in plain graphs.",
           "Only neighbours of the same batch size are compared."),
    Metric("lightllm_otel_steps_unmatched_total", COUNTER, ("reason",),
           "Sampled steps whose collectives could not be compared over the ranks.",
           "A rank lacked the step, was late, had restarted, or computed something different."),
    Metric("lightllm_otel_collective_noise_seconds", GAUGE, ("mode",),
           "Length up to which a wait in a collective counts as noise.",
           "Four steps of the clock and the cost of a boundary, as calibrated."),
    Metric("lightllm_otel_errors_total", COUNTER, ("stage",),
           "Failures of the plugin, none of which reached the server.",
           "`activate`, `patch`, `measure` and `ring` belong to the model processes. The others are parts of the exporter; each "
           "appears when it has failed once."),
    Metric("lightllm_otel_hook_seconds_total", COUNTER, (),
           "CPU time that the model threads spent in the plugin, over all ranks."),
    Metric("lightllm_otel_clock_quantum_seconds", GAUGE, ("mode",),
           "Resolution of the clock that times steps of this mode."),
    Metric("lightllm_otel_boundary_cost_seconds", GAUGE, ("mode",),
           "GPU time that a boundary adds to an interval, which is subtracted.",
           "The larger cost, if a graph has two kinds of boundaries."),
    Metric("lightllm_otel_export_errors_total", COUNTER, (),
           "Batches of metrics or spans that a receiver did not take.",
           "The receiver refused them, was gone, or was too slow; the log says which. It stays 0 unless OTEL_* variables name a "
           "receiver."),
    Metric("lightllm_otel_spans_dropped_total", COUNTER, ("reason",),
           "Spans that were lost, or notes about requests from which spans are made.",
           "Only reasons that have occurred appear."),
    Metric("lightllm_otel_data_age_seconds", GAUGE, (), "Age of the oldest step that is not counted yet, or 0 without one."),
)  # fmt: skip
BY_NAME = {metric.name: metric for metric in METRICS}
