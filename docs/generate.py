"""Fill the generated blocks of READMEs and of pages in docs from code and results: ``python docs/generate.py``."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import short_tables  # noqa: E402
from results import CHINESE, ENGLISH, RESULTS, result  # noqa: E402
from served_tables import served_accuracy, served_cost  # noqa: E402

from lightllm_otel.exporter.metrics import METRICS, Metric  # noqa: E402
from lightllm_otel.records.vocabulary import Feature  # noqa: E402
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


REDUCES = {
    "accuracy-tp2-own": "LightLLM's own, NVLink",
    "accuracy-tp2": "NCCL, NVLink",
    "accuracy-tp2-no-p2p": "NCCL, host memory",
}


def transfers() -> str:
    """One all_reduce inside a CUDA graph, of two GPUs: by the plugin, and by CUPTI in LightLLM's own graph."""
    found = {how: result(name)["summary"]["transfer"] for name, how in REDUCES.items()}
    first, *others = found.values()
    cases = [case for case in first if all(case in other for other in others)]
    rows = ["| one all_reduce, TP 2 | " + " | ".join(cases) + " |", "|---" * (len(cases) + 1) + "|"]
    for how, own in found.items():
        rows.append(
            f"| {how} | "
            + " | ".join(f"{own[case]['ours_us']:.2f} µs · {own[case]['cupti_us']:.2f} µs" for case in cases)
            + " |"
        )
    return "\n".join(rows)


def transfer_targets() -> list[tuple[str, str, str, bool]]:
    rows = []
    for name, how in REDUCES.items():
        worst = max(abs(each["error_us"]) for each in result(name)["summary"]["transfer"].values())
        rows.append((f"error of an all_reduce in a CUDA graph against CUPTI, {how}, worst case, µs", "1", f"{worst:.2f}",
                     worst <= 1))  # fmt: skip
    return rows


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


def link_targets() -> list[tuple[str, str, str, bool]]:
    """Of two GPUs, the worst of the links."""
    found = {name: each for name, each in result("links")["summary"]["variants"].items() if each.get("available")}
    links = list(found.values())
    highest = max(each["overhead"]["default"]["loss_percent_ci95"][1] for each in links)
    lost = max(each["overhead"]["default"]["loss_percent"] for each in links)
    rows = [("two GPUs, default sampling: tokens per second lost, %", "0.1, its interval up to 0.3 at most",
             f"{lost:.2f}, up to {highest:.2f}", lost <= 0.1 and highest <= 0.3)]  # fmt: skip
    always = {name: each["overhead"]["every_step"]["loss_percent"] for name, each in found.items()}
    rows += [(f"two GPUs, every step sampled, in graphs, {words}, %", "3", f"{always[name]:.2f}", always[name] <= 3)
             for name, words in LINKS.items() if name in always]  # fmt: skip
    for mode, words in (("graph", "in CUDA graphs"), ("eager_ahead", "without, launched ahead")):
        named = min(each["slow_rank"][mode]["named_percent"] for each in links)
        moved = max(each["slow_rank"][mode]["transfer_shift_percent"] for each in links)
        rows += [
            (f"a rank late by 20 µs or more, {words}: named, steps, %, at least", "95", f"{named:.0f}", named >= 95),
            (f"what that moves transfer by, {words}, %", "5", f"{moved:.1f}", moved <= 5),
        ]
    right = min(each["slow_rank"]["eager_seen"]["right_percent"] for each in links)
    shifts = {LINKS[name]: each["slow_rank"]["eager"]["transfer_shift_percent"] for name, each in found.items()}
    has_transfer = {words: moved for words, moved in shifts.items() if moved is not None}
    rows += [
        ("the same, bound by the CPUs: the rank that CUPTI saw come last is named, steps of the worst pass, %, at least", "95",
         f"{right:.0f}", right >= 95),
        *((f"what a delay moves transfer by, bound by the CPUs, {words} (of others too few calls tell), %", "5", f"{moved:.1f}",
           moved <= 5) for words, moved in has_transfer.items()),
    ]  # fmt: skip
    quick = result("superseded/links-quick-hosts")["summary"]["slow_rank"]["eager"]["transfer_shift_percent"]
    rows.append(("the same in an earlier run, on faster CPUs, worst of three, %", "5", f"{quick:.1f}", quick <= 5))
    before = result("superseded/links-earlier")["summary"]["slow_rank"]["eager_ahead"]["transfer_shift_percent"]
    rows.append(("launched ahead, in an earlier run, on another machine, %", "5", f"{before:.1f}", before <= 5))
    shared = result("collectives")["summary"]["slow_groups"]["one GPU"]["transfer_shift_percent"]
    return [*rows, ("what 5 to 20 ms move it by where both ranks share one GPU, %", "5", f"{shared:.1f}", shared <= 5)]


