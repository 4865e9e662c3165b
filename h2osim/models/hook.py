"""The hook: an attention function of transformers that sees every layer's queries and keys.

transformers dispatches the attention of its decoders through a registry (`AttentionInterface`), and
builds their masks through another (`AttentionMaskInterface`). We register one function in each,
under the name `HOOK`; no code of a model is touched. The registered function gets the queries and
keys as the softmax sees them (after rotary embedding and any normalisation), hands the rows to the
session that is running, and returns the attention output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from h2osim.models.masks import MaskFacts, WindowSeen, declared, read_mask, without_mask
from h2osim.models.rows import BLOCK_BYTES, Call, Layer, RowBlock, mix, output_only, softmax_blocks
from h2osim.support.errors import UserError

HOOK = "h2osim"
"""The name under which the function is registered."""

NO_INTERFACE = "it has no softmax attention that goes through transformers' attention interface"

# Arguments some models pass on that say nothing about the rows.
_HARMLESS = frozenset(
    {
        "cache_position",
        "deterministic",
        "logits_to_keep",
        "num_items_in_batch",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)


class UnknownAttention(UserError):
    """A model attends in a way that the hook does not know; its own weights may be had (own.py)."""


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
    """One run of a model under the hook, over one or several calls of the model.

    seen: how many tokens the model has been fed, those of the running call included; the caller
    calls `begin` before each call of the model. layers: what `layers.probe` found, in the order in
    which the model calls its layers; without it a layer has the number its module bears. copies:
    how many sequences of the same length the model is called with at once; to the session they are
    one whose layers have so many times the heads.
    """

    model: str
    sink: LayerSink
    block_bytes: int = BLOCK_BYTES
    seen: int = 0
    layers: Sequence[Layer] | None = None
    copies: int = 1
    config: Any = None
    _new: int = 0
    _called: list[int] = field(default_factory=list)
    _known: dict[int, Layer] = field(default_factory=dict)
    _windows: dict[int, WindowSeen] = field(default_factory=dict)
    _masks: dict[tuple[int, int], tuple[torch.Tensor, MaskFacts]] = field(default_factory=dict)

    options: ClassVar[dict[str, Any]] = {}
    """What the model's forward is told beside."""

    def begin(self, new_tokens: int) -> None:
        """Say that the model is now called with this many tokens more."""
        self.seen += new_tokens
        self._new = new_tokens
        self._called.clear()
        self._masks.clear()

    def watching(self, model: Any) -> AbstractContextManager[None]:
        """A block around the model's calls."""
        return nullcontext()

    def refuse(self, why: str) -> UserError:
        """The error that says by name why this model is not recorded."""
        return UserError(f"{self.model}: cannot be recorded: {why}")

    def unknown(self, why: str) -> UnknownAttention:
        """The same error, of a model whose own weights may still be had."""
        return UnknownAttention(str(self.refuse(why)))

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
        s_aux: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attention output [copies, rows, heads, dv] of one layer; its rows go to the sink."""
        batch, heads, rows, size = query.shape
        index = self._number(module)
        if batch != self.copies:
            raise self.refuse(
                f"layer {index} sees a batch of {batch} sequences, expected {self.copies}"
            )
        q, k, v = query, key, value
        order = self.layers[len(self._called) - 1].order if self.layers else None
        if self.layers:
            kv_heads = self.layers[len(self._called) - 1].kv_heads
            if order is not None:
                q = q[:, list(order)]
            k, v = (self._once(index, x, kv_heads, order is not None) for x in (k, v))
        kv_heads, length = k.shape[1], k.shape[2]
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        start, origin = self.seen - rows, self.seen - length
        if rows != self._new:
            raise self.refuse(
                f"layer {index} attends with {rows} queries for {self._new} new tokens"
            )
        if start < 0 or origin < 0 or (start == 0 and length != rows):
            raise self.refuse(
                f"layer {index} attends to {length} keys with {rows} queries after {self.seen} "
                f"tokens: they are not one key a token"
            )
        if heads % kv_heads:
            raise self.refuse(f"layer {index} has {heads} query heads for {kv_heads} KV heads")
        if s_aux is not None and s_aux.numel() != heads:
            raise self.refuse(f"layer {index} has {s_aux.numel()} sinks for {heads} heads")
        if mask is None and rows > 1 and not _causal(module, is_causal):
            raise self.unknown(f"layer {index} is not causal")
        facts = self._mask(index, mask, start, origin, rows)
        window, chunk = declared(self.config, index)
        seen = self._windows.setdefault(index, WindowSeen())
        layer = self._checked(
            Layer(
                index=index,
                heads=heads,
                kv_heads=kv_heads,
                head_dim=size,
                value_dim=v.shape[2],
                scale=float(size**-0.5 if scaling is None else scaling),
                softcap=None if softcap is None else float(softcap),
                window=seen.window(facts, sliding_window or window, self.seen),
                regular=seen.regular,
                chunk=chunk,
                sink=s_aux is not None,
            )
        )
        allowed = None if layer.regular else facts.allowed
        sinks = None if s_aux is None else s_aux.reshape(-1)
        if sinks is not None:
            sinks = (sinks if order is None else sinks[list(order)]).repeat(batch)
        output = self.output(Call(layer, q, k, v, start, origin, allowed, mask, sinks))
        new_k, new_v = k[:, length - rows :], v[:, length - rows :]
        # PyTorch's own attention on a CPU gives zeros where a query is NaN.
        if not bool(torch.isfinite(output).all() & torch.isfinite(q).all()):
            # One bad key or value spoils the outputs of earlier rows too: 0 times NaN is NaN.
            bad = [~torch.isfinite(x).all(dim=2).all(dim=0) for x in (q, new_k, new_v)]
            found = (bad[0] | bad[1] | bad[2]).nonzero()
            where = f", row {start + int(found[0])}" if len(found) else ""
            raise self.refuse(
                f"layer {index}{where}: found NaN or infinity in its queries, keys, values or "
                f"attention, expected finite numbers"
            )
        self.sink.end(layer, start, q, new_k, new_v)
        output = output.unflatten(1, (batch, heads)).transpose(0, 1)
        if order is not None:
            output = output[:, :, torch.tensor(order).argsort()]
        return output.to(query.dtype)

    def output(self, call: Call) -> torch.Tensor:
        """Attention output [rows, heads, dv]; rows that are wanted go to the sink."""
        wanted = self.sink.wants(call.layer)
        if not wanted and call.layer.softcap is None and call.sinks is None:
            return output_only(call)
        output = call.empty_output()
        for block in softmax_blocks(call, self.block_bytes):
            mix(block, call, output)
            if wanted:
                self.sink.block(call.layer, block)
        return output

    def _number(self, module: Any) -> int:
        """The number of the layer that is being called."""
        place = len(self._called)
        if self.layers is None:
            found = getattr(module, "layer_idx", None)
            index = place if found is None else int(found)
        elif place < len(self.layers):
            index = self.layers[place].index
        else:
            raise self.refuse(f"it attends more than {len(self.layers)} times in one pass")
        if index in self._called:
            raise self.refuse(f"layer {index} attends twice in one pass (cross-attention?)")
        self._called.append(index)
        return index

    def _once(self, index: int, x: torch.Tensor, kv_heads: int, tiled: bool) -> torch.Tensor:
        """Keys or values [copies, kv_heads, keys, d] of heads that the model repeated, if it did.

        tiled: 0 1 0 1, else 0 0 1 1.
        """
        if x.shape[1] == kv_heads:
            return x
        repeated = x.unflatten(1, (-1, kv_heads) if tiled else (kv_heads, -1))
        first = repeated[:, :1] if tiled else repeated[:, :, :1]
        if not bool((repeated == first).all()) and not bool(x.isnan().any()):
            raise self.refuse(f"layer {index} attends to other keys or values than it caches")
        return first.flatten(1, 2)

    def _mask(
        self, index: int, mask: torch.Tensor | None, start: int, origin: int, rows: int
    ) -> MaskFacts:
        """What a mask means. Layers share masks, so the answer is kept for the call."""
        if mask is None:
            return without_mask(start, origin, rows)
        spot = (mask.data_ptr(), origin)
        if spot not in self._masks:
            one = mask
            if mask.dim() == 4 and 1 < mask.shape[0] == self.copies:
                one = mask[:1]
                if mask.stride(0) and not bool((mask == one).all()):
                    raise self.refuse(f"layer {index} has masks that differ between sequences")
            # The mask is kept too, or another one might take its place in memory.
            facts = read_mask(one, start, origin, lambda why: self.unknown(f"layer {index} {why}"))
            self._masks[spot] = mask, facts
        return self._masks[spot][1]

    def _checked(self, layer: Layer) -> Layer:
        """The layer of this call with what is known of it from before; it may not contradict it."""
        if self.layers is not None:
            known = self.layers[len(self._called) - 1]
        else:
            known = self._known.setdefault(layer.index, layer)
        layer = replace(layer, latent=known.latent, order=known.order, cache_of=known.cache_of)
        for name in ("heads", "kv_heads", "head_dim", "value_dim", "scale", "softcap", "sink"):
            before, now = getattr(known, name), getattr(layer, name)
            if before != now:
                raise self.refuse(
                    f"layer {layer.index} changes while it runs: {name} {before}, then {now}"
                )
        return layer


def _causal(module: Any, is_causal: bool | None) -> bool:
    return bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)


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
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' attention functions do, for the session that runs.

    s_aux: the logits of learned sinks, one a head. An argument that is not known to leave the rows
    alone (position biases, sparse indices) is refused by its name.
    """
    if _session is None:
        raise RuntimeError(f"attention {HOOK!r} runs only while h2osim records")
    for name, argument in others.items():
        if argument is not None and name not in _HARMLESS:
            raise _session.unknown(
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
        s_aux=s_aux,
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
        raise session.unknown(str(error).splitlines()[0]) from None
    _session = session
    try:
        text_config = session.config = model.config.get_text_config()
        if HOOK not in (model.config._attn_implementation, text_config._attn_implementation):
            raise session.unknown(f"{NO_INTERFACE} (model type {model.config.model_type})")
        model.eval()
        with session.watching(model):
            yield
    finally:
        _session = None
        model.train(training)
        model.set_attn_implementation(before)
