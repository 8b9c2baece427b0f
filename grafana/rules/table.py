"""The table of alerts. ``build.py`` makes alerts.yml of it; docs/runbooks has a page for each.

Pages (``critical``) are symptoms: a step that does not end, tokens that come late because decode is slower than it was.
Everything else is a cause, and a ticket (``warning``, or ``info`` where it can wait for weeks).
"""

from __future__ import annotations

import dataclasses

WHO = "server, model, gpu, tp"
SERVER = f"cluster, namespace, {WHO}"  # cluster and namespace are empty where nobody sets them
TARGET = "cluster, namespace, job, instance"
JOIN = f"on ({TARGET}) group_left ({WHO}) lightllm:server"
ERRORS = f"{TARGET}, stage"
# prometheus_rule_…{rule_group}: "FILE;GROUP"
OUR_GROUPS = 'rule_group=~".*;lightllm-.*"'

# Matchers of a query in a description; ``asked`` puts in the labels of the alert.
THIS_SERVER = "cluster=%q,namespace=%q,server=%q,model=%q"
OF_THIS_SERVER = f"and on ({TARGET}) lightllm:server{{{THIS_SERVER}}}"
STEPS_ONLY = 'lightllm_otel_state_info{level="steps"}'
CRITICAL, WARNING, INFO = "critical", "warning", "info"


@dataclasses.dataclass(frozen=True)
class Alert:
    """``what``: the first sentence of the description, about ``$value``; ``lasts``: Prometheus' ``for``.

    ``window``: of alerts that look at the same through several windows. ``rank``: whether the alert has that label;
    ``late``: whether the description says who was late in collectives; ``of_server``: whether the alert is about a server.
    """

    name: str
    severity: str
    lasts: str
    expr: str
    summary: str
    what: str
    effect: str
    action: str
    window: str = ""
    rank: bool = False
    late: bool = False
    of_server: bool = True
    keeps: str = "5m"


def asked(how: str, query: str, first: str = "", by: str = "") -> str:
    """``{{ range query … }}`` or ``{{ with query … }}`` of a description, for a query with THIS_SERVER in it once.

    Prometheus evaluates it when the alert fires. ``first``: the argument of a ``%q`` before those of THIS_SERVER; ``by``: the
    label by which the answers are sorted, where there are several.
    """
    escaped = query.replace('"', '\\"')
    labels = "$labels.cluster $labels.namespace $labels.server $labels.model"
    order = f' | sortByLabel "{by}"' if by else ""
    return f'{{{{ {how} query (printf "{escaped}"{first} {labels}){order} }}}}'


def on_server(how: str, expr: str, labels: str = "") -> str:
    """The expression with the stable labels of its server: aggregated before the join and after it.

    Two targets with one address are one series before the join, so it cannot fail. ``labels``: of the metric, to be kept.
    """
    more = f", {labels}" if labels else ""
    return f"{how} by ({SERVER}{more}) ({how} by ({TARGET}{more}) ({expr}) * {JOIN})"


def slower(window: str, lasts: str) -> Alert:
    ratio = f"lightllm:operator_slowdown:ratio{window}"
    return Alert(
        name="LightLLMAllReduceSlower", severity=WARNING, lasts=lasts, window=window, late=True,
        expr=f'{ratio}{{operator="all_reduce"}} > lightllm:operator_slowdown_ratio{window}:limit',
        summary="all_reduce has become slower than it was during the last day",
        what="all_reduce in {{ $labels.phase }} takes {{ $value | humanize }} times what is expected at this load, over "
             f"{window}.",
        effect="every layer waits for it twice; tokens are late by its share of a decode step.",
        action="look at who is late. If nobody is, the transfer itself is slow: link errors, throttling, a changed version.",
    )  # fmt: skip


