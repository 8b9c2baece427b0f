"""A rank whose feed-forward takes longer, for servers on the CPU. Started by a .pth file where SLOW_RANK names a file.

The file has ``RANK SECONDS`` and is read at every call, so that one running server can be slowed on each rank in turn.
"""

import os
import time
from pathlib import Path
from typing import Any

import wrapt

ORDER = Path(os.environ["SLOW_RANK"])


def slow_down(module: Any) -> None:
    """In the operator, before its all_reduce, which v1.1.0 calls inside of it: what a slower GPU looks like to the others."""
    host = module.LlamaTransformerLayerInfer._ffn

    def _ffn(self: Any, *args: Any, **kwargs: Any) -> Any:
        import torch.distributed as dist

        rank, seconds = ORDER.read_text().split()
        if dist.is_initialized() and dist.get_rank() == int(rank):
            time.sleep(float(seconds))
        return host(self, *args, **kwargs)

    module.LlamaTransformerLayerInfer._ffn = _ffn


wrapt.register_post_import_hook(slow_down, "lightllm.models.llama.layer_infer.transformer_layer_infer")
