"""What people do first: time.perf_counter() around the calls of a layer. For first_light.py; first on PYTHONPATH.

PYTHON_TIMER names the file that gets {phase: {operator: [calls, seconds]}}.
"""

import json
import os
import threading
import time
from collections import defaultdict
from pathlib import Path

TOTALS = defaultdict(lambda: defaultdict(lambda: [0, 0.0]))
ARMED = [False]


def phase_of(args):
    for argument in args:
        if hasattr(argument, "is_prefill"):
            return "prefill" if argument.is_prefill else "decode"
    return None


def timed(host, operator):
    def call(*args, **kwargs):
        phase = phase_of(args) if ARMED[0] else None
        began = time.perf_counter()
        result = host(*args, **kwargs)
        if phase is not None:
            total = TOTALS[phase][operator]
            total[0] += 1
            total[1] += time.perf_counter() - began
        return result

    return call


def wrap_layers(model):
    from lightllm_otel.worker.host.layers import layers_of

    for layer in list(layers_of(model)):
        for place in layer.places.values():
            setattr(place.owner, place.name, timed(getattr(place.owner, place.name), place.slot.operator.value))


def write_totals():
    path = Path(os.environ["PYTHON_TIMER"])
    while True:
        time.sleep(0.5)
        ARMED[0] = Path(f"{path}.armed").exists()
        path.write_text(json.dumps(TOTALS))


def patch(module):
    model_class = module.TpPartBaseModel
    host = model_class._init_some_value  # in both versions right after the layers exist

    def _init_some_value(self):
        host(self)
        wrap_layers(self)
        threading.Thread(target=write_totals, daemon=True).start()

    model_class._init_some_value = _init_some_value


if os.environ.get("PYTHON_TIMER"):
    import wrapt

    wrapt.register_post_import_hook(patch, "lightllm.common.basemodel.basemodel")
