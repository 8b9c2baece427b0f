"""NVLink against PCI Express: the same two ranks over one and over the other, and through LightLLM's own all_reduce.

    python benchmarks/collectives/links.py --source CHECKOUT --out benchmarks/results

LLaMA-7B's shape, fp16, TP 2, 64 requests of 1024 tokens, 1024 new ones: what the original analysis compared. Needs two
GPUs joined by NVLink, lightllm-otel with CuPy in this Python, LightLLM's packages and a checkout of the current LightLLM. Where
there is one GPU, both ranks share it, and no figure means what it should.

Each variant is a build of the model, two processes (variants.py), and one more in which CUPTI watches who comes last
without graphs (witness.py):

- nccl_nvlink: NCCL over NVLink, without multicast.
- nccl_pcie: the same without peer access. NCCL then goes through the host's memory, so over both GPUs' PCI Express.
- custom: LightLLM's own all_reduce. It needs sgl_kernel (also to take vllm's instead) and NVLink, and is for payloads below
  8 MiB: decode's. Of sgl_kernel its module allreduce is enough; one built from the sources of that kernel serves. Whether it ran,
  the plugin's records say: ``implementation``. If not, the variant is not available.

All 64 prompts are one forward of 65,536 tokens. Alerts are evaluated from the rows, where there is promtool:

    python benchmarks/collectives/links.py --nothing --merge links.json --out benchmarks/results
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import _paths  # noqa: F401 - puts the other folders on sys.path
import collectives
import collectives_claims
import collectives_rows
import hours
import outcome
import promtool
import rank
import variants
import workers
from pairing import Schedule
from rank import AHEAD, DECODES, GRAPH, SEEN
from variants import Plan, Rows, Variant

from lightllm_otel.records.vocabulary import Implementation
from lightllm_otel.roofline import gpus, links

SHAPE = "llama-7b"
TP = 2
NVLINK, PCIE, CUSTOM = "nccl_nvlink", "nccl_pcie", "custom"
NCCL = {"NCCL_NVLS_ENABLE": "0", "NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "INIT,P2P,SHM"}
ABOUT = ("kind", "variant", "tp", "one_gpu", "date", "commit")  # of a row, not of what it says
VARIANTS = {
    NVLINK: Variant(("--disable_custom_allreduce",), NCCL),
    PCIE: Variant(("--disable_custom_allreduce",), {**NCCL, "NCCL_P2P_DISABLE": "1"}),
    CUSTOM: Variant((), NCCL, needs=Implementation.CUSTOM),
}
# One step more than is counted of each share: the first of a pass is left out.
FULL = Plan(rank.Sizes(batch=64, input_tokens=1024, slow_batch=64, slow_input=1024, prefills=4, steps=24, share_steps=1025,
                       delays=(0.02, 0.05, 0.2)))  # fmt: skip
TINY = Plan(rank.Sizes(batch=2, input_tokens=24, slow_batch=2, slow_input=24, prefills=2, steps=3, share_steps=4,
                       delays=(20.0,)), tokens=6, overhead=Schedule(4, 2, 2), overhead_input=8)  # fmt: skip


# What is claimed -------------------------------------------------------------------------------------------------------


def summarise(rows: Rows) -> dict[str, Any]:
    """Everything from the rows alone."""
    by_variant = {name: own for name in VARIANTS if (own := [row for row in rows if row.get("variant") == name])}
    found = {name: summary_of(name, own) for name, own in by_variant.items()}
    identical = [each["tokens_identical"] for each in found.values() if each.get("tokens_identical") is not None]
    topology = next((row for row in rows if row.get("kind") == "topology"), {})
    return {
        "variants": found,
        "speedup": speedup(found, topology),
        "slow_rank": worst(found),
        "tokens_identical": all(identical) if identical else None,
        "topology": {name: value for name, value in topology.items() if name not in ABOUT},
        "one_gpu": any(row.get("one_gpu") for row in rows),
        "alerts": alerts(rows, topology),
        "problems": [f"{row['variant']}: {row['problem']}" for row in rows if row.get("problem") and "variant" in row]
        + [f"{row['variant']}: {row['kind']} in mode {AHEAD}, but in {missed} calls the GPU waited for its host"
           for row in rows if row.get("mode") == AHEAD and (missed := row["calls"] - row["told"])],
    }  # fmt: skip


def worst(found: dict[str, Any]) -> dict[str, Any]:
    """mode → the least named and the largest shift of all variants. Eager decode is bound by the hosts, so
    the rank that is delayed need not come last: whether the one that is named did, CUPTI says.
    """
    answer = {}
    for mode in DECODES:
        own = [each["slow_rank"][mode] for each in found.values() if mode in each.get("slow_rank", {})]
        if own:
            shifts = [each["transfer_shift_percent"] for each in own if each["transfer_shift_percent"] is not None]
            answer[mode] = {
                "straggler_named_percent": min(each["named_percent"] for each in own),
                "transfer_shift_percent": max(shifts, default=None),
            }
            if right := [each["right_percent"] for each in own if "right_percent" in each]:
                answer[mode]["right_percent"] = min(right)
    return answer


def summary_of(name: str, rows: Rows) -> dict[str, Any]:
    """One variant. One that the records do not show is not available, whatever else ran in its place."""
    own = variants.common_summary(rows)
    needed = VARIANTS[name].needs
    if needed is not None and needed.value not in own.get("decode", {}).get("implementation", ()):
        recorded = {phase: own[phase]["implementation"] for phase in ("prefill", "decode") if phase in own}
        there = next((row["modules"] for row in rows if row.get("kind") == "modules"), None)
        return {"available": False, "row": "not available", "implementation": recorded, "modules": there,
                "problems": own["problems"]}  # fmt: skip
    return {
        "available": True, **own, "transports": next((row["transports"] for row in rows if row.get("kind") == "topology"), []),
        "straggler_named_percent_by_delay": named_by_delay(rows), "wait_us_by_delay": waits_by_delay(rows),
        "slow_rank": by_mode(rows),
    }  # fmt: skip


def by_mode(rows: Rows) -> dict[str, Any]:
    """mode → the worst pass with a slow rank: how often that was named, how far transfer moved, beyond the noise and with it."""
    found = {}
    for mode in DECODES:
        own = [row for row in rows if row.get("mode") == mode]
        if any(row.get("kind") == "slow" for row in own):
            group = collectives_claims.slow_group(own)
            found[mode] = {
                "named_percent": collectives_claims.summarise(own)["straggler_named_percent_worst_pass"],
                "sure_percent": min(
                    (
                        round(100 * row["sure"] / row["calls"], 2)
                        for row in own
                        if row.get("kind") == "slow" and row["calls"]
                    ),
                    default=None,
                ),
                **{name: group[name] for name in ("transfer_shift_percent", "transfer_shift_percent_with_noise")},
                "transfer_noise_percent": group["transfer_noise_percent"][mode],
                **seen_right(own),
            }
    return found


def seen_right(rows: Rows) -> dict[str, float | None]:
    """How often the plugin names the rank that CUPTI saw come last: of the steps of the worst pass, of all of them, and of all
    calls for which it names one. Empty where nobody but the plugin watched.
    """
    own = [row for row in rows if "right_steps" in row]
    if not own:
        return {}
    return {
        "right_percent": round(min(100 * row["right_steps"] / row["steps"] for row in own), 2),
        "right_percent_of_steps": round(100 * sum(row["right_steps"] for row in own) / sum(row["steps"] for row in own), 2),
        "right_percent_of_calls": collectives_rows.percent(
            sum(row["right_calls"] for row in own), sum(row["judged_calls"] for row in own)
        ),
    }  # fmt: skip


def named_by_delay(rows: Rows) -> dict[str, dict[str, float]]:
    """mode → microseconds of the delay → percent of the steps in which the right rank was named, of the worse rank."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.get("kind") == "slow":
            here, at = found.setdefault(row["mode"], {}), f"{1e3 * row['delay_ms']:.0f}"
            here[at] = min(here.get(at, 100.0), round(100 * row["named_steps"] / row["steps"], 2))
    return found


