"""What the plugin says of a pass beside what CUPTI saw of it: rows, and what of them is claimed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from kernels import (
    Mismatch,
    Times,
    calls_of,
    end_to_end,
    find,
    kernels_of_graphs,
    launched,
    mean,
    timestamp_to_timestamp,
)
from passes import GAP, PLAIN, PREFILL, SAMPLING, TWIN, Ours, Pass, Step, ours

from lightllm_otel.records.vocabulary import Operator


def graph_rows(
    case: dict[str, Any], alone: Pass, under: Pass, operators: Sequence[str], boundary_cost: float
) -> list[dict[str, Any]]:
    """``alone``: without CUPTI. ``operators``: of each interval of the instrumented graph. A row per operator, and one for the
    case."""
    instrumented_graphs, plains = under.kernels_of(TWIN), under.kernels_of(PLAIN)
    expected = kernels_of_graphs(instrumented_graphs, operators)
    names, owners = [name for name, _ in expected], [operator for _, operator in expected]
    cupti = mean([end_to_end(find(names, plain), owners) for plain in plains])
    raw_cupti = mean([timestamp_to_timestamp(graph_layout, operators) for graph_layout in instrumented_graphs])
    mine, mine_alone = ours(under.steps(TWIN)), ours(alone.steps(TWIN))
    compared = [operator for operator in cupti if operator != GAP and operator in mine]
    rows = []
    for operator, own in shares(compared, mine, cupti).items():
        alone_row = shares(compared, mine_alone, cupti)[operator]
        calls = mine[operator].calls
        raw = mine[operator].seconds + boundary_cost * operators.count(operator)
        rows.append({
            **case, "mode": "decode graph", "operator": operator, **own,
            **{f"{name}_without_cupti": alone_row[name]
               for name in ("ours_us", "error_us", "error_percent", "share_error_points")},
            "raw_ours_us": as_us(raw / calls), "raw_cupti_us": as_us(raw_cupti[operator].seconds / calls),
            "raw_error_us": as_us((raw - raw_cupti[operator].seconds) / calls),
            "kernels": owners.count(operator),
        })  # fmt: skip
    summed = sum(mine[operator].seconds for operator in compared)
    summed_cupti = sum(cupti[operator].seconds for operator in compared)
    rows.append({
        **case, "mode": "decode graph", "problem": "", "kernels": len(names), "stamps": len(operators) + 1,
        "not_compared": sorted((set(mine) | set(cupti)) - set(compared)),
        "tokens_identical": alone.tokens == under.tokens,
        "operators_ours_ms": as_ms(summed), "operators_cupti_ms": as_ms(summed_cupti),
        "operators_error_percent": as_percent(summed - summed_cupti, summed_cupti),
        **_whole_steps(under, PLAIN),
        **bookkeeping(under.steps(TWIN)),
        **{f"{name}_without_cupti": value for name, value in bookkeeping(alone.steps(TWIN)).items()},
        "boundary_cost_us": as_us(boundary_cost),
        "step_by_operator_us": {operator: as_us(own.seconds) for operator, own in mine_alone.items()},
        "distortion_percent": _distortion(alone), "distortion_percent_under_cupti": _distortion(under),
    })  # fmt: skip
    return rows


REDUCE = Operator.ALL_REDUCE
Calls = dict[str, list[list[float]]]


def reduce_calls(alone: Pass, under: Pass, operators: Sequence[str]) -> Calls:
    """Seconds of every all_reduce of the layers on this rank, by step: ours without CUPTI and under it, and CUPTI's."""
    expected = kernels_of_graphs(under.kernels_of(TWIN), operators)
    names, owners = [name for name, _ in expected], [operator for _, operator in expected]
    found = {"ours": [own["seconds"] for own in _reduces(alone)], "under": [own["seconds"] for own in _reduces(under)]}
    layers = _reduces(under)[0]["layer"]
    seen = [calls_of(REDUCE.value, find(names, plain), owners) for plain in under.kernels_of(PLAIN)]
    if any(len(calls) != len(layers) for calls in (*seen, *found["ours"])):
        raise Mismatch(
            f"all_reduce in a step: CUPTI saw {len(seen[0])} calls, the ring has {len(layers)}, "
            f"without CUPTI {len(found['ours'][0])}"
        )
    inside = layers >= 0  # not the embedding's: it waits for the host
    return {name: np.array(calls)[:, inside].tolist() for name, calls in {**found, "cupti": seen}.items()}


def _reduces(run: Pass) -> list[Any]:
    return [intervals[intervals["operator"] == REDUCE.code] for _, intervals in run.steps(TWIN)]


def transfer_row(case: dict[str, Any], of_ranks: Sequence[Calls]) -> dict[str, Any]:
    """The least of the ranks' times in each call, as the exporter's transfer, from all three: the median over steps of its
    mean over a step's calls. Once in a while a step waits for a host, and would move a mean.
    """
    least = {name: np.min([each[name] for each in of_ranks], axis=0) for name in ("ours", "under", "cupti")}
    by_step = {name: calls.mean(axis=1) for name, calls in least.items()}
    ours, under, cupti = (as_us(float(np.median(steps))) for steps in by_step.values())
    return {
        **case, "mode": "transfer", "ranks": len(of_ranks), "calls": least["ours"].shape[1], "steps": len(least["ours"]),
        "ours_us": ours, "ours_under_cupti_us": under, "cupti_us": cupti,
        "by_step_us": {name: [as_us(float(step)) for step in steps] for name, steps in by_step.items()},
    }  # fmt: skip


