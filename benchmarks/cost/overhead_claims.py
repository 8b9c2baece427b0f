"""What ``overhead.py`` claims, from its rows alone, and rows of earlier results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import served_claims
from pairing import (
    Estimate,
    Sample,
    added,
    added_beyond,
    latency_increase,
    throughput_loss,
    with_rare_steps,
)

PARTS = ("default", "paired", "moe", "alternatives", "servers", "tp2")
AGAIN = "again"  # runs of these parts on other machines
REPEATED = ("default", "paired")
SERVED = "served"  # rows of served.py
MOE_SHAPE = "qwen3-moe"
Rows = list[dict[str, Any]]


def summarise(rows: Rows) -> dict[str, Any]:
    """Everything from the rows alone, so that results of several runs can be put together."""
    served, rows = ([row for row in rows if (row.get("part") == SERVED) is wanted] for wanted in (True, False))
    everything, repeated = rows, [row for row in rows if row.get("part") == AGAIN]
    rows = [row for row in rows if row.get("part") != AGAIN]
    samples = _samples(rows)
    summary: dict[str, Any] = {case: _case(case, samples, rows) for case in samples}
    summary["servers"] = _servers(rows)
    if repeated:
        summary["again"] = [
            _again([row for row in repeated if row["run"] == run]) for run in sorted({row["run"] for row in repeated})
        ]
    if served:
        summary["hosts"] = served_claims.summarise(served)
    tokens = [row for row in _of("tokens", rows) if row["setting"] != "off"]
    tp2_tokens = [row for row in _of("tp2_tokens", rows) if row["server"] == "instrumented"]
    stock = same_as_stock(rows)
    compared = [row["identical"] for row in tokens] + [row["same_as_stock"] for row in tp2_tokens] + [*stock.values()]
    return {
        **summary,
        **_parts_of_a_step(samples),
        "outputs_identical": all(compared) if compared else None,
        "tokens_compared": sum(row["tokens_compared"] for row in (*tokens, *tp2_tokens)),
        "tokens_compared_with_stock": sum(row["tokens_compared"] for row in tokens if _batch_of(row) in stock)
        + sum(row["tokens_compared"] for row in tp2_tokens),
        "stock_identical_to_itself": _all(
            [len(digests) == 1 for digests in _stock_digests(rows).values()]
            + [row["identical"] for row in _of("tokens", rows) if row["setting"] == "off"]
            + [row["same_as_stock"] for row in _of("tp2_tokens", rows) if row["server"] == "stock again"]
        ),
        "hook_ns": _last("hook", "hook_ns", rows),
        "harvest_us": {
            f"{kind}": row[f"{kind}_us_median"]
            for setting, kind in (("default", "unsampled"), ("every_step", "sampled"))
            for row in _of("harvest", rows)
            if row["setting"] == setting and f"{kind}_us_median" in row
        },
        "critical_path_us": _critical_path(rows),
        "memory_growth_kib": {
            row["setting"]: {"anonymous": row["anonymous_growth_kib"], "steps": row["steps"]}
            for row in _of("harvest", rows)
        },
        "resident_mib": _resident(rows),
        "startup": {f"tp{tp}": _startup(tp, rows) for tp in (1, 2)},
        "twin_mib": {f"tp{tp}": _graph_mib(tp, rows) for tp in (1, 2)},
        "errors": sum(sum(row["errors"]) for row in (*_of("plugin", everything), *_of("ring", everything))),
        "dropped": sum(
            count
            for row in (*_of("plugin", everything), *_of("ring", everything))
            for reason, count in row["dropped"].items()
            if reason != "control"  # what live control lets go when it switches off
        ),
        "problems": [row["problem"] for row in _of("problem", everything)],
    }


def _samples(rows: Rows) -> dict[str, Sample]:
    cells = _of("cell", rows)
    return {
        case: Sample.of_rows([row for row in cells if row["case"] == case])
        for case in dict.fromkeys(row["case"] for row in cells)
    }


def together(merged: Sequence[dict[str, Any]], wanted: Sequence[str]) -> Rows:
    """Rows of earlier files; the last that has a part counts for it, and none for a part that is measured now."""
    of_part: dict[str, Rows] = {}
    of_host: dict[str, Rows] = {}
    for earlier in merged:
        for part in {row["part"] for row in earlier["rows"] if "part" in row}:
            of_part[part] = [row for row in earlier["rows"] if row.get("part") == part]
        served = [row for row in earlier["rows"] if row.get("part") == SERVED]
        for host in dict.fromkeys(row["host"] for row in served):
            of_host[host] = [row for row in served if row["host"] == host]
    rows = [row for part in (*PARTS, AGAIN) if part not in wanted for row in of_part.get(part, [])]
    return rows + [row for own in of_host.values() for row in own]


def served_first(merged: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Earlier files, those with nothing but served.py's rows first: date and machine of the whole are those of the last."""
    own = [any(row.get("part", SERVED) != SERVED for row in earlier["rows"]) for earlier in merged]
    return [each for wanted in (False, True) for each, has_own in zip(merged, own) if has_own is wanted]


