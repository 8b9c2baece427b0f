"""One server or a few: is it well, where does the time go, can the data be trusted."""

from __future__ import annotations

from grafana.table import LINES, STACK, STAT, TARGET, Board, Panel, Query, Variable

DECODE_STEPS = 'scalar(sum(rate(lightllm_gpu_step_duration_seconds_count{$SERVER,phase="decode"}[RATE])))'
STEP_SUM, STEP_COUNT = "lightllm_gpu_step_duration_seconds_sum", "lightllm_gpu_step_duration_seconds_count"
RANKS = "count(lightllm_gpu_step_in_flight_seconds{$SERVER})"


def shares(phase: str) -> Panel:
    whose = f'{{$SERVER,phase="{phase}"}}'
    estimated = f"rate(lightllm_gpu_operator_estimated_seconds_total{whose}[RATE])"
    return Panel(
        f"Where {phase} goes", STACK, "percentunit",
        f"Share of each operator in the GPU time of all {phase} steps (lightllm_gpu_operator_estimated_seconds_total: shares of"
        " recent samples times the time of whole steps). The widest band is what to make faster; gap is what no operator covers,"
        " such as launches without CUDA graphs; unattributed is time without samples, such as at level steps.",
        (Query(f"sum by (operator) ({estimated}) / scalar(sum({estimated}))", "{{operator}}"),), 12, 10,
        empty=f"No {phase} steps, or none sampled yet", highest=1.0,
    )  # fmt: skip


def own(quantile: str, metric: str) -> str:
    return f"histogram_quantile({quantile}, sum by (le) (rate({metric}_bucket{{$OWN}}[RATE])))"