def waits_by_delay(rows: Rows) -> dict[str, dict[str, list[float]]]:
    """mode → microseconds of the delay → what the other rank waited, the least and the most of the ranks that were late."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row.get("kind") == "slow" and row["wait_us"]:
            waits = found.setdefault(row["mode"], {}).setdefault(f"{1e3 * row['delay_ms']:.0f}", [])
            waits.append(max(wait for rank, wait in enumerate(row["wait_us"]) if rank != row["slow"]))
    return {mode: {delay: [min(each), max(each)] for delay, each in own.items()} for mode, own in found.items()}


def speedup(found: dict[str, Any], topology: dict[str, Any]) -> dict[str, Any]:
    """Transfer over PCIe to that over NVLink, measured and as theory has it. Its PCIe is that of one GPU's own slot: on the
    way through the host's memory too each GPU's slot carries what it sends and what it receives once.
    """
    answer: dict[str, Any] = {}
    for phase in ("prefill", "decode"):
        fast, slow = (found.get(name, {}).get(phase) for name in (NVLINK, PCIE))
        if not fast or not slow:
            continue
        answer[phase] = {
            "measured": round(slow["transfer_us"] / fast["transfer_us"], 3),
            "payload_bytes": fast["payload_bytes"],
        }
        peaks = link_tables(topology)
        if peaks and fast["payload_bytes"]:
            seconds = {each: links.ring_seconds("all_reduce", fast["payload_bytes"], TP, peaks[each]) for each in peaks}
            answer[phase] |= {
                "theory": round(seconds["pcie"] / seconds["nvlink"], 3),
                "theory_us": {each: round(1e6 * value, 3) for each, value in seconds.items()},
                "theory_of_bandwidth_alone": round(peaks["nvlink"].one_way / peaks["pcie"].one_way, 3),
            }  # fmt: skip
    if answer:
        answer["theory_from"] = (
            "theory/links.py (NCCL's latencies, the better protocol) over the link tables' peaks by NVML's count of links "
            "and lanes, in one direction; PCIe: one GPU's slot, the host's memory is taken to be no limit"
        )
    return answer


def link_tables(topology: dict[str, Any]) -> dict[str, links.Link]:
    """Peaks by what NVML counts; where it does not say, by the GPU's data sheet; empty where neither is known."""
    values = {kind: topology.get(f"{kind}_bytes_per_second") or 0.0 for kind in ("nvlink", "pcie")}
    try:
        sheet = gpus.find(topology.get("gpu", ""))
    except gpus.UnknownGpu:
        pass
    else:
        values = {kind: value or getattr(sheet, f"{kind}_bytes_per_second") for kind, value in values.items()}
    return {kind: links.Link(kind, value) for kind, value in values.items()} if all(values.values()) else {}