def unlike_peers(value: str, comparison: str, factor: float) -> str:
    """``value`` against the median of at least three servers of a kind, where the load is alike."""
    kind, load = "model, gpu, tp", "lightllm:decode_requests_per_step:mean10m"

    def against(of: str, how: str, times: float) -> str:
        return f"{of} {how} on ({kind}) group_left () ({times} * quantile by ({kind}) (0.5, {of}))"

    return (
        f"({against(value, comparison, factor)}) and on ({kind}) (count by ({kind}) ({value}) >= 3) "
        f"and on ({SERVER}) ({against(load, '>', 0.67)}) and on ({SERVER}) ({against(load, '<', 1.5)})"
    )


ALERTS = (
    Alert(
        name="LightLLMStepStuck", severity=CRITICAL, lasts="0s", keeps="0s",
        expr=f"{on_server('max', 'lightllm_gpu_step_in_flight_seconds')} > 20",
        summary="A step does not end: the server answers nobody",
        what="one step has been on the GPU for {{ $value | humanizeDuration }}. "
             + asked("range", f"bottomk(1, max by (rank) (lightllm_gpu_steps_total {OF_THIS_SERVER}))")
             + 'The rank that is furthest behind is {{ .Labels.rank }}, at step {{ .Value | printf "%.0f" }}. {{ end }}',
        effect="all requests of this server hang.",
        action="`lightllm-otel doctor --stuck` on its host says whom the others wait for; take the server out of rotation.",
    ),
    Alert(
        name="LightLLMDecodeSlow", severity=CRITICAL, lasts="5m", late=True,
        expr="lightllm:decode_slowdown:ratio10m > 1.1 unless lightllm:token_period_seconds:mean10m "
             "<= 1.1 * lightllm:token_period_seconds_mean10m:median1d",
        summary="Decode is slower than expected at its load, and tokens come later than usual",
        what="decode steps take {{ $value | humanize }} times what is expected at this load"
             + asked("range", f"lightllm:token_period_seconds:mean10m{{{THIS_SERVER}}}")
             + ", a token every {{ .Value | humanizeDuration }}{{ end }}."
             + asked("range", f'topk(1, lightllm:operator_compared_seconds:rate2m{{{THIS_SERVER},phase="decode"}} - '
                              "lightllm:operator_expected_seconds:rate2m)")
             + " Most of it is {{ .Labels.operator }}.{{ end }}",
        effect="users see tokens later than usual.",
        action="the ticket of the same server names the cause; if there is none, look at clocks and throttling of its GPUs.",
    ),
    slower("2m", "2m"),
    slower("10m", "2m"),
    slower("30m", "10m"),
    Alert(
        name="LightLLMAllReduceAboveExpectation", severity=WARNING, lasts="1h", late=True,
        expr='lightllm:operator_slowdown:ratio30m{operator="all_reduce"} > 1.1',
        summary="all_reduce has been slower than its baseline for an hour",
        what="all_reduce in {{ $labels.phase }} takes {{ $value | humanize }} times what its frozen or pinned baseline says, "
             "however slowly it came to that.",
        effect="tokens are late by its share of a decode step, perhaps since long.",
        action="compare with the server's first days on the Compare dashboard. If the change is meant, accept it: remove the "
               "file of expectations, or pin another.",
    ),
    Alert(
        name="LightLLMRankLate", severity=WARNING, lasts="3m", rank=True,
        expr=f"lightllm:last_arrivals_share:ratio10m > 0.6 and on ({SERVER}, phase) (lightllm:collective_wait_share:"
             "ratio10m > (lightllm:collective_wait_share_ratio10m:median1d or 0 * lightllm:collective_wait_share:ratio10m + 0.1) "
             "+ 0.05)",
        summary="One rank keeps all others waiting",
        what="the others wait for rank {{ $labels.rank }}: it came last in {{ $value | humanizePercentage }} of the collectives "
             "of {{ $labels.phase }} in which there was a wait.",
        effect="the whole group runs at the pace of this rank.",
        action="clock, temperature, throttling and PCI Express replays of this GPU; then what else runs on it or its CPU.",
    ),
    Alert(
        name="LightLLMAllReduceUnstable", severity=WARNING, lasts="15m",
        expr="lightllm:collective_tail:ratio > 3 and lightllm:collective_tail:ratio > 2 * "
             "(lightllm:collective_tail_ratio:median1d or 0 * lightllm:collective_tail:ratio + 1.5) "
             f"and on ({SERVER}, phase) lightllm:collective_transfer_seconds:mean10m",
        summary="The slowest collectives take many times their median",
        what="the 99th percentile of the transfers of {{ $labels.site }} in {{ $labels.phase }} is {{ $value | humanize }} times "
             "their median.",
        effect="single tokens are late; averages hide it.",
        action="link errors first, then other traffic on the same link or network.",
    ),
    Alert(
        name="LightLLMLinkSlow", severity=WARNING, lasts="30m",
        expr='lightllm:collective_bus_bytes_per_second:mean10m{phase="prefill"} '
             f"< on ({SERVER}) group_left () (0.3 / 2 * {on_server('max', 'lightllm_gpu_peak_link_bytes_per_second')}) "
             'and lightllm:collective_payload_bytes:mean10m{phase="prefill"} > 8e6',
        summary="Large collectives use less than a third of what the link carries",
        what="collectives of prefill, with payloads of more than 8 MB, move {{ $value | humanize }}B/s.",
        effect="the first token is later than the hardware allows.",
        action="`lightllm-otel doctor` says which link the group has; one with fewer lanes than its peers' is a hardware fault.",
    ),
    Alert(
        name="LightLLMAllReduceSlowerThanPeers", severity=WARNING, lasts="10m", late=True,
        expr=unlike_peers('lightllm:collective_transfer_seconds:mean10m{phase="decode"}', ">", 1.3),
        summary="Collectives take longer than on other servers of the same kind",
        what="one transfer takes {{ $value | humanizeDuration }} in decode, at least 1.3 times the median of its peers at a like "
             "load.",
        effect="requests that land on this server are slower than the others.",
        action="compare link and path (`lightllm_gpu_info`) with a peer's; needs no history, so look at what was rolled out.",
    ),
    Alert(
        name="LightLLMServerSlowerThanPeers", severity=WARNING, lasts="10m",
        expr=unlike_peers("lightllm:decode_bytes_per_second:mean10m", "<", 0.8),
        summary="Decode is slower than on other servers of the same kind",
        what="decode moves {{ $value | humanize }}B/s, at most 0.8 times the median of its peers at a like load.",
        effect="requests that land on this server are slower than the others.",
        action="the Compare dashboard, this server against a peer, names the operator; needs no history.",
    ),
    Alert(
        name="LightLLMOperatorShareShifted", severity=INFO, lasts="30m",
        expr="abs(lightllm:operator_share_shift:ratio30m) > 0.05",
        summary="An operator's share of the step is not what it should be at this load",
        what="the share of {{ $labels.operator }} in {{ $labels.phase }} is {{ $value | humanizePercentage }} of the step away "
             "from what is expected.",
        effect="by itself none; it says where a slowdown, or a speed-up of the rest, comes from.",
        action="the Operators dashboard; usually a version change.",
    ),
    Alert(
        name="LightLLMPluginNoData", severity=WARNING, lasts="10m", keeps="0s",
        expr=f"(group by ({SERVER}) (lightllm:server offset 30m) or group by ({SERVER}) "
             f"(last_over_time(lightllm:server[1d]) and on ({TARGET}) up == 0)) "
             f"unless group by ({SERVER}) (lightllm:server)",
        summary="A server that was there gives no data",
        what="nothing has been scraped from it for ten minutes.",
        effect="none from the plugin; but nobody is watching this server now.",
        action="if the server was taken away, nothing: the alert ends within half an hour. Else `lightllm-otel doctor` on its "
               "host, and Prometheus' targets page.",
    ),
    Alert(
        name="LightLLMPluginNotSampling", severity=WARNING, lasts="15m",
        expr=f"({on_server('sum', 'rate(lightllm_gpu_step_duration_seconds_count[10m])')} > "
             f"0.5 * count by ({SERVER}) (group by ({TARGET}, rank) (lightllm_gpu_step_in_flight_seconds) * {JOIN}) "
             f"unless {on_server('sum', 'rate(lightllm_otel_steps_sampled_total[10m])')} > 0 "
             f"unless {on_server('max', STEPS_ONLY)}) "
             f"or {on_server('max', 'lightllm_otel_data_age_seconds')} > 60",
        summary="Steps run, but their operators are not seen",
        what="steps are executed and none is sampled, or what was sampled is a minute old and more.",
        effect="none for users; the alerts on operators of this server are blind.",
        action="`lightllm-otel doctor` on its host: a graph that is not instrumented, live control, or an exporter that is late.",
    ),
    Alert(
        name="LightLLMPluginDrops", severity=WARNING, lasts="15m",
        expr=on_server("sum", 'increase(lightllm_otel_records_dropped_total{reason!="control"}[30m])') + " > 0.01 * "
             + on_server("sum", "increase(lightllm_otel_steps_sampled_total[30m])")
             + f" or sum by ({SERVER}) ((sum by ({ERRORS}) (increase(lightllm_otel_errors_total[30m])) > 0 "
             f"or max by ({ERRORS}) (lightllm_otel_errors_total) > 0 "
             f"unless max by ({ERRORS}) (lightllm_otel_errors_total offset 30m)) * {JOIN}) > 0",
        summary="The plugin loses steps or has failed in a part",
        what="{{ $value | humanize }} records or errors in half an hour.",
        effect="none for users; figures of this server may lack something.",
        action="`lightllm-otel doctor` and the log of the server, which has the first failure.",
    ),
    Alert(
        name="LightLLMPluginSlotMissing", severity=INFO, lasts="15m",
        expr=f"{on_server('min', 'lightllm_otel_slot_installed', 'operator')} == 0",
        summary="An operator of the model is not timed",
        what="{{ $labels.operator }} was not found in the model on every rank; its time is part of gap.",
        effect="none for users.",
        action="`lightllm-otel doctor` names the missing attribute; usually a new LightLLM version or model family.",
    ),
    Alert(
        name="LightLLMPluginDistorts", severity=INFO, lasts="30m",
        expr=f"{on_server('max', 'lightllm_otel_distortion_ratio')} > 1.1",
        summary="Sampled steps take visibly longer than their neighbours",
        what="a sampled decode step takes {{ $value | humanize }} times its plain neighbours.",
        effect="one token in as many as are sampled is late by that much.",
        action="raise `LIGHTLLM_OTEL_SAMPLE_EVERY`, or `lightllm-otel ctl every N` at once.",
    ),
    Alert(
        name="LightLLMPluginDuplicateTarget", severity=WARNING, lasts="10m",
        expr=f"max by ({SERVER}) ((count by ({TARGET}) (lightllm_server_info) > 1) * {JOIN})",
        summary="Prometheus has more than one target with the same address",
        what="{{ $value }} targets have the same job and instance:"
             + asked("range", f"count by (server, model, instance) (lightllm_server_info {OF_THIS_SERVER})", by="server")
             + " {{ .Value }} of {{ .Labels.server }} ({{ .Labels.model }}) at {{ .Labels.instance }};{{ end }}"
             + " they are read as one server.",
        effect="none for users; alerts of these servers may name the wrong one, and their rates are added up.",
        action="Prometheus' targets page, by this instance: remove a discovery file that is left over, or give each target an "
               "instance of its own (host name and port).",
    ),
    Alert(
        name="LightLLMRulesFailing", severity=WARNING, lasts="10m", of_server=False,
        expr=" or ".join(f"sum by (cluster, rule_group) (increase(prometheus_rule_{lost}_total{{{OUR_GROUPS}}}[5m])) > 0"
                         for lost in ("evaluation_failures", "group_iterations_missed")),
        summary="Prometheus cannot evaluate rules of lightllm-otel",
        what="in the last five minutes {{ $value | humanize }} evaluations of the group {{ $labels.rule_group }} failed or were "
             "left out.",
        effect="none from the rules; but alerts of this group, pages included, may not fire for any server.",
        action="Prometheus' rules page shows the failing rule and its error; evaluations that were left out mean that the group "
               "takes longer than its interval.",
    ),
)  # fmt: skip
