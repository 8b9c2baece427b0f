"""Thread for NVML, because its calls hang if a GPU has fallen off the bus, and nothing else may wait for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Optional

from lightllm_otel.exporter.hardware import EVERY_SECONDS, Hardware
from lightllm_otel.exporter.link import UNKNOWN, GroupLink, link
from lightllm_otel.exporter.nvml import Nvml
from lightllm_otel.guard import log
from lightllm_otel.parts import Parts
from lightllm_otel.records.vocabulary import ExporterStage

DEADLINE_SECONDS = 10.0
"""Time limit for one round of queries. The first round may load the driver, which takes seconds."""
Facts = Mapping[int, Mapping[str, Any]]


class NvmlThread:
    """Thread that finds the link between the GPUs, and reads their state into ``hardware`` every second.

    ``load`` returns NVML, or None without one. ``states`` says whether to read the state at all. ``now`` returns monotonic
    seconds. All methods return at once.
    """

    def __init__(
        self,
        load: Callable[[], Optional[Nvml]],
        hardware: Hardware,
        parts: Parts,
        states: bool = True,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load, self._hardware, self._parts, self._states, self._now = load, hardware, parts, states, now
        self._facts: Facts = {}
        self._asked = 0.0
        self._answer: tuple[Facts, GroupLink] = {}, GroupLink(UNKNOWN, UNKNOWN)
        self._round_began: Optional[float] = None
        self._hangs = False
        self._news = threading.Event()
        self._thread: Optional[threading.Thread] = None

    def ask(self, facts: Facts) -> None:
        """Set the known facts of the ranks: ``pci_bus_id``, ``tp`` and ``nodes`` of each."""
        self._facts, self._asked = dict(facts), self._now()
        if not any(each.get("pci_bus_id") for each in facts.values()):
            self._answer = self._facts, link(list(facts.values()), None)
            return
        self._news.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name="nvml")
            self._thread.start()

    @property
    def link(self) -> GroupLink:
        """Return the link of the known ranks. Before NVML has answered, it is what is known without NVML."""
        facts, found = self._answer
        return found if facts is self._facts else link(list(self._facts.values()), None)

    @property
    def settled(self) -> bool:
        """Return True once ``link`` is final: NVML has answered, or has exceeded its time limit."""
        return self._answer[0] is self._facts or self._now() - self._asked > DEADLINE_SECONDS

    def check(self) -> None:
        """Count a round that exceeds its time limit. Log when NVML begins to hang and when it answers again."""
        began = self._round_began
        hangs = began is not None and self._now() - began > DEADLINE_SECONDS
        if hangs and not self._hangs:
            self._parts.failed(
                ExporterStage.NVML, "deadline",
                f"NVML has not answered for {DEADLINE_SECONDS:.0f} s: clocks, temperatures, throttling and errors of the GPUs "
                "are left out until it answers; the rest is not affected. nvidia-smi and dmesg show whether a GPU is lost",
            )  # fmt: skip
        elif self._hangs and not hangs:
            log.info("NVML answers again")
        self._hangs = hangs

    def _run(self) -> None:
        library: Optional[Nvml] = None
        self._round_began = self._now()
        with self._parts(ExporterStage.NVML, "load"):
            library = self._load()
        while True:
            self._news.clear()
            self._round_began = self._now()
            self._round(library)
            self._round_began = None
            self._news.wait(EVERY_SECONDS if library is not None and self._states else None)

    def _round(self, library: Optional[Nvml]) -> None:
        facts = self._facts
        if self._answer[0] is not facts:
            found = link(list(facts.values()), None)
            with self._parts(ExporterStage.NVML, "link"):
                found = link(list(facts.values()), library)
            self._answer = facts, found
        if library is not None and self._states:
            buses = {rank: str(each["pci_bus_id"]) for rank, each in facts.items() if each.get("pci_bus_id")}
            with self._parts(ExporterStage.NVML, "state"):
                self._hardware.poll(library, buses, self._now())
