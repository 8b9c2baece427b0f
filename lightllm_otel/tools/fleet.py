"""``lightllm-otel demo --fleet``: simulated servers, each with its exporter, as example data for dashboards.

Times come from the roofline model, with an assumed efficiency and noise; none of them is measured. There are three servers of
four ranks: one is healthy, one has a link that becomes slower after a while, and one has a GPU with a throttled clock.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lightllm_otel import __version__
from lightllm_otel.exporter.exporter import Exporter
from lightllm_otel.exporter.hardware import GpuState
from lightllm_otel.exporter.link import GroupLink, Ports
from lightllm_otel.records import layout
from lightllm_otel.records.folder import group_folder, ring_path
from lightllm_otel.records.vocabulary import (
    COLLECTIVES,
    IdleReason,
    Implementation,
    Level,
    Mode,
    Operator,
    Phase,
    Site,
    Throttle,
)
from lightllm_otel.records.writer import RingWriter
from lightllm_otel.roofline import gpus, ideal, links, shape
from lightllm_otel.roofline.work import Batch
from lightllm_otel.settings import Settings
from lightllm_otel.tools.ending import ended_by_signals
from lightllm_otel.tools.prometheus import NoPrometheus, Prometheus

MODEL, GPU, RANKS, SAMPLE_EVERY = "llama2-70b", "H200", 4, 16
EFFICIENCY = 0.72  # assumed share of its roofline that an operator reaches
PREFILL_EVERY, PROMPT = 0.8, 1024  # seconds, tokens
HOST_SECONDS = 0.25e-3  # between two steps
LAYER = (
    Operator.ATTN_NORM, Operator.QKV_PROJ, Operator.KV_WRITE, Operator.ATTENTION, Operator.O_PROJ, Operator.ALL_REDUCE,
    Operator.RESIDUAL, Operator.FFN_NORM, Operator.FFN, Operator.ALL_REDUCE, Operator.RESIDUAL,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Fault:
    """Fault of a simulated server.

    Transfers take ``link`` times as long after ``after`` seconds. Operators of ``rank`` always take ``slow`` times as long.
    """

    link: float = 1.0
    after: float = 0.0
    rank: int = -1
    slow: float = 1.0


FLEET = (Fault(), Fault(link=1.25, after=90.0), Fault(rank=2, slow=1.25))


class StepTemplate:
    """Template of a step: its calls in order, with their seconds on a healthy GPU."""

    def __init__(self, phase: Phase, requests: int, new: int, context: float) -> None:
        model, gpu = shape.find(MODEL), gpus.find(GPU)
        batch = Batch(phase, requests, new, context)
        table = ideal.step(model, batch, gpu, RANKS, links.link_of(gpu, RANKS))
        order = [(Operator.EMBEDDING, -1), (Operator.ALL_REDUCE, -1)]
        order += [(each, layer) for layer in range(model.layers) for each in LAYER]
        order += [(Operator.LM_HEAD, -1), (Operator.ALL_GATHER, -1), (Operator.SAMPLING, -1)]
        self.intervals = np.zeros(len(order), layout.INTERVAL)
        seen = 0
        for row, (each, layer) in zip(self.intervals, order):
            known = table.get(each)
            share = EFFICIENCY * (1.0 if known is not None and known.bound != ideal.LINK else 0.8)
            calls = max(known.work.calls, 1) if known is not None else 1
            row["operator"], row["layer"] = each.code, layer
            row["seconds"] = max(known.seconds / calls / share if known is not None else 40e-6, 2e-6)
            if each in COLLECTIVES:
                seen = seen + 1 if layer >= 0 else 0
                ends = Site.EMBEDDING if each is Operator.ALL_REDUCE else Site.LM_HEAD
                site = ends if layer < 0 else (Site.ATTENTION, Site.FFN)[(seen - 1) % 2]
                row["site"], row["occurrence"] = site.code, (seen - 1) % 2 if layer >= 0 else 0
                row["implementation"] = (
                    Implementation.CUSTOM.code if phase is Phase.DECODE else Implementation.NCCL.code
                )
                sizes = {place: size for place, size, _ in known.work.payloads} if known is not None else {}
                row["payload_bytes"] = int(sizes.get(site, 0))
            elif each is Operator.RESIDUAL:
                row["occurrence"] = 0
        codes = [each.code for each in COLLECTIVES]
        self.collective = np.isin(self.intervals["operator"], codes)
        self.starts = np.concatenate([[0], np.flatnonzero(self.collective)[:-1] + 1])
        self.batch = batch

    def seconds(self, generator: np.random.Generator, fault: Fault, link: float, noise: float) -> np.ndarray:
        """Return the seconds of each call, shape (ranks, calls). A rank that is early at a collective waits for the last one.

        ``link``: factor on transfer times. ``noise``: relative standard deviation.
        """
        base = self.intervals["seconds"]
        all_ranks = base * (1 + noise * np.abs(generator.standard_normal((RANKS, len(base)))))
        if fault.rank >= 0:
            all_ranks[fault.rank, ~self.collective] *= fault.slow
        transfer = base[self.collective] * link * (1 + noise * np.abs(generator.standard_normal(self.collective.sum())))
        computing = np.where(self.collective, 0.0, all_ranks)
        until = np.add.reduceat(computing, self.starts, axis=1)
        all_ranks[:, self.collective] = transfer + until.max(axis=0) - until
        return all_ranks


class SimulatedServer:
    """Simulated server: the rings of its ranks, and the exporter that reads them."""

    def __init__(self, folder: Path, settings: Settings, fault: Fault, seed: int) -> None:
        self._fault, self._random = fault, np.random.default_rng(seed)
        self._rings = [RingWriter(ring_path(folder, rank), 8) for rank in range(RANKS)]
        self._clock, self._number, self._next_prefill = 0.0, 0, 0.3
        self._templates: dict[tuple[Phase, int], StepTemplate] = {}
        self._began = time.time()
        for rank, ring in enumerate(self._rings):
            ring.describe(_facts(rank, seed))
            ring.header["level"], ring.header["sample_every"] = Level.OPERATORS.code, SAMPLE_EVERY
            ring.header["clock_quantum"], ring.header["boundary_cost"] = 0.5e-6, 1.2e-6
            ring.header["timestamp_quantum"], ring.header["timestamp_cost"] = 32e-9, 0.9e-6
        self.exporter = Exporter(folder, settings)
        self.exporter.poll()
        bandwidth = gpus.find(GPU).nvlink_bytes_per_second
        link = GroupLink(
            "nvlink",
            "nvlink4x18",
            bandwidth,
            "NODE",
            {_bus(rank): Ports(18, 4, (9, 0), 5, 16) for rank in range(RANKS)},
        )
        self.exporter.simulate(link, {rank: self._state(rank) for rank in range(RANKS)})

    def _state(self, rank: int) -> GpuState:
        late = rank == self._fault.rank
        clock = 1.98e9 / (self._fault.slow if late else 1.0)
        return GpuState(clock, 3.2e9, 78.0 if late else 61.0 + rank, 698.0 if late else 612.0,
                     (Throttle.POWER,) if late else (), 0, 0)  # fmt: skip

    def advance(self, elapsed: float) -> None:
        """Write every step that begins before ``elapsed`` seconds."""
        while self._clock < elapsed:
            due = self._clock >= self._next_prefill
            if due:
                self._next_prefill += PREFILL_EVERY * self._random.uniform(0.6, 1.4)
            self._step(Phase.PREFILL if due else Phase.DECODE)
        self.exporter.poll()

    def _step(self, phase: Phase) -> None:
        decode = phase is Phase.DECODE
        requests = 24 + 4 * round(math.sin(self._clock / 40)) if decode else 1
        template = self._templates.get((phase, requests))
        if template is None:
            template = self._templates[phase, requests] = StepTemplate(
                phase, requests, 1 if decode else PROMPT, 1600 if decode else PROMPT
            )
        sampled = (
            not decode or self._random.random() < 1 / SAMPLE_EVERY
        )  # at random, because ranks take turns by step number
        link = self._fault.link if self._clock > self._fault.after else 1.0
        times = template.seconds(self._random, self._fault, link, 0.02)
        whole = float(times.sum(axis=1).max()) * 1.004
        for rank, ring in enumerate(self._rings):
            head = np.zeros(1, layout.STEP)
            head["magic"], head["number"], head["phase"] = layout.STEP_MAGIC, self._number, phase.code
            head["mode"] = (Mode.GRAPH if decode else Mode.EAGER).code
            head["wall_time"], head["seconds"] = (
                self._began + self._clock,
                whole * (1.004 if sampled and decode else 1.0),
            )
            head["closure_seconds"], head["idle_reason"] = whole, IdleReason.HOST.code
            head["idle_seconds"] = HOST_SECONDS * self._random.uniform(0.8, 1.6)
            head["batch"] = head["requests"] = head["padded"] = requests
            head["tokens"], head["context"] = template.batch.tokens, int(requests * template.batch.context)
            intervals = template.intervals[:0]
            if sampled:
                intervals = template.intervals.copy()
                intervals["seconds"] = times[rank]
                if not decode:
                    intervals["flags"][:2] = layout.STARVED | layout.launching_bits(times[rank, :2])
                head["flags"], head["intervals"] = layout.SAMPLED, len(intervals)
            ring.write(head.tobytes(), intervals)
            ring.header["sampled_steps"] += sampled
            ring.header["in_flight_number"] = self._number
            ring.header["hook_seconds"] += 40e-6 if sampled else 1e-6
        self._number += 1
        self._clock += whole + HOST_SECONDS

    def close(self) -> None:
        """Stop the exporter."""
        self.exporter.close()


def _bus(rank: int) -> str:
    return f"simulated-{rank}"


def _facts(rank: int, seed: int) -> dict[str, object]:
    model = shape.find(MODEL)
    config = {
        "num_hidden_layers": model.layers, "hidden_size": model.hidden, "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads, "intermediate_size": model.intermediate, "vocab_size": model.vocab,
    }  # fmt: skip
    found = {*LAYER, Operator.EMBEDDING, Operator.LM_HEAD, Operator.SAMPLING, Operator.ALL_GATHER}
    return {
        "model": MODEL, "gpu_name": f"NVIDIA {GPU}", "gpu_uuid": f"GPU-simulated-{seed}-{rank}", "rank": rank, "tp": RANKS,
        "dp": 1, "dp_rank": 0, "level": "operators", "sample_every": SAMPLE_EVERY, "clock": "stamp", "lightllm": "simulated",
        "plugin": __version__, "dtype": "float16", "config": config, "torch": "none", "cuda": "none", "pci_bus_id": _bus(rank),
        "graphs": {"state": "armed", "sizes": [1, 8, 16, 24, 32], "bytes": 0, "seconds": 0.0},
        "slots": {each.value: "installed" for each in Operator if each in found},
        "contracts": {},  # LightLLM has all that the plugin needs
    }  # fmt: skip


@ended_by_signals(status=0)  # so that Prometheus is stopped as well
def fleet(seconds: float | None, port: int | None, prometheus_port: int | None) -> int:
    """Simulate until Ctrl-C, or for ``seconds``. ``prometheus_port``: the port of a Prometheus to start, or None.

    Return exit status 0, or 1 with one sentence.
    """
    with tempfile.TemporaryDirectory(prefix="lightllm-otel-fleet-") as directory:
        at = Path(directory)
        settings = dataclasses.replace(
            Settings.from_env({}), directory=at, targets=None, record=None, state=None, nvml=False
        )
        servers: list[SimulatedServer] = []
        prometheus = None
        started = time.monotonic()
        try:
            for n, fault in enumerate(FLEET):
                own = dataclasses.replace(settings, port=port + n) if port else settings
                servers.append(SimulatedServer(group_folder(at, f"sim-{n + 1}"), own, fault, n + 1))
            open_ones = [each.exporter.server.address for each in servers if each.exporter.server is not None]
            if len(open_ones) < len(servers):
                return 1  # the exporter has printed which ports it tried
            print(f"{len(servers)} simulated servers ({MODEL} on {RANKS} × {GPU}, times from the roofline model, not measured):\n"
                  + "\n".join(f"  http://{address}/metrics" for address in open_ones), flush=True)  # fmt: skip
            if prometheus_port is not None:
                prometheus = Prometheus.start(at, open_ones, prometheus_port)
                print(f"Prometheus: {prometheus.url}", flush=True)
            while seconds is None or time.monotonic() - started < seconds:
                for server in servers:
                    server.advance(time.monotonic() - started)
                time.sleep(0.1)
        except NoPrometheus as problem:
            print(f"lightllm-otel demo: {problem}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print()
        finally:
            if prometheus is not None:
                prometheus.stop()
            for server in servers:
                server.close()
    return 0