OVERVIEW = Board(
    "lightllm-otel-overview",
    "Overview",
    "Is the server well, which operators take its time, where does a token's latency come from, and is the data complete.",
    (
        ("Health", (
            Panel("Servers", STAT, "short", "Servers that are chosen above (lightllm_server_info).",
                  (Query(f"count(group by ({TARGET}) (lightllm_server_info{{$SERVER}}))"),), 4, 4, empty="No server is scraped"),
            Panel("Longest step now", STAT, "s",
                  "How long the step that is now on a GPU has been there (lightllm_gpu_step_in_flight_seconds). Seconds mean that a"
                  " rank is stuck: lightllm-otel doctor --stuck on that machine says which.",
                  (Query("max(lightllm_gpu_step_in_flight_seconds{$RANKS})"),), 4, 4, steps=((5, "orange"), (30, "red"))),
            Panel("Generated tokens", STAT, "suffix:tok/s", "New tokens of decode steps a second (lightllm_gpu_step_tokens_total).",
                  (Query('sum(rate(lightllm_gpu_step_tokens_total{$SERVER,phase="decode"}[RATE]))'),), 4, 4),
            Panel("Decode step", STAT, "s",
                  "Mean GPU time of a decode step (lightllm_gpu_step_duration_seconds): with the prefills and pauses between two"
                  " of them, the time between two tokens of a request.",
                  (Query(f'sum(rate({STEP_SUM}{{$SERVER,phase="decode"}}[RATE]))'
                         f' / sum(rate({STEP_COUNT}{{$SERVER,phase="decode"}}[RATE]))'),), 4, 4),
            Panel("Slower than expected", STAT, "suffix:×",
                  "Seconds of sampled operators by what they were expected to take at the same load"
                  " (lightllm_gpu_operator_compared_seconds_total by lightllm_gpu_operator_expected_seconds_total). 1 is as always.",
                  (Query("sum(rate(lightllm_gpu_operator_compared_seconds_total{$SERVER}[RATE]))"
                         " / sum(rate(lightllm_gpu_operator_expected_seconds_total{$SERVER}[RATE]))"),), 4, 4,
                  empty="No expectation yet", steps=((1.1, "orange"), (1.25, "red"))),
            Panel("Age of the data", STAT, "s",
                  "Age of the oldest step that is not counted yet (lightllm_otel_data_age_seconds). Above some seconds what you see"
                  " here is old.",
                  (Query("max(lightllm_otel_data_age_seconds{$SERVER})"),), 4, 4, empty="No exporter answers",
                  steps=((10, "orange"), (60, "red"))),
        )),
        ("Tokens and steps", (
            Panel("Tokens", LINES, "suffix:tok/s",
                  "New tokens a second by phase (lightllm_gpu_step_tokens_total): prompts in prefill, answers in decode. Health"
                  " checks and padding are not counted.",
                  (Query("sum by (phase) (rate(lightllm_gpu_step_tokens_total{$SERVER}[RATE]))", "{{phase}}"),)),
            Panel("Requests in a step", LINES, "short",
                  "Mean number of requests that a step computes (lightllm_gpu_step_requests_total): the batch. Decode time grows with it.",
                  (Query("sum by (phase) (rate(lightllm_gpu_step_requests_total{$SERVER}[RATE]))"
                         f" / (sum by (phase) (rate({STEP_COUNT}{{$SERVER}}[RATE])) * scalar(count(lightllm_server_info{{$SERVER}}))"
                         f" / scalar({RANKS}))", "{{phase}}"),)),
            Panel("Time of a step", LINES, "s",
                  "Mean and 99th percentile of whole steps (lightllm_gpu_step_duration_seconds, every step). The percentile is"
                  " read from buckets of factor 2, so it moves in jumps; trust the mean for small changes.",
                  (Query(f"sum by (phase, mode) (rate({STEP_SUM}{{$SERVER}}[RATE]))"
                         f" / sum by (phase, mode) (rate({STEP_COUNT}{{$SERVER}}[RATE]))", "{{phase}} {{mode}} mean"),
                   Query("histogram_quantile(0.99, sum by (le, phase, mode) (rate(lightllm_gpu_step_duration_seconds_bucket{$SERVER}"
                         "[RATE])))", "{{phase}} {{mode}} p99", exemplars=True))),
            Panel("What a GPU does", STACK, "percentunit",
                  "Share of the time of a GPU, mean over all: in steps of each phase (lightllm_gpu_step_duration_seconds), or"
                  " waiting, for the host or for requests (lightllm_gpu_idle_seconds_total). A broad band of host means that the CPU"
                  " is the bottleneck.",
                  (Query(f"sum by (phase) (rate({STEP_SUM}{{$SERVER}}[RATE])) / scalar({RANKS})", "{{phase}}"),
                   Query(f"sum by (reason) (rate(lightllm_gpu_idle_seconds_total{{$SERVER}}[RATE])) / scalar({RANKS})",
                         "idle: {{reason}}"))),
        )),
        ("Where the time goes", (
            shares("prefill"),
            shares("decode"),
            Panel("Where a token's latency goes", STACK, "s",
                  "Mean time from one decode step to the next, by what the GPU did: the decode step, prefills of other requests in"
                  " between, waiting for the host (lightllm_gpu_step_duration_seconds and lightllm_gpu_idle_seconds_total, by decode"
                  " steps). Their sum is about the time between two tokens of a request; waiting for requests is not in it.",
                  (Query(f'sum(rate({STEP_SUM}{{$SERVER,phase="decode"}}[RATE])) / {DECODE_STEPS}', "decode step"),
                   Query(f'sum(rate({STEP_SUM}{{$SERVER,phase!="decode"}}[RATE])) / {DECODE_STEPS}', "prefill in between"),
                   Query(f'sum(rate(lightllm_gpu_idle_seconds_total{{$SERVER,reason="host"}}[RATE])) / {DECODE_STEPS}',
                         "waiting for the host")), 24, 8),
        )),
        ("What LightLLM itself says", (
            Panel("To the first token", LINES, "s",
                  "LightLLM's own lightllm_request_first_token_duration, from its /metrics. True in LightLLM from GitHub; 0.0.1"
                  " counts milliseconds into buckets of seconds, so it shows the last bucket.",
                  (Query(own("0.5", "lightllm_request_first_token_duration"), "p50"),
                   Query(own("0.99", "lightllm_request_first_token_duration"), "p99")), 8,
                  empty="LightLLM's own /metrics is not scraped"),
            Panel("Per further token", LINES, "s",
                  "LightLLM's own lightllm_request_mean_time_per_token_duration, a mean per request. Compare it with where a token's"
                  " latency goes. With LightLLM 0.0.1 not true, as above.",
                  (Query(own("0.5", "lightllm_request_mean_time_per_token_duration"), "p50"),
                   Query(own("0.99", "lightllm_request_mean_time_per_token_duration"), "p99")), 8,
                  empty="LightLLM's own /metrics is not scraped"),
            Panel("Waiting requests", LINES, "short",
                  "LightLLM's own lightllm_queue_size. Its histogram of the time in the queue is declared and never filled, so it"
                  " is not shown.",
                  (Query("sum by (instance) (lightllm_queue_size{$OWN})", "{{instance}}"),), 8,
                  empty="LightLLM's own /metrics is not scraped"),
        )),
        ("Is the data complete", (
            Panel("Lost", LINES, "cps",
                  "Steps a second that were lost, or whose operators were (lightllm_otel_records_dropped_total). Anything above"
                  " 0 makes shares less sure; the dashboard on the plugin says why.",
                  (Query("sum by (reason) (rate(lightllm_otel_records_dropped_total{$SERVER}[RATE]))", "{{reason}}"),), 8),
            Panel("Sampled steps", LINES, "cps",
                  "Steps a second whose operators were timed (lightllm_otel_steps_sampled_total), all ranks together. 0 while there"
                  " are steps means that shares above are old.",
                  (Query("sum by (instance) (rate(lightllm_otel_steps_sampled_total{$SERVER}[RATE]))", "{{instance}}"),), 8),
            Panel("Operators that were not found", LINES, "short",
                  "Operators that the model has not, or that the plugin did not find in it (lightllm_otel_slot_installed is 0). Their"
                  " time is in gap or in a neighbour.",
                  (Query("sum by (instance) (lightllm_otel_slot_installed{$SERVER} == bool 0)", "{{instance}}"),), 8),
        )),
    ),
    (Variable("lightllm", "LightLLM's own", "label_values(lightllm_queue_size, instance)",
              text="the server's own /metrics, whose port is another"),),
)  # fmt: skip
