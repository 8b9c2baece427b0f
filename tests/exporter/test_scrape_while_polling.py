"""Scraped from several threads while it polls: every scrape is whole, and no counter ever goes down."""

import dataclasses
import os
import socket
import threading
import time
import urllib.request

import numpy as np
import pytest
import records
from prometheus_client.parser import text_string_to_metric_families

from lightllm_otel.exporter.exporter import Exporter
from lightllm_otel.records.folder import group_folder, ring_path
from lightllm_otel.records.vocabulary import DropReason, IdleReason, Mode, Operator, Phase
from lightllm_otel.records.writer import RingWriter
from lightllm_otel.settings import Settings

POLLS = 12
SCRAPERS = 3
RANKS = 2
LARGE = records.step(operators=[(Operator.FFN, 0.0001)] * 15_000)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ServerRanks:
    """The rings of a server's ranks, which can start again and overtake the exporter."""

    def __init__(self, folder):
        self._folder = folder
        self._rings, self._number, self._lives = {}, 0, 0
        self.start()

    def start(self):
        self.close()
        self._lives, self._number = self._lives + 1, 0
        for rank in range(RANKS):
            ring = self._rings[rank] = RingWriter(ring_path(self._folder, rank), 1)
            ring.describe({**records.FACTS, "rank": rank, "tp": RANKS, "started": float(self._lives)})

    def close(self):
        for ring in self._rings.values():
            os.close(ring._descriptor)  # the mapping lives as long as the arrays that look into it

    def serve(self, steps):
        """``steps`` of prefill and decode, sampled and not, with idle time, on all ranks."""
        for _ in range(steps):
            number, phase = self._number, Phase.PREFILL if self._number % 7 == 0 else Phase.DECODE
            self._number += 1
            at = {
                "number": number,
                "phase": phase,
                "mode": Mode.GRAPH if number % 3 else Mode.EAGER,
                "wall_time": 1e9 + number,
            }
            idle = {"idle_reason": IdleReason.NO_REQUESTS, "idle_seconds": 0.25}
            for rank, ring in self._rings.items():
                operators = [(operator, 0.0001 * (rank + 1)) for operator in (Operator.FFN, Operator.ATTENTION)]
                ring.write(*records.step(operators=operators if number % 2 else (), seconds=0.001, **at, **idle))
                if number % 4 == 0:
                    calls = records.collectives(np.full((4, 2), 0.0001 * (1 + rank)))
                    ring.write(*records.with_collectives(number, calls, phase, at["mode"], wall_time=at["wall_time"]))
                ring.count([0, number, 0, 0, 0], [number, 0, 0, 0], number, 0.001 * number, 0.0)

    def overtake(self):
        """Go once around the ring before anybody reads it."""
        for ring in self._rings.values():
            for _ in range(5):
                ring.write(*LARGE)


class Scraper(threading.Thread):
    """Scrapes without a pause and keeps the first thing that is wrong."""

    def __init__(self, address, stop):
        super().__init__(daemon=True)
        self._url, self._stop_asked = f"http://{address}/metrics", stop
        self._before = {}
        self.scrapes, self.fault = 0, None

    def run(self):
        try:
            while not self._stop_asked.is_set() and self.fault is None:
                with urllib.request.urlopen(self._url, timeout=10) as answer:
                    families = list(text_string_to_metric_families(answer.read().decode()))
                self.scrapes += 1
                self.fault = self._fault_of(families)
        except Exception as error:  # noqa: BLE001 - shown to the test
            self.fault = repr(error)

    def _fault_of(self, families):
        for family in families:
            if family.type not in ("counter", "histogram"):
                continue
            for sample in family.samples:
                key = sample.name, tuple(sorted(sample.labels.items()))
                if sample.value < self._before.get(key, 0.0):
                    return f"{key} went from {self._before[key]} down to {sample.value}"
                self._before[key] = sample.value
            if family.type == "histogram" and (fault := fault_of_histogram(family)):
                return fault
        return None


def fault_of_histogram(family):
    """Return what is wrong with a histogram; None where its buckets grow up to its count."""
    buckets, counts, sums = {}, {}, {}
    for sample in family.samples:
        key = tuple(sorted((name, value) for name, value in sample.labels.items() if name != "le"))
        if sample.name.endswith("_bucket"):
            buckets.setdefault(key, []).append((float(sample.labels["le"]), sample.value))
        elif sample.name.endswith("_count"):
            counts[key] = sample.value
        elif sample.name.endswith("_sum"):
            sums[key] = sample.value
    if not buckets.keys() == counts.keys() == sums.keys():
        return f"{family.name} has parts of different series"
    for key, found in buckets.items():
        values = [value for _, value in sorted(found)]
        if values != sorted(values) or values[-1] != counts[key] or (counts[key] == 0) != (sums[key] == 0):
            return f"{family.name} {key}: {values}, count {counts[key]}, sum {sums[key]}"
    return None


@pytest.fixture
def exporter(tmp_path):
    folder = group_folder(tmp_path, "127.0.0.1-28765-dp0")
    settings = dataclasses.replace(
        Settings.from_env({}), port=free_port(), nvml=False, state=tmp_path / "state", targets=tmp_path
    )
    started = Exporter(folder, settings)
    yield started
    started.close()


def test_scrapes_beside_polls_are_whole_and_no_counter_goes_down(exporter):
    ranks = ServerRanks(exporter._folder)
    exporter.poll()
    stop = threading.Event()
    scrapers = [Scraper(exporter.server.address, stop) for _ in range(SCRAPERS)]
    for scraper in scrapers:
        scraper.start()
    try:
        for number in range(POLLS):
            ranks.serve(20)
            if number % 6 == 3:
                ranks.overtake()
            elif number % 6 == 5:
                ranks.start()
            exporter.poll()
            time.sleep(0.02)  # for scrapes in between
    finally:
        stop.set()
        for scraper in scrapers:
            scraper.join(20)
        ranks.close()
    assert [scraper.fault for scraper in scrapers] == [None] * SCRAPERS
    assert all(scraper.scrapes > 1 for scraper in scrapers)
    assert exporter.group.dropped()[DropReason.OVERWRITTEN] >= POLLS // 6 * RANKS
