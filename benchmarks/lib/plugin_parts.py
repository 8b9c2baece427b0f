"""What the plugin's cost of a step consists of: a hook's call, the reading of a step, the way into a forward."""

from __future__ import annotations

import contextlib
import functools
import time
import timeit
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from alternation import Batch, straight
from plugin_cost import OFF, SETTINGS, Plugin, Rows, Sizes
from process_memory import memory


class _Layer:
    """Something with a method that does next to nothing, called as LightLLM calls an operator of a layer."""

    def _ffn(self, input: Any, infer_state: Any, layer_weight: Any) -> Any:
        return input


def hook_calls(plugin: Plugin, calls: int) -> Rows:
    """A call of an operator in an eager step whose operators are not timed, with our hook in place and without."""
    from lightllm_otel.worker.host.operators import timed

    plugin.follow(SETTINGS["default"])
    timer = plugin.session.timer
    assert timer.recorder is None
    layer = _Layer()
    call = timeit.Timer("layer._ffn(a, b, c)", globals={"layer": layer, "a": None, "b": None, "c": None})
    bare = min(call.repeat(15, calls))
    layer._ffn = timed(layer._ffn, timer, plugin.session.guard, 0, None, 0)  # type: ignore[method-assign]
    hooked = min(call.repeat(15, calls))
    plugin.follow(OFF)
    return [{
        "kind": "hook", "calls": calls, "repeats": 15, "bare_ns": round(1e9 * bare / calls, 2),
        "hooked_ns": round(1e9 * hooked / calls, 2), "hook_ns": round(1e9 * (hooked - bare) / calls, 2),
    }]  # fmt: skip


def step_reader(model: Any, plugin: Plugin, sizes: Sizes) -> Rows:
    """How long the CPU needs to read a step, and whether memory grows over many of them."""
    rows: Rows = []
    batch = Batch(model, sizes.batch, sizes.input_tokens)
    for name, wanted in (("default", sizes.sampled_steps // 4), ("every_step", sizes.sampled_steps)):
        plugin.follow(SETTINGS[name])
        straight(min(sizes.graph.positions, wanted), batch.begin, batch.decode)
        before, hooks, steps = memory(), float(plugin.header["hook_seconds"]), int(plugin.header["steps"])
        with _timed_reading(plugin) as seconds:
            left = wanted
            while left > 0:
                straight(min(sizes.graph.positions, left), batch.begin, batch.decode)
                left -= sizes.graph.positions
        steps = int(plugin.header["steps"]) - steps
        after = memory()
        row = {
            "kind": "harvest", "setting": name, "steps": steps,
            "hook_us_per_step": round(1e6 * (float(plugin.header["hook_seconds"]) - hooks) / max(steps, 1), 2),
            **{f"{field}_growth_kib": after[field] - before[field] for field in after},
        }  # fmt: skip
        for kind, values in seconds.items():
            if values:
                row |= {
                    f"{kind}_steps": len(values), f"{kind}_us_median": round(1e6 * float(np.median(values)), 2),
                    f"{kind}_us_p99": round(1e6 * float(np.percentile(values, 99)), 2),
                }  # fmt: skip
        rows.append(row)
    plugin.follow(OFF)
    model.release()
    return rows


@contextlib.contextmanager
def _timed_reading(plugin: Plugin) -> Iterator[dict[str, list[float]]]:
    timer = plugin.session.timer
    finish = timer.pending._finish
    seconds: dict[str, list[float]] = {"sampled": [], "unsampled": []}

    def timed_finish(step: Any) -> None:
        kind = "sampled" if step.recorder is not None else "unsampled"
        began = time.perf_counter()
        finish(step)
        seconds[kind].append(time.perf_counter() - began)

    timer.pending._finish = timed_finish
    try:
        yield seconds
    finally:
        del timer.pending._finish


def critical_path(model: Any, plugin: Plugin, sizes: Sizes) -> Rows:
    """CPU time from the entry of a decode forward to LightLLM's own first work in it: there the GPU waits for us.

    ``bare`` is LightLLM's forward without even the wrapper that counts.
    """
    host = model.model
    wrapped = type(host).forward
    decode = host._decode
    entries: list[float] = []
    arrivals: list[float] = []

    def arrived(model_input: Any) -> Any:
        arrivals.append(time.perf_counter())
        return decode(model_input)

    def entered(forward: Callable[..., Any], model_input: Any) -> Any:
        entries.append(time.perf_counter())
        return forward(host, model_input)

    rows: Rows = []
    batch = Batch(model, sizes.batch, sizes.input_tokens)
    host._decode = arrived
    try:
        for name, setting in {"bare": OFF, "off": OFF, **SETTINGS}.items():
            plugin.follow(OFF)
            batch.begin()
            plugin.follow(setting)
            host.forward = functools.partial(entered, wrapped.__wrapped__ if name == "bare" else wrapped)
            entries.clear()
            arrivals.clear()
            for _ in range(sizes.probe_steps):
                batch.decode()
            del host.forward
            microseconds = 1e6 * (np.array(arrivals) - np.array(entries))
            rows.append({
                "kind": "critical_path", "setting": name, "steps": len(microseconds),
                "entry_us_median": round(float(np.median(microseconds)), 3),
                "entry_us_min": round(float(microseconds.min()), 3),
            })  # fmt: skip
    finally:
        del host._decode
        vars(host).pop("forward", None)
        plugin.follow(OFF)
        model.release()
    return rows