def alerts(rows: Rows, topology: dict[str, Any]) -> dict[str, Any]:
    """What the real rules say to an hour over NVLink and then one over PCIe: extended from the rates that were measured."""
    before, after = (hours.Rates.of([row for row in rows if row.get("variant") == name]) for name in (NVLINK, PCIE))
    if before is None or after is None:
        return {"problem": "not both variants have shares of prefill and of decode"}
    if shutil.which(promtool.promtool()) is None:
        return {"problem": "no promtool here: make the summary anew where there is one"}
    peaks = link_tables(topology)
    return hours.evaluate(before, after, peaks["nvlink"].bytes_per_second if peaks else 0.0)


# Running ---------------------------------------------------------------------------------------------------------------


def child(arguments: argparse.Namespace) -> None:
    if arguments.child == "checkpoint":
        workers.checkpoint_of(arguments.work, arguments.shape, arguments.cpu)
        return
    plan = dataclasses.replace(TINY if arguments.cpu else FULL, only=tuple(arguments.mode or ()))
    variants.run_rank(arguments, VARIANTS[arguments.variant[0]], plan)


def together(merged: Sequence[dict[str, Any]], wanted: Sequence[str]) -> Rows:
    """Rows of earlier files; the last that has a variant counts for it, and none for a variant that is measured now."""
    of_variant: dict[str, Rows] = {}
    for earlier in merged:
        for name in {row["variant"] for row in earlier["rows"] if "variant" in row}:
            measured = {key: earlier[key] for key in ("date", "commit")}
            of_variant[name] = [{**measured, **row} for row in earlier["rows"] if row.get("variant") == name]
    return [row for name in VARIANTS if name not in wanted for row in of_variant.get(name, [])]


SLOW, SHARES, PAIRS = ("plain", "slow"), ("moved", "share"), ("case", "cell")


