"""Two servers, or one server now and then, side by side."""

from __future__ import annotations

from grafana.table import BARS, LINES, PHASE, TABLE, Board, Panel, Query, Variable

BY = "operator, phase"
D = "lightllm_gpu_operator_duration_seconds"
COMPARED, EXPECTED = "lightllm_gpu_operator_compared_seconds_total", "lightllm_gpu_operator_expected_seconds_total"
STEP = "lightllm_gpu_step_duration_seconds"


def ratio(over: str, under: str, by: str, who: str, ago: str = "") -> str:
    return f"(sum by ({by}) (rate({over}{{{who}}}[RATE]{ago})) / sum by ({by}) (rate({under}{{{who}}}[RATE]{ago})))"


def both(over: str, under: str, by: str) -> tuple[str, str]:
    return ratio(over, under, by, "$PHASES"), ratio(over, under, by, "$OTHER", " offset $ago")


MEAN_A, MEAN_B = both(f"{D}_sum", f"{D}_count", BY)
STEP_A, STEP_B = both(f"{STEP}_sum", f"{STEP}_count", "phase")
SLOW_A, SLOW_B = both(COMPARED, EXPECTED, BY)
TOKENS_A = "sum by (phase) (rate(lightllm_gpu_step_tokens_total{$PHASES}[RATE]))"
TOKENS_B = "sum by (phase) (rate(lightllm_gpu_step_tokens_total{$OTHER}[RATE] offset $ago))"
WHAT = "A: the instance chosen above. B: the other one, as long ago as chosen. "

COMPARE = Board(
    "lightllm-otel-compare",
    "Compare",
    "A is the chosen instance, B the other instance, as long ago as chosen: two servers, or one server and its past.",
    (
        ("Operators", (
            Panel("Speed-up of A over B, per operator", TABLE, "short",
                  WHAT + "Mean time of a call (lightllm_gpu_operator_duration_seconds) and B by A: above 1, A is faster. Different load"
                  " makes different times: compare what is slower than expected as well"
                  " (lightllm_gpu_operator_compared_seconds_total by …_expected_…), which load does not move.",
                  (Query(MEAN_A, "A"), Query(MEAN_B, "B"), Query(f"{MEAN_B} / {MEAN_A}", "speed-up"),
                   Query(SLOW_A, "A by expectation"), Query(SLOW_B, "B by expectation")),
                  14, 14, empty="One of the two has no steps there",
                  units=(("A", "s"), ("B", "s"), ("speed-up", "suffix:×"), ("A by expectation", "suffix:×"),
                         ("B by expectation", "suffix:×")), sort="speed-up"),
            Panel("Speed-up", BARS, "suffix:×",
                  WHAT + "Mean time of a call of B by that of A (lightllm_gpu_operator_duration_seconds). Above 1, A is faster.",
                  (Query(f"{MEAN_B} / {MEAN_A}", "{{operator}} {{phase}}"),), 10, 14, empty="One of the two has no steps there"),
        )),
        ("Steps", (
            Panel("Time of a step", LINES, "s",
                  WHAT + "Mean of whole steps (lightllm_gpu_step_duration_seconds).",
                  (Query(STEP_A, "A {{phase}}"), Query(STEP_B, "B {{phase}}"))),
            Panel("Tokens", LINES, "suffix:tok/s", WHAT + "New tokens a second (lightllm_gpu_step_tokens_total).",
                  (Query(TOKENS_A, "A {{phase}}"), Query(TOKENS_B, "B {{phase}}"))),
            Panel("Speed-up of an operator over time", LINES, "suffix:×",
                  WHAT + "B by A of the mean time of a call (lightllm_gpu_operator_duration_seconds). A step in one line is a change of"
                  " that operator; in all lines, of the clocks or the load.",
                  (Query(f"{MEAN_B} / {MEAN_A}", "{{operator}} {{phase}}"),), 24, 10, empty="One of the two has no steps there"),
        )),
    ),
    (PHASE,
     Variable("other", "Other instance", 'label_values(lightllm_server_info{job=~"$job"}, instance)', text="B"),
     Variable("ago", "B is before", choices=("1s", "1h", "1d", "7d"), multi=False, text="1s: at the same time")),
)  # fmt: skip
