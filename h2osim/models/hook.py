"""The hook: an attention function of transformers that sees every layer's queries and keys.

transformers dispatches the attention of its decoders through a registry (`AttentionInterface`), and
builds their masks through another (`AttentionMaskInterface`). We register one function in each,
under the name `HOOK`; no code of a model is touched. The registered function gets the queries and
keys as the softmax sees them (after rotary embedding and any normalisation, keys not repeated over
their group), hands the rows to the session that is running, and returns the attention output.

The rows are, for query t and key j of one head,

    x_j = scale * <q_t, k_j>,  x_j <- c tanh(x_j / c) when the layer has a softcap c,
    a_j = exp(x_j - max x) / sum exp(x - max x)  over the keys the mask allows, else 0,

in float32 whatever the model's dtype, a block of rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from h2osim.support.errors import UserError

HOOK = "h2osim"
"""The name under which the function is registered."""

BLOCK_BYTES = 4 << 20
"""Memory for the logits of one block of rows: few enough that they stay in the cache."""

# Arguments some models pass on that say nothing about the rows.
_HARMLESS = frozenset(
    {
        "cache_position",
        "deterministic",
        "num_items_in_batch",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)


@dataclass(frozen=True)
class Layer:
    """What one layer's call says about its attention.

    heads, kv_heads: how many; head_dim, value_dim: sizes; window: keys a row sees, its own
    included, None for all; regular: whether causality and the window are all there is to the mask.
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

    @property
    def group_size(self) -> int:
        """Query heads per KV head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class Call:
    """One layer's call of its attention, without the batch axis.

    q [heads, rows, d] of rows `start` on; k [kv_heads, keys, d] and v [kv_heads, keys, dv] of
    positions `origin` on; allowed bool [rows, keys], or None for causal rows with the layer's
    window; mask: the model's own, where it gave one.
    """

    layer: Layer
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    start: int
    origin: int
    allowed: torch.Tensor | None
    mask: torch.Tensor | None

    def empty_output(self) -> torch.Tensor:
        """Room for the output, [rows, heads, dv], float32 (float64 for a float64 model)."""
        shape = self.q.shape[1], self.layer.heads, self.v.shape[2]
        return self.q.new_empty(shape, dtype=_precision(self.q))


@dataclass(frozen=True)
class RowBlock:
    """Consecutive rows of one layer.

    p float32 [heads, rows, columns]: row `start` first, columns `first`, first + 1, ...; what lies
    outside them is 0. lse, row_sum float32 [heads, rows].
    """

    start: int
    first: int
    p: torch.Tensor
    lse: torch.Tensor
    row_sum: torch.Tensor


class LayerSink(Protocol):
    """What a session hands its layers to."""

    def wants(self, layer: Layer) -> bool:
        """Whether the rows of this layer are to be made."""

    def block(self, layer: Layer, block: RowBlock) -> None:
        """Take rows; they come in order."""

    def end(
        self, layer: Layer, start: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> None:
        """Take the end of a layer's call, wanted or not, with what was new in it.

        q [heads, rows, d], k [kv_heads, rows, d], v [kv_heads, rows, dv] of rows `start` on.
        """


@dataclass
class Session:
    """One recording: which model, how far it has come, and where the rows go.

    seen: how many tokens the model has been fed, those of the running call included; the caller
    sets it before each call of the model and calls `begin`.
    """

    model: str
    sink: LayerSink
    block_bytes: int = BLOCK_BYTES
    seen: int = 0
    _called: set[int] = field(default_factory=set)
    _masks: dict[tuple[int, int], tuple[Any, ...]] = field(default_factory=dict)

    def begin(self, new_tokens: int) -> None:
        """Say that the model is now called with this many tokens more."""
        self.seen += new_tokens
        self._called.clear()
        self._masks.clear()

    def refuse(self, why: str) -> UserError:
        """The error that says by name why this model is not recorded."""
        return UserError(f"{self.model}: cannot be recorded: {why}")

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        *,
        scaling: float | None,
        softcap: float | None,
        sliding_window: int | None,
        is_causal: bool | None,
    ) -> torch.Tensor:
        """Attention output [1, rows, heads, dv] of one layer's call; its rows go to the sink."""
        batch, heads, rows, size = query.shape
        kv_heads, length = key.shape[1], key.shape[2]
        index = getattr(module, "layer_idx", None)
        index = len(self._called) if index is None else int(index)
        if batch != 1:
            raise self.refuse(f"layer {index} sees a batch of {batch} sequences, expected 1")
        if index in self._called:
            raise self.refuse(f"layer {index} attends twice in one pass (cross-attention?)")
        self._called.add(index)
        start, origin = self.seen - rows, self.seen - length
        if start < 0 or origin < 0 or (start == 0 and length != rows):
            raise self.refuse(
                f"layer {index} attends to {length} keys with {rows} queries after {self.seen} "
                f"tokens: they are not one key a token"
            )
        if heads % kv_heads:
            raise self.refuse(f"layer {index} has {heads} query heads for {kv_heads} KV heads")
        allowed, window = None, None
        if mask is not None:
            allowed, window = self._mask(index, mask, start, origin)
        elif rows > 1 and not (is_causal if is_causal is not None else _is_causal(module)):
            raise self.refuse(f"layer {index} is not causal")
        elif origin > 0:  # the cache has dropped what lies outside the window
            window = length
        if allowed is None and window is None and self.seen <= (sliding_window or 0):
            window = sliding_window  # the text is too short for it to show
        layer = Layer(
            index=index,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=size,
            value_dim=value.shape[3],
            scale=float(size**-0.5 if scaling is None else scaling),
            softcap=None if softcap is None else float(softcap),
            window=None if window is None else int(window),
            regular=allowed is None,
        )
        q, k, v = query[0], key[0], value[0]
        output = self.output(Call(layer, q, k, v, start, origin, allowed, mask))
        self.sink.end(layer, start, q, k[:, length - rows :], v[:, length - rows :])
        return output.unsqueeze(0).to(query.dtype)

    def output(self, call: Call) -> torch.Tensor:
        """Attention output [rows, heads, dv]; rows that are wanted go to the sink."""
        wanted = self.sink.wants(call.layer)
        if not wanted and call.layer.softcap is None:
            return _sdpa(call)
        output = call.empty_output()
        for block in softmax_blocks(call, self.block_bytes):
            mix(block, call, output)
            if wanted:
                self.sink.block(call.layer, block)
        return output

    def _mask(
        self, index: int, mask: torch.Tensor, start: int, origin: int
    ) -> tuple[torch.Tensor | None, int | None]:
        """What a mask means: (None, window) when causal with that window, else (allowed, None).

        allowed is boolean [rows, keys]. Layers share masks, so the answer is kept for the call.
        """
        spot = (mask.data_ptr(), origin)
        if spot not in self._masks:
            # The mask is kept too, or another one might take its place in memory.
            self._masks[spot] = (mask, *self._read_mask(index, mask, start, origin))
        return self._masks[spot][1:]

    def _read_mask(
        self, index: int, mask: torch.Tensor, start: int, origin: int
    ) -> tuple[torch.Tensor | None, int | None]:
        if mask.dim() != 4 or mask.shape[0] != 1 or (mask.shape[1] > 1 and mask.stride(1) != 0):
            raise self.refuse(f"layer {index} has a mask of shape {list(mask.shape)}")
        plain = mask[0, 0]
        if plain.dtype != torch.bool:
            blocked = plain <= torch.finfo(plain.dtype).min / 2
            if bool(((plain != 0) & ~blocked).any()):
                raise self.refuse(f"layer {index} adds a bias to its logits through the mask")
            plain = ~blocked
        rows, keys = plain.shape
        columns = torch.arange(origin, origin + keys, device=plain.device)
        last = plain[-1].nonzero()
        first = int(last[0]) if len(last) else keys
        window = start + rows - (origin + first) if origin + first > 0 else None
        regular = True
        for top in range(0, rows, 256):
            part = plain[top : top + 256]
            t = torch.arange(start + top, start + top + len(part), device=plain.device)[:, None]
            causal = columns <= t
            if bool((part & ~causal).any()):
                raise self.refuse(f"layer {index} is not causal")
            if not bool(part.any(dim=1).all()):
                raise self.refuse(f"layer {index} has rows that attend to nothing")
            if window is not None:
                causal = causal & (columns > t - window)
            regular = regular and bool((part == causal).all())
        return (None, window) if regular else (plain, None)


