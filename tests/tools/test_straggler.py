"""Tests of the sentence that names the straggler and the reason."""

import pytest

from lightllm_otel.tools.scrape import Scrape
from lightllm_otel.tools.straggler import LEAST_ARRIVALS, straggler
from lightllm_otel.tools.top import page

ARRIVALS, SECONDS = "lightllm_gpu_collective_last_arrivals_total", "lightllm_gpu_operator_seconds_total"
WAITS = "lightllm_gpu_collective_rank_wait_seconds_total"


def scrape(arrivals, ffn=(10.0, 10.0, 10.0, 10.0), norm=(0.01,) * 4, more="", waited=2.0):
    lines = [f'{WAITS}{{site="ffn",phase="decode",rank="0"}} {waited * sum(arrivals) / 100}']
    lines += [f'{WAITS}{{site="embedding",phase="decode",rank="0"}} 99']
    each = sum(arrivals) / 100
    for rank, count in enumerate(arrivals):
        lines.append(f'{ARRIVALS}{{site="ffn",phase="decode",rank="{rank}"}} {count}')
        lines.append(f'{SECONDS}{{operator="ffn",phase="decode",rank="{rank}"}} {ffn[rank]}')
        lines.append(f'{SECONDS}{{operator="ffn_norm",phase="decode",rank="{rank}"}} {norm[rank]}')
        lines.append(f'{SECONDS}{{operator="all_reduce",phase="decode",rank="{rank}"}} {each * (9 if rank else 1)}')
    return Scrape("\n".join(lines) + "\n" + more)


def test_the_rank_its_slow_operator_and_the_cause_are_named():
    throttled = 'lightllm_gpu_throttled_seconds_total{rank="3",reason="thermal"} 52\n'
    throttled += 'lightllm_gpu_throttled_seconds_total{rank="3",reason="power"} 0\n'
    throttled += 'lightllm_gpu_throttled_seconds_total{rank="2",reason="power"} 99\n'
    assert straggler(scrape((3, 3, 2, 92), ffn=(10.0, 10.1, 9.9, 10.6), more=throttled)) == (
        "rank 3 arrived last in 92 % of the collectives in which there was a wait; its ffn is 6 % slower in decode; "
        "thermal throttling for 52 s"
    )


def test_an_operator_that_takes_next_to_nothing_is_no_reason():
    assert "its operators are as fast as the others'" in straggler(scrape((0, 0, 0, 90), norm=(0.01, 0.01, 0.01, 0.05)))


def test_link_errors_are_named():
    errors = 'lightllm_gpu_link_errors_total{rank="1",link="nvlink"} 7\n'
    assert straggler(scrape((0, 50, 0, 0), more=errors)).endswith("7 nvlink errors")


@pytest.mark.parametrize("arrivals", [(0, 0), (0, LEAST_ARRIVALS - 1), (500,)])
def test_too_little_to_compare_is_no_verdict(arrivals):
    assert straggler(scrape(arrivals)) == ""


def test_ranks_that_take_turns_are_none_late():
    assert straggler(scrape((25, 26, 24, 25))).startswith("no rank is late")


def test_waits_that_are_next_to_nothing_make_nobody_late():
    assert (
        straggler(scrape((0, 0, 0, 90), waited=0.01)) == "no rank is late: waits take 0.0 % of the time in collectives"
    )


def test_only_what_happened_between_two_readings_counts():
    assert straggler(scrape((100, 30)), scrape((100, 0))).startswith("rank 1 arrived last in 100 %")
    assert straggler(scrape((100, 30)), scrape((100, 20))) == ""


def test_top_shows_it_below_its_table():
    assert page(scrape((0, 90)), None, None, "here").rstrip().splitlines()[-1].startswith("rank 1 arrived last")
