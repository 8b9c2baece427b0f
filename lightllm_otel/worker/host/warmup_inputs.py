"""Inputs of LightLLM's warm-up: kept by batch size, and changed, so that graphs can be checked on other inputs."""

from __future__ import annotations

import copy
from typing import Any

# LightLLM warms up with token 1 and a context of 2 tokens.
OTHER_TOKEN, OTHER_TOKENS = 2, 1 << 16


class WarmupInputs:
    """The decode inputs of the warm-up by batch size; the newest one of each size is kept."""

    def __init__(self) -> None:
        self._by_size: dict[int, Any] = {}

    def keep(self, given: Any) -> None:
        """Keep a copy of a decode input; a prefill input, or None, is ignored.

        Its tensors are cloned, because they become those of the graph, and replays write into them.
        """
        if given is not None and not getattr(given, "is_prefill", True):
            kept = self._by_size[int(given.batch_size)] = copy.copy(given)
            for name, value in list(vars(given).items()):
                if hasattr(value, "clone"):
                    setattr(kept, name, value.clone())

    def take_all(self) -> dict[int, Any]:
        """Return all inputs by batch size, and keep none of them."""
        kept, self._by_size = self._by_size, {}
        return kept


def other_inputs(given: Any, owner: Any, model: Any) -> Any:
    """Return the host's own warm-up input with other lengths and another token, or None where it cannot be made.

    No length exceeds what the graph, the model or the host's table of tokens has room for. LightLLM warms up with one row of
    that table for the whole batch, and the last writer wins there; here each request has a row of its own. No row is in use
    while the server starts, and what remains in the rows is overwritten before it is read.
    """
    lengths, ids = getattr(given, "b_seq_len", None), getattr(given, "input_ids", None)
    rows = getattr(given, "b_req_idx", None)
    table = getattr(getattr(getattr(model, "req_manager", None), "req_to_token_indexs", None), "shape", None)
    if lengths is None or ids is None or rows is None or table is None or len(table) != 2:
        return None
    known = (getattr(owner, "graph_max_len_in_batch", None), getattr(model, "max_seq_length", None), table[1])
    bounds = [each for each in known if isinstance(each, int)]
    batch = int(given.batch_size)
    if len(bounds) < len(known) or not isinstance(given.total_token_num, int) or batch >= table[0]:
        return None
    longest = min(*bounds, max(OTHER_TOKENS // batch, 64)) - 1
    if longest < 4:
        return None
    wanted = [max(longest - (longest // (2 * batch)) * row, 3) for row in range(batch)]
    others = copy.copy(given)
    others.b_seq_len = lengths.new_tensor(wanted)
    others.b_req_idx = rows.new_tensor(list(range(batch)))
    others.input_ids = ids.new_full(tuple(ids.shape), OTHER_TOKEN)
    others.total_token_num = sum(wanted)
    return others
