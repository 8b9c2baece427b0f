"""FLOPs, bytes and communication of each operator in one step of one rank.

Symbols: b requests, s new tokens per request, context c, hidden size h, tensor parallelism t, w bytes per element.
For multi-head attention and a feed-forward part of two matrices of width 4h, each layer has:

* projections: 8·b·s·h² FLOPs; feed-forward: 16·b·s·h² FLOPs;
* attention scores: 4·b·s·c·h FLOPs (causal, so half of it in prefill);
* two all_reduces of b·s·h·w bytes.

This module computes the general form. A multiply-add is two FLOPs. Each matrix is read once per step. The output of an
operator is written once, and read once by the next operator.
"""

from __future__ import annotations

import dataclasses

from lightllm_otel.records.vocabulary import Operator, Phase, Site
from lightllm_otel.roofline import links
from lightllm_otel.roofline.shape import ModelShape

# FLOPs per element: a norm squares, sums, scales and multiplies by its weight.
_NORM_FLOPS = 4


@dataclasses.dataclass(frozen=True)
class Batch:
    """Batch of one step.

    Each of ``requests`` has ``new`` tokens to compute and ``context`` tokens to attend to, including the new ones.
    """

    phase: Phase
    requests: float
    new: float
    context: float

    @property
    def tokens(self) -> float:
        """Number of new tokens over all requests."""
        return self.requests * self.new

    @property
    def attended(self) -> float:
        """Number of pairs of a new token and a token that it attends to, over all requests; causal among the new tokens."""
        ready = self.context - self.new
        return self.requests * self.new * (ready + (self.new + 1) / 2 if self.new > 1 else self.context)


@dataclasses.dataclass
class OperatorWork:
    """Work of one operator in one step of one rank, summed over all layers.

    ``communication_bytes``: bytes that the rank sends. ``payloads``: for a collective, (site, bytes per call, calls).
    """

    flops: float = 0.0
    memory_bytes: float = 0.0
    communication_bytes: float = 0.0
    calls: int = 0
    payloads: list[tuple[Site, float, int]] = dataclasses.field(default_factory=list)

    def add(self, flops: float, memory_bytes: float, times: int) -> None:
        """Add ``times`` calls, each with this many FLOPs and bytes."""
        self.flops += flops * times
        self.memory_bytes += memory_bytes * times
        self.calls += times


def step(shape: ModelShape, batch: Batch, ranks: int, element: float = 2) -> dict[Operator, OperatorWork]:
    """Return the work of each operator in one step of one rank.

    ``element``: bytes of a weight, of an activation, and of a cached key or value.
    """
    table: dict[Operator, OperatorWork] = {}

    def put(operator: Operator, flops: float, memory_bytes: float, times: int = 1) -> None:
        table.setdefault(operator, OperatorWork()).add(flops, memory_bytes, times)

    n, h, t, w, layers = batch.tokens, shape.hidden, ranks, element, shape.layers
    hidden_bytes = n * h * w
    put(Operator.EMBEDDING, 0, 2 * hidden_bytes)
    for norm in (Operator.ATTN_NORM, Operator.FFN_NORM):
        put(norm, _NORM_FLOPS * n * h, 2 * hidden_bytes + h * w, layers)
    put(Operator.RESIDUAL, n * h, 3 * hidden_bytes, 2 * layers)
    _attention(shape, batch, t, w, put)
    _feed_forward(shape, n, t, w, put)
    # Only the last token of each request needs logits.
    rows = batch.requests
    put(Operator.LM_HEAD, 2 * rows * h * shape.vocab / t, (h * shape.vocab / t + rows * (h + shape.vocab / t)) * w)
    if ranks > 1:
        _collectives(shape, batch, t, w, table)
    return table


def _attention(shape: ModelShape, batch: Batch, t: int, w: float, put: object) -> None:
    assert callable(put)
    n, h, layers, latent = batch.tokens, shape.hidden, shape.layers, shape.latent
    heads, kv_heads = shape.heads / t, max(shape.kv_heads / t, 1.0)  # fewer KV heads than ranks: heads are copied
    if latent is None:
        q, kv = heads * shape.head_dim, 2 * kv_heads * shape.head_dim
        put(Operator.QKV_PROJ, 2 * n * h * (q + kv), (h * (q + kv) + n * (h + q + kv)) * w, layers)
        put(Operator.KV_WRITE, 0, 2 * n * kv * w, layers)
        put(Operator.ATTENTION, 4 * batch.attended * q, (batch.requests * batch.context * kv + 2 * n * q) * w, layers)
        put(Operator.O_PROJ, 2 * n * q * h, (q * h + n * (q + h)) * w, layers)
        return
    # The cache keeps keys and values compressed. Each head maps its query into the compressed space, and its output back.
    query, kept = latent.nope + latent.rope, latent.kv_rank + latent.rope
    down = latent.q_rank or 0
    up_from = down or h
    weights = h * kept + h * down + up_from * heads * query
    put(Operator.QKV_PROJ, 2 * n * weights, (weights + n * (h + kept + heads * query)) * w, layers)
    put(Operator.KV_WRITE, 0, 2 * n * kept * w, layers)
    absorb = heads * latent.nope * latent.kv_rank
    put(
        Operator.ATTENTION, 2 * n * absorb + 2 * batch.attended * heads * (kept + latent.kv_rank),
        (batch.requests * batch.context * kept + absorb + n * heads * (query + latent.kv_rank)) * w, layers,
    )  # fmt: skip
    out = heads * latent.value
    back = heads * latent.kv_rank * latent.value
    put(Operator.O_PROJ, 2 * n * (back + out * h), (back + out * h + n * (out + h)) * w, layers)


def _feed_forward(shape: ModelShape, n: float, t: int, w: float, put: object) -> None:
    """Add the feed-forward part to ``ffn``, with the gate and experts of a mixture: LightLLM calls them in one method."""
    assert callable(put)
    h, experts = shape.hidden, shape.experts
    dense_layers = shape.layers if experts is None else experts.first_layer
    wide = shape.intermediate / t
    dense = shape.ffn_matrices * h * wide
    put(Operator.FFN, 2 * n * dense, (dense + n * (2 * h + shape.ffn_matrices * wide)) * w, dense_layers)
    if experts is None:
        return
    one = 3 * h * experts.intermediate / t
    # Expected number of distinct experts that n tokens use, if each token chooses its experts at random.
    touched = experts.count * (1 - (1 - experts.active / experts.count) ** n)
    used = experts.active + experts.shared
    flops = 2 * n * (h * experts.count + used * one)
    weights = h * experts.count + (touched + experts.shared) * one
    moved = n * (2 * h + used * 3 * experts.intermediate / t)
    put(Operator.FFN, flops, (weights + moved) * w, shape.layers - dense_layers)


def _collectives(shape: ModelShape, batch: Batch, t: int, w: float, table: dict[Operator, OperatorWork]) -> None:
    """Add the all_reduces after embedding, attention and feed-forward, and the all_gather of the logits."""
    payload = batch.tokens * shape.hidden * w
    reduces = [(Site.EMBEDDING, payload, 1), (Site.ATTENTION, payload, shape.layers), (Site.FFN, payload, shape.layers)]
    logits = [(Site.LM_HEAD, batch.requests * shape.vocab * w, 1)]
    for operator, payloads in ((Operator.ALL_REDUCE, reduces), (Operator.ALL_GATHER, logits)):
        work = OperatorWork(payloads=payloads, calls=sum(calls for _, _, calls in payloads))
        work.communication_bytes = sum(links.traffic(operator.value, size, t) * calls for _, size, calls in payloads)
        table[operator] = work