def with_passes(rows: Rows, later: dict[str, Any], kinds: Sequence[str] = SLOW) -> Rows:
    """``rows`` with a later file's passes with a slow rank and those around them, or its shares, of each mode; each says its
    commit. What was lost in that run counts as well.
    """
    measured = {name: later[name] for name in ("date", "commit")}
    passes = [{**row, **measured} for row in later["rows"] if row.get("kind") in kinds]
    replaced = {(row["variant"], row["mode"]) for row in passes}
    kept = [row for row in rows if row.get("kind") not in kinds or (row["variant"], row["mode"]) not in replaced]
    lost = [{**row, **measured} for row in later["rows"] if row.get("kind") in ("unmatched", "rank facts", "ring")]
    return kept + passes + [row for row in lost if row not in kept]


def with_pairs(rows: Rows, other: dict[str, Any]) -> Rows:
    """``rows`` and another file's pairs of the overhead, of variants that are measured: they count as well."""
    measured = {name: other[name] for name in ("date", "commit")}
    known = {row["variant"] for row in rows if row.get("kind") in PAIRS}
    return rows + [{**measured, **row} for row in other["rows"] if row.get("kind") in PAIRS and row["variant"] in known]


def main() -> None:
    made = variants.parser(__doc__, Path("/dev/shm/links"), limit=150.0)
    made.add_argument("--variant", action="append", choices=tuple(VARIANTS), help="default: all")
    made.add_argument("--mode", action="append", choices=DECODES, help="only passes with a slow rank, in this mode")
    made.add_argument(
        "--passes",
        nargs="*",
        type=Path,
        default=[],
        help="earlier results whose passes with a slow rank replace those of --merge",
    )
    made.add_argument(
        "--shares", nargs="*", type=Path, default=[], help="earlier results whose shares replace those of --merge"
    )
    made.add_argument(
        "--pairs", nargs="*", type=Path, default=[], help="earlier results whose pairs of the overhead count as well"
    )
    made.add_argument("--shape", default=SHAPE)
    made.add_argument("--tp", type=int, default=TP, help=argparse.SUPPRESS)
    arguments = made.parse_args()
    for mode, lacking in ((GRAPH, "graphs"), (SEEN, "CUPTI")):
        if arguments.cpu and mode in (arguments.mode or ()):
            made.error(f"--mode {mode}: there is no such thing as {lacking} on a CPU")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what outlives this script keeps its GPU memory
    arguments.shape = "tiny" if arguments.cpu else arguments.shape
    if arguments.child:
        child(arguments)
        return
    wanted = [] if arguments.nothing else arguments.variant or list(VARIANTS)
    merged = [json.loads(path.read_text()) for path in arguments.merge]
    rows = together(merged, [] if arguments.mode else wanted)  # of a variant in some modes only, the rest stays
    for path in arguments.pairs:
        merged.append(json.loads(path.read_text()))
        rows = with_pairs(rows, merged[-1])
    for paths, kinds in ((arguments.passes, SLOW), (arguments.shares, SHARES)):
        for path in paths:
            merged.append(json.loads(path.read_text()))
            rows = with_passes(rows, merged[-1], kinds)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if wanted:
        variants.write_checkpoint(arguments, __file__)
    # CUPTI has a build of its own: it may leave something behind in the processes that it watched.
    builds = [arguments.mode] if arguments.mode else [()] if arguments.cpu else [(), (SEEN,)]
    for name, modes in itertools.product(wanted, builds):
        arguments.nccl_port += 1  # the last group's may linger
        own = collectives.run_group(
            arguments, TP, variants.gpus(arguments.cpu), True, __file__,
            ["--variant", name, *(word for mode in modes for word in ("--mode", mode))],
            VARIANTS[name].environment, variants.left_rows,
        )  # fmt: skip
        own = [{"variant": name, **row} for row in own]
        if modes:
            rows = with_passes(rows, {"date": outcome.today(), "commit": outcome.commit(), "rows": own})
            rows += [row for row in own if row["kind"] == "problem"]
        else:
            rows += [*own, {"variant": name, "kind": "modules", "modules": variants.modules()}]
        workers.say(f"{name}{''.join(f', {mode}' for mode in modes)}: {len(rows)} rows so far")
        outcome.write("links", summarise(rows), rows, arguments.out, merged)
    summary = summarise(rows)
    outcome.write("links", summary, rows, arguments.out, merged, measured=bool(wanted))
    print(json.dumps(summary, indent=1, default=float))
    sys.exit(bool(summary["problems"]))


if __name__ == "__main__":
    main()
