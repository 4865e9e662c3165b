"""Rows of attention, as the models' layers make them: what a call of a layer is, and its softmax.

For query t and key j of one head,

    x_j = scale * <q_t, k_j>,  x_j <- c tanh(x_j / c) when the layer has a softcap c,
    a_j = exp(x_j - max x) / sum exp(x - max x)  over the keys the mask allows, else 0,

in float32 whatever the model's dtype (float64 for a float64 model), a block of rows at a time. A
head with a learned sink (gpt-oss, arXiv:2508.10925) has one more term exp(s - max x) in the sum,
the mass of no token, so that its rows sum to less than 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

BLOCK_BYTES = 4 << 20
"""Memory for the logits of one block of rows: few enough that they stay in the cache."""


@dataclass(frozen=True)
class Layer:
    """What is known of one attention layer; a call that says otherwise is refused.

    index: its number in the model's cache. heads, kv_heads: how many attend and how many different
    keys a token has. head_dim, value_dim: sizes. scale, softcap: of the logits.

    window: keys a row sees, its own included, None for all. chunk: tokens attend within chunks of
    this many, by the model's configuration. regular: whether causality and the window are all there
    is to the masks seen so far.

    latent: the cache keeps one vector a token, from which all heads make their own keys and values
    (multi-head latent attention, arXiv:2405.04434), so all heads share one cache. order: the
    model's number of each head, where heads of one KV head do not stand together in the model.
    cache_of: the earlier layer whose keys and values this one attends to, None for its own. sink:
    whether a learned sink takes a part of each row's mass. computed_in: the type of the rows that
    the model's own code returns (own.py), which tells no scale and no vectors; None where the rows
    are made here.
    """

    index: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    scale: float
    softcap: float | None
    window: int | None
    regular: bool = True
    chunk: int | None = None
    latent: bool = False
    order: tuple[int, ...] | None = None
    cache_of: int | None = None
    sink: bool = False
    computed_in: str | None = None

    @property
    def group_size(self) -> int:
        """Query heads that attend to the same keys."""
        return self.heads // self.kv_heads

    @property
    def caches(self) -> int:
        """How many caches the layer's heads share: its KV heads, or one latent cache."""
        return 1 if self.latent else self.kv_heads

    @property
    def own(self) -> bool:
        """Whether the rows are those that the model's own code returns."""
        return self.computed_in is not None

    @property
    def has_vectors(self) -> bool:
        """Whether a trace can keep what the layer's caches hold."""
        return not self.latent and not self.own


@dataclass(frozen=True)
class Call:
    """One layer's call of its attention, without the batch axis: of several sequences side by side
    the heads stand one after the other.

    q [heads, rows, d] of rows `start` on; k [kv_heads, keys, d] and v [kv_heads, keys, dv] of
    positions `origin` on. allowed: bool [rows, keys], or None for causal rows with the layer's
    window. mask: the model's own, where it gave one. sinks: the logit of each head's learned sink,
    float [heads], None for none.
    """

    layer: Layer
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    start: int
    origin: int
    allowed: torch.Tensor | None
    mask: torch.Tensor | None
    sinks: torch.Tensor | None = None

    def empty_output(self) -> torch.Tensor:
        """Room for the output, [rows, heads, dv], float32 (float64 for a float64 model)."""
        shape = self.q.shape[1], self.q.shape[0], self.v.shape[2]
        return self.q.new_empty(shape, dtype=_precision(self.q))


@dataclass(frozen=True)
class RowBlock:
    """Consecutive rows of one layer.

    p: float32 [heads, rows, columns] of rows `start` on and keys `first` on; all other entries are
    0. lse: log of the sum of exp, the sink's term included, None where the logits are not known;
    row_sum: sum of p, float32 [heads, rows].
    """

    start: int
    first: int
    p: torch.Tensor
    lse: torch.Tensor | None
    row_sum: torch.Tensor