def with_again(rows: Rows, later: dict[str, Any]) -> Rows:
    """``rows`` and those of another run of the parts that are repeated, which stand apart from all others."""
    run = max((row["run"] for row in rows if row.get("part") == AGAIN), default=0) + 1
    about = {"part": AGAIN, "run": run, "date": later["date"], "commit": later["commit"]}
    return rows + [{**row, **about, "of": row["part"]} for row in later["rows"] if row.get("part") in REPEATED]


def _again(rows: Rows) -> dict[str, Any]:
    """Of one run: its cases, and how the plugin made each of its processes grow."""
    samples = _samples(rows)
    return {
        "date": rows[0]["date"], "commit": rows[0]["commit"],
        **{case: _case(case, samples, rows) for case in samples},
        "outputs_identical": _all([row["identical"] for row in _of("tokens", rows)]),
        "hook_ns": _last("hook", "hook_ns", rows), "critical_path_us": _critical_path(rows),
        "resident_mib": {row["of"]: _with_total(row["resident_mib"]) for row in _of("plugin", rows)},
        "compiler_mib": {
            row["of"]: sum(row["compiler_mib"].values()) for row in _of("plugin", rows) if "compiler_mib" in row
        },
    }  # fmt: skip


def _of(kind: str, rows: Rows) -> Rows:
    return [row for row in rows if row.get("kind") == kind]


def _last(kind: str, name: str, rows: Rows) -> Any:
    found = [row[name] for row in _of(kind, rows) if row["part"] in ("paired", AGAIN)]
    return found[-1] if found else None


def _resident(rows: Rows) -> dict[str, float] | None:
    parts = _last("plugin", "resident_mib", rows)
    return None if parts is None else _with_total(parts)


def _with_total(parts: dict[str, float]) -> dict[str, float]:
    """CuPy's own module is apart where it was imported before the rest."""
    return {**parts, "total": round(sum(value for name, value in parts.items() if name != "cupy"), 2)}


def _all(values: Sequence[bool]) -> bool | None:
    return all(values) if values else None


def _case(case: str, samples: dict[str, Sample], rows: Rows) -> dict[str, Any]:
    sample = samples[case]
    loss, loss_interval = _loss(case, samples, rows).rounded()
    every = Sample.of_rows([row for row in _of("cell", rows) if row["case"] == case], kept=False)
    plain, plain_interval = throughput_loss(every).rounded()
    more, more_interval = added(sample).rounded(2)
    on, off = (float(each[0]) for each in sample.means())
    tails = [row for row in _of("tail", rows) if row["case"] == case]
    last = {name: value for name, value in tails[-1].items() if name.startswith("itl_p99")} if tails else {}
    return {
        "throughput_loss_percent": loss, "throughput_loss_percent_ci95": loss_interval, **last,
        "throughput_loss_percent_of_all_pairs": plain, "throughput_loss_percent_of_all_pairs_ci95": plain_interval,
        "pairs": int(sample.pairs.sum()), "off_us": round(off, 2), "on_us": round(on, 2),
        "added_us": more, "added_us_ci95": more_interval,
    }  # fmt: skip


def _loss(case: str, samples: dict[str, Sample], rows: Rows) -> Estimate:
    """Where few steps are sampled, those few are among the pairs that are left out: their cost comes from elsewhere."""
    kind = "_moe" if case.endswith("_moe") else ""
    pair = (f"graph_every_step{kind}", "graph_steps_only")
    if case.startswith("eager"):
        pair = ("eager_decode_every_step", "eager_steps_only")
    often, never = map(samples.get, pair)
    shares = [
        row["sampled_percent"] / 100 for row in _of("case", rows) if row["case"] == case and "sampled_percent" in row
    ]
    if shares and 0 < sum(shares) / len(shares) < 0.5 and often is not None and never is not None:
        return with_rare_steps(samples[case], sum(shares) / len(shares), often, never)
    return throughput_loss(samples[case])


def _parts_of_a_step(samples: dict[str, Sample]) -> dict[str, Any]:
    """Each step costs something, a sampled one some more; from both follows what the default should cost."""
    if "graph_steps_only" not in samples or "graph_every_step" not in samples:
        return {}
    steps, every = samples["graph_steps_only"], samples["graph_every_step"]
    fixed, fixed_interval = added(steps).rounded(2)
    marginal, marginal_interval = added_beyond(every, steps).rounded(2)
    off = float(steps.means()[1][0])
    expected = fixed + marginal / 64
    return {
        "fixed_cost_us": fixed, "fixed_cost_us_ci95": fixed_interval,
        "marginal_cost_us": marginal, "marginal_cost_us_ci95": marginal_interval,
        "default_from_its_parts_percent": round(100 * expected / (off + expected), 4),
    }  # fmt: skip