def eager_rows(
    case: dict[str, Any],
    label: str,
    alone: Pass,
    under: Pass,
    expected: Sequence[tuple[str, str]],
    graph: Sequence[tuple[str, str]] | None = None,
) -> list[dict[str, Any]]:
    """The same for steps without graphs. ``expected``: ``(kernel, operator)`` in order, from the annotated pass.

    ``graph``: the same of the instrumented graph, a second witness, for which the timestamps decide and not the host's launches.
    """
    mode = "prefill eager" if label == PREFILL else "decode eager"
    # From the first operator to the last: what is around them waits for the host on both sides, each in its own way.
    inside = [at for at, (_, operator) in enumerate(expected) if operator not in (GAP, SAMPLING)]
    names, owners = (list(each) for each in zip(*expected[inside[0] : inside[-1] + 1]))
    cupti = mean([end_to_end(find(names, launched(step)), owners) for step in under.kernels_of(label)])
    mine, mine_alone = ours(under.steps(label)), ours(alone.steps(label))
    compared = [operator for operator in cupti if operator != GAP and operator in mine]
    rows = []
    for operator, own in shares(compared, mine, cupti).items():
        idle = cupti[operator].seconds - cupti[operator].busy
        rows.append({
            **case, "mode": mode, "operator": operator, **own,
            "ours_us_without_cupti": as_us(mine_alone[operator].seconds / mine_alone[operator].calls),
            "cupti_busy_us": as_us(cupti[operator].busy / mine[operator].calls),
            "cupti_idle_us": as_us(idle / mine[operator].calls),
            "cupti_idle_percent": as_percent(idle, cupti[operator].seconds),
            "starved_percent": round(100 * mine[operator].starved, 1),
            "starved_percent_without_cupti": round(100 * mine_alone[operator].starved, 1),
            "kernels": owners.count(operator),
        })  # fmt: skip
    rows.append({
        **case, "mode": mode, "problem": "", "kernels": len(names),
        "not_compared": sorted((set(mine) | set(cupti)) - set(compared)),
        "same_attribution_as_graph": None if graph is None else _in_the_model(expected) == _in_the_model(graph),
        **_whole_steps(under, label), **bookkeeping(under.steps(label)),
        **{f"{name}_without_cupti": value for name, value in bookkeeping(alone.steps(label)).items()},
    })  # fmt: skip
    return rows


def _in_the_model(kernels: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, operator) for name, operator in kernels if operator not in (GAP, SAMPLING)]


def shares(compared: Sequence[str], mine: dict[str, Ours], cupti: Times) -> dict[str, dict[str, Any]]:
    """Per operator: mean of a call on both sides, and its share of all compared operators."""
    whole = sum(mine[operator].seconds for operator in compared)
    whole_cupti = sum(cupti[operator].seconds for operator in compared)
    rows = {}
    for operator in compared:
        own, other = mine[operator], cupti[operator].seconds
        share, share_cupti = 100 * own.seconds / whole, 100 * other / whole_cupti
        rows[operator] = {
            "calls": own.calls, "ours_us": as_us(own.seconds / own.calls), "cupti_us": as_us(other / own.calls),
            "error_us": as_us((own.seconds - other) / own.calls), "error_percent": as_percent(own.seconds - other, other),
            "share_percent": round(share, 4), "share_cupti_percent": round(share_cupti, 4),
            "share_error_points": round(share - share_cupti, 4),
        }  # fmt: skip
    return rows


def _whole_steps(under: Pass, label: str) -> dict[str, Any]:
    """The plugin's whole steps, by events, beside first start to last end of all kernels and copies of the same steps."""
    mine = float(np.mean([float(step["seconds"]) for step, _ in under.steps(label)]))
    spans = [max(kernel.end for kernel in step) - step[0].start for step in under.kernels_of(label)]
    cupti = float(np.mean(spans)) * 1e-9
    return {
        "step_ours_ms": as_ms(mine), "step_cupti_ms": as_ms(cupti), "step_error_percent": as_percent(mine - cupti, cupti),
    }  # fmt: skip


def bookkeeping(steps: Sequence[Step]) -> dict[str, Any]:
    """Closure, gap and the smallest interval, of steps whose operators were timed."""
    seconds = [float(step["seconds"]) for step, _ in steps]
    closure = [float(step["closure_seconds"]) for step, _ in steps]
    intervals = np.concatenate([intervals for _, intervals in steps])
    gap = intervals[intervals["operator"] == Operator.GAP.code]["seconds"]
    return {
        "steps": len(steps),
        "closure_percent": round(100 * sum(closure) / sum(seconds), 4),
        "closure_percent_worst_step": round(min(100 * a / b for a, b in zip(closure, seconds)), 4),
        "gap_percent": round(100 * float(gap.sum()) / sum(seconds), 4),
        "min_interval_us": as_us(float(intervals["seconds"].min())),
        "negative_intervals": int((intervals["seconds"] < 0).sum()),
    }