def _precision(q: torch.Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def softmax_blocks(call: Call, block_bytes: int = BLOCK_BYTES) -> Iterator[RowBlock]:
    """The rows of a call, block by block, in float32 (float64 for a float64 model).

    Memory: one block of logits of `block_bytes` and as much again.
    """
    heads, rows, keys = len(call.q), call.q.shape[1], call.k.shape[1]
    step = max(1, block_bytes // (4 * heads * keys))
    for top in range(0, rows, step):
        x, low = logits(call, top, min(top + step, rows))
        lse = softmax_(x, call.sinks)
        yield RowBlock(call.start + top, call.origin + low, x, lse, x.sum(dim=2))


def logits(call: Call, top: int, stop: int) -> tuple[torch.Tensor, int]:
    """Logits of rows top … stop-1 of a call, -inf where the mask lets none through, [heads, rows,
    columns], and the place of the first column among the call's keys.
    """
    layer, start, origin, allowed = call.layer, call.start, call.origin, call.allowed
    precision, heads, kv_heads = _precision(call.q), len(call.q), len(call.k)
    low = 0
    if allowed is None and layer.window is not None:
        low = max(0, start + top - layer.window + 1 - origin)
    high = start + stop - origin
    count, width = stop - top, high - low
    q, k = call.q[:, top:stop].to(precision), call.k[:, low:high].to(precision)
    exact = math.frexp(layer.scale)[0] == 0.5  # a power of two: no bit depends on when it is taken
    if exact:
        q = q * layer.scale
    x = torch.bmm(q.reshape(kv_heads, layer.group_size * count, -1), k.transpose(1, 2))
    x = x.view(heads, count, width)
    if not exact:
        x.mul_(layer.scale)
    if layer.softcap is not None:
        x.div_(layer.softcap).tanh_().mul_(layer.softcap)
    if allowed is not None:
        x.masked_fill_(~allowed[top:stop, low:high], -torch.inf)
    elif count > 1:
        t = torch.arange(start + top, start + stop, device=x.device)[:, None]
        # Without a window only the last keys, those of the block's own rows, can be too late.
        free = width - count if layer.window is None else 0
        j = torch.arange(origin + low + free, origin + high, device=x.device)
        blocked = j > t
        if layer.window is not None:
            blocked |= j <= t - layer.window
        x[:, :, free:].masked_fill_(blocked, -torch.inf)
    return x, low


def softmax_(x: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """Turn logits [heads, rows, columns] into rows, in place; gives the log of each sum of exp."""
    largest = x.amax(dim=2, keepdim=True)
    if sinks is not None:
        sinks = sinks.to(x.dtype)[:, None, None]
        largest = largest.maximum(sinks)
    x.sub_(largest).exp_()
    total = x.sum(dim=2, keepdim=True)
    if sinks is not None:
        total += (sinks - largest).exp_()
    x.div_(total)
    return (largest + total.log()).squeeze(2)


def mix(block: RowBlock, call: Call, output: torch.Tensor) -> None:
    """Put the outputs of a block of rows into their place in the call's output."""
    heads, rows, width = block.p.shape
    low, here = block.first - call.origin, block.start - call.start
    mixed = torch.bmm(
        block.p.reshape(len(call.v), call.layer.group_size * rows, width),
        call.v[:, low : low + width].to(block.p.dtype),
    )
    output[here : here + rows] = mixed.view(heads, rows, -1).transpose(0, 1)


def output_only(call: Call) -> torch.Tensor:
    """Attention output [rows, heads, dv] without the rows, by PyTorch's own function."""
    output = torch.nn.functional.scaled_dot_product_attention(
        call.q[None],
        call.k[None],
        call.v[None],
        attn_mask=call.mask,
        is_causal=call.mask is None and call.q.shape[1] > 1,
        scale=call.layer.scale,
        enable_gqa=call.layer.group_size > 1,
    )
    return output[0].transpose(0, 1)
