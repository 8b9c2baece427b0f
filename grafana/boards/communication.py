"""Collectives: moving the data, waiting for the last rank, and what the link could do."""

from __future__ import annotations

from grafana.table import HEATMAP, LINES, PHASE, STACK, TABLE, TARGET, Board, Panel, Query

T, W = "lightllm_gpu_collective_transfer_seconds", "lightllm_gpu_collective_wait_seconds"
AT = "site, phase"
NONE = "No collectives: one rank, or none was sampled"
BUS = (
    f"sum by ({TARGET}, {AT}) (rate(lightllm_gpu_collective_bus_bytes_total{{$PHASES}}[RATE]))"
    f" / sum by ({TARGET}, {AT}) (rate({T}_sum{{$PHASES}}[RATE]))"
)
GPU = 'label_replace(lightllm_gpu_info{$RANKS}, "UUID", "$1", "uuid", "(.*)")'
NO_DCGM = "dcgm-exporter is not scraped"


def mean(metric: str) -> str:
    return (
        f"sum by ({AT}) (rate({metric}_sum{{$PHASES}}[RATE])) / sum by ({AT}) (rate({metric}_count{{$PHASES}}[RATE]))"
    )


def per_rank(metric: str, by: str = f"{TARGET}, rank") -> str:
    return f"sum by ({by}) (rate({metric}{{$RANKS}}[RATE]))"


def of_dcgm(metric: str) -> str:
    """A series of dcgm-exporter with the server and rank that use that GPU."""
    return f"max by (UUID, {TARGET}, rank) ({GPU}) * on (UUID) group_left max by (UUID) ({metric})"


