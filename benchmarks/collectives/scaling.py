"""How LLaMA-2-70B scales from 4 to 8 GPUs, operator by operator, against what theory allows.

    python benchmarks/collectives/scaling.py --source CHECKOUT --out benchmarks/results [--tp 4 --tp 8] [--layers 80]

Its shape in fp16, 20 requests of 1024 tokens: what the original analysis ran. Needs as many GPUs as ranks, and room for the
checkpoint in /dev/shm (1.7 GB a layer); with fewer --layers everything is there but the figures of a whole step.

Each tensor parallelism is one build of the model (variants.py). Its passes are repeated five times *in that build*, each
time from a new prefill on: what differs between repeats is the machine's noise, not that of another build. Decode is
measured near its beginning; each row says at which context. Collectives are those that LightLLM chooses, which rows name;
NCCL's multicast is off.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import _paths  # noqa: F401 - puts the other folders on sys.path
import collectives
import outcome
import rank
import variants
import workers
from pairing import Schedule
from variants import Plan, Rows, Variant

from lightllm_otel.records.vocabulary import Operator, Phase
from lightllm_otel.roofline import gpus, ideal, shape
from lightllm_otel.roofline.links import Link
from lightllm_otel.roofline.work import Batch

PARALLEL = (4, 8)
LAYERS = 80
FAMILY = "llama-70b-6-layers"
ENVIRONMENT = {"NCCL_NVLS_ENABLE": "0", "NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "INIT,P2P,SHM"}
FULL = Plan(rank.Sizes(batch=20, input_tokens=1024, prefills=4, share_steps=49), repeats=5, inject=False)
TINY = Plan(rank.Sizes(batch=2, input_tokens=24, prefills=2, share_steps=3), repeats=2, inject=False, tokens=4,
            overhead=Schedule(4, 2, 2), overhead_input=8)  # fmt: skip


# What is claimed -------------------------------------------------------------------------------------------------------


def summarise(rows: Rows) -> dict[str, Any]:
    """Everything from the rows alone."""
    by_tp = {
        tp: [row for row in rows if row.get("tp") == tp] for tp in sorted({row["tp"] for row in rows if "tp" in row})
    }
    groups = {
        f"tp{tp}": {
            **variants.common_summary(own), "operators": operators(own), "stability": stability(own),
            "topology": next((row["link"] for row in own if row.get("kind") == "topology"), None),
        }
        for tp, own in by_tp.items()
    }  # fmt: skip
    pairs = list(zip(list(by_tp)[:-1], list(by_tp)[1:]))
    return {
        "groups": groups,
        "speedup": {f"tp{low} to tp{high}": speedup(by_tp[low], by_tp[high], low, high) for low, high in pairs},
        "layers": sorted({row["layers"] for row in rows if "layers" in row}),
        "repeats": "separate passes in one build",
        "one_gpu": any(row.get("one_gpu") for row in rows),
        "problems": [f"tp {row['tp']}: {row['problem']}" for row in rows if row.get("problem") and "tp" in row],
    }  # fmt: skip


def by_repeat(rows: Rows) -> dict[str, dict[str, list[float]]]:
    """phase → operator → microseconds of a step on a rank, in each repeat; ``step`` is all of it."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row.get("kind") != "moved" or not row["step_us"]:
            continue
        phase = found.setdefault(variants.phase_of(row), {})
        phase.setdefault("step", []).append(row["step_us"])
        for each in rows:
            if each.get("kind") == "share" and each["pass"] == row["pass"]:
                phase.setdefault(each["operator"], []).append(row["step_us"] * each["percent"] / 100)
        if row["transfer_us"]:
            phase.setdefault("transfer of a call", []).append(row["transfer_us"])
    return found


def operators(rows: Rows) -> dict[str, dict[str, dict[str, float]]]:
    """phase → operator → share of the step and its microseconds, medians over the repeats; the dearest first."""
    answer: dict[str, dict[str, dict[str, float]]] = {}
    for phase, found in by_repeat(rows).items():
        middle = {name: float(np.median(values)) for name, values in found.items() if name != "transfer of a call"}
        answer[phase] = {
            name: {"us": round(value, 2), "percent": round(100 * value / middle["step"], 3)}
            for name, value in sorted(middle.items(), key=lambda each: -each[1])
        }
    return answer


def stability(rows: Rows) -> dict[str, dict[str, dict[str, float]]]:
    """phase → operator → how far repeats differ, in percent of their mean: standard deviation, and largest to smallest."""
    return {
        phase: {
            name: {
                "deviation_percent": round(100 * float(np.std(values, ddof=1) / np.mean(values)), 3),
                "range_percent": round(100 * (max(values) - min(values)) / float(np.mean(values)), 3), "repeats": len(values),
            }
            for name, values in found.items() if len(values) > 1
        }
        for phase, found in by_repeat(rows).items()
    }  # fmt: skip


