"""A rank whose plugin is not there, or fails, beside one that is well. Started by a .pth file where BROKEN_RANK says which.

``absent``: rank 1 has none of our hooks in its model. ``capture``: it fails there when its first instrumented graph has been
captured; not before, because what stands for a graph on the CPU runs the collectives that it captures, and the other rank would
wait for them.
"""

import os
from typing import Any

import wrapt

HOW = os.environ["BROKEN_RANK"]
BROKEN = 1


def is_broken() -> bool:
    import torch.distributed as dist

    return dist.is_initialized() and dist.get_rank() == BROKEN


def without_plugin(module: Any) -> None:
    attach = module.ServerSession.attach

    def attached(self: Any, model: Any) -> Any:
        if not is_broken():
            return attach(self, model)
        self.patch_set.undo()
        self.live.undo()
        return None

    module.ServerSession.attach = attached


def failing_capture(module: Any) -> None:
    capture_again = module.InstrumentedGraphs._capture_again

    def failing(self: Any, *args: Any) -> Any:
        instrumented = capture_again(self, *args)
        if is_broken():
            raise RuntimeError("the capture fails on this rank alone")
        return instrumented

    module.InstrumentedGraphs._capture_again = failing


if HOW == "absent":
    wrapt.register_post_import_hook(without_plugin, "lightllm_otel.worker.session")
else:
    wrapt.register_post_import_hook(failing_capture, "lightllm_otel.worker.host.instrumented_graphs")
