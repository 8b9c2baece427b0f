"""What is measured of each version of LightLLM, as its source says."""

from __future__ import annotations

from results import result

from lightllm_otel.records.vocabulary import Feature

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
