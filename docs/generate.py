"""Fill the generated blocks of READMEs and of pages in docs from code and results: ``python docs/generate.py``."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import short_tables  # noqa: E402
from aim_tables import aims, targets  # noqa: E402
from analysis_tables import analysis  # noqa: E402
from collective_tables import ranks, transfers  # noqa: E402
from results import CHINESE, ENGLISH, result  # noqa: E402
from served_tables import served_accuracy, served_cost  # noqa: E402
from version_tables import history, versions  # noqa: E402

from lightllm_otel.exporter.metrics import METRICS, Metric  # noqa: E402
from lightllm_otel.settings import OFF_WORDS, ON_WORDS, PREFIX, SETTINGS  # noqa: E402
from lightllm_otel.tools.units import duration  # noqa: E402

READMES = {ENGLISH: ROOT / "README.md", CHINESE: ROOT / "README.zh-CN.md"}
PAGES = tuple(ROOT / "docs" / f"{name}.md" for name in ("metrics", "measured", "settings", "versions"))
# What first_light.json calls LightLLM, and its version.
FIRST_LIGHT = {"OLD": "0.0.1", "NEW": "July 2025"}
COLUMNS = ("OLD, eager, prefill", "OLD, eager, decode", "NEW, eager, prefill", "NEW, eager, decode")


def metrics() -> str:
    rows = ["| metric | over OTLP | kind | labels | meaning |", "|---|---|---|---|---|"]
    rows += [f"| `{m.name}` | {over_otlp(m)} | {m.kind} | {', '.join(m.labels)} | {m.help} |" for m in METRICS]
    return "\n".join(rows)


def over_otlp(metric: Metric) -> str:
    """Its name and unit there."""
    return f"`{metric.otlp}`" + (f", {metric.unit}" if metric.unit else "")


def histograms() -> str:
    """Bounds of each histogram: how many, from, to, and the factor from one to the next."""
    rows = ["| histogram | bounds | from | to | factor from bound to bound |", "|---|---|---|---|---|"]
    for metric in (each for each in METRICS if each.bounds):
        pairs = list(zip(metric.bounds, metric.bounds[1:]))
        factors = [f"{high / low:.3g}" for low, high in pairs]
        changes = [at for at in range(len(pairs)) if at == len(pairs) - 1 or factors[at] != factors[at + 1]]
        steps = ", ".join(f"{factors[at]} up to {duration(pairs[at][1])}" for at in changes)
        ends = f"{duration(metric.bounds[0])} | {duration(metric.bounds[-1])}"
        rows.append(
            f"| `{metric.name}` | {len(metric.bounds)} | {ends} | {steps if len(changes) > 1 else factors[0]} |"
        )
    return "\n".join(rows)


def settings() -> str:
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    on, off = (", ".join(f"`{word}`" for word in words if word) for words in (ON_WORDS, OFF_WORDS))
    rows.append(
        f"| `{PREFIX}` | off | {on} turn it on; empty, {off} turn it off. Anything else is off, and the log says so. |"
    )
    rows += [
        f"| `{s.variable}` | {f'`{s.default}`' if s.default else ''}{f' {s.unit}' if s.unit else ''} | {s.help} |"
        for s in SETTINGS
    ]
    return "\n".join(rows)


def first_light() -> str:
    """Mean time of a call and share of the step, per operator, version and phase."""
    operators = result("first_light")["summary"]["operators"]
    columns = [column for column in COLUMNS if column in operators]
    order = sorted(
        {name for column in columns for name in operators[column]},
        key=lambda name: -operators[columns[-1]].get(name, {}).get("share_percent", 0.0),
    )
    heads = [_version_of(column) for column in columns]
    rows = ["| operator | " + " | ".join(heads) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in order:
        cells = [operators[column].get(name) for column in columns]
        shown = [f"{cell['mean_us']} µs · {cell['share_percent']} %" if cell else "–" for cell in cells]
        rows.append(f"| `{name}` | " + " | ".join(shown) + " |")
    return "\n".join(rows)


def _version_of(column: str) -> str:
    name, rest = column.split(", ", 1)
    return f"{FIRST_LIGHT[name]}, {rest}"


def python_timer() -> str:
    """The async-timing bug: GPU time against a Python timer around the same calls, as it is and with blocking launches."""
    operators = result("first_light")["summary"]["operators"]
    column = "NEW, eager, prefill"
    rows = [
        "| prefill, LightLLM of July 2025 | on the GPU | Python timer | Python timer, `CUDA_LAUNCH_BLOCKING=1` |",
        "|---|---|---|---|",
    ]
    for name in ("qkv_proj", "attention", "o_proj", "ffn"):
        cell = operators[column][name]
        rows.append(
            f"| `{name}` | {cell['mean_us']} µs | {cell['python_timer_us']} µs | {cell['python_timer_launch_blocking_us']} µs |"
        )
    return "\n".join(rows)


def accuracy() -> str:
    """One call of each operator inside a CUDA graph: by the plugin, and by CUPTI in LightLLM's own graph."""
    cases = result("accuracy")["summary"]["operators"]
    columns = [f"llama-7b, batch {batch}" for batch in (1, 20, 64)]
    rows = ["| operator | calls | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    last = cases[columns[1]]
    for name in sorted(last, key=lambda name: -last[name]["ours_us"] * last[name]["calls"]):
        cells = [cases[column][name] for column in columns]
        shown = [f"{cell['ours_us']} µs · {cell['cupti_us']} µs" for cell in cells]
        rows.append(f"| `{name}` | {last[name]['calls']} | " + " | ".join(shown) + " |")
    return "\n".join(rows)


BESIDE = "beside"  # the first run on another machine, which is that of the alternatives
COSTS = {
    "graph_default": "default (1 decode step in 64), CUDA graphs",
    "graph_default_batch_1": "the same, batch 1",
    "graph_default_moe": "the same, mixture of experts (Qwen3-MoE-like)",
    "graph_steps_only": "`LIGHTLLM_OTEL_LEVEL=steps`, CUDA graphs",
    "graph_every_step": "every decode step sampled, CUDA graphs",
    "graph_every_step_moe": "the same, mixture of experts",
    "eager_prefill_every_step": "every step sampled, prefill",
    "eager_decode_every_step": "every step sampled, decode without CUDA graphs",
    BESIDE: "the same again, on the machine of the alternatives below",
    "torch_profiler": "instead: torch.profiler always on, CUDA graphs",
    "launch_blocking": "instead: `CUDA_LAUNCH_BLOCKING=1`, without CUDA graphs",
    "event_pairs": "instead: an event pair per operator, without CUDA graphs",
    "eager_instead_of_graphs": "and what it costs to do without CUDA graphs",
}


def cost() -> str:
    """Throughput and latency lost, ours and the alternatives', and of what step."""
    summary = result("overhead")["summary"]
    rows = [
        "| what is on | tokens per second lost | 99th percentile between tokens | a step without it | added |",
        "|---|---|---|---|---|",
    ]
    for case, name in COSTS.items():
        if case != BESIDE and case not in summary:
            continue
        found = summary["again"][0]["eager_decode_every_step"] if case == BESIDE else summary[case]
        lost, (low, high) = (found[f"throughput_loss_percent{end}"] for end in ("", "_ci95"))
        tail = round(found["itl_p99_increase_percent"], 1) + 0.0  # never -0.0
        without, added = found["off_us"], found["added_us"]
        rows.append(
            f"| {name} | {lost:.2f} % ({low:.2f} … {high:.2f}) | {tail:+.1f} % | {without:.0f} µs | {added:+.0f} µs |"
        )
    return "\n".join(rows)


AGAIN = {
    **{case: name for case, name in COSTS.items() if case.startswith(("graph", "eager_prefill"))},
    "eager_decode_every_step": COSTS["eager_decode_every_step"],
    "eager_default": "default, decode without CUDA graphs",
    "eager_steps_only": "`LIGHTLLM_OTEL_LEVEL=steps`, decode without CUDA graphs",
}


def again() -> str:
    """The same cases on other machines: tokens per second lost, and of what step."""
    runs = result("overhead")["summary"]["again"]
    rows = ["| what is on | " + " | ".join(f"at `{run['commit']}`: tokens per second lost | of a step of" for run in runs) + " |",
            "|---" * (2 * len(runs) + 1) + "|"]  # fmt: skip
    for case, name in AGAIN.items():
        cells = [again_cell(run[case]) if case in run else "– | –" for run in runs]
        if any(case in run for run in runs):
            rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def again_cell(found: dict[str, Any]) -> str:
    low, high = found["throughput_loss_percent_ci95"]
    return f"{found['throughput_loss_percent']:.2f} % ({low:.2f} … {high:.2f}) | {found['off_us']:.0f} µs"


LEADS = {
    "tp1": "one GPU",
    "tp2, a GPU each": "TP 2, a GPU each, through host memory",
    "tp2": "TP 2 on one GPU, by sockets",
    "tp4": "TP 4 on one GPU, by sockets",
}


def leads() -> str:
    """What takes most of a step of a 70B model, by parallelism."""
    summary = result("collectives")["summary"]
    rows = ["| | prefill | decode |", "|---|---|---|"]
    for group, name in LEADS.items():
        cells = []
        for phase in ("prefill", "decode"):
            shares = {
                operator: share for operator, share in summary["shares"][group][phase].items() if operator != "gap"
            }
            first = sorted(shares, key=lambda operator: -shares[operator])[:2]
            cells.append(", ".join(f"`{operator}` {shares[operator]:.0f} %" for operator in first))
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def tracing() -> str:
    """What traces cost, by the share of the requests that are traced."""
    summary = result("tracing")["summary"]
    rows = ["| requests traced | tokens per second lost | against the same server, none traced | CPU seconds of all processes |",
            "|---|---|---|---|"]  # fmt: skip
    for share in ("1", "10", "100"):
        cells = []
        for name in ("throughput_loss_percent", "throughput_loss_percent_within", "cpu_increase_percent"):
            low, high = summary[f"{name}_ci95"][share]
            sign = "+" if name.startswith("cpu") else ""
            cells.append(f"{summary[name][share]:{sign}.2f} % ({low:{sign}.2f} … {high:{sign}.2f})")
        rows.append(f"| {share} % | {' | '.join(cells)} |")
    return "\n".join(rows)


def alerts() -> str:
    """What the alerts were to find within which time, and what came of it."""
    found = result("alerts")["summary"]
    aims, by_size = {"5": 60, "10": 15, "25": 5}, found["minutes_to_detect_by_size"]
    lines = [
        (f"all_reduce slower by {percent} %: worst of {by_size[percent]['episodes']} episodes, minutes",
         aim, f"{found['minutes_to_detect'][percent]:.1f}", found["minutes_to_detect"][percent] <= aim)
        for percent, aim in aims.items()
    ]  # fmt: skip
    stuck, false, right = found["stuck_minutes"], found["false_alarms_per_month"], found["right_rank_percent"]
    tickets = f"{found['false_tickets_per_month']:.2f}"
    lines += [
        (f"a stuck step: worst of {found['stuck_steps']}, minutes", 1, f"{stuck:.2f}", stuck <= 1),
        (f"false pages a month and server, of {found['simulated_months']} months", 1, f"{false:.2f}", false < 1),
        ("false tickets a month and server (no aim was set)", "", tickets, None),
        ("the late rank named, %, at least", 95, f"{right:.1f}", right >= 95),
    ]  # fmt: skip
    rows = ["| | aim, at most | found | |", "|---|---|---|---|"]
    said = {True: "met", False: "**missed**", None: ""}
    rows += [f"| {name} | {aim} | {value} | {said[met]} |" for name, aim, value, met in lines]
    return "\n".join(rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "metrics": metrics,
    "histograms": histograms,
    "settings": settings,
    "first_light": first_light,
    "python_timer": python_timer,
    "accuracy": accuracy,
    "transfers": transfers,
    "cost": cost,
    "again": again,
    "targets": targets,
    "ranks": ranks,
    "leads": leads,
    "tracing": tracing,
    "alerts": alerts,
    "analysis": analysis,
    "versions": versions,
    "history": history,
    "served_cost": served_cost,
    "served_accuracy": served_accuracy,
}
# Those of the READMEs, made for a language.
SHORT_BLOCKS: dict[str, Callable[[str], str]] = {**short_tables.BLOCKS, "aims": aims}
BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(text: str, language: str = ENGLISH) -> str:
    """Return ``text`` with every ``<!-- generated: NAME -->`` … ``<!-- end -->`` block made anew."""

    def made(match: re.Match[str]) -> str:
        name = match[2]
        content = SHORT_BLOCKS[name](language) if name in SHORT_BLOCKS else BLOCKS[name]()
        return f"{match[1]}{content}\n{match[3]}"

    return BLOCK.sub(made, text)


def main() -> None:
    for language, path in READMES.items():
        path.write_text(fill(path.read_text(), language))
    for path in PAGES:
        path.write_text(fill(path.read_text()))


if __name__ == "__main__":
    main()