Line = tuple[str, str, str, bool]


def targets() -> str:
    """Return what was aimed at before anything was measured, and what came of it."""
    rows = ["| | aim, at most (cover: at least) | measured | |", "|---|---|---|---|"]
    rows += [
        f"| {name} | {aim} | {found} | {'met' if met else '**missed**'} |" for name, aim, found, met in target_lines()
    ]
    return "\n".join(rows)


def target_lines() -> list[Line]:
    """Return name, aim, what was measured and whether the aim was met, of each aim."""
    overhead, exact = result("overhead")["summary"], result("accuracy")["summary"]

    def lost(case: str) -> float:
        return float(overhead[case]["throughput_loss_percent"])

    highest = overhead["graph_default"]["throughput_loss_percent_ci95"][1]
    elsewhere = [run["graph_default"] for run in overhead["again"] if "graph_default" in run]
    first, later = ([run["resident_mib"][part]["total"] for run in overhead["again"]
                     if "cupy" in run["resident_mib"].get(part, ())]
                    for part in ("paired", "default"))  # fmt: skip
    graph_layout, graph_of_two = (overhead["twin_mib"][tp]["mib_each"] for tp in ("tp1", "tp2"))

    def added(tp: int) -> float:
        return float(overhead["startup"][f"tp{tp}"]["added_percent"])

    def starts(tp: int) -> str:
        of_each = overhead["startup"][f"tp{tp}"]["starts_of_each"]
        return "one start each" if of_each == 1 else f"the quickest of {of_each} starts each"

    tail = overhead["graph_default"]["itl_p99_increase_percent"]
    return [
        ("default sampling: tokens per second lost, %", "0.1, its interval up to 0.3 at most",
         f"{lost('graph_default'):.2f}, up to {highest:.2f}", highest <= 0.3),
        *(("the same on a machine less quiet, %", "the same", f"{found['throughput_loss_percent']:.2f}, up to "
           f"{found['throughput_loss_percent_ci95'][1]:.2f}", found["throughput_loss_percent_ci95"][1] <= 0.3)
          for found in elsewhere),
        ("default sampling: 99th percentile between tokens, %", "+1", f"{tail:+.1f}", tail <= 1),
        ("every step sampled, in graphs, %", "3", f"{lost('graph_every_step'):.2f}", lost("graph_every_step") <= 3),
        ("every step sampled, eager prefill, %", "1", f"{lost('eager_prefill_every_step'):.2f}",
         lost("eager_prefill_every_step") <= 1),
        ("every step sampled, eager decode, %", "3", f"{lost('eager_decode_every_step'):.2f}",
         lost("eager_decode_every_step") <= 3),
        ("a wrapped call in a step that is not sampled, ns", "120", f"{overhead['hook_ns']:.0f}", overhead["hook_ns"] <= 120),
        ("error per operator against CUPTI, median, of the worst shape, µs", "1", f"{exact['median_error_us_without_cupti']:.2f}",
         exact["median_error_us_without_cupti"] <= 1),
        ("shares, worst case, points", "0.5", f"{exact['max_share_error_points_without_cupti']:.2f}",
         exact["max_share_error_points_without_cupti"] <= 0.5),
        *transfer_targets(),
        ("boundaries cover of a step, worst case, %", "99.5", f"{exact['step_closure_percent']:.2f}",
         exact["step_closure_percent"] >= 99.5),
        ("gap of a decode step, worst case, %", "2", f"{exact['gap_percent_max']:.1f}", exact["gap_percent_max"] <= 2),
        ("negative intervals", "0", f"{exact['negative_intervals']}", exact["negative_intervals"] == 0),
        ("GPU memory of an instrumented graph, TP 1, MiB", "3", f"{graph_layout:.2f}", graph_layout <= 3),
        ("the same, TP 2, with NCCL in it, MiB", "10", f"{graph_of_two:.2f}", graph_of_two <= 10),
        *((f"start-up, TP {tp}, {starts(tp)}, %", f"+{most}", f"{added(tp):+.1f}", added(tp) <= most)
          for tp, most in ((1, 5), (2, 15))),
        *link_targets(),
        *((f"memory of a model process, MiB, CuPy apart, {words}", "32", " and ".join(f"{each:.1f}" for each in found),
           max(found) <= 32) for words, found in (("a machine's first start", first), ("a later start", later))),
    ]  # fmt: skip


