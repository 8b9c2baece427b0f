"""Which server is worse than its peers."""

from __future__ import annotations

from grafana.table import BARS, LINES, STAT, TABLE, TARGET, Board, Panel, Query

PEERS = "model, gpu, tp, lightllm"
# One for each address: the one that was scraped last.
WHO = f"group by ({TARGET}, server, {PEERS}) (topk by ({TARGET}) (1, timestamp(lightllm_server_info{{$SERVER}})))"
RANKS = f"count by ({TARGET}) (lightllm_gpu_step_in_flight_seconds{{$SERVER}})"


def rate(metric: str, matchers: str = "") -> str:
    return f"sum by ({TARGET}) (rate({metric}{{$SERVER{matchers}}}[RATE]))"


DECODE, HOST = ',phase="decode"', ',reason="host"'
STEPS = rate("lightllm_gpu_step_duration_seconds_count", DECODE)
STEP = f"{rate('lightllm_gpu_step_duration_seconds_sum', DECODE)} / {STEPS}"
# The same with the labels that say who is a peer.
KNOWN = f"({STEP}) * on ({TARGET}) group_left (server, {PEERS}) {WHO}"
AGAINST_PEERS = f"({KNOWN}) / on ({PEERS}) group_left quantile by ({PEERS}) (0.5, {KNOWN})"
SLOWDOWN = (
    f"{rate('lightllm_gpu_operator_compared_seconds_total')} / {rate('lightllm_gpu_operator_expected_seconds_total')}"
)
TOKENS = rate("lightllm_gpu_step_tokens_total", DECODE)
REQUESTS = f"{rate('lightllm_gpu_step_requests_total', DECODE)} / ({STEPS} / {RANKS})"
ALL_REDUCE = (
    f"{rate('lightllm_gpu_collective_transfer_seconds_sum')} / {rate('lightllm_gpu_collective_transfer_seconds_count')}"
)
IDLE = f"{rate('lightllm_gpu_idle_seconds_total', HOST)} / {RANKS}"

FLEET = Board(
    "lightllm-otel-fleet",
    "Fleet",
    "Every server beside its peers: same model, GPU, tensor parallelism and LightLLM. Start here; a click on an instance opens it.",
    (
        ("How many", (
            Panel("Servers", STAT, "short", "Servers that say who they are (lightllm_server_info).",
                  (Query(f"count(group by ({TARGET}) (lightllm_server_info{{$SERVER}}))"),), 6, 4, empty="No server is scraped"),
            Panel("Not answering", STAT, "short",
                  "Exporters that Prometheus could not scrape (up is 0), of those that said who they are in this time range"
                  " (lightllm_server_info). Their servers may be well: only our view is gone.",
                  (Query(f'sum(up{{job=~"$job",instance=~"$instance"}} == bool 0 and on ({TARGET})'
                         " last_over_time(lightllm_server_info{$SERVER}[$__range]))"),), 6, 4, empty="Nothing is scraped",
                  steps=((1, "red"),)),
            Panel("Generated tokens", STAT, "suffix:tok/s",
                  "New tokens of decode steps a second, all servers together (lightllm_gpu_step_tokens_total).",
                  (Query('sum(rate(lightllm_gpu_step_tokens_total{$SERVER,phase="decode"}[RATE]))'),), 6, 4),
            Panel("Worst against its peers", STAT, "suffix:×",
                  "Longest mean decode step of a server by the median of its peers (lightllm_gpu_step_duration_seconds). 1 is the"
                  " median; look at the requests in a step below before you blame the machine.",
                  (Query(f"max({AGAINST_PEERS})"),), 6, 4, steps=((1.1, "orange"), (1.25, "red"))),
        )),
        ("Who is worse", (
            Panel("Servers, the slowest against its peers first", TABLE, "short",
                  "Against peers: mean decode step by the median of servers with the same model, GPU, tp and LightLLM"
                  " (lightllm_gpu_step_duration_seconds), so a server that is slow from birth shows; but more requests in a step"
                  " make it longer, so read both. Against expectation: compared by expected seconds of sampled operators"
                  " (lightllm_gpu_operator_compared_seconds_total), which load does not move, but which a server has learned of"
                  " itself. Transfer: of a collective, without waiting. Host: share of time in which the GPU waited for the host.",
                  (Query(AGAINST_PEERS, "against peers"), Query(SLOWDOWN, "against expectation"), Query(STEP, "decode step"),
                   Query(REQUESTS, "requests in a step"), Query(TOKENS, "tokens"), Query(ALL_REDUCE, "transfer"),
                   Query(IDLE, "host")),
                  24, 10, units=(("against peers", "suffix:×"), ("against expectation", "suffix:×"), ("decode step", "s"),
                                 ("requests in a step", "short"), ("tokens", "suffix:tok/s"), ("transfer", "s"),
                                 ("host", "percentunit")),
                  sort="against peers"),
        )),
        ("Since when", (
            Panel("Decode step against the median of the peers", LINES, "suffix:×",
                  "Mean decode step of each server by its peers' median (lightllm_gpu_step_duration_seconds). One line that leaves the"
                  " others is one server; all together never move here, because the median moves with them.",
                  (Query(AGAINST_PEERS, "{{instance}}"),), 12, 9),
            Panel("Slower than expected", LINES, "suffix:×",
                  "Seconds of sampled operators by what they were expected to take at the same load"
                  " (lightllm_gpu_operator_compared_seconds_total by lightllm_gpu_operator_expected_seconds_total). All lines rising"
                  " together is a release or a driver, one line is a machine.",
                  (Query(SLOWDOWN, "{{instance}}"),), 12, 9, empty="No expectation yet: 64 sampled steps of a load are needed"),
            Panel("Transfer of a collective", BARS, "s",
                  "Mean of the fastest rank's time in a collective (lightllm_gpu_collective_transfer_seconds): what moving the data"
                  " takes, apart from waiting. Compare servers of the same model, GPU and tp.",
                  (Query(ALL_REDUCE, "{{instance}}"),), 12, 8, empty="No collectives: no server has more than one rank"),
            Panel("Generated tokens by server", LINES, "suffix:tok/s",
                  "New tokens of decode steps a second (lightllm_gpu_step_tokens_total). A slow server with few tokens has little"
                  " to do; one with as many as the others holds its users up.",
                  (Query(TOKENS, "{{instance}}"),), 12, 8),
        )),
    ),
)  # fmt: skip
