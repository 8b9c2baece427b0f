"""Servers as Prometheus sees them: series in promtool's notation, that a person can follow, and what fires on them."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Optional

import promtool as under_test

RULES = under_test.RULES
JOB = "lightllm-otel"
RANKS = (0, 1)
INFO = {
    "model": "llama", "gpu": "H200", "tp": "2", "torch": "2", "cuda": "13", "plugin": "1",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Target:
    """One target from minute ``begin`` to ``end``: ``labels`` that Prometheus puts on all of its series, and ``info`` that the
    exporter says in another way than usual. ``stale``: whether Prometheus marks the series when the target is gone.
    """

    begin: int
    end: int
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    info: dict[str, str] = dataclasses.field(default_factory=dict)
    stale: bool = True


@dataclasses.dataclass
class Server:
    """Two ranks in a steady state. Counters grow by ``base`` a minute; ``changed`` gives series another rate from
    minute ``at`` on. With ``deploy`` the pod is replaced at that minute by one of another name and version.

    ``labels``: of its target; ``level``: what live control has set; ``targets``: instead of the one target that it is
    otherwise, or two with ``deploy``.
    """

    name: str = "node-1"
    at: int = 0
    minutes: int = 300
    changed: dict[str, float] = dataclasses.field(default_factory=dict)
    gauges: dict[str, float] = dataclasses.field(default_factory=dict)
    deploy: int = 0
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    targets: Optional[list[Target]] = None
    level: str = "operators"

    def base(self) -> dict[str, float]:
        rates = {
            'lightllm_gpu_step_duration_seconds_sum{phase="decode"}': 50,
            'lightllm_gpu_step_duration_seconds_count{phase="decode"}': 6000,
            'lightllm_gpu_step_requests_total{phase="decode"}': 90000, "lightllm_otel_steps_sampled_total": 90,
            'lightllm_otel_records_dropped_total{reason="overwritten"}': 0, 'lightllm_otel_errors_total{stage="measure"}': 0,
            'lightllm_gpu_idle_seconds_total{reason="host",rank="0"}': 1,
            'lightllm_gpu_steps_total{rank="0"}': 5999, 'lightllm_gpu_steps_total{rank="1"}': 6000,
            'lightllm_gpu_collective_transfer_seconds_sum{site="ffn",phase="decode"}': 0.06,
            'lightllm_gpu_collective_transfer_seconds_count{site="ffn",phase="decode"}': 3000,
            'lightllm_gpu_collective_wait_seconds_sum{site="ffn",phase="decode"}': 0.006,
            'lightllm_gpu_collective_wait_seconds_count{site="ffn",phase="decode"}': 6000,
            'lightllm_gpu_collective_last_arrivals_total{site="ffn",phase="decode",rank="0"}': 100,
            'lightllm_gpu_collective_last_arrivals_total{site="ffn",phase="decode",rank="1"}': 100,
            'lightllm_gpu_collective_bus_bytes_total{site="ffn",phase="prefill"}': 2e9,
            'lightllm_gpu_collective_payload_bytes_total{operator="all_reduce",site="ffn",phase="prefill"}': 2e9,
            'lightllm_gpu_collective_transfer_seconds_sum{site="ffn",phase="prefill"}': 0.01,
            'lightllm_gpu_collective_transfer_seconds_count{site="ffn",phase="prefill"}': 100,
            'lightllm_gpu_operator_memory_bytes_total{operator="ffn",phase="decode"}': 9e13,
            'lightllm_gpu_operator_estimated_seconds_total{operator="ffn",phase="decode"}': 50,
        }  # fmt: skip
        for operator, seconds in (("ffn", 0.6), ("all_reduce", 0.2)):
            for kind in ("compared", "expected"):
                rates[f'lightllm_gpu_operator_{kind}_seconds_total{{operator="{operator}",phase="decode"}}'] = seconds
        return rates

    def steady(self) -> dict[str, float]:
        return {
            'lightllm_gpu_step_in_flight_seconds{rank="0"}': 0.01, 'lightllm_gpu_step_in_flight_seconds{rank="1"}': 0.01,
            'lightllm_gpu_collective_tail_ratio{site="ffn",phase="decode"}': 1.5, "lightllm_otel_data_age_seconds": 0,
            "lightllm_otel_distortion_ratio": 1.01, 'lightllm_otel_slot_installed{operator="ffn"}': 1,
            'lightllm_gpu_peak_link_bytes_per_second{link="nvlink4x18"}': 9e11,
        }  # fmt: skip

    def lives(self) -> Iterator[Target]:
        if self.targets is not None:
            yield from self.targets
            return
        parts = [(0, self.deploy or self.minutes), *([(self.deploy, self.minutes)] if self.deploy else [])]
        for number, (begin, end) in enumerate(parts):
            yield Target(begin, end, {"instance": f"{self.name}-{number}:9464"}, {"lightllm": str(number)})

    def series(self) -> Iterator[tuple[str, str]]:
        """Two samples a minute."""
        for target in self.lives():
            labels = {"job": JOB, "instance": f"{self.name}:9464", **self.labels, **target.labels}
            before = f"_x{2 * target.begin} " if target.begin else ""
            after = " stale" if target.stale and target.end < self.minutes else ""
            always = f"{before}1x{2 * (target.end - target.begin) - 1}{after}"
            info = {"server": self.name, **INFO, "lightllm": "0", **target.info}
            yield scraped("lightllm_server_info", info, labels), always
            yield scraped("lightllm_otel_state_info", {"level": self.level}, labels), always
            for rank in RANKS:
                gpu = {"rank": str(rank), "uuid": f"GPU-{self.name}-{rank}", "name": "H200"}
                yield scraped("lightllm_gpu_info", gpu, labels), always
            for name, usual in {**self.base(), **self.steady()}.items():
                grows = name in self.base()
                later = {**self.changed, **self.gauges}.get(name, usual)
                values, total = [], 0.0
                for half in range(2 * target.begin, 2 * target.end):
                    now = later if half >= 2 * self.at else usual
                    total = total + now / 2 if grows else now
                    values.append(f"{total:g}" if grows else f"{now:g}")
                bare, _, own = name.partition("{")
                given = dict(each.split("=") for each in own.rstrip("}").split(",") if each)
                yield (
                    scraped(bare, {label: value.strip('"') for label, value in given.items()}, labels),
                    before + " ".join(values) + after,
                )


def scraped(name: str, own: dict[str, str], target: dict[str, str]) -> str:
    """A series as Prometheus names it: where both have a label, the target's goes before, and the metric's is renamed."""
    labels = {f"exported_{label}" if label in target else label: value for label, value in own.items()}
    pairs = [f'{label}="{value}"' for label, value in {**labels, **target}.items()]
    return f"{name}{{{','.join(pairs)}}}"


COMPARED = 'lightllm_gpu_operator_compared_seconds_total{{operator="{}",phase="decode"}}'.format
SLOW = {COMPARED("all_reduce"): 0.25}
LATE = {
    'lightllm_gpu_collective_last_arrivals_total{site="ffn",phase="decode",rank="1"}': 2900,
    'lightllm_gpu_collective_wait_seconds_sum{site="ffn",phase="decode"}': 0.03,
}
PERIOD = 'lightllm_gpu_step_duration_seconds_sum{phase="decode"}'


def write(path: Path, series: Iterable[tuple[str, str]], expectations: Iterable[str], every: int = 30) -> None:
    """Write a file for ``promtool test rules``: all rules over ``series``, and the lines of what is expected.

    ``every``: seconds between two evaluations, of all groups alike.
    """
    lines = ["rule_files:", *(f"- {RULES / name}" for name in under_test.FILES), f"evaluation_interval: {every}s"]
    lines += ["group_eval_order:", *(f"- {name}" for name in under_test.GROUPS)]
    lines += ["tests:", "- interval: 30s", "  input_series:"]
    for name, values in series:
        lines += [f"  - series: '{name}'", f"    values: '{values}'"]
    path.write_text("\n".join([*lines, *expectations]) + "\n")


def said(tool: str, path: Path) -> str:
    answer = subprocess.run([tool, "test", "rules", str(path)], capture_output=True, text=True, check=False)
    return answer.stdout + answer.stderr


class Fired(NamedTuple):
    """``alerts``: labels of those that fire, at each time that was looked at; ``text``: all that promtool said."""

    alerts: list[list[dict[str, str]]]
    text: str


def alerts(
    tool: str, folder: Path, series: Iterable[tuple[str, str]], minutes: Iterable[int], every: int = 30,
    expectations: Iterable[str] = (),
) -> Fired:  # fmt: skip
    """Return what fires at each of these minutes. Raises RuntimeError where a rule cannot be evaluated."""
    looked = list(minutes)
    lines = [*expectations, "  promql_expr_test:"]
    for minute in looked:
        lines += [f"  - expr: '{under_test.FIRING}'", f"    eval_time: {minute}m"]
    write(folder / "test.yml", series, lines, every)
    text = said(tool, folder / "test.yml")
    found = under_test.parse(text)
    return Fired([[labels for at, labels in found if at == 60 * minute] for minute in looked], text)
