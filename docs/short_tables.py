"""The two tables of the READMEs, in both languages: which LightLLM is measured, and what is measured of the plugin."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from results import CHINESE, ENGLISH, Measured, measured, result, version  # noqa: E402

from lightllm_otel.records.vocabulary import Feature  # noqa: E402

Text = dict[str, str]


def text(english: str, chinese: str) -> Text:
    return {ENGLISH: english, CHINESE: chinese}


# Versions --------------------------------------------------------------------------------------------------------------

YES, NO, STEPS_ONLY, NOT_THERE = text("yes", "是"), text("**no**", "**否**"), text("whole steps", "仅整步"), "–"

# Features that one row stands for, its title, and what is said where they are measured.
FEATURES = (
    ((Feature.STEPS, Feature.IDLE, Feature.OPERATORS, Feature.SAMPLING, Feature.REQUEST_SPANS),
     text("steps, idle time, operators, request spans", "步、空闲时间、算子、请求 span"), YES),
    ((Feature.DECODE_GRAPHS,), text("operators inside decode CUDA graphs", "decode CUDA graph 内的算子"), YES),
    ((Feature.PREFILL_GRAPHS,), text("prefill CUDA graphs", "prefill CUDA graph"), STEPS_ONLY),
    ((Feature.MICROBATCHES,), text("two microbatches at once", "两个 microbatch 重叠"), STEPS_ONLY),
)  # fmt: skip


def versions_short(language: str) -> str:
    """Return the table of LightLLM's versions, a row for a group of features."""
    found = result("hosts")["summary"]
    versions = found["versions"]
    heads = [version(name, each["date"], language) for name, each in versions.items()]
    rows = ["| LightLLM | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for features, title, said in FEATURES:
        cells = [_state(each["features"], features, said, language) for each in versions.values()]
        rows.append(f"| {title[language]} | " + " | ".join(cells) + " |")
    none = text("none", "无")[language]
    lost = [", ".join(f"`{name}`" for name in each["operators_lost"]) or none for each in versions.values()]
    title = text("operators not timed on their own", "不能单独计时的算子")
    rows.append(f"| {title[language]} | " + " | ".join(lost) + " |")
    wrong = text("places in the code whose time counts as another operator's", "时间计入其他算子的代码处数")
    rows.append(f"| {wrong[language]} | " + " | ".join(str(each["wrong"]) for each in versions.values()) + " |")
    read = {
        ENGLISH: f"By the source of {found['hosts']} versions up to {found['tip_date']}; "
                 f"{found['hosts_with_start_failures'] or 'none'} of them would fail to start with the plugin.",
        CHINESE: f"依据截至 {found['tip_date']} 的 {found['hosts']} 个版本的源码；装上插件后无法启动的版本："
                 f"{found['hosts_with_start_failures'] or '无'}。",
    }  # fmt: skip
    return "\n".join([*rows, "", read[language]])


def _state(found: dict[str, str], features: tuple[Feature, ...], said: Text, language: str) -> str:
    """The worst of a group: a feature that is lost counts for all of them."""
    states = {found[feature.value] for feature in features}
    if "lost" in states:
        return NO[language]
    if len(states) > 1:
        raise ValueError(f"{features} differ in one version, so one row cannot stand for them: {states}")
    return said[language] if states == {"measured"} else NOT_THERE


# Cost and accuracy -----------------------------------------------------------------------------------------------------


class Figure(NamedTuple):
    """One row: what was measured, on which LightLLM, and under which conditions."""

    value: str
    of: Measured
    conditions: Text


CASES = {"graph_default": "default", "graph_every_step": "every_step"}  # the names of settings in served.py


def figures(language: str) -> str:
    """Return what the plugin costs and how exact it is, each figure of the newest LightLLM that has it."""
    head = text("| measured | | LightLLM | conditions |", "| 测量内容 | | LightLLM | 条件 |")
    rows = [head[language], "|---|---|---|---|"]
    for title, figure in _figures():
        said = title[language], figure.value, figure.of.title(language), figure.conditions[language]
        rows.append(f"| {' | '.join(said)} |")
    return "\n".join(rows)


def _figures() -> Iterator[tuple[Text, Figure]]:
    lost = text("tokens per second lost, default", "默认设置下损失的每秒 token 数")
    yield lost, _cost("graph_default", _loss)
    yield text("the same, every decode step sampled", "同上，每个 decode 步都采样"), _cost("graph_every_step", _loss)
    yield text("99th percentile between tokens, default", "默认设置下 token 间隔的 p99"), _cost("graph_default", _tail)
    yield text("GPU memory of one instrumented graph", "每个插桩 graph 占用的显存"), _graph_memory()
    yield text("tokens that differ from those with the plugin off", "与关闭插件时不同的 token"), _tokens()
    error = text(
        "error against CUPTI, median of the operators, worst case", "对照 CUPTI 的误差，各算子的中位数，最差情形"
    )
    yield error, _accuracy("median_error_us", "{:.2f} µs")
    share = text("error of an operator's share, worst case, points", "算子占比的误差，最差情形，百分点")
    yield share, _accuracy("max_share_error_points", "{:.2f}")
    covered = text("part of a step that is timed, worst case", "一步中被计时的部分，最差情形")
    yield covered, _accuracy("step_closure_percent", "{:.2f} %")
    yield text("steps that name a rank late by 20 µs or more", "指出迟到 20 µs 以上的 rank 的步"), _late_rank()


def _cost(case: str, said: Callable[[dict[str, Any]], str]) -> Figure:
    for each in measured(result("overhead")):
        for shape, settings in each.summary.items() if each.served else ((None, each.summary),):
            name = CASES[case] if each.served else case
            if name in settings:
                rows = [row for row in each.rows if row.get("case") == name and row.get("kind") == "case"]
                row = next(row for row in rows if shape is None or row["shape"] == shape)
                return Figure(
                    said(settings[name]), each, _conditions(each, [shape or _shape(each, row["part"])], [row["batch"]])
                )
    raise ValueError(f"overhead.json has no {case}")


def _shape(each: Measured, part: str) -> str:
    return str(next(row["shape"] for row in each.rows if row.get("part") == part and row.get("kind") == "plugin"))


def _loss(found: dict[str, Any]) -> str:
    low, high = found["throughput_loss_percent_ci95"]
    return f"{found['throughput_loss_percent']:.2f} % ({low:.2f} … {high:.2f})"


def _tail(found: dict[str, Any]) -> str:
    return f"{round(found['itl_p99_increase_percent'], 1) + 0.0:+.1f} %"  # never -0.0


def _graph_memory() -> Figure:
    """Of the LightLLM of July 2025: the later servers are measured with a few graphs only."""
    of = measured(result("overhead"))[-1]
    each = of.summary["twin_mib"]["tp1"]
    sizes = text(f"{each['graphs']} batch sizes", f"{each['graphs']} 种 batch size")
    return Figure(f"{each['mib_each']:.2f} MiB", of, _with(of, [_shape(of, "default")], sizes))


def _tokens() -> Figure:
    """Of batches that are always the same, with the plugin in every setting beside the plugin switched off."""
    of = measured(result("overhead"))[-1]
    rows = [
        row for row in of.rows if row.get("kind") == "tokens" and row["part"] != "again" and row["setting"] != "off"
    ]
    if not all(row["identical"] for row in rows):
        raise ValueError("overhead.json: tokens differ, and the table would say that none do")
    shapes, batches = (list(dict.fromkeys(row[name] for row in rows)) for name in ("shape", "batch"))
    compared = sum(row["tokens_compared"] for row in rows)
    return Figure(f"0 / {compared}", of, _conditions(of, shapes, sorted(batches)))


def _accuracy(name: str, form: str) -> Figure:
    for each in measured(result("accuracy")):
        value = each.summary.get(name)
        if value is not None:
            cases = [case.rpartition(", batch ") for case in each.summary["by_case"]]
            shapes = list(dict.fromkeys(shape for shape, _, _ in cases))
            return Figure(
                form.format(value), each, _conditions(each, shapes, sorted({int(batch) for *_, batch in cases}))
            )
    raise ValueError(f"accuracy.json has no {name}")


def _late_rank() -> Figure:
    content = result("links")
    found = [each for each in content["summary"]["variants"].values() if each.get("available")]
    named = min(each["slow_rank"]["graph"]["named_percent"] for each in found)
    of = measured(content)[-1]
    where = text(f"{of.gpu['count']} × {_gpu(of)}, decode graphs, NVLink or host memory",
                 f"{of.gpu['count']} × {_gpu(of)}，decode graph，NVLink 或主机内存")  # fmt: skip
    return Figure(f"{named:.0f} %", of, where)


def _gpu(of: Measured) -> str:
    return str(of.gpu["name"]).removeprefix("NVIDIA ").partition(" ")[0]


def _conditions(of: Measured, shapes: list[str], batches: list[int]) -> Text:
    """GPU, shapes of models and batches; several in a row by their first and last."""
    batch = f"batch {batches[0]}" if len(batches) == 1 else f"batch {batches[0]}–{batches[-1]}"
    return _with(of, shapes, text(batch, batch))


def _with(of: Measured, shapes: list[str], more: Text) -> Text:
    some = text(" and ".join(shapes), "、".join(shapes))
    models = some if len(shapes) < 3 else text(f"{len(shapes)} models", f"{len(shapes)} 种模型")
    return {
        language: comma.join([_gpu(of), models[language], more[language]])
        for language, comma in ((ENGLISH, ", "), (CHINESE, "，"))
    }


BLOCKS: dict[str, Callable[[str], str]] = {"versions_short": versions_short, "figures": figures}
