"""What an exporter on this machine says now: found through its discovery file, read as Prometheus would."""

from __future__ import annotations

import contextlib
import os
import urllib.error
import urllib.request
from collections import defaultdict
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from lightllm_otel.exporter.discovery import targets
from lightllm_otel.records.folder import groups
from lightllm_otel.records.private import NotOurs
from lightllm_otel.settings import Settings

Labels = tuple[tuple[str, str], ...]


class NoExporter(Exception):
    """There is nothing to read; the message says why and what to do."""


class Scrape:
    """Samples by name and labels."""

    def __init__(self, text: str) -> None:
        self.samples: dict[str, dict[Labels, float]] = defaultdict(dict)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self.samples[sample.name][tuple(sorted(sample.labels.items()))] = sample.value

    def info(self, name: str) -> dict[str, str]:
        """Labels of the one series of an info metric; empty when there is none."""
        return dict(next(iter(self.samples.get(name, {})), ()))

    def value(self, name: str) -> float:
        """Sum over all series of a name."""
        return sum(self.samples.get(name, {}).values())


def directories() -> list[Path]:
    """Where groups of this machine may lie: the configured folder, and the one used when that has no room."""
    fallback = Path(f"/tmp/lightllm-otel-{os.getuid()}")
    return [Settings.from_env(os.environ).directory, fallback]


def folders() -> list[Path]:
    """The folder of every group of ours on this machine. :func:`refused` says what is left out."""
    found: list[Path] = []
    for directory in directories():
        with contextlib.suppress(OSError):
            found += groups(directory)
    return found


def refused() -> dict[Path, str]:
    """A sentence for each place where groups of ours would lie, but which is not ours or cannot be read."""
    problems = {}
    for directory in directories():
        try:
            groups(directory)
        except NotOurs as problem:
            problems[directory] = str(problem)
        except OSError as error:
            problems[directory] = f"{directory} cannot be read ({error.strerror})"
    return problems


def looked_in() -> str:
    """Where nothing was found, and what was left out, for the end of a sentence."""
    return "; ".join([f"looked in {directories()[0]}", *refused().values()])


def addresses() -> dict[str, str]:
    """Group → URL of every exporter that lives and has announced itself."""
    found: dict[str, str] = {}
    for directory in directories():
        with contextlib.suppress(OSError):
            found |= {group: f"http://{address}/metrics" for group, address in targets(directory).items()}
    return found


def fetch(url: str) -> Scrape:
    """Raises NoExporter."""
    url = url if "://" in url else f"http://{url}"
    url = url if url.rstrip("/").endswith("/metrics") else url.rstrip("/") + "/metrics"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return Scrape(answer.read().decode())
    except (OSError, ValueError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        raise NoExporter(
            f"{url} does not answer ({reason}); is the server running? lightllm-otel doctor says more"
        ) from error


def only_address() -> str:
    """The URL of this machine's exporter; of the first one, where there are several. Raises NoExporter."""
    known = addresses()
    if not known:
        raise NoExporter(
            f"no exporter has announced itself ({looked_in()}); start a server with LIGHTLLM_OTEL=1, "
            "or see lightllm-otel demo"
        )
    return next(iter(known.values()))
