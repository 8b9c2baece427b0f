"""Fill the tables of docs/original-analysis.md from `lightllm-otel theory`: ``python docs/original_analysis.py``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lightllm_otel.cli.theory import Question, answer  # noqa: E402
from lightllm_otel.cli.units import duration  # noqa: E402
from lightllm_otel.theory import gpus, ideal, links, shape, work  # noqa: E402
from lightllm_otel.theory.shape import Shape  # noqa: E402
from lightllm_otel.vocabulary import Operator  # noqa: E402

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
    plain = Shape("plain", 1, 8192, 64, 64, 128, 4 * 8192, 1, ffn_matrices=2)
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
        rows.append([name, f"{payload / 1e6:.2g} MB", duration(moving), duration(whole), f"{100 * (1 - moving / whole):.0f} %",
                     f"{links.takeover_payload('all_reduce', ranks, link) / 1e6:.2g} MB"])  # fmt: skip
    return table(["one all_reduce of decode", "payload", "at full bandwidth", "a call at least", "of it not bandwidth",
                  "bandwidth takes over at"], rows)  # fmt: skip


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


def fill(text: str) -> str:
    """``text`` with every ``<!-- theory: NAME -->`` … ``<!-- end -->`` block made anew."""
    for name, make in BLOCKS.items():
        block = re.compile(rf"(<!-- theory: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        content = make()
        text = block.sub(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
    return text


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
