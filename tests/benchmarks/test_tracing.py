"""From rounds and spans to what is claimed: on made-up ones, where the answer is known."""

import numpy as np
import pytest
import tracing
import tracing_claims

S = 10**9


def request(parent="a", span="r", start=0, end=8, parts=(0, 1, 2, 4, 7, 8), number=8):
    names = ("tokenise", "queue", "prefill", "decode", "tail")
    whole = {"name": "text_completion m", "span": span, "parent": parent, "server": True, "start": start * S, "end": end * S,
             "links": [], "request": str(number), "step": None}  # fmt: skip
    made = [
        {"name": f"lightllm.{name}", "span": f"{span}{at}", "parent": span, "server": False, "start": parts[at] * S,
         "end": parts[at + 1] * S, "links": [], "request": None, "step": None}
        for at, name in enumerate(names)
    ]  # fmt: skip
    return [whole, *made]


def step(number, *linked):
    return {"name": "lightllm.step decode", "span": f"s{number}", "parent": "", "server": False, "start": 0, "end": S,
            "links": list(linked), "request": None, "step": number}  # fmt: skip


@pytest.mark.parametrize("share", [1, 10, 100])
def test_so_many_percent_of_the_requests_are_traced(share):
    traced = [tracing.is_traced(number, at, 50, share) for number in range(20) for at in range(50)]
    assert sum(traced) == 10 * share


def test_every_request_has_a_traceparent_of_its_own():
    headers = [tracing.header(number, at, True) for number in range(10) for at in range(50)]
    assert len({header.split("-")[1] for header in headers}) == 500
    assert {tuple(map(len, header.split("-"))) for header in headers} == {(2, 32, 16, 2)}
    assert tracing.header(3, 4, False).endswith(f"-{tracing.parent_of(3, 4)}-00")


def test_a_complete_trace_has_all_parts_and_they_add_up():
    assert tracing_claims.completeness(request(), ["a"]) == {"traced": 1, "found": 1, "complete": 1, "foreign": 0}


@pytest.mark.parametrize(
    "spans",
    [request()[:-1], request(end=9), [*request()[:3], *request(parts=(0, 1, 3, 4, 7, 8))[3:]]],
    ids=["a part is missing", "parts are shorter", "parts have a gap"],
)
def test_a_trace_that_is_not_complete_is_noticed(spans):
    assert tracing_claims.completeness(spans, ["a"])["complete"] == 0


def test_a_trace_under_nobodys_span_and_one_that_is_missing_are_noticed():
    assert tracing_claims.completeness(request(parent="x"), ["a"]) == {
        "traced": 1,
        "found": 0,
        "complete": 0,
        "foreign": 1,
    }


def test_links_are_those_of_lightllms_own_lists():
    spans = [*request("a", "r1", number=8), *request("b", "r2", number=16)]
    lists = [[8], [8, 16], [16, 24]]
    assert tracing_claims.links([*spans, step(1, "r1", "r2"), step(2, "r2")], lists) == {
        "steps": 2,
        "right": 2,
        "linked": 3,
    }
    wrong = [step(0, "r1", "r2"), step(1, "r1"), step(2, "r1"), step(9, "r1"), step(1, "r1", "r2", "nobody's")]
    assert tracing_claims.links([*spans, *wrong], lists) == {"steps": 5, "right": 0, "linked": 7}


def test_a_known_loss_is_found_within_its_interval():
    random, rows = np.random.default_rng(3), []
    for block in range(40):
        speed = 1000 * (1 + 0.05 * random.standard_normal())  # the machine drifts
        for share, lost in ((-1, 0.0), (0, 0.1), (1, 0.0), (10, 0.4), (100, 3.0)):
            noisy = speed * (1 - lost / 100) * (1 + 0.002 * random.standard_normal())
            rows.append({"block": block, "share_percent": share, "tokens_per_second": noisy})
    for share, lost in ((1, 0.0), (10, 0.4), (100, 3.0)):
        found = tracing_claims.loss(rows, share)
        low, high = found["ci95"]
        assert low <= lost <= high
        assert high - low < 0.3
        assert found["blocks"] == 40


def test_without_rounds_nothing_is_claimed():
    assert tracing_claims.loss([], 10) == {"throughput_loss_percent": None, "ci95": None, "blocks": 0}


def test_lanes_are_added_up_and_their_blocks_kept_apart():
    rows = [
        {"kind": "round", "lane": fast_path, "block": 0, "share_percent": share, "tokens_per_second": speed, "cpu_seconds": cpu}
        for fast_path in (0, 1) for share, speed, cpu in ((-1, 100.0, 8.0), (0, 100.0, 8.0), (10, 99.0 + fast_path, 8.2))
    ]  # fmt: skip
    counts = {"traced": 5, "found": 5, "complete": 4, "foreign": 0, "errors": 0.0, "spans_dropped": 3.0}
    rows += [{"kind": "traces", "lane": fast_path, **counts} for fast_path in (0, 1)]
    summary = tracing_claims.summarise(rows)
    assert tracing_claims.loss(rows, 10)["blocks"] == 2
    assert summary["throughput_loss_percent"]["10"] == 0.5
    assert summary["cpu_increase_percent"]["10"] == 2.5
    assert (summary["traced_requests"], summary["complete_traces_percent"], summary["spans_dropped"]) == (10, 80.0, 6.0)


def test_what_is_not_measured_yet_is_not_claimed():
    summary = tracing_claims.summarise([])
    assert summary["complete_traces_percent"] is summary["right_step_links_percent"] is None
    assert summary["throughput_loss_percent"] == dict.fromkeys(("1", "10", "100"))


def test_the_summary_has_what_is_asked_for():
    speeds = {-1: 100.0, 0: 100.0, 1: 99.99, 10: 99.9, 100: 99.0}
    rows = [
        {"kind": "round", "block": 0, "share_percent": share, "tokens_per_second": v} for share, v in speeds.items()
    ]
    counts = {"traced": 200, "found": 200, "complete": 199, "foreign": 0}
    rows.append({"kind": "traces", **counts, "errors": 0.0, "spans_dropped": 0.0})
    rows.append({"kind": "links", "steps": 50, "right": 50})
    summary = tracing_claims.summarise(rows)
    assert summary["throughput_loss_percent"] == {"1": 0.01, "10": 0.1, "100": 1.0}
    assert summary["throughput_loss_percent_within"] == summary["throughput_loss_percent"]
    assert (summary["complete_traces_percent"], summary["right_step_links_percent"]) == (99.5, 100.0)


def test_the_last_file_with_a_part_of_a_lane_counts_for_it():
    first = {"rows": [{"merged": {}}, {"kind": "links", "steps": 1}, {"kind": "round", "block": 0}]}
    second = {"rows": [{"kind": "round", "lane": 0, "block": 7}, {"kind": "traces", "lane": 0}]}
    third = {"rows": [{"kind": "round", "lane": 1, "block": 7}]}
    assert tracing.together([first, second, third]) == [first["rows"][1], *second["rows"], *third["rows"]]