def _distortion(run: Pass) -> float:
    """How much longer a step takes on the GPU when it replays the instrumented graph; both by the plugin's own whole-step
    events."""
    graph_layout, plain = (
        np.median([float(step["seconds"]) for step, _ in run.steps(label)]) for label in (TWIN, PLAIN)
    )
    return round(100 * (float(graph_layout) / float(plain) - 1), 4)


def as_us(seconds: float) -> float:
    return round(1e6 * seconds, 4)


def as_ms(seconds: float) -> float:
    return round(1e3 * seconds, 5)


def as_percent(part: float, whole: float) -> float | None:
    return round(100 * part / whole, 4) if whole else None


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures that are claimed: decode in CUDA graphs, our instrumented graph beside CUPTI's plain graph."""
    graph = [row for row in rows if row.get("mode") == "decode graph"]
    operators = [row for row in graph if "operator" in row]
    cases = [row for row in graph if "operator" not in row and not row["problem"]]
    negative = [row[name] for row in rows for name in row if name.startswith("negative_intervals")]
    by_case = {
        _case_name(case): {
            **_errors([row for row in operators if _case_name(row) == _case_name(case)]),
            **{name: case[name] for name in (
                "closure_percent_without_cupti", "gap_percent_without_cupti", "distortion_percent",
                "operators_error_percent", "step_error_percent", "min_interval_us",
                "tokens_identical",
            )},
        }
        for case in cases
    }  # fmt: skip
    return {
        # Of the worst case: a figure that some batch size does not keep is not claimed.
        **{name: max((each[name] for each in by_case.values()), default=None) for name in _errors([])},
        # CUPTI delays the launch of a graph by more than all that is measured here.
        "step_closure_percent": min((case["closure_percent_without_cupti"] for case in cases), default=None),
        "step_closure_percent_under_cupti": min((case["closure_percent"] for case in cases), default=None),
        "clock_check_median_us": _median(raw := [abs(row["raw_error_us"]) for row in operators if "raw_error_us" in row]),
        "clock_check_max_us": max(raw, default=None),
        "gap_percent_max": max((case["gap_percent_without_cupti"] for case in cases), default=None),
        "distortion_percent_by_case": {_case_name(case): case["distortion_percent"] for case in cases},
        "negative_intervals": sum(negative),
        **_parts(cases),
        "transfer": {
            _case_name(row): {
                **{name: row[name] for name in ("ours_us", "ours_under_cupti_us", "cupti_us", "calls", "steps")},
                "error_us": round(row["ours_us"] - row["cupti_us"], 4),
            }
            for row in rows if row.get("mode") == "transfer"
        },
        "eager": {mode: _eager(rows, mode) for mode in ("decode eager", "prefill eager")},
        "problems": [f"{_case_name(row)}, {row['mode']}: {row['problem']}" for row in rows if row.get("problem")],
        "by_case": by_case,
        "operators": {
            _case_name(case): {
                row["operator"]: {
                    "ours_us": round(row["ours_us_without_cupti"], 2), "cupti_us": round(row["cupti_us"], 2),
                    "error_us": round(row["error_us_without_cupti"], 2), "calls": int(row["calls"]),
                }
                for row in operators
                if _case_name(row) == _case_name(case)
            }
            for case in cases
        },
    }  # fmt: skip


def _errors(operators: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        f"{name}{kind}": figure
        for kind in ("", "_without_cupti")
        for name, figure in (
            ("median_error_us", _median([abs(row[f"error_us{kind}"]) for row in operators])),
            ("median_error_percent", _median([abs(row[f"error_percent{kind}"] or 0) for row in operators])),
            ("max_share_error_points", max((abs(row[f"share_error_points{kind}"]) for row in operators), default=None)),
        )
    }


def _parts(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What of a step is in no operator: points of the step by which the plugin and CUPTI differ, of the worst case."""
    points = {name for case in cases for name in case if name.endswith("_error_points") and not name.startswith("max_")}
    return {f"max_{name}": max(abs(case[name]) for case in cases if name in case) for name in sorted(points)}


def _eager(rows: Sequence[dict[str, Any]], mode: str) -> dict[str, Any]:
    own = [row for row in rows if row.get("mode") == mode and "operator" in row]
    return {
        "median_error_us": _median([abs(row["error_us"]) for row in own]),
        "median_error_percent": _median([abs(row["error_percent"] or 0) for row in own]),
        "median_idle_percent": _median([row["cupti_idle_percent"] or 0 for row in own]),
    }


def _median(values: Sequence[float]) -> float | None:
    return round(float(np.median(values)), 4) if len(values) else None


def _case_name(row: dict[str, Any]) -> str:
    return f"{row['shape']}, batch {row['batch']}" if "batch" in row else row["shape"]
