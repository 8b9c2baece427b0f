"""``lightllm-otel compare RUN --save-expectation FILE``: what a good run took, for servers to be held against."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter

from lightllm_otel.analyze import learned
from lightllm_otel.analyze.compare import CannotCompare
from lightllm_otel.analyze.runs import Run
from lightllm_otel.cli import inputs
from lightllm_otel.export.recording import BadRecording
from lightllm_otel.vocabulary import Mode, Phase


def save_expectation(given: argparse.Namespace) -> int:
    """Exit status 1 and one sentence for what cannot be learned from."""
    try:
        _check(given)
        run = inputs.run(given.runs[0])
        planes = learned.learn(run)
        _save(given, run, planes)
    except (BadRecording, CannotCompare) as problem:
        print(f"lightllm-otel compare: {problem}", file=sys.stderr)
        return 1
    loads = Counter(f"{Phase.of(phase).value} · {Mode.of(mode).value}" for phase, mode, _, _ in sorted(planes))
    if given.json:
        print(json.dumps({"kind": "expectation", "file": str(given.save_expectation), "loads": loads}, indent=1))
        return 0
    what = ", ".join(f"{kind}: {count}" for kind, count in loads.items())
    print(
        f"wrote {given.save_expectation}: what operators should take, by buckets of load ({what}). A server with "
        f"LIGHTLLM_OTEL_BASELINE={given.save_expectation} is held against it"
    )
    return 0


def _check(given: argparse.Namespace) -> None:
    """Nothing that is asked for is left out in silence. Raises CannotCompare."""
    options = {
        "--repeats": given.repeats, "--fail-if": given.fail_if, "--save-baseline": given.save_baseline, "--html": given.html,
        "--svg": given.svg, "--png": given.png, "--model": given.model, "a second run": given.runs[1:],
    }  # fmt: skip
    foreign = [name for name, value in options.items() if value]
    if foreign:
        raise CannotCompare(f"--save-expectation takes one run and compares nothing; leave out {' and '.join(foreign)}")


def _save(given: argparse.Namespace, run: Run, planes: learned.Planes) -> None:
    try:
        learned.save(given.save_expectation, run, planes)
    except OSError as error:
        raise BadRecording(
            f"{given.save_expectation} cannot be written ({error.strerror}); give another file"
        ) from error
