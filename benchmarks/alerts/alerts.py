"""Do the alerts find what they are for, how fast, and how often do they cry wolf? ``python benchmarks/alerts/alerts.py``

Evaluates the rules in grafana/rules, as they are, with promtool over a simulated fleet (days.py). No GPU is needed.
``--seed`` for tuning; results are of the default one, which the rules have not been tuned on.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import _paths  # noqa: F401 - puts the other folders on sys.path
import noise
import outcome
import promtool
from days import DAY, RANKS, Assumed, Days, Fault, simulate, stuck_hour

SEED = 41
EVERY = 60  # seconds between two evaluations; the rules' own groups are evaluated twice as often
QUIET = (2, 7, 8)  # fleets of as many servers for as many days
DAYS_OF_FAULTS = 4  # the first has none: it is the history
SLOWDOWNS, SERVERS_EACH = (0.05, 0.10, 0.25), 4
RANK_SLOWDOWNS = (0.05, 0.10, 0.20)
EVERYTHING = 0.25
LASTS = 7200.0
STUCK, STUCK_GRID = 40, 15
MONTH = 365.25 / 12
APART = 900.0  # the same alert after so many seconds of silence is another one
Firing = tuple[float, dict[str, str]]


def episodes(random: np.random.Generator, kind: str, sizes: tuple[float, ...]) -> tuple[Fault, ...]:
    """Two a day from the second day on, at any time of the day, sizes in turns."""
    starts = [
        DAY * day + half * DAY / 2 + random.uniform(0, 9 * 3600) for day in range(1, DAYS_OF_FAULTS) for half in (0, 1)
    ]
    return tuple(
        Fault(kind, float(start), LASTS, sizes[number % len(sizes)], int(random.integers(RANKS)))
        for number, start in enumerate(starts)
    )


def faulty(seed: int, fitted: noise.Noise, assumed: Assumed) -> list[dict[str, tuple[Days, tuple[Fault, ...]]]]:
    """Two fleets, each with servers of all kinds of faults."""
    random = np.random.default_rng(seed)
    kinds = [("transfer", (size,)) for size in SLOWDOWNS] * SERVERS_EACH
    kinds += [("rank", RANK_SLOWDOWNS)] * SERVERS_EACH + [("everything", (EVERYTHING,))] * 2
    fleets: list[dict[str, tuple[Days, tuple[Fault, ...]]]] = [{}, {}]
    for number, (kind, sizes) in enumerate(kinds):
        faults = episodes(random, kind, sizes)
        days = simulate(int(random.integers(1 << 30)), DAYS_OF_FAULTS, fitted, assumed, faults)
        fleets[number % 2][f"node-{number}"] = days, faults
    return fleets


def evaluate(fleet: dict[str, Days], every: int) -> list[Firing]:
    end = float(next(iter(fleet.values())).times[-1])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fleet.yml"
        promtool.write(path, fleet, every, np.arange(every, end, every).tolist())
        return promtool.run(path)


def alarms(fired: list[Firing], server: str) -> list[tuple[float, str, str, str]]:
    """``(when it began, name, severity, rank)`` of each alert of a server; its windows and phases are one."""
    last: dict[tuple[str, str], float] = {}
    found = []
    for at, labels in sorted(fired, key=lambda each: each[0]):
        if labels["server"] != server:
            continue
        key = labels["alertname"], labels.get("rank", "")
        if at - last.get(key, -np.inf) > APART:
            found.append((at, key[0], labels["severity"], key[1]))
        last[key] = at
    return found


EXPECTED = {
    "transfer": "LightLLMAllReduceSlower", "rank": "LightLLMRankLate", "everything": "LightLLMDecodeSlow",
}  # fmt: skip


def judge(fired: list[Firing], server: str, fault: Fault) -> dict[str, Any]:
    """One episode: after how long the alert for it fired, and whom it named. An alert from before it is no detection."""
    begun = [alarm for alarm in alarms(fired, server) if 0 <= alarm[0] - fault.start <= fault.lasts]
    own = [alarm for alarm in begun if alarm[1] == EXPECTED[fault.kind]]
    return {
        "part": "episode", "kind": fault.kind, "slower_percent": round(100 * fault.slower), "server": server,
        "start_hours": round(fault.start / 3600, 3),
        "minutes": round((own[0][0] - fault.start) / 60, 2) if own else None,
        **({"rank": fault.rank, "named": [int(alarm[3]) for alarm in own]} if fault.kind == "rank" else {}),
        "also": sorted({alarm[1] for alarm in begun} - {EXPECTED[fault.kind]}),
    }  # fmt: skip


def spread(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of episodes of one kind and size. One that was not found counts as found when it ended."""
    minutes = [LASTS / 60 if row["minutes"] is None else row["minutes"] for row in rows]
    return {"episodes": len(rows), "found": sum(row["minutes"] is not None for row in rows),
            "median": round(float(np.median(minutes)), 2), "worst": max(minutes)}  # fmt: skip


