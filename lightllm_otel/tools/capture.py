"""``lightllm-otel capture --steps N``: record every step of a running server for a short time."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from lightllm_otel.exporter.control import Refused
from lightllm_otel.tools.benchmark.served import sampling
from lightllm_otel.tools.benchmark.tap import NoRing, Tap
from lightllm_otel.tools.ctl import find
from lightllm_otel.tools.ending import ended_by_signals

DEFAULT_SECONDS = 60.0


@ended_by_signals()
def capture(given: argparse.Namespace) -> int:
    """Record N sampled steps, and restore the server's sampling afterwards.

    Return exit status 0, or 1 with one sentence if nothing was captured.
    """
    out = given.out or Path()
    if given.kernels:
        from lightllm_otel.tools.kernel_capture import kernels

        return kernels(given, out)
    seconds = given.seconds or DEFAULT_SECONDS
    try:
        if given.steps < 1:
            raise ValueError(f"--steps {given.steps}: pass a whole number of at least 1")
        folder = find(given.group)
        with sampling(folder, 1):
            tap = Tap(folder, out)
            whole = tap.until(lambda: tap.sampled >= given.steps, seconds)
            tap.close()
    except (NoRing, Refused, ValueError) as problem:
        print(f"lightllm-otel capture: {problem}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"lightllm-otel capture: the exporter does not answer ({error.strerror or error}); run lightllm-otel "
              "doctor to find out why", file=sys.stderr)  # fmt: skip
        return 1
    if not tap.sampled:
        print(f"lightllm-otel capture: no step within {seconds:g} s; send requests to the server meanwhile",
              file=sys.stderr)  # fmt: skip
        return 1
    found = {
        "kind": "capture", "path": str(tap.path), "steps": tap.steps, "sampled": tap.sampled, "complete": whole,
        "overwritten": tap.lost,
    }  # fmt: skip
    print(json.dumps(found, indent=1) if given.json else
          f"{tap.path}: {tap.sampled} steps with their operators{'' if whole else f' within {seconds:g} s'}\n"
          f"next: lightllm-otel report {tap.path}")  # fmt: skip
    return 0
