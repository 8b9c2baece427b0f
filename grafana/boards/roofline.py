"""What the hardware could do, and how much of it each operator gets."""

from __future__ import annotations

from grafana.table import BARS, LINES, PHASE, SCATTER, STAT, TABLE, TARGET, Board, Panel, Query

AT = f"{TARGET}, operator, phase"
ESTIMATED = "lightllm_gpu_operator_estimated_seconds_total"
ATTRIBUTED = 'operator!="unattributed"'
# Operations and bytes are those of all steps. So the time of steps that have no like among the sampled ones is given to the operators
# in the proportion in which they have the rest of their phase.
SECONDS = (
    f"(sum by ({AT}) (rate({ESTIMATED}{{$PHASES,{ATTRIBUTED}}}[RATE])) / on ({TARGET}, phase) group_left ()"
    f" (sum by ({TARGET}, phase) (rate({ESTIMATED}{{$PHASES,{ATTRIBUTED}}}[RATE]))"
    f" / sum by ({TARGET}, phase) (rate({ESTIMATED}{{$PHASES}}[RATE])) > 0))"
)
FLOPS = f"sum by ({AT}) (rate(lightllm_gpu_operator_flops_total{{$PHASES}}[RATE]))"
BYTES = f"sum by ({AT}) (rate(lightllm_gpu_operator_memory_bytes_total{{$PHASES}}[RATE]))"
PEAK_FLOPS = f"max by ({TARGET}) (lightllm_gpu_peak_flops_per_second{{$SERVER}})"
PEAK_BYTES = f"max by ({TARGET}) (lightllm_gpu_peak_memory_bytes_per_second{{$SERVER}})"
OF_FLOPS = f"{FLOPS} / {SECONDS} / on ({TARGET}) group_left {PEAK_FLOPS}"
OF_BYTES = f"{BYTES} / {SECONDS} / on ({TARGET}) group_left {PEAK_BYTES}"
RIDGE = f"({PEAK_FLOPS} / {PEAK_BYTES})"
INTENSITY = f"({FLOPS} / {BYTES} > 0)"
ROOF = (
    f"({INTENSITY} * on ({TARGET}) group_left {PEAK_BYTES} < on ({TARGET}) group_left {PEAK_FLOPS}"
    f" or 0 * {INTENSITY} + on ({TARGET}) group_left {PEAK_FLOPS})"
)
UNKNOWN = "The model's shape or the GPU is not known to the plugin"


def achieved(phases: str) -> str:
    return f"{FLOPS} / {SECONDS} > 0".replace("{$PHASES}", f"{{$PHASES,{phases}}}")


def utilisation(metric: str, peak: str) -> str:
    """Of all steps of a phase, over their whole time."""
    return (
        f"sum by ({TARGET}, phase) (rate({metric}{{$PHASES}}[RATE]))"
        f" / sum by ({TARGET}, phase) (rate({ESTIMATED}{{$PHASES}}[RATE]))"
        f" / on ({TARGET}) group_left {peak}"
    )


