"""GPU memory of a model: its weights, and the keys and values of every token."""

from __future__ import annotations

from lightllm_otel.roofline.shape import ModelShape


def weights(shape: ModelShape) -> float:
    """Return the number of weights over all ranks.

    Embedding and LM head count separately, because LightLLM keeps both.
    """
    h = shape.hidden
    norms = 2 * h
    return shape.layers * (_attention(shape) + norms) + _feed_forward(shape) + 2 * shape.vocab * h + h


def _attention(shape: ModelShape) -> float:
    """Return the number of weights in the projections of one layer's attention."""
    h, latent = shape.hidden, shape.latent
    if latent is None:
        return h * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    query = shape.heads * (latent.nope + latent.rope)
    down = h * latent.q_rank + latent.q_rank * query if latent.q_rank else h * query
    up = latent.kv_rank * shape.heads * (latent.nope + latent.value)
    return down + h * (latent.kv_rank + latent.rope) + up + shape.heads * latent.value * h


def _feed_forward(shape: ModelShape) -> float:
    """Return the number of weights in the feed-forward parts of all layers."""
    dense = shape.ffn_matrices * shape.hidden * shape.intermediate
    experts = shape.experts
    if experts is None:
        return shape.layers * dense
    one = 3 * shape.hidden * experts.intermediate
    mixture = (experts.count + experts.shared) * one + shape.hidden * experts.count
    return experts.first_layer * dense + (shape.layers - experts.first_layer) * mixture


def weight_bytes(shape: ModelShape, ranks: int, element: float) -> float:
    """Return the bytes of the weights in one rank; ``element``: bytes per weight.

    Only the norms are copied to every rank. They are too small to count, so all weights are divided by ``ranks``.
    """
    return weights(shape) * element / ranks


def cache_bytes(shape: ModelShape, ranks: int, element: float) -> float:
    """Return the bytes of the KV cache for one token in one rank; ``element``: bytes per cached value.

    Latent attention keeps a copy in every rank. If there are fewer KV heads than ranks, heads are copied as well.
    """
    if shape.latent is not None:
        return shape.layers * (shape.latent.kv_rank + shape.latent.rope) * element
    return shape.layers * 2 * max(shape.kv_heads / ranks, 1.0) * shape.head_dim * element
