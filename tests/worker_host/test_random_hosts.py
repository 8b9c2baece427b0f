"""Unknown versions of LightLLM are never broken: answers, exceptions and calls are those without the plugin.

The hosts are the two fake hosts with changes to their source: parameters renamed, added, removed, in another order, by name or
by place only; methods, classes, fields and modules gone; other values returned; graphs kept in another way.
"""

import pytest
import random_hosts
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from random_hosts import Variant, outcome

# Derandomised, so that it says the same in every run. Nothing is kept between runs.
FEW = settings(
    max_examples=60, derandomize=True, database=None, deadline=None, report_multiple_bugs=False,
    phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck),
)  # fmt: skip
POLICIES = ("auto", "force", "off")
SELDOM = 10**9  # nearly all steps take the fast path


def with_us(variant, every=1, graphs="auto"):
    return outcome(variant, every=every, environ={"LIGHTLLM_OTEL_GRAPHS": graphs})


def compare(variant, **session):
    alone = outcome(variant)
    difference = alone.difference(with_us(variant, **session))
    assert not difference, f"{variant}: {difference}"


@pytest.mark.parametrize("options", random_hosts.OPTIONS[2025], ids=str)
@pytest.mark.parametrize("graphs", [False, True])
def test_the_host_of_2025_is_as_it_is_without_us(options, graphs):
    compare(Variant(2025, options=tuple({**options, "graphs": graphs}.items()), steps=random_hosts.STEPS[2025]))


@pytest.mark.parametrize("options", random_hosts.OPTIONS[2026], ids=str)
@pytest.mark.parametrize("graphs", [False, True])
def test_the_host_of_2026_is_as_it_is_without_us(options, graphs):
    compare(Variant(2026, options=tuple({**options, "graphs": graphs}.items()), steps=random_hosts.STEPS[2026]))


@pytest.mark.parametrize("graphs", [False, True])
def test_infer_threads_that_run_freely_answer_as_without_us(graphs):
    variant = Variant(2026, options=(("free", True), ("graphs", graphs)), steps=((5, 6, 0),))
    alone, together = outcome(variant), with_us(variant)
    assert (alone.start, alone.answers) == (together.start, together.answers)


@pytest.mark.parametrize("broken_after", [-1, 0])
def test_the_http_process_of_2026_is_as_it_is_without_us(broken_after):
    compare(Variant("http", steps=random_hosts.STEPS["http"], broken_after=broken_after))


@pytest.mark.parametrize("year", [2025, 2026, "http"])
def test_a_host_in_which_all_that_we_know_is_another_is_as_it_is_without_us(year):
    hosts = list(random_hosts.every_change(year))
    alone = [outcome(variant) for variant in hosts]
    differences = {
        number: difference for number, variant in enumerate(hosts)
        if (difference := alone[number].difference(with_us(variant, (1, SELDOM)[number % 2], POLICIES[number % 3])))
    }  # fmt: skip
    assert not differences, "\n".join(f"{number}: {difference}" for number, difference in differences.items())
    # Nearly all of them work, so that the changes say something about us and not about themselves.
    assert sum(not each.start for each in alone) >= 0.8 * len(hosts)


@pytest.mark.parametrize("every", [1, SELDOM], ids=["sampled", "not sampled"])
@pytest.mark.parametrize("year", [2025, 2026, "http"])
def test_a_host_whose_attributes_cannot_be_read_is_as_it_is_without_us(year, every):
    differences = [f"{variant}: {difference}" for variant in random_hosts.every_unreadable(year)
                   if (difference := outcome(variant).difference(with_us(variant, every)))]  # fmt: skip
    assert not differences, "\n".join(differences)


@st.composite
def ourselves(draw):
    """Return a session: how often it samples, whether it captures graphs, and which of its parts fail."""
    made = {
        "every": draw(st.sampled_from((1, 3, SELDOM))),
        "environ": {"LIGHTLLM_OTEL_GRAPHS": draw(st.sampled_from(POLICIES))},
    }
    return {
        **made,
        **draw(st.sampled_from(({}, {}, {"clock_fails_after": draw(st.integers(0, 60))}, {"graphs_fail": True}))),
    }


@FEW
@given(variant=random_hosts.variants(), ours=ourselves())
def test_any_host_is_as_it_is_without_us(variant, ours):
    alone = outcome(variant)
    difference = alone.difference(outcome(variant, **ours))
    assert not difference, f"{variant}: {difference}"
