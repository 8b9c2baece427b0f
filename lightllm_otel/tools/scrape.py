"""Scrapes of exporters on this machine, which are found through their discovery files."""

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
    """Raised if no exporter answers; the message says why and what to do."""


class Scrape:
    """One scrape of ``/metrics``. ``samples``: value by name and labels."""

    def __init__(self, text: str) -> None:
        self.samples: dict[str, dict[Labels, float]] = defaultdict(dict)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self.samples[sample.name][tuple(sorted(sample.labels.items()))] = sample.value

    def info(self, name: str) -> dict[str, str]:
        """Return the labels of an info metric with one series; empty if there is none."""
        return dict(next(iter(self.samples.get(name, {})), ()))

    def value(self, name: str) -> float:
        """Return the sum over all series of this name."""
        return sum(self.samples.get(name, {}).values())


def directories() -> list[Path]:
    """Return the folders that can hold groups: the configured one, and the fallback that is used when that one is full."""
    fallback = Path(f"/tmp/lightllm-otel-{os.getuid()}")
    return [Settings.from_env(os.environ).directory, fallback]


def folders() -> list[Path]:
    """Return the folder of every group of this user. :func:`refused` explains which folders are left out."""
    found: list[Path] = []
    for directory in directories():
        with contextlib.suppress(OSError):
            found += groups(directory)
    return found


def refused() -> dict[Path, str]:
    """Return a sentence for each folder of :func:`directories` that belongs to another user or cannot be read."""
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
    """Return the end of a sentence that says which folder was searched, and which folders were left out."""
    return "; ".join([f"looked in {directories()[0]}", *refused().values()])


def addresses() -> dict[str, str]:
    """Return the URL of every running exporter, by group, from the discovery files."""
    found: dict[str, str] = {}
    for directory in directories():
        with contextlib.suppress(OSError):
            found |= {group: f"http://{address}/metrics" for group, address in targets(directory).items()}
    return found


def fetch(url: str) -> Scrape:
    """Scrape the exporter at this URL or address. Raises NoExporter."""
    url = url if "://" in url else f"http://{url}"
    url = url if url.rstrip("/").endswith("/metrics") else url.rstrip("/") + "/metrics"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return Scrape(answer.read().decode())
    except (OSError, ValueError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        raise NoExporter(
            f"{url} does not answer ({reason}); check that the server is running, or run lightllm-otel doctor to find out why"
        ) from error


def only_address() -> str:
    """Return the URL of the exporter on this machine; the first one if there are several. Raises NoExporter."""
    known = addresses()
    if not known:
        raise NoExporter(
            f"no exporter has announced itself ({looked_in()}); start a server with LIGHTLLM_OTEL=1, "
            "or try lightllm-otel demo"
        )
    return next(iter(known.values()))
