"""Fill the tables of docs/original-analysis.md: ``python docs/original_analysis.py``.

From `lightllm-otel theory`, and from benchmarks/results where links.py and scaling.py have left something.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lightllm_otel.records.vocabulary import Operator  # noqa: E402
from lightllm_otel.roofline import gpus, ideal, links, shape, work  # noqa: E402
from lightllm_otel.roofline.shape import ModelShape  # noqa: E402
from lightllm_otel.tools.answer import Question, answer  # noqa: E402
from lightllm_otel.tools.units import duration  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "original-analysis.md"
A100, A40, T4 = (gpus.find(name) for name in ("A100-SXM-40GB", "A40", "T4"))
BATCH, LENGTH = 20, 1024


def asked(
    gpu: str, tp: int, model: str = "llama2-70b", batch: int = BATCH, length: int = LENGTH, link: str | None = None
) -> Any:
    """What the command answers."""
    return answer(Question(model, gpu, tp, batch, length, LENGTH, link, "float16"))


def ideal_seconds(answered: Any, phase: str, operator: str) -> float:
    return float(answered["phases"][phase]["operators"][operator]["ideal_seconds"])


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def flops() -> str:
    """Per layer of a rank that is alone, prefill of the batch; b, s, h as the original has them."""
    plain = ModelShape("plain", 1, 8192, 64, 64, 128, 4 * 8192, 1, ffn_matrices=2)
    unit = BATCH * LENGTH * 8192**2
    rows = []
    for name, own in (("as the original has it", plain), ("LLaMA-2-70B as it is", shape.find("llama2-70b"))):
        done = work.step(own, ideal.prefill(BATCH, LENGTH), 1)
        per_layer = {each: work_.flops / own.layers / unit for each, work_ in done.items()}
        projections = per_layer[Operator.QKV_PROJ] + per_layer[Operator.O_PROJ]
        rows.append([name, f"{projections:.4g} bsh²", f"{per_layer[Operator.FFN]:.4g} bsh²",
                     f"{per_layer[Operator.FFN] / projections:.3g}"])  # fmt: skip
    return table(["one layer", "attention's projections", "feed-forward", "ratio"], rows)


def traffic() -> str:
    payload = 2 * BATCH * LENGTH * 8192 * 2
    sent = {ranks: links.traffic("all_reduce", payload, ranks) for ranks in (4, 8)}
    rows = [[str(ranks), f"{payload / 1e9:.4g} GB", f"{each / 1e9:.4g} GB", f"{each / (2 * payload):.3g}"]
            for ranks, each in sent.items()]  # fmt: skip
    return table(["cards", "payload of a layer's two all_reduces", "sent by each card", "of 4bsh · 2 byte"], rows)


def ratios() -> str:
    """A100 over A40: what is compared, and what each part of the hardware allows."""
    four = {gpu.name: links.link_of(gpu, 4) for gpu in (A100, A40)}
    rows = [
        ["FLOP/s", f"{A100.flops / A40.flops:.3g}", "prefill's matrices"],
        ["memory bandwidth", f"{A100.memory_bytes_per_second / A40.memory_bytes_per_second:.3g}",
         "decode's matrices and attention"],
        ["NVLink of a card", f"{A100.nvlink_bytes_per_second / A40.nvlink_bytes_per_second:.3g}", "pairs of A40s only"],
        [f"the link that four share ({four[A100.name].kind}, {four[A40.name].kind})",
         f"{four[A100.name].bytes_per_second / four[A40.name].bytes_per_second:.3g}", "all_reduce of four cards, large payloads"],
    ]  # fmt: skip
    return table(["A100-SXM-40GB / A40", "ratio", "decides"], rows)


def operators() -> str:
    """LLaMA-2-70B on four cards: how much longer an A40 must take."""
    fast, slow = asked("A100-SXM-40GB", 4), asked("A40", 4)
    rows = []
    for name in ("ffn", "qkv_proj", "o_proj", "attention", "all_reduce"):
        row = [f"`{name}`"]
        for phase in ("prefill", "decode"):
            one, two = ideal_seconds(fast, phase, name), ideal_seconds(slow, phase, name)
            bound = slow["phases"][phase]["operators"][name]["bound"]
            row += [f"{duration(one)} · {duration(two)}", f"{two / one:.3g}, {bound}"]
        rows.append(row)
    return table(["a step, A100 · A40", "prefill", "ratio", "decode", "ratio"], rows)


def bounds() -> str:
    rows = []
    for gpu in (A100, A40, T4):
        answered = asked(gpu.name, 8, link="pcie")
        row = [gpu.name, f"{ideal.ridge(gpu):.0f}"]
        for phase in ("prefill", "decode"):
            one = answered["phases"][phase]["operators"]["ffn"]
            row.append(f"{one['flops'] / one['memory_bytes']:.3g}: {one['bound']}")
        rows.append(row)
    return table(["LLaMA-2-70B, 8 cards", "ridge, FLOPs per byte", "ffn in prefill", "ffn in decode"], rows)


def latency() -> str:
    """The three puzzles of decode: what the payload would take at full bandwidth, and what a call must take."""
    cases = [
        ("4 × A100, 70B, batch 20", A100, 4, None, 20 * 8192 * 2), ("8 × A100, 70B, batch 20", A100, 8, None, 20 * 8192 * 2),
        ("4 × A40, 70B, batch 20", A40, 4, None, 20 * 8192 * 2), ("8 × A40, 70B, batch 20", A40, 8, None, 20 * 8192 * 2),
        ("2 × A40, NVLink, 7B, batch 64", A40, 2, "nvlink", 64 * 4096 * 2),
        ("2 × A40, PCIe, 7B, batch 64", A40, 2, "pcie", 64 * 4096 * 2),
    ]  # fmt: skip
    rows = []
    for name, gpu, ranks, kind, payload in cases:
        link = links.link_of(gpu, ranks, kind)
        moving = links.traffic("all_reduce", payload, ranks) / link.one_way
        whole = links.ring_seconds("all_reduce", payload, ranks, link)
        shot = links.one_shot_seconds(payload, ranks, link)
        rows.append([name, f"{payload / 1e6:.2g} MB", duration(moving), duration(whole), f"{100 * (1 - moving / whole):.0f} %",
                     "–" if shot is None else duration(shot),
                     f"{links.takeover_payload('all_reduce', ranks, link) / 1e6:.2g} MB"])  # fmt: skip
    return table(["one all_reduce of decode", "payload", "at full bandwidth", "a ring at least", "of it not bandwidth",
                  "a custom kernel in one shot", "bandwidth takes over at"], rows)  # fmt: skip


def link_of_two() -> str:
    """NVLink against PCIe between two A40s, 7B, batch 64: PCIe over NVLink."""
    fast, slow = (asked("A40", 2, "llama2-7b", 64, link=kind) for kind in ("nvlink", "pcie"))
    rows = []
    for phase in ("prefill", "decode"):
        one, two = (ideal_seconds(each, phase, "all_reduce") for each in (fast, slow))
        rows.append([phase, duration(one), duration(two), f"{two / one:.3g}"])
    return table(["all_reduce of a step", "NVLink", "PCIe", "ratio"], rows)


def ends() -> str:
    rows = []
    for gpu, tp in (("A100-SXM-40GB", 4), ("A100-SXM-40GB", 8), ("A40", 4), ("A40", 8)):
        answered = asked(gpu, tp)
        share = [100 * answered["phases"][phase]["operators"]["all_reduce"]["share"] for phase in ("prefill", "decode")]
        rows.append([f"{tp} × {gpu}", duration(answered["prefill_seconds"]), f"{share[0]:.0f} %",
                     duration(answered["decode_seconds"]), f"{share[1]:.0f} %"])  # fmt: skip
    return table(["LLaMA-2-70B, 1024 in, 1024 out", "prefill", "all_reduce of it", "decode", "all_reduce of it"], rows)


def lengths() -> str:
    """Decode at long contexts, four A100s: attention reads the cache, so its share grows with it."""
    rows = []
    for length in (1024, 4096, 16384, 65536):
        answered = asked("A100-SXM-40GB", 4, length=length)
        phase = answered["phases"]["decode"]
        rows.append([f"{length}", duration(ideal_seconds(answered, "decode", "attention")), duration(phase["step_seconds"]),
                     f"{100 * phase['operators']['attention']['share']:.0f} %"])  # fmt: skip
    return table(["tokens in", "attention of a step", "the step", "attention's share"], rows)


BLOCKS = {
    "flops": flops, "traffic": traffic, "ratios": ratios, "operators": operators, "bounds": bounds, "latency": latency,
    "link_of_two": link_of_two, "ends": ends, "lengths": lengths,
}  # fmt: skip


# Measured by this project -----------------------------------------------------------------------------------------------


def result(results: Path, benchmark: str) -> Any:
    """None where it has not been run, or not to where it says something."""
    path = results / f"{benchmark}.json"
    return json.loads(path.read_text()) if path.exists() else None


def not_yet(benchmark: str) -> str:
    return f"Not measured yet: `{script(benchmark)}`."


def script(benchmark: str) -> str:
    """Return the path of a benchmark's script in the repository."""
    (path,) = (ROOT / "benchmarks").glob(f"*/{benchmark}.py")
    return path.relative_to(ROOT).as_posix()