def speedup(slow: Rows, fast: Rows, low: int, high: int) -> dict[str, dict[str, dict[str, float | None]]]:
    """phase → operator → how many times faster it is on ``high`` ranks, measured and by theory."""
    answer: dict[str, dict[str, dict[str, float | None]]] = {}
    before, after = operators(slow), operators(fast)
    for phase in before:
        least = [theory(own, phase, ranks) for own, ranks in ((slow, low), (fast, high))]
        answer[phase] = {
            name: {
                "measured": round(value["us"] / after[phase][name]["us"], 3),
                "theory": round(least[0][name] / least[1][name], 3) if name in least[0] and name in least[1] else None,
            }
            for name, value in before[phase].items()
            if name in after.get(phase, {})
        }
    return answer


def theory(rows: Rows, phase: str, ranks: int) -> dict[str, float]:
    """Least seconds of each operator, and of the ``step``; empty where GPU or link are not known."""
    topology = next((row for row in rows if row.get("kind") == "topology"), {})
    layers = next((row["layers"] for row in rows if "layers" in row), LAYERS)
    at = next((row for row in rows if row.get("kind") == "moved" and variants.phase_of(row) == phase), None)
    try:
        gpu = gpus.find(topology.get("gpu", ""))
    except gpus.UnknownGpu:
        return {}
    if at is None:
        return {}
    kind = "pcie" if topology["link_kind"] == "pcie" else "nvlink"
    peak = topology[f"{kind}_bytes_per_second"] or getattr(gpu, f"{kind}_bytes_per_second")
    own = dataclasses.replace(shape.find("llama2-70b"), layers=layers)
    sizes = FULL.sizes
    batch = ideal.prefill(sizes.batch, sizes.input_tokens)
    if phase == "decode":
        batch = Batch(Phase.DECODE, sizes.batch, 1, at["context"] + sizes.share_steps / 2)
    found = ideal.step(own, batch, gpu, ranks, Link(kind, peak))
    seconds = {
        each.value: value.seconds for each, value in found.items() if value.seconds > 0 and each is not Operator.GAP
    }
    return {**seconds, "step": sum(seconds.values())}


# Running ---------------------------------------------------------------------------------------------------------------


def name_shape(arguments: argparse.Namespace) -> None:
    """The shape with so many layers, under a name of its own."""
    import checkpoint

    arguments.shape = "tiny" if arguments.cpu else f"llama-70b-{arguments.layers}-layers"
    if not arguments.cpu:
        checkpoint.SHAPES[arguments.shape] = dataclasses.replace(checkpoint.SHAPES[FAMILY], layers=arguments.layers)


def main() -> None:
    made = variants.parser(__doc__, Path("/dev/shm/scaling"), limit=300.0)
    made.add_argument("--tp", type=int, action="append", help="default: 4 and 8")
    made.add_argument("--shape", default="", help=argparse.SUPPRESS)
    made.add_argument("--layers", type=int, default=LAYERS, help="of LLaMA-2-70B's 80")
    arguments = made.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what outlives this script keeps its GPU memory
    if arguments.child:
        name_shape(arguments)
        child(arguments)
        return
    wanted = [] if arguments.nothing else sorted(arguments.tp or ([2] if arguments.cpu else PARALLEL))
    merged = [json.loads(path.read_text()) for path in arguments.merge]
    rows: Rows = [
        {"date": earlier["date"], "commit": earlier["commit"], **row}
        for earlier in merged for row in earlier["rows"] if "tp" in row and row["tp"] not in wanted
    ]  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    words = ["--layers", str(arguments.layers)]
    if wanted:
        variants.write_checkpoint(arguments, __file__, words)
    for tp in wanted:
        arguments.nccl_port += 1  # the last group's may linger
        own = collectives.run_group(
            arguments, tp, variants.gpus(arguments.cpu), False, __file__, words, ENVIRONMENT, variants.left_rows
        )
        rows += [{**row, "layers": arguments.layers} if row["kind"] == "topology" else row for row in own]
        workers.say(f"tp {tp}: {len(rows)} rows so far")
        outcome.write("scaling", summarise(rows), rows, arguments.out, merged)
    summary = summarise(rows)
    outcome.write("scaling", summary, rows, arguments.out, merged, measured=bool(wanted))
    print(json.dumps(summary, indent=1, default=float))
    sys.exit(bool(summary["problems"]))


def child(arguments: argparse.Namespace) -> None:
    if arguments.child == "checkpoint":
        workers.checkpoint_of(arguments.work, arguments.shape, arguments.cpu)
        return
    arguments.tp = arguments.tp[0]
    variants.run_rank(arguments, Variant(), TINY if arguments.cpu else FULL)


if __name__ == "__main__":
    main()