COMMUNICATION = Board(
    "lightllm-otel-communication",
    "Communication",
    "Is all_reduce slower, or does it wait for a rank; which rank, on which GPU; and what share of the link it uses.",
    (
        ("Transfer or waiting", (
            Panel("Transfer", LINES, "s",
                  "Mean over collectives of the fastest rank's time (lightllm_gpu_collective_transfer_seconds): what moving the data"
                  " takes. Rises: the link or the size of the payload. Biased low by noise, the more the more ranks there are.",
                  (Query(mean(T), "{{site}} {{phase}}"),), empty=NONE),
            Panel("Waiting", LINES, "s",
                  "Mean of what a rank waited in a collective, at least (lightllm_gpu_collective_wait_seconds). Rises while transfer"
                  " does not: a rank is late. The embedding's is mostly the wait for the host's wake-up.",
                  (Query(mean(W), "{{site}} {{phase}}"),), empty=NONE),
            Panel("What collectives cost a GPU", STACK, "suffix:s/s",
                  "Seconds a second in sampled steps, mean of the chosen servers and their ranks: transfer and waiting, as far as they are"
                  " known (lightllm_gpu_collective_transfer_seconds, lightllm_gpu_collective_wait_seconds).",
                  (Query(f"sum by (phase) (rate({T}_sum{{$PHASES}}[RATE])) / on () group_left count(lightllm_server_info{{$SERVER}})",
                         "transfer {{phase}}"),
                   Query(f"sum by (phase) (rate({W}_sum{{$PHASES}}[RATE])) / on () group_left count(lightllm_gpu_step_in_flight_seconds{{$SERVER}})",
                         "waiting {{phase}}")), empty=NONE),
            Panel("Transfers by time, decode", HEATMAP, "s",
                  "Collectives of sampled decode steps by their transfer (lightllm_gpu_collective_transfer_seconds). One band per size of"
                  " payload is normal; a band that splits is a link that is sometimes slow.",
                  (Query(f'sum by (le) (increase({T}_bucket{{$SERVER,phase="decode"}}[RATE]))', "{{le}}"),), empty=NONE),
        )),
        ("Who is late", (
            Panel("Came last", LINES, "percentunit",
                  "Share of collectives to which a rank came last while all others waited longer than the noise"
                  " (lightllm_gpu_collective_last_arrivals_total). Even shares are chance; one rank above all others is the straggler.",
                  (Query(f"{per_rank('lightllm_gpu_collective_last_arrivals_total')} / on ({TARGET}) group_left"
                         f" sum by ({TARGET}) (rate(lightllm_gpu_collective_last_arrivals_total{{$SERVER}}[RATE]))",
                         "{{instance}} rank {{rank}}"),), empty="No rank was late beyond the noise", highest=1.0),
            Panel("Waited", LINES, "suffix:s/s",
                  "Seconds a second that each rank waited in collectives of sampled steps, above the noise"
                  " (lightllm_gpu_collective_rank_wait_seconds_total). The straggler waits least: it is waited for.",
                  (Query(per_rank("lightllm_gpu_collective_rank_wait_seconds_total"), "{{instance}} rank {{rank}}"),), empty=NONE),
        )),
        ("Bandwidth", (
            Panel("Bus bandwidth of the link", LINES, "percentunit",
                  "Bus bandwidth, as nccl-tests counts it (lightllm_gpu_collective_bus_bytes_total by the seconds of"
                  " lightllm_gpu_collective_transfer_seconds), by one direction of the link (half of"
                  " lightllm_gpu_peak_link_bytes_per_second). Prefill's large payloads come near 1; decode's small ones are latency.",
                  (Query(f"{BUS} / on ({TARGET}) group_left max by ({TARGET}) (lightllm_gpu_peak_link_bytes_per_second{{$SERVER}} / 2)",
                         "{{instance}} {{site}} {{phase}}"),), empty="The link is not known to NVML, or there are no collectives"),
            Panel("Bus bandwidth", LINES, "Bps",
                  "Bus bytes of collectives by the seconds of their transfer (lightllm_gpu_collective_bus_bytes_total).",
                  (Query(BUS, "{{instance}} {{site}} {{phase}}"),), empty=NONE, logarithmic=True),
            Panel("Payload by who moves it", LINES, "Bps",
                  "Bytes of collectives a second, in sampled steps and as far as their transfer is known"
                  " (lightllm_gpu_collective_payload_bytes_total), by implementation: custom is LightLLM's own kernel. A change from custom to nccl explains a slower decode.",
                  (Query("sum by (operator, implementation, phase) (rate(lightllm_gpu_collective_payload_bytes_total{$PHASES}[RATE]))",
                         "{{operator}} {{implementation}} {{phase}}"),), empty=NONE),
            Panel("Of a group that spans hosts: minimum on this host", LINES, "s",
                  "Where an exporter sees only the ranks of its host, the shortest time of them"
                  " (lightllm_gpu_collective_local_minimum_seconds_total by lightllm_gpu_collective_local_calls_total). It is no transfer.",
                  (Query(f"sum by ({TARGET}, {AT}) (rate(lightllm_gpu_collective_local_minimum_seconds_total{{$PHASES}}[RATE]))"
                         f" / sum by ({TARGET}, {AT}) (rate(lightllm_gpu_collective_local_calls_total{{$PHASES}}[RATE]))",
                         "{{instance}} {{site}} {{phase}}"),), empty="Every group is on one host"),
        )),
        ("Steady or not", (
            Panel("Variation of the transfer", LINES, "percentunit",
                  "Standard deviation by mean of the last transfers, each against the median of its payload size"
                  " (lightllm_gpu_collective_variation_ratio). A rise without a slower mean: something interferes now and then.",
                  (Query("max by (instance, site, phase) (lightllm_gpu_collective_variation_ratio{$PHASES})",
                         "{{instance}} {{site}} {{phase}}"),), empty=NONE),
            Panel("Tail of the transfer", LINES, "suffix:×",
                  "99th percentile by median of the same transfers (lightllm_gpu_collective_tail_ratio).",
                  (Query("max by (instance, site, phase) (lightllm_gpu_collective_tail_ratio{$PHASES})",
                         "{{instance}} {{site}} {{phase}}"),), empty=NONE),
        )),
        ("The GPUs behind the ranks", (
            Panel("GPUs", TABLE, "short",
                  "Which GPU a rank uses, its NVLinks into the group, its PCI Express, and the longest way to another GPU of the group"
                  " (lightllm_gpu_info).",
                  (Query("max by (instance, rank, uuid, name, nvlink, pcie, path) (lightllm_gpu_info{$RANKS})", "known"),),
                  24, 6, empty="No GPU is known"),
            Panel("Clock", LINES, "hertz", "Clocks of each GPU (lightllm_gpu_clock_hertz). The late rank's is often lower: look at what"
                  " holds it down.",
                  (Query("max by (instance, rank, clock) (lightllm_gpu_clock_hertz{$RANKS})", "{{instance}} rank {{rank}} {{clock}}"),),
                  empty="No NVML"),
            Panel("Held down by", LINES, "percentunit",
                  "Share of time in which the clock was held down by heat, power or the board (lightllm_gpu_throttled_seconds_total).",
                  (Query(per_rank("lightllm_gpu_throttled_seconds_total", f"{TARGET}, rank, reason"),
                         "{{instance}} rank {{rank}} {{reason}}"),), empty="No clock was held down, or no NVML"),
            Panel("Temperature", LINES, "celsius", "Of each GPU (lightllm_gpu_temperature_celsius).",
                  (Query("max by (instance, rank) (lightllm_gpu_temperature_celsius{$RANKS})", "{{instance}} rank {{rank}}"),), 8,
                  empty="No NVML"),
            Panel("Power", LINES, "watt", "That each GPU draws (lightllm_gpu_power_watts).",
                  (Query("max by (instance, rank) (lightllm_gpu_power_watts{$RANKS})", "{{instance}} rank {{rank}}"),), 8,
                  empty="No NVML"),
            Panel("Link errors", LINES, "cps",
                  "Errors a second on NVLink and PCI Express (lightllm_gpu_link_errors_total). Anything above 0 slows transfers and is"
                  " a case for the hardware's owner.",
                  (Query(per_rank("lightllm_gpu_link_errors_total", f"{TARGET}, rank, link"), "{{instance}} rank {{rank}} {{link}}"),), 8,
                  empty="No NVML"),
        )),
        ("The same GPUs in dcgm-exporter, where it is scraped", (
            Panel("NVLink traffic", LINES, "Bps",
                  "DCGM_FI_PROF_NVLINK_TX_BYTES of the GPU that a rank uses, joined by UUID (lightllm_gpu_info): all traffic, ours"
                  " and that of others.",
                  (Query(of_dcgm("DCGM_FI_PROF_NVLINK_TX_BYTES"), "{{instance}} rank {{rank}}"),), empty=NO_DCGM),
            Panel("Tensor cores busy", LINES, "percentunit",
                  "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE of the GPU that a rank uses, joined by UUID (lightllm_gpu_info).",
                  (Query(of_dcgm("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE"), "{{instance}} rank {{rank}}"),), empty=NO_DCGM),
        )),
    ),
    (PHASE,),
)  # fmt: skip
