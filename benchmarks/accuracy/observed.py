"""A model that the plugin and CUPTI watch: run over and over in the same way, with markers or annotations in its trace."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from alternation import without_graphs
from comparison import as_percent, as_us
from kernels import ANNOTATION, Mismatch, attributed, kernels_in, launched, read_trace, steps_between_markers
from passes import DROPPED_STEPS, EAGER, GAP, PLAIN, PREFILL, SAMPLING, TWIN, Step
from profiler import profiled

from lightllm_otel.records import layout
from lightllm_otel.records.vocabulary import Level

INPUT_TOKENS = 256
PREFILLS = 2
EAGER_STEPS = 8


class Plugin:
    """lightllm-otel in this process, and all that is used of its inside: what changes with it changes here."""

    NEVER = 10**9

    def __init__(self, folder: Path, batches: Sequence[int], rank: int = 0) -> None:
        """Before LightLLM is imported."""
        from lightllm_otel.inject import bootstrap

        self._folder, self._rank = folder, rank
        os.environ |= {
            "LIGHTLLM_OTEL": "1", "LIGHTLLM_OTEL_DIR": str(folder), "LIGHTLLM_OTEL_SAMPLE_EVERY": "1",
            "LIGHTLLM_OTEL_RING_MIB": "64", "LIGHTLLM_OTEL_GRAPH_BATCH_SIZES": ",".join(map(str, batches)),
        }  # fmt: skip
        self._hooks: Any = bootstrap.activate()
        self._reader: Any = None

    @property
    def session(self) -> Any:
        return self._hooks.session()

    def sample(self, due: bool) -> None:
        """From the next step on: all of them, or (but for large prefills) none."""
        from lightllm_otel.records.control import Order

        self.session.follow(Order(0, Level.OPERATORS, 1 if due else self.NEVER))

    def read(self) -> list[Step]:
        """The steps since the last call, to the last one."""
        import torch

        from lightllm_otel.records.reader import RingReader

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.session.timer.tick()
        if self._reader is None:
            self._reader = RingReader(next(self._folder.glob(f"*/rank-{self._rank}.ring")))
        return layout.steps_in(self._reader.read())

    def operators(self, batch: int) -> list[str]:
        """Of each interval of the instrumented graph for this batch size; the first mark only begins."""
        boundary_codes = self.session.timer.boundary_codes._boundary_codes
        instrumented_graphs = self.session.instrumented_graphs
        if batch not in instrumented_graphs.by_size:
            raise Mismatch(
                f"no instrumented graph for batch size {batch}: {instrumented_graphs.state}, {instrumented_graphs.reason}"
            )
        return [
            boundary_codes[code].operator.value for code in instrumented_graphs.by_size[batch].graph_layout.codes[1:]
        ]

    def boundary_cost(self) -> float:
        """Seconds that are subtracted for every boundary in an instrumented graph."""
        return float(self._reader.header["timestamp_cost"])

    def live_distortion(self, steps: Sequence[Step]) -> float | None:
        """What lightllm_otel_distortion_ratio would be after these steps, less 1, in percent."""
        from lightllm_otel.reduce.distortion import Distortion

        live = Distortion()
        live.add(np.array([step for step, _ in steps], layout.STEP))
        return as_percent(live.ratio - 1, 1) if live.ratio is not None else None

    def facts(self) -> dict[str, Any]:
        header = self._reader.header
        return {
            "clock_quantum_us": as_us(float(header["clock_quantum"])),
            "boundary_cost_us": as_us(float(header["boundary_cost"])),
            "stamp_quantum_us": as_us(float(header["timestamp_quantum"])),
            "stamp_cost_us": as_us(float(header["timestamp_cost"])),
            "dropped": header["dropped"].tolist(), "errors": header["errors"].tolist(), "facts": self._reader.facts(),
        }  # fmt: skip


class Runner:
    """The model of one shape, run over and over in the same way."""

    def __init__(self, model: Any, plugin: Plugin, steps: int, graphs: bool = True) -> None:
        self.model = model
        self.plugin = plugin
        self.steps = steps
        self.graphs = graphs
        self.labels: list[str] = []

    def run(self, batch: int, prefills: int, pairs: int, eager: int) -> list[list[int]]:
        """Prefill, then instrumented graph and plain steps in turn, then steps without graphs. Returns the tokens."""
        self.labels = []
        for number in range(prefills):
            if number:
                self.model.release()
            self._step(PREFILL, functools.partial(self.model.prefill, batch, INPUT_TOKENS, batch))
        # Plain first and last, so that both kinds see the same context on average, and every instrumented graph has plain
        # neighbours.
        for label in [PLAIN, *[TWIN, PLAIN] * pairs] if self.graphs else []:
            self._step(label, self.model.decode)
        with without_graphs(self.model.model):
            for _ in range(eager):
                self._step(EAGER, self.model.decode)
        tokens: list[list[int]] = self.model.tokens
        self.model.release()
        return tokens

    def whole(self, batch: int) -> list[list[int]]:
        """As it is compared."""
        return self.run(batch, PREFILLS, DROPPED_STEPS + self.steps, EAGER_STEPS)

    def _step(self, label: str, step: Callable[[], Any]) -> None:
        self.labels.append(label)
        self.plugin.sample(label != PLAIN)
        step()


@contextlib.contextmanager
def markers(model: Any) -> Iterator[None]:
    """A kernel that is easily found in a trace, before each forward and after each sampling."""
    import torch
    from lightllm.server.router.model_infer.mode_backend import generic_post_process

    from lightllm_otel.contracts.patch_set import PatchSet

    mark: Any = functools.partial(torch.cuda._sleep, 1) if torch.cuda.is_available() else (lambda: None)

    def before(host: Callable[..., Any]) -> Callable[..., Any]:
        def marked(*args: Any, **kwargs: Any) -> Any:
            mark()
            return host(*args, **kwargs)

        return marked

    def after(host: Callable[..., Any]) -> Callable[..., Any]:
        def marked(*args: Any, **kwargs: Any) -> Any:
            result = host(*args, **kwargs)
            mark()
            return result

        return marked

    patch_set = PatchSet()
    patch_set.replace(model, "forward", before)
    patch_set.replace(generic_post_process, "sample", after)
    try:
        yield
    finally:
        patch_set.undo()


@contextlib.contextmanager
def annotations(model: Any) -> Iterator[None]:
    """An annotation around every slot of the plugin's table, named after its operator and what leads to it."""
    import torch
    from lightllm.server.router.model_infer.mode_backend import generic_post_process

    from lightllm_otel.contracts.patch_set import PatchSet
    from lightllm_otel.worker.host.layers import layers_of

    def wrap(operator: str, lead: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def around(host: Callable[..., Any]) -> Callable[..., Any]:
            def annotated(*args: Any, **kwargs: Any) -> Any:
                with torch.profiler.record_function(f"{ANNOTATION}:{operator}:{lead}"):
                    return host(*args, **kwargs)

            return annotated

        return around

    patch_set = PatchSet()
    for layer in list(layers_of(model)):
        for place in layer.places.values():
            patch_set.replace(
                place.owner, place.name, wrap(place.slot.operator.value, place.lead.value if place.lead else "")
            )
    patch_set.replace(generic_post_process, "sample", wrap(SAMPLING, GAP))
    try:
        yield
    finally:
        patch_set.undo()


def annotated_kernels(runner: Runner, batch: int, path: Path) -> dict[str, list[tuple[str, str]]]:
    """``(kernel, operator)`` in order, of a prefill and of a decode step without graphs."""
    with annotations(runner.model.model), markers(runner.model.model), profiled(path, host=True):
        runner.run(batch, 1, 0, 1)
    runner.plugin.read()
    trace = read_trace(path)
    owners = attributed(trace)
    found = {}
    for label, step in zip(runner.labels, steps_between_markers(kernels_in(trace))):
        lost = [kernel.name for kernel in launched(step) if kernel.launch not in owners]
        if lost:
            raise Mismatch(f"{len(lost)} kernels without a launch on the host, the first: {lost[0][:120]}")
        found[label] = [(kernel.name, owners[kernel.launch]) for kernel in launched(step)]
    return found