def stuck(seed: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    starts = random.uniform(600, 3000, STUCK)
    fleet = {f"node-{n}": stuck_hour(seed + n, float(start), STUCK_GRID) for n, start in enumerate(starts)}
    fired = evaluate(fleet, STUCK_GRID)
    rows = []
    for (server, _), start in zip(fleet.items(), starts):
        own = [alarm[0] for alarm in alarms(fired, server) if alarm[1] == "LightLLMStepStuck"]
        found = own[0] - start if own and own[0] >= start else None
        rows.append({"part": "stuck", "server": server, "minutes": None if found is None else round(found / 60, 3),
                     "early": len(own) - (found is not None)})  # fmt: skip
    return rows


def run(seed: int, assumed: Assumed, quiet: tuple[int, int, int] = QUIET) -> list[dict[str, Any]]:
    """All rows: what was fitted and assumed, quiet servers with what fired, episodes, stuck steps."""
    fitted = noise.fit()
    random = np.random.default_rng(seed)
    fleets, servers, days = quiet
    calm = [
        {
            f"node-{number}": simulate(
                int(random.integers(1 << 30)), days, fitted, assumed,
                drifted=assumed.drift_per_day * days * (fleet * servers + number),
            )
            for number in range(servers)
        }
        for fleet in range(fleets)
    ]  # fmt: skip
    broken = faulty(seed + 1, fitted, assumed)
    work = [*calm, *({server: days for server, (days, _) in fleet.items()} for fleet in broken)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        fired = list(pool.map(lambda fleet: evaluate(fleet, EVERY), work))
    rows: list[dict[str, Any]] = [
        {"part": "noise", "fitted": dataclasses.asdict(fitted), "assumed": dataclasses.asdict(assumed), "seed": seed}
    ]
    for number, fleet in enumerate(calm):
        for server, of_server in fleet.items():
            found = [
                {"hours": round(at / 3600, 2), "alert": name, "severity": severity}
                for at, name, severity, _ in alarms(fired[number], server)
            ]
            rows.append({"part": "quiet", "fleet": number, "server": server, "days": days,
                         "deploys": len(of_server.deploys), "alarms": found})  # fmt: skip
    for number, of_fleet in enumerate(broken):
        for server, (_, faults) in of_fleet.items():
            rows += [judge(fired[len(calm) + number], server, fault) for fault in faults]
    return rows + stuck(seed + 2)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """``minutes_to_detect``: the worst episode of each size."""
    calm = [row for row in rows if row["part"] == "quiet"]
    months = sum(row["days"] for row in calm) / MONTH
    false = Counter((alarm["severity"], alarm["alert"]) for row in calm for alarm in row["alarms"])

    def of(kind: str, percent: int | None = None) -> list[dict[str, Any]]:
        return [row for row in rows if row["part"] == "episode" and row["kind"] == kind
                and percent in (None, row["slower_percent"])]  # fmt: skip

    detail = {str(round(100 * size)): spread(of("transfer", round(100 * size))) for size in SLOWDOWNS}
    right = [row["named"][:1] == [row["rank"]] for row in of("rank")]
    ended = [row["minutes"] for row in rows if row["part"] == "stuck"]
    pages = sum(count for (severity, _), count in false.items() if severity == "critical")
    return {
        "minutes_to_detect": {percent: of_size["worst"] for percent, of_size in detail.items()},
        "minutes_to_detect_by_size": detail,
        "false_alarms_per_month": round(pages / months, 3),
        "false_tickets_per_month": round((sum(false.values()) - pages) / months, 3),
        "false_alarms_by_alert": {name: count for (_, name), count in sorted(false.items())},
        "simulated_months": round(months, 2),
        "right_rank_percent": round(100 * float(np.mean(right)), 2),
        "late_rank": spread(of("rank")),
        "wrong_rank_blamed": sum("LightLLMRankLate" in row["also"] for row in of("transfer")),
        "decode_slower": spread(of("everything")),
        "stuck_minutes": None if None in ended else max(ended),
        "stuck_steps": len(ended),
        "promtool": promtool.version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--wander", type=float, default=1.0, help="times what is assumed to wander")
    given = parser.parse_args()
    wander = tuple((given.wander * deviation, lasts) for deviation, lasts in Assumed().wander)
    rows = run(given.seed, Assumed(wander=wander))
    found = summary(rows)
    for name, value in found.items():
        print(f"{name}: {value}")
    print(outcome.write("alerts", found, rows, given.out))


if __name__ == "__main__":
    main()