ROOFLINE = Board(
    "lightllm-otel-roofline",
    "Roofline",
    "Achieved FLOP/s and bytes/s of each operator against what one GPU could do, and which of the two bounds it.",
    (
        ("What one GPU could do, by its data sheet", (
            Panel("FLOP/s", STAT, "flops", "Dense 16-bit tensor FLOP/s of one GPU (lightllm_gpu_peak_flops_per_second).",
                  (Query("max(lightllm_gpu_peak_flops_per_second{$SERVER})"),), 6, 4, empty=UNKNOWN),
            Panel("Memory", STAT, "Bps", "Memory bandwidth of one GPU (lightllm_gpu_peak_memory_bytes_per_second).",
                  (Query("max(lightllm_gpu_peak_memory_bytes_per_second{$SERVER})"),), 6, 4, empty=UNKNOWN),
            Panel("Link", STAT, "Bps",
                  "Bandwidth of one GPU on the link that the ranks share, both directions together"
                  " (lightllm_gpu_peak_link_bytes_per_second).",
                  (Query("max by (link) (lightllm_gpu_peak_link_bytes_per_second{$SERVER})", "{{link}}"),), 6, 4,
                  empty="One rank, or a link that NVML does not tell"),
            Panel("Ridge", STAT, "suffix:FLOP/byte",
                  "lightllm_gpu_peak_flops_per_second by lightllm_gpu_peak_memory_bytes_per_second. Operators with fewer operations per byte are bound by memory, others by compute.",
                  (Query(f"max({RIDGE})"),), 6, 4, empty=UNKNOWN),
        )),
        ("Whole phases", (
            Panel("Share of the peak FLOP/s (MFU)", LINES, "percentunit",
                  "Operations that the steps had to do (lightllm_gpu_operator_flops_total, analytic) by their GPU time and the peak."
                  " Large prefills reach half of it and more; decode cannot, it reads memory.",
                  (Query(utilisation("lightllm_gpu_operator_flops_total", PEAK_FLOPS), "{{instance}} {{phase}}"),),
                  12, 9, empty=UNKNOWN),
            Panel("Share of the peak memory bandwidth (MBU)", LINES, "percentunit",
                  "Bytes that the steps had to move (lightllm_gpu_operator_memory_bytes_total, analytic) by their GPU time and the"
                  " peak. What decode is about: all weights are read in each step.",
                  (Query(utilisation("lightllm_gpu_operator_memory_bytes_total", PEAK_BYTES), "{{instance}} {{phase}}"),),
                  12, 9, empty=UNKNOWN),
        )),
        ("Each operator", (
            Panel("Roofline", SCATTER, "flops",
                  "A point for each operator and phase: FLOP/s achieved on one GPU (lightllm_gpu_operator_flops_total by"
                  " lightllm_gpu_operator_estimated_seconds_total) against its operations per byte (by"
                  " lightllm_gpu_operator_memory_bytes_total), both axes logarithmic. Straight above it, small: the roof at that intensity,"
                  " the lesser of lightllm_gpu_peak_flops_per_second and intensity times lightllm_gpu_peak_memory_bytes_per_second. Where the roof"
                  " rises memory bounds, where it is flat compute; the distance is the room. Point at one to see which operator it is.",
                  (Query(INTENSITY, "operations per byte"), Query(achieved('phase!="decode"'), "prefill"),
                   Query(achieved('phase="decode"'), "decode"), Query(ROOF, "roof")),
                  24, 14, empty=UNKNOWN, units=(("operations per byte", "suffix:FLOP/byte"),)),
            Panel("What bounds each operator", TABLE, "short",
                  "FLOP/s and bytes/s: achieved on one GPU (lightllm_gpu_operator_flops_total and"
                  " lightllm_gpu_operator_memory_bytes_total by lightllm_gpu_operator_estimated_seconds_total). Intensity by ridge: above 1"
                  " compute bounds it, below 1 memory. Of the roof: the larger of both shares; a low one is an operator with room, or"
                  " too small to fill the GPU.",
                  (Query(f"{FLOPS} / {SECONDS}", "FLOP/s"), Query(f"{OF_FLOPS}", "of peak FLOP/s"),
                   Query(f"{BYTES} / {SECONDS}", "bytes/s"), Query(f"{OF_BYTES}", "of peak bytes/s"),
                   Query(f"{FLOPS} / {BYTES} / on ({TARGET}) group_left () {RIDGE}", "intensity by ridge")),
                  24, 12, empty=UNKNOWN,
                  units=(("FLOP/s", "flops"), ("of peak FLOP/s", "percentunit"), ("bytes/s", "Bps"),
                         ("of peak bytes/s", "percentunit"), ("intensity by ridge", "suffix:×")), sort="of peak bytes/s"),
            Panel("Of the peak FLOP/s", BARS, "percentunit",
                  "Achieved FLOP/s of each operator by the peak (lightllm_gpu_operator_flops_total). Matters for those that compute"
                  " bounds: prefill's matrices.",
                  (Query(f"avg by (operator, phase) ({OF_FLOPS})", "{{operator}} {{phase}}"),), 12, 12, empty=UNKNOWN, highest=1.0),
            Panel("Of the peak bytes/s", BARS, "percentunit",
                  "Achieved bytes/s of each operator by the peak (lightllm_gpu_operator_memory_bytes_total). Matters for those that"
                  " memory bounds: nearly everything in decode. Above 100 %: data that caches kept.",
                  (Query(f"avg by (operator, phase) ({OF_BYTES})", "{{operator}} {{phase}}"),), 12, 12, empty=UNKNOWN, highest=1.0),
        )),
    ),
    (PHASE,),
)  # fmt: skip