def aims(language: str) -> str:
    """Return how many of the aims were met, for the READMEs."""
    lines = target_lines()
    met = sum(line[3] for line in lines)
    where = "[docs/measured.md](docs/measured.md#aims)"
    return {
        ENGLISH: f"How it was measured, and every aim with what became of it ({met} met, {len(lines) - met} missed): {where}.",
        CHINESE: f"测量方法，以及每个目标的结果（{met} 个达到，{len(lines) - met} 个未达到）：{where}（英文）。",
    }[language]


LINKS = {
    "nccl_nvlink": "NCCL, NVLink",
    "nccl_pcie": "NCCL, through host memory",
    "custom": "LightLLM's own, NVLink",
}


SLOW = {
    "graph": "in CUDA graphs",
    "eager_ahead": "without graphs, launched ahead",
    "eager": "without graphs, bound by the CPUs",
}


def ranks() -> str:
    """Two ranks with a GPU each over every link: what a call of all_reduce takes, a late rank, the plugin's cost."""
    found = result("links")
    own = {name: each for name in LINKS if (each := found["summary"]["variants"].get(name, {})).get("available")}
    gpu = f"{found['gpu']['count']} × {found['gpu']['name']}"
    rows = [f"| {gpu} | " + " | ".join(LINKS[name] for name in own) + " |", "|---" * (len(own) + 1) + "|"]

    def row(name: str, cell: Callable[[dict[str, Any]], str]) -> None:
        rows.append(f"| {name} | " + " | ".join(map(cell, own.values())) + " |")

    def lost(setting: str) -> Callable[[dict[str, Any]], str]:
        def cell(each: dict[str, Any]) -> str:
            low, high = each["overhead"][setting]["loss_percent_ci95"]
            return f"{each['overhead'][setting]['loss_percent']:.2f} % ({low:.2f} … {high:.2f})"

        return cell

    decode = next(iter(own.values()))["decode"]
    row("all_reduce of prefill: bus bandwidth", lambda each: f"{each['prefill']['bus_bytes_per_second'] / 1e9:.0f} GB/s"
        + ("" if "custom" not in each["decode"]["implementation"] else " (NCCL's)"))  # fmt: skip
    row(
        f"all_reduce of decode, {decode['payload_bytes'] / 1e6:.2f} MB: transfer",
        lambda each: f"{each['decode']['transfer_us']:.1f} µs",
    )
    row("its share of a decode step", lambda each: f"{each['decode']['all_reduce_percent']:.1f} %")
    row("decode steps that both are of", lambda each: str(each["decode"]["steps"]))
    for mode, words in SLOW.items():
        for delay in () if mode == "eager" else ("20", "50", "200"):
            row(
                f"{words}, a rank late by {delay} µs: the other's wait",
                lambda each, at=(mode, delay): "{:.1f} … {:.1f} µs".format(*each["wait_us_by_delay"][at[0]][at[1]]),
            )
        row(f"{words}: the delayed rank named, steps, worst case",
            lambda each, mode=mode: f"{each['slow_rank'][mode]['named_percent']:.0f} %")  # fmt: skip
        row(f"{words}: transfer moves by, worst case beyond the noise",
            lambda each, mode=mode: shift(each["slow_rank"][mode]["transfer_shift_percent"]))  # fmt: skip
    row(
        f"{SLOW['eager']}: calls that say who was last, worst case",
        lambda each: f"{each['slow_rank']['eager']['sure_percent']:.0f} %",
    )
    for name, words in (("right_percent_of_calls", "calls"), ("right_percent", "steps, worst pass")):
        row(f"{SLOW['eager']}: named is the rank that CUPTI saw come last, {words}",
            lambda each, name=name: f"{each['slow_rank']['eager_seen'][name]:.0f} %")  # fmt: skip
    row("tokens per second lost, default sampling", lost("default"))
    row("the same, every step sampled", lost("every_step"))
    row(
        "tokens compared with those of the plugin switched off, all the same", lambda each: f"{each['tokens_compared']}"
    )
    return "\n".join(rows)


