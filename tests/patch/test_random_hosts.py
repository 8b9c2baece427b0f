"""A LightLLM that nobody has seen is never broken: its answers, exceptions and calls are those without us, always.

The hosts are the two miniatures with changes to their source: parameters renamed, added, removed, in another order, by name or
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


@pytest.mark.parametrize("year", [2025, 2026])
def test_a_host_in_which_all_that_we_know_is_another_is_as_it_is_without_us(year):
    differences = [f"{number}: {difference}" for number, variant in enumerate(random_hosts.every_change(year))
                   if (difference := outcome(variant).difference(with_us(variant, graphs=POLICIES[number % 3])))]  # fmt: skip
    assert not differences, "\n".join(differences)


@FEW
@given(variant=random_hosts.variants(), every=st.sampled_from((1, 3)), graphs=st.sampled_from(POLICIES))
def test_any_host_is_as_it_is_without_us(variant, every, graphs):
    compare(variant, every=every, graphs=graphs)
