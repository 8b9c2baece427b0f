"""Learned baseline of a run that is known to be good: a file for ``LIGHTLLM_OTEL_BASELINE``.

As an exporter learns it, of the same steps (each rank teaches in turn), but from all of them at once: so a plane reaches over
every load of its bucket that the run has, where a server freezes what its first steps at a load were.
"""

from __future__ import annotations

from typing import Any

from lightllm_otel.exporter import baseline
from lightllm_otel.exporter.link import link
from lightllm_otel.records.batch import RecordBatch
from lightllm_otel.records.recording import BadRecording
from lightllm_otel.reduce.expectation import SAMPLES, Bucket, Expectation, Plane
from lightllm_otel.tools.analysis.runs import Repeat, Run

Planes = dict[Bucket, list[Plane]]


def learn(run: Run) -> Planes:
    """Learn planes from a run. Raises BadRecording if no load has enough sampled steps."""
    taught = [_taught(repeat, run.ranks) for repeat in run.repeats]
    expectation = Expectation()
    expectation.begin({}, learns=True, ranks=1)  # whose turn it was has been seen to
    expectation.add(0, RecordBatch.joined(taught))
    if not expectation.planes:
        raise BadRecording(
            f"{run.path} has at no load the {SAMPLES} steps with timed operators that it takes to say what they should take; "
            "record a longer run, or with LIGHTLLM_OTEL_SAMPLE_EVERY=1"
        )
    return expectation.planes


def described(run: Run, planes: Planes) -> dict[str, Any]:
    """Return the content of the file."""
    facts = run.repeats[0].facts
    return baseline.content(baseline.key_of(facts[min(facts)], link(list(facts.values()), None).name), planes)


def _taught(repeat: Repeat, ranks: int) -> RecordBatch:
    """Return the sampled steps of the rank whose turn each was, with their intervals."""
    return repeat.records.only(repeat.records.is_sampled & (repeat.steps["number"] % ranks == repeat.rank))