def shift(percent: float | None) -> str:
    return "–" if percent is None else f"{percent:.1f} %"


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


ANALYSED = {
    ("static_new", "prefill"): "July 2025, prefill",
    ("static_new", "decode"): "July 2025, decode",
    ("served_new", "decode"): "July 2025, served, decode",
    ("static_old", "decode"): "0.0.1, decode",
    ("tp2", "decode"): "July 2025, TP 2 on one GPU by sockets, decode",
}


def analysis() -> str:
    """Shares of real runs with their intervals, and whether comparisons keep what they state."""
    if not (RESULTS / "analysis.json").exists():
        return "Not measured yet: `benchmarks/analyses/analysis.py`."
    content = result("analysis")
    summary = content["summary"]
    found = {
        name: summary["shares"][part][phase]
        for (part, phase), name in ANALYSED.items()
        if phase in summary["shares"].get(part, {})
    }
    order = sorted(
        {name for shares in found.values() for name in shares},
        key=lambda name: -max(shares.get(name, [0.0])[0] for shares in found.values()),
    )
    heads = [_head(name, part, content["rows"]) for (part, _), name in ANALYSED.items() if name in found]
    rows = [f"| {content['gpu'].get('name', 'GPU')}: share of the step, % | " + " | ".join(heads) + " |"]
    rows.append("|---" * (len(found) + 1) + "|")
    for name in order:
        shares = [each.get(name) for each in found.values()]
        cells = [f"{each[0]:.1f} ({each[1]:.1f} … {each[2]:.1f})" if each else "–" for each in shares]
        rows.append(f"| `{name}` | " + " | ".join(cells) + " |")
    claims = list(_compared(summary))
    if claims:
        rows += ["", "| | aim | found | |", "|---|---|---|---|"]
        rows += [f"| {name} | {aim} | {value} | {'met' if met else '**missed**'} |" for name, aim, value, met in claims]
    if (ROOT / "docs" / "example-report.html").exists():
        rows += ["", "[The report on the first two columns](example-report.html)"]
    return "\n".join(rows)


def _head(name: str, part: str, rows: list[dict[str, Any]]) -> str:
    """With how often and how long it was run."""
    run = next(row for row in rows if row.get("part") == part and row.get("kind") == "run")
    return f"{name} ({run['repeats']} × {run['plan']['output_len']} out)"


def _compared(summary: dict[str, Any]) -> Iterator[tuple[str, str, str, bool]]:
    """What was to be kept or found, and whether it was; only what has been measured."""
    equal, stated = summary["aa_significant_percent"], summary["aa_stated_error_percent"]
    if equal is not None:
        name = f"5 repeats against 5 equal ones, {summary['aa_splits']} random splits: some operator significant, %"
        yield name, f"at most {stated:g}", f"{equal:g}", equal <= stated
    for percent, phases in summary["slowed"].items():
        for phase, each in phases.items():
            ends = " … ".join(f"{value:+.2f}" for value in each["ci95"])
            said = f"{each['estimate_percent']:+.2f} ({ends})" + ("" if each["found"] else ", not sure")
            injected = f"{each['injected_percent']:+.2f}"
            yield (
                f"`ffn` slowed by {percent} %, {phase}: estimate, %",
                f"found; {injected} was put in",
                said,
                each["found"],
            )
    for command, most in (("report", 2), ("compare", 4)):
        seconds = summary[f"seconds_{command}_1m"]
        if seconds is not None:
            yield f"`{command}` of a million records, s", f"below {most}", f"{seconds:.2f}", seconds < most


