"""What collectives take, over every link: transfers against CUPTI, ranks that are late."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from results import result

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