def run_on(found: Any, kinds: Sequence[str] = ()) -> str:
    """``kinds``: of the rows that are spoken of. Rows that were put together say where they are from, others are the file's."""
    gpu = found["gpu"]
    rows = [row for row in found.get("rows", ()) if row.get("kind") in kinds or row.get("part") in kinds] or [{}]
    dates = sorted({row.get("date", found["date"]) for row in rows})
    commits = sorted({f"`{row.get('commit', found['commit'])[:7]}`" for row in rows})
    return (f"*Measured* with `{script(found['benchmark'])}` on {' and '.join(dates)}, on {gpu.get('count', 0)} × "
            f"{gpu.get('name', 'a CPU')}, at {', '.join(commits)}")  # fmt: skip


def shared(summary: Any) -> str:
    return " **The ranks shared one GPU: this says nothing of links.**" if summary["one_gpu"] else ""


def measured_links(results: Path) -> str:
    found = result(results, "links")
    summary = found["summary"] if found else {}
    ratios = {
        phase: summary["speedup"][phase] for phase in ("prefill", "decode") if phase in summary.get("speedup", {})
    }
    if len(ratios) < 2:
        return not_yet("links")
    own = summary["variants"]
    fast, slow = own["nccl_nvlink"], own["nccl_pcie"]
    rows = []
    for phase, ratio in ratios.items():
        one, two = fast[phase], slow[phase]
        rows.append([
            phase, f"{one['payload_bytes'] / 1e6:.3g} MB", f"{one['transfer_us']:.4g} µs · {two['transfer_us']:.4g} µs",
            f"**{ratio['measured']:.3g}**", f"{ratio['theory']:.3g}" if "theory" in ratio else "unknown",
            *(f"{one[name] / scale:.3g} · {two[name] / scale:.3g}"
              for name, scale in (("bus_bytes_per_second", 1e9), ("all_reduce_percent", 1))),
        ])  # fmt: skip
    heads = ["all_reduce, NVLink · PCIe", "payload", "transfer of a call", "ratio", "theory", "bus bandwidth, GB/s",
             "share of the step, %"]  # fmt: skip
    return "\n\n".join([
        f"*The original:* twice as fast over NVLink in prefill, hardly different in decode. {run_on(found, ('moved', 'share'))}: "
        f"LLaMA-7B's shape, TP 2, batch 64, 1024 tokens in; `{summary['topology'].get('link')}` by NVML, the slower side without "
        f"peer access, through the host's memory.{shared(summary)}",
        table(heads, rows), why(summary, ratios), *custom(own),
    ])  # fmt: skip


