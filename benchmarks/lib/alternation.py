"""Runs one batch again and again in this process, in turn with and without something. What, the caller's switch knows."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from pairing import Schedule

Switch = Callable[[bool], None]


class Batch:
    """One batch of a StaticModel, always the same prompts; ``graphs`` False: decode without CUDA graphs."""

    def __init__(self, model: Any, batch: int, input_tokens: int, graphs: bool = True) -> None:
        self._model = model
        self._graphs = graphs
        self.batch = batch
        self.input_tokens = input_tokens

    def begin(self) -> None:
        self._model.release()
        self._model.prefill(self.batch, self.input_tokens, seed=self.batch)

    def decode(self) -> None:
        self._model.decode()

    def prefill(self) -> None:
        """As a step of its own: nothing of the previous one is left."""
        self.begin()

    def tokens(self, positions: int) -> list[list[int]]:
        """Generated in one go."""
        with self.prepared():
            self.begin()
            for _ in range(positions):
                self.decode()
            tokens: list[list[int]] = self._model.tokens
        self._model.release()
        return tokens

    def prepared(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._graphs else without_graphs(self._model.model)

    def decodes(self, schedule: Schedule, switch: Switch, started: Callable[[], None] = lambda: None) -> Passes:
        """Seconds from the end of one step to the end of the next. ``started``: called before each pass's first one."""
        with self.prepared():
            return run(schedule, switch, self.begin, self.decode, started)

    def prefills(self, schedule: Schedule, switch: Switch) -> Passes:
        return run(schedule, switch, self.begin, self.prefill)


Passes = list[np.ndarray]


def run(
    schedule: Schedule,
    switch: Switch,
    begin: Callable[[], None],
    step: Callable[[], None],
    started: Callable[[], None] = lambda: None,
) -> Passes:
    """The seconds of every step of every pass; off when it ends, and while a pass begins."""
    passes = []
    for number in range(schedule.passes):
        switch(False)
        begin()
        gc.collect()  # garbage of the pass before is not to be collected in one of its steps
        started()
        seconds, was_on = np.zeros(schedule.positions), False
        last = time.perf_counter()
        for position in range(schedule.positions):
            on = schedule.is_on(number, position)
            if on is not was_on:
                switch(on)
                was_on = on
            step()
            now = time.perf_counter()
            seconds[position], last = now - last, now
        switch(False)
        passes.append(seconds)
    return passes


def straight(positions: int, begin: Callable[[], None], step: Callable[[], None]) -> np.ndarray:
    """One pass in which nothing changes."""
    begin()
    gc.collect()
    seconds = np.zeros(positions)
    last = time.perf_counter()
    for position in range(positions):
        step()
        now = time.perf_counter()
        seconds[position], last = now - last, now
    return seconds


@contextlib.contextmanager
def without_graphs(model: Any) -> Iterator[None]:
    """LightLLM's model asks for its graphs before each decode step, and has none with --disable_cudagraph."""
    graph, model.graph = model.graph, None
    try:
        yield
    finally:
        model.graph = graph