def _servers(rows: Rows) -> dict[str, Any]:
    """Rounds as pairs: the same number is the same prompts."""
    rounds = {
        kind: {row["round"]: row for row in _of("round", rows) if row["server"] == kind}
        for kind in ("stock", "instrumented")
    }
    both = sorted(set(rounds["stock"]) & set(rounds["instrumented"]))
    if len(both) < 2:
        return {}
    result: dict[str, Any] = {"rounds": len(both)}
    for name, wanted in (
        ("throughput_loss_percent", "seconds"), ("itl_p50_increase_percent", "itl_p50_us"),
        ("itl_mean_increase_percent", "itl_mean_us"), ("itl_p99_increase_percent", "itl_p99_us"),
    ):  # fmt: skip
        sample = Sample.of_rows([
            {"pairs": 1, "on_us": rounds["instrumented"][number][wanted], "off_us": rounds["stock"][number][wanted]}
            for number in both
        ], kept=False)  # fmt: skip
        estimate = (throughput_loss if wanted == "seconds" else latency_increase)(sample)
        result[name], result[f"{name}_ci95"] = estimate.rounded(3)
    metrics = [row for row in _of("metrics", rows) if row["tp"] == 1]
    result |= {name: value for name, value in metrics[-1].items() if name.startswith("lightllm")} if metrics else {}
    # Later starts follow a server that has just ended, whose memory may not be free yet.
    starts = [row for row in _of("start", rows) if row["tp"] == 1 and row["number"] == 0]
    result["gpu_mib"] = {row["server"]: row["gpu_mib"] for row in starts if row["gpu_mib"] is not None}
    return result


def _startup(tp: int, rows: Rows) -> dict[str, Any]:
    """The quickest start of each: the first one on a machine also compiles LightLLM's kernels."""
    seconds: dict[str, list[float]] = {}
    for row in _of("start", rows):
        if row["tp"] == tp:
            seconds.setdefault(row["server"].removesuffix(" again"), []).append(row["seconds"])
    if set(seconds) != {"stock", "instrumented"}:
        return {}
    stock, instrumented = min(seconds["stock"]), min(seconds["instrumented"])
    instrumented_graphs = [row["twins"] for row in _of("ring", rows) if row["tp"] == tp]
    return {
        "starts_of_each": min(map(len, seconds.values())),
        "stock_seconds": stock, "instrumented_seconds": instrumented,
        "added_seconds": round(instrumented - stock, 3),
        "added_percent": round(100 * (instrumented / stock - 1), 2),
        "twins_seconds": max((each.get("seconds", 0.0) for each in instrumented_graphs), default=None),
    }  # fmt: skip


def _graph_mib(tp: int, rows: Rows) -> Any:
    """Of one GPU: the largest rank's."""
    instrumented_graphs = [row["twins"] for row in _of("ring", rows) if row["tp"] == tp]
    if not instrumented_graphs:
        return None
    largest = max(instrumented_graphs, key=lambda each: int(each.get("bytes", 0)))
    return {
        "mib": round(largest.get("bytes", 0) / 2**20, 1), "graphs": len(largest.get("sizes", ())),
        "mib_each": round(largest.get("bytes", 0) / 2**20 / max(len(largest.get("sizes", ())), 1), 2),
        "state": largest.get("state"),
    }  # fmt: skip


def _batch_of(row: dict[str, Any]) -> tuple[Any, ...]:
    return row.get("shape"), row.get("mode"), row.get("batch")


def _stock_digests(rows: Rows) -> dict[tuple[Any, ...], set[str]]:
    found: dict[tuple[Any, ...], set[str]] = {}
    for row in _of("stock_tokens", rows):
        found.setdefault(_batch_of(row), set()).add(row["digest"])
    return found


def same_as_stock(rows: Rows) -> dict[tuple[Any, ...], bool]:
    """(shape, mode, batch) → whether every setting has the tokens of a process without the plugin; only what both have."""
    found: dict[tuple[Any, ...], bool] = {}
    digests = _stock_digests(rows)
    for row in _of("tokens", rows):
        at = _batch_of(row)
        if at in digests and "digest" in row:
            found[at] = found.get(at, True) and digests[at] == {row["digest"]}
    return found


def _critical_path(rows: Rows) -> dict[str, float]:
    """Beside LightLLM's bare forward."""
    found = {row["setting"]: row["entry_us_median"] for row in _of("critical_path", rows)}
    bare = found.pop("bare", None)
    return {} if bare is None else {setting: round(value - bare, 2) for setting, value in found.items()}