def why(summary: Any, ratios: Any) -> str:
    """In words, with theory's parts of a call where the links are known."""
    prefill, decode = ratios["prefill"], ratios["decode"]
    less = "less than" if decode["measured"] < prefill["measured"] else "no less than"
    text = f"Prefill gains {prefill['measured']:.3g} times from NVLink, decode {decode['measured']:.3g} times: {less} prefill."
    speeds = {kind: summary["topology"].get(f"{kind}_bytes_per_second") for kind in ("nvlink", "pcie")}
    if not all(speeds.values()):
        return text
    own = {kind: links.Link(kind, value) for kind, value in speeds.items()}
    payload = decode["payload_bytes"]
    moving = {kind: links.traffic("all_reduce", payload, 2) / each.one_way for kind, each in own.items()}
    latency = {
        kind: 100 * (1 - moving[kind] / links.ring_seconds("all_reduce", payload, 2, each))
        for kind, each in own.items()
    }
    middle = {kind: links.takeover_payload("all_reduce", 2, each) / 1e6 for kind, each in own.items()}
    return (
        f"{text} By theory bandwidth takes over at {middle['nvlink']:.2g} MB over NVLink and at {middle['pcie']:.2g} MB over "
        f"PCIe. A call of prefill moves {prefill['payload_bytes'] / 1e6:.3g} MB, one of decode {payload / 1e6:.2g} MB: of the "
        f"latter {latency['nvlink']:.0f} % over NVLink and {latency['pcie']:.0f} % over PCIe is latency, which the link's rate "
        f"does not change."
    )


