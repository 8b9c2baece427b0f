"""What was aimed at before anything was measured, and what came of it."""

from __future__ import annotations

from collective_tables import LINKS, REDUCES
from results import CHINESE, ENGLISH, result

Line = tuple[str, str, str, bool]


def transfer_targets() -> list[Line]:
    rows = []
    for name, how in REDUCES.items():
        worst = max(abs(each["error_us"]) for each in result(name)["summary"]["transfer"].values())
        rows.append((f"error of an all_reduce in a CUDA graph against CUPTI, {how}, worst case, µs", "1", f"{worst:.2f}",
                     worst <= 1))  # fmt: skip
    return rows


def link_targets() -> list[Line]:
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