def _is_causal(module: Any) -> bool:
    return bool(getattr(module, "is_causal", True))


def _precision(q: torch.Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def softmax_blocks(call: Call, block_bytes: int = BLOCK_BYTES) -> Iterator[RowBlock]:
    """The rows of a call, block by block, in float32 (float64 for a float64 model).

    Memory: one block of logits of `block_bytes` and as much again.
    """
    layer, start, origin, allowed = call.layer, call.start, call.origin, call.allowed
    q, k = call.q.to(_precision(call.q)), call.k.to(_precision(call.q))
    heads, rows, _ = q.shape
    kv_heads, keys, _ = k.shape
    step = max(1, block_bytes // (4 * heads * keys))
    for top in range(0, rows, step):
        stop = min(top + step, rows)
        low = 0
        if allowed is None and layer.window is not None:
            low = max(0, start + top - layer.window + 1 - origin)
        high = start + stop - origin
        count, width = stop - top, high - low
        x = torch.bmm(
            q[:, top:stop].reshape(kv_heads, layer.group_size * count, -1),
            k[:, low:high].transpose(1, 2),
        ).view(heads, count, width)
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
        largest = x.amax(dim=2, keepdim=True)
        x.sub_(largest).exp_()
        total = x.sum(dim=2, keepdim=True)
        x.div_(total)
        lse = (largest + total.log()).squeeze(2)
        yield RowBlock(start + top, origin + low, x, lse, x.sum(dim=2))


def mix(block: RowBlock, call: Call, output: torch.Tensor) -> None:
    """Put the outputs of a block of rows into their place in the call's output."""
    heads, rows, width = block.p.shape
    low, here = block.first - call.origin, block.start - call.start
    mixed = torch.bmm(
        block.p.reshape(call.layer.kv_heads, call.layer.group_size * rows, width),
        call.v[:, low : low + width].to(block.p.dtype),
    )
    output[here : here + rows] = mixed.view(heads, rows, -1).transpose(0, 1)


def _sdpa(call: Call) -> torch.Tensor:
    """Attention output [rows, heads, dv] of a layer whose rows nobody wants."""
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


_session: Session | None = None


def _hook(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' attention functions do, for the session that runs.

    An argument that is not known to leave the rows alone (attention sinks, position biases, sparse
    indices) is refused by its name.
    """
    if _session is None:
        raise RuntimeError(f"attention {HOOK!r} runs only while h2osim records")
    for name, argument in others.items():
        if argument is not None and name not in _HARMLESS:
            raise _session.refuse(
                f"its attention takes {name}, which changes the rows in a way h2osim does not know"
            )
    output = _session.attend(
        module,
        query,
        key,
        value,
        attention_mask,
        scaling=scaling,
        softcap=softcap,
        sliding_window=sliding_window,
        is_causal=is_causal,
    )
    return output, None


AttentionInterface.register(HOOK, _hook)
# Boolean masks, and none at all where causality alone says it.
AttentionMaskInterface.register(HOOK, sdpa_mask)


@contextmanager
def hooked(model: Any, session: Session) -> Iterator[None]:
    """Within the block the model attends through the hook; afterwards as before.

    UserError by name for a model whose code does not use transformers' attention interface.
    """
    global _session
    if _session is not None:
        raise RuntimeError("h2osim records one model at a time")
    before = model.config._attn_implementation
    training = model.training
    try:
        model.set_attn_implementation(HOOK)
    except ValueError as error:
        raise session.refuse(str(error).splitlines()[0]) from None
    _session = session
    try:
        text_config = model.config.get_text_config()
        if HOOK not in (model.config._attn_implementation, text_config._attn_implementation):
            raise session.refuse(f"{NO_INTERFACE} (model type {model.config.model_type})")
        model.eval()
        yield
    finally:
        _session = None
        model.train(training)
        model.set_attn_implementation(before)


NO_INTERFACE = "it has no softmax attention that goes through transformers' attention interface"