def custom(own: Any) -> list[str]:
    each = own.get("custom")
    if each is None:
        return []
    if not each["available"]:
        return ["LightLLM's own all_reduce was not available there: the records name another library."]
    return [f"LightLLM's own all_reduce takes {each['decode']['transfer_us']:.4g} µs in decode, NCCL over NVLink "
            f"{own['nccl_nvlink']['decode']['transfer_us']:.4g} µs."]  # fmt: skip


def measured_scaling(results: Path) -> str:
    found = result(results, "scaling")
    if not found or not found["summary"]["groups"]:
        return not_yet("scaling")
    summary = found["summary"]
    where = run_on(found, ("moved", "share"))
    parts = [f"{where}: LLaMA-2-70B's shape with {', '.join(map(str, summary['layers']))} of its 80 layers, batch 20, "
             f"1024 tokens in; five repeats, {summary['repeats']}.{shared(summary)}"]  # fmt: skip
    if not {"tp4", "tp8"} & set(summary["groups"]):
        parts.insert(0, "Four and eight cards have not been measured yet; fewer have:")
    shares = [
        [f"{name}, {phase}", f"{found['step']['us'] / 1e3:.4g} ms",
         f"{found['all_reduce']['percent']:.3g} %" if "all_reduce" in found else "–", *moved(own.get(phase)),
         f"{own['stability'].get(phase, {}).get('step', {}).get('deviation_percent', 0):.2g} %"]
        for name, own in summary["groups"].items() for phase, found in own["operators"].items()
    ]  # fmt: skip
    parts.append(table(["a step", "takes", "all_reduce of it", "transfer of a call", "bus bandwidth, GB/s", "repeats differ by"],
                       shares))  # fmt: skip
    for pair, phases in summary["speedup"].items():
        names = dict.fromkeys(name for phase in phases.values() for name in phase)
        rows = [
            [f"`{name}`", *(cell(phases.get(phase, {}).get(name)) for phase in ("prefill", "decode"))] for name in names
        ]
        parts.append(table([f"{pair}: times faster (theory)", "prefill", "decode"], rows))
    return "\n\n".join(parts)


def moved(found: Any) -> list[str]:
    """``found``: of a phase; None where a rank is alone."""
    if found is None:
        return ["–", "–"]
    return [f"{found['transfer_us']:.4g} µs", f"{found['bus_bytes_per_second'] / 1e9:.3g}"]