# What is said of a feature where it is measured, and where that version of LightLLM does not have what it is about.
MEASURED = (
    (Feature.STEPS, "steps", "yes", "–"),
    (Feature.STEP_SIZES, "batch, tokens and context of a step", "yes", "–"),
    (Feature.STEP_END, "GPU work behind sampling belongs to its step", "yes", "–"),
    (Feature.IDLE, "idle time and its reason", "yes", "–"),
    (Feature.OPERATORS, "operators of eager steps", "yes", "–"),
    (Feature.DECODE_GRAPHS, "operators inside decode graphs", "yes", "–"),
    (Feature.SAMPLING, "sampling", "yes", "–"),
    (Feature.COLLECTIVES, "`all_reduce` and other collectives", "yes", "yes"),  # without groups they are torch's own
    (Feature.PREFILL_GRAPHS, "prefill graphs", "whole steps", "–"),
    (Feature.MICROBATCHES, "two microbatches at once", "whole steps", "–"),
    (Feature.MIXED_BATCHES, "prefill and decode in one step", "yes", "–"),
    (Feature.SPLITFUSE, "splitfuse mode", "yes", "–"),
    (Feature.REQUEST_SPANS, "requests, as spans of traces", "yes", "–"),
    (Feature.MODEL_FACTS, "expected times from the model's shape", "yes", "–"),
    (Feature.HEALTH_MONITOR, "LightLLM's `--health_monitor` is not alarmed by the exporter", "yes", "–"),
    (Feature.STATIC_BENCH, "`bench --static`", "yes", "–"),
)


def versions() -> str:
    """Return the table of LightLLM's versions and what is measured of each, as read from their source."""
    found = result("hosts")["summary"]["versions"]
    names = [f"{name} ({each['date']})" if each["date"] else f"{name} (PyPI)" for name, each in found.items()]
    rows = ["| what is measured | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for feature, title, measured, not_there in MEASURED:
        said = {"measured": measured, "not there": not_there, "lost": "**no**"}
        rows.append(_row(title, [said[each["features"].get(feature.value, "not there")] for each in found.values()]))
    rows.append(
        _row("drafts of speculative decoding", ["counted" if each["drafts"] else "–" for each in found.values()])
    )
    lost = [", ".join(f"`{name}`" for name in each["operators_lost"]) or "none" for each in found.values()]
    rows.append(_row("operators that are not timed on their own", lost))
    rows.append(
        _row("places where GPU time counts as another operator's", [str(each["wrong"]) for each in found.values()])
    )
    unclaimed = [", ".join(f"`{name}`" for name in each["unclaimed"]) or "none" for each in found.values()]
    rows.append(_row("layers in which some work is no operator's, and counts as `other`", unclaimed))
    return "\n".join(rows)


def history() -> str:
    """Return what was found in LightLLM's history, and what is so on purpose."""
    content = result("hosts")
    found = content["summary"]
    lost = [f"{row.get('name') or row['commit']}: {', '.join(row['lost'])}" for row in content["rows"] if "lost" in row]
    rows = [
        f"- {found['hosts']} versions of LightLLM up to `{found['tip'][:9]}` ({found['tip_date']}), read on {content['date']}.",
        f"- Versions that would not start with the plugin: {found['hosts_with_start_failures']}.",
        f"- Versions of which a feature is lost: {found['hosts_with_lost_features']}{_of(lost)}.",
        f"- Versions with places where GPU time counts as another operator's: {found['hosts_with_wrong_figures']}.",
    ]
    rows += [f"- On purpose: {rule['says']} ({rule['known']})." for rule in found["rules"].values() if rule["known"]]
    return "\n".join(rows)


def _of(names: list[str]) -> str:
    """Return a few names in brackets; nothing where there are none or many."""
    return f" ({'; '.join(names)})" if 0 < len(names) <= 8 else ""


def _row(title: str, cells: list[str]) -> str:
    return f"| {title} | " + " | ".join(cells) + " |"


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
