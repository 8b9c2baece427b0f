"""Each operator: how long, how often, how steadily, on which rank."""

from __future__ import annotations

from grafana.table import BARS, HEATMAP, LINES, PHASE, STACK, TABLE, TARGET, Board, Panel, Query, Variable

D = "lightllm_gpu_operator_duration_seconds"
ONE = '{$PHASES,operator=~"$operator"}'
BY = "operator, phase, mode"
MEAN = f"sum by ({BY}) (rate({D}_sum{ONE}[RATE])) / sum by ({BY}) (rate({D}_count{ONE}[RATE]))"
ESTIMATED = f"rate(lightllm_gpu_operator_estimated_seconds_total{ONE}[RATE])"


COMPUTING = 'operator!~"all_.*|reduce_.*|gap"'


def quantile(q: str) -> str:
    return f"histogram_quantile({q}, sum by (le, {BY}) (rate({D}_bucket{ONE}[RATE])))"


def calls(phase: str) -> Panel:
    """Return the heatmap of one phase. Decode and prefill differ by orders of magnitude, so each has its own."""
    return Panel(
        f"Calls by time, {phase}", HEATMAP, "s",
        f"Calls of the chosen operators in sampled {phase} steps by their time (lightllm_gpu_operator_duration_seconds). Choose one"
        " operator above: two bands are two kinds of calls (sizes, graph and eager), a smear upwards is a tail.",
        (Query(f'sum by (le) (increase({D}_bucket{{$SERVER,phase="{phase}",operator=~"$operator"}}[RATE]))', "{{le}}"),), 12, 9,
    )  # fmt: skip


OPERATORS = Board(
    "lightllm-otel-operators",
    "Operators",
    "GPU time of each operator: share, time of a call, spread, against expectation, per rank.",
    (
        ("Which", (
            Panel("All operators", TABLE, "short",
                  "Per operator and phase: share of the GPU time of its phase, GPU seconds a second over all ranks"
                  " (lightllm_gpu_operator_estimated_seconds_total), and the time of a call in sampled steps"
                  " (lightllm_gpu_operator_duration_seconds). Mean far above median: look at the heatmap for the tail. Unattributed is"
                  " the time of steps that have no like among the sampled ones.",
                  (Query(f"sum by (operator, phase) ({ESTIMATED}) / on (phase) group_left sum by (phase)"
                         " (rate(lightllm_gpu_operator_estimated_seconds_total{$PHASES}[RATE]))", "share"),
                   Query(f"sum by (operator, phase) ({ESTIMATED})", "GPU time"),
                   Query(f"sum by (operator, phase) (rate({D}_sum{ONE}[RATE])) / sum by (operator, phase)"
                         f" (rate({D}_count{ONE}[RATE]))", "mean"),
                   Query(f"histogram_quantile(0.5, sum by (le, operator, phase) (rate({D}_bucket{ONE}[RATE])))", "median"),
                   Query(f"histogram_quantile(0.99, sum by (le, operator, phase) (rate({D}_bucket{ONE}[RATE])))", "p99")),
                  24, 12, units=(("share", "percentunit"), ("GPU time", "suffix:s/s"), ("mean", "s"), ("median", "s"), ("p99", "s")),
                  sort="share"),
            Panel("GPU time", STACK, "suffix:s/s",
                  "Seconds of GPU time a second, over all ranks and all steps (lightllm_gpu_operator_estimated_seconds_total). The"
                  " height of the stack, unattributed time included, is how many GPUs are busy.",
                  (Query(f"sum by (operator, phase) ({ESTIMATED})", "{{operator}} {{phase}}"),), 24, 9),
        )),
        ("How long a call takes", (
            Panel("Mean", LINES, "s",
                  "Mean time of one call on one rank in sampled steps (lightllm_gpu_operator_duration_seconds, sum by count): exact, so"
                  " small changes show. It follows the load; slower than expected, below, does not.",
                  (Query(MEAN, "{{operator}} {{phase}} {{mode}}"),), 12, 10, logarithmic=True),
            Panel("99th percentile", LINES, "s",
                  "From buckets (lightllm_gpu_operator_duration_seconds): of factor 1.4 below 8 µs, 2 up to 1 ms, 4 above. It moves in"
                  " jumps; use it for tails only.",
                  (Query(quantile("0.99"), "{{operator}} {{phase}} {{mode}}", exemplars=True),), 12, 10, logarithmic=True),
            Panel("Median", LINES, "s",
                  "From the same buckets (lightllm_gpu_operator_duration_seconds): half of the calls are shorter.",
                  (Query(quantile("0.5"), "{{operator}} {{phase}} {{mode}}"),), 24, 9, logarithmic=True),
            calls("decode"),
            calls("prefill"),
        )),
        ("Slower than usual", (
            Panel("Slower than expected", LINES, "suffix:×",
                  "Seconds in sampled steps by what was expected at the same batch and context"
                  " (lightllm_gpu_operator_compared_seconds_total by lightllm_gpu_operator_expected_seconds_total). 1 is as it was when"
                  " the expectation was learned; load does not move it.",
                  (Query(f"sum by (operator, phase) (rate(lightllm_gpu_operator_compared_seconds_total{ONE}[RATE]))"
                         f" / sum by (operator, phase) (rate(lightllm_gpu_operator_expected_seconds_total{ONE}[RATE]))",
                         "{{operator}} {{phase}}"),), 12, 9, empty="No expectation yet: 64 sampled steps of a load are needed"),
            Panel("Waited for the host", LINES, "percentunit",
                  "Part of an operator's time in sampled eager steps at whose start the GPU waited for the host"
                  " (lightllm_gpu_operator_starved_seconds_total by lightllm_gpu_operator_seconds_total). High: its time says little"
                  " about the GPU. Graphs have none.",
                  (Query(f"sum by (operator, phase) (rate(lightllm_gpu_operator_starved_seconds_total{ONE}[RATE]))"
                         f" / sum by (operator, phase) (rate(lightllm_gpu_operator_seconds_total{ONE}[RATE]))",
                         "{{operator}} {{phase}}"),), 12, 9, empty="No eager steps were sampled"),
            Panel("Ranks against each other", LINES, "suffix:×",
                  "Time of each rank in computing operators by the mean of the ranks of its server"
                  " (lightllm_gpu_operator_seconds_total without collectives, whose time is mostly waiting). A rank above 1 is the one"
                  " that the others wait for.",
                  (Query(f"sum by ({TARGET}, rank) (rate(lightllm_gpu_operator_seconds_total{{$RANKS,{COMPUTING}}}[RATE]))"
                         f" / on ({TARGET}) group_left avg by ({TARGET}) (sum by ({TARGET}, rank)"
                         f" (rate(lightllm_gpu_operator_seconds_total{{$SERVER,{COMPUTING}}}[RATE])))",
                         "{{instance}} rank {{rank}}"),), 12, 9),
            Panel("Computing per rank", BARS, "suffix:s/s",
                  "Seconds a second of the chosen computing operators in sampled steps by rank (lightllm_gpu_operator_seconds_total).",
                  (Query("sum by (instance, rank) (rate(lightllm_gpu_operator_seconds_total{$RANKS,phase=~\"$phase\","
                         f'{COMPUTING},operator=~"$operator"}}[RATE]))', "{{instance}} rank {{rank}}"),), 12, 9),
        )),
    ),
    (PHASE, Variable("operator", "Operator",
                     'label_values(lightllm_gpu_operator_duration_seconds_count{job=~"$job",instance=~"$instance"}, operator)')),
)  # fmt: skip