def measured_ends(results: Path) -> str:
    """One GPU, both versions, from the runs of analysis.py."""
    found = result(results, "analysis")
    steps = found["summary"]["step_ms"] if found else {}
    rows = []
    for part, name in (("static_new", "the current LightLLM, decode in CUDA graphs"), ("static_old", "LightLLM 0.0.1")):
        prefill, decode = (next((ms for kind, ms in steps.get(part, {}).items() if kind.startswith(phase)), None)
                           for phase in ("prefill", "decode"))  # fmt: skip
        if prefill is not None and decode is not None:
            rows.append([name, f"{prefill / 1e3:.3g} s", f"{decode:.4g} ms", f"{decode * (LENGTH - 1) / 1e3:.3g} s"])
    if not rows:
        return not_yet("analysis")
    gpu = found["gpu"].get("name", "a CPU")
    return "\n\n".join([
        f"*Measured* with `{script('analysis')}` on one {gpu}: LLaMA-7B's shape, batch 20, 1024 tokens in and {LENGTH} out.",
        table(["end to end", "prefill", "a decode step", f"{LENGTH - 1} of them"], rows),
    ])  # fmt: skip


def measured_launching(results: Path) -> str:
    found = result(results, "launching")
    hidden = found["summary"]["hidden"] if found else {}
    if not hidden:
        return not_yet("launching")
    rows = [
        [size, *(f"{ways[way]['step_ms']:.4g} ms" for way in ("as it is", "blocking")),
         *(f"{ways[way]['mbu_percent']:.3g} %" for way in ("as it is", "blocking"))]
        for size, ways in hidden.items() if len(ways) == 2 and all(each["mbu_percent"] is not None for each in ways.values())
    ]  # fmt: skip
    heads = [
        "hidden size",
        "a decode step",
        "with blocking launches",
        "of the memory's bandwidth",
        "with blocking launches",
    ]
    return "\n\n".join([
        f"{run_on(found, ['hidden'])}: LightLLM 0.0.1, eight layers, batch 20, 1024 tokens in.", table(heads, rows),
    ])  # fmt: skip


def measured_lengths(results: Path) -> str:
    found = result(results, "launching")
    lengths = found["summary"]["lengths"] if found else {}
    if not lengths:
        return not_yet("launching")
    rows = [
        [length, f"{own['attention_ms']:.4g} ms", f"{own['step_ms']:.4g} ms", f"{own['attention_percent']:.0f} %"]
        for length, own in lengths.items()
        if own["attention_ms"] is not None
    ]
    return "\n\n".join([
        f"{run_on(found, ['lengths'])}: the current LightLLM, eight of LLaMA-7B's layers, batch 4, in CUDA graphs.",
        table(["tokens in", "attention of a step", "the step", "attention's share"], rows),
    ])  # fmt: skip


def cell(ratio: Any) -> str:
    if ratio is None:
        return ""
    return f"{ratio['measured']:.3g}" + (f" ({ratio['theory']:.3g})" if ratio["theory"] is not None else "")


def status(results: Path) -> str:
    if result(results, "links") is None and result(results, "scaling") is None:
        return ("**What is not here yet: our own measurements.** Real links between several GPUs, and the machines of the "
                "original, have not been\nmeasured by this project.")  # fmt: skip
    return ("**What is not here: the machines of the original.** What this project has measured of links between GPUs, on "
            "others, is marked\n*measured*.")  # fmt: skip


MEASURED = {
    "status": status, "links": measured_links, "scaling": measured_scaling, "ends": measured_ends,
    "launching": measured_launching, "lengths": measured_lengths,
}  # fmt: skip


def fill(text: str, results: Path = RESULTS) -> str:
    """``text`` with every ``<!-- theory: NAME -->`` or ``<!-- measured: NAME -->`` … ``<!-- end -->`` block made anew."""
    contents = {f"theory: {name}": make() for name, make in BLOCKS.items()}
    contents |= {f"measured: {name}": make(results) for name, make in MEASURED.items()}
    for name, content in contents.items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = block.sub(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
    return text


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
