"""What attention layers a model has, from a run over a few tokens, and how its cache holds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from h2osim.models.hook import NO_INTERFACE, Session, UnknownAttention, hooked
from h2osim.models.loading import Model
from h2osim.models.rows import Layer, RowBlock
from h2osim.support.errors import UserError

TOKENS = 4


def call(loaded: Model, ids: list[int] | list[list[int]], seen: int, **options: Any) -> Any:
    """Run the model on tokens, the last of `seen`; its own errors become a UserError in one line.

    ids: of one sequence, or of several side by side. options: more arguments of its forward.
    """
    device = loaded.model.device
    try:
        tokens = torch.atleast_2d(torch.tensor(ids, device=device))
        result = loaded.model(
            input_ids=tokens,
            # Ones say that it is one sequence: transformers would look for several otherwise.
            attention_mask=torch.ones(len(tokens), seen, device=device).long(),
            **options,
        )
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as e:
        if isinstance(e, UserError):
            raise
        first = (str(e).strip().splitlines() or [""])[0]
        raise UserError(
            f"{loaded.name}: cannot be recorded: its forward pass failed: {type(e).__name__}: "
            f"{first}"
        ) from e
    if getattr(result, "logits", None) is not None:
        # NaN after the last attention spoils no rows, but the choice of tokens and every loss.
        most = result.logits.detach().amax(dim=2)  # NaN where one of a row is
        bad = (~torch.isfinite(most)).nonzero()
        if len(bad):
            row = seen - most.shape[1] + int(bad[:, 1].min())
            raise UserError(
                f"{loaded.name}: cannot be recorded: after its last attention layer, row {row}: "
                f"found NaN or infinity in its logits, expected finite numbers"
            )
    return result


def probe(loaded: Model, ids: list[int]) -> tuple[Layer, ...]:
    """The model's attention layers in the order in which it calls them.

    A layer's number, and how many caches its heads share, are those of the model's own cache, which
    says more than the keys that reach the attention: some models repeat keys before, or make each
    head's keys out of one cached vector. UnknownAttention for a model without softmax attention
    behind the interface of transformers, and for one whose cache does not explain the keys.
    """
    few = ids[:TOKENS]

    def run(use_cache: bool) -> tuple[Calls, Session, Any]:
        session = _Probe(loaded.name, sink := Calls())
        with hooked(loaded.model, session):
            session.begin(len(few))
            return sink, session, call(loaded, few, len(few), use_cache=use_cache)

    try:
        sink, session, result = run(use_cache=True)
    except UnknownAttention:
        raise
    except UserError:
        # A decoder of an encoder-decoder, without the encoder, has no cache that works.
        sink, session, result = run(use_cache=False)
    if not sink.found:
        raise session.unknown(f"{NO_INTERFACE} (model type {loaded.model.config.model_type})")
    cache = cached_keys(getattr(result, loaded.cache_argument, None))
    cached = {index: len(keys) for index, (keys, _) in cache.items()}
    calls = [layer for layer, _ in sink.found]
    modules = [layer.index for layer in calls]
    distinct = len(set(modules)) == len(modules) and min(modules) >= 0
    if len(cached) == len(calls) and set(modules) != set(cached):
        modules = sorted(cached)  # modules used in several layers bear one number
    elif not distinct or not set(cached) <= set(modules):
        raise session.unknown(
            f"it attends {len(calls)} times in one pass, but its cache holds {len(cached)} layers"
        )
    found: list[Layer] = []
    for (layer, k), index in zip(sink.found, modules, strict=True):
        layer = _shared(replace(layer, index=index), k, cached.get(index), session.unknown)
        if cached and index not in cached:
            owners = [
                other.index
                for other, (_, keys) in zip(found, sink.found, strict=False)
                if torch.equal(keys, k)
            ]
            if not owners:
                raise session.unknown(f"layer {index} attends to keys that no layer's cache holds")
            layer = replace(layer, cache_of=owners[0])
        found.append(layer)
    return tuple(found)


def cached_keys(cache: Any) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values [heads, tokens, size] that the cache holds, by layers with any in it."""
    layers = getattr(getattr(cache, "self_attention_cache", cache), "layers", ())
    return {
        index: (one.keys[0], one.values[0])
        for index, one in enumerate(layers)
        if isinstance(getattr(one, "keys", None), torch.Tensor) and one.keys.dim() == 4
    }


def _shared(
    layer: Layer, k: torch.Tensor, cached: int | None, refuse: Callable[[str], UserError]
) -> Layer:
    """The layer with the caches that its heads share.

    k: the keys that reached the attention, [heads, tokens, d]. cached: how many the cache holds.
    """
    seen = layer.kv_heads
    if cached is None or cached == seen:
        return layer
    if seen % cached == 0:
        if bool((k.reshape(cached, -1, *k.shape[1:]) == k[:: seen // cached][:, None]).all()):
            return replace(layer, kv_heads=cached)
        if bool((k.reshape(-1, cached, *k.shape[1:]) == k[:cached]).all()):
            heads = range(layer.heads)
            order = sorted(heads, key=lambda head: (head // layer.group_size) % cached)
            return replace(layer, kv_heads=cached, order=tuple(order))
        if cached == 1:
            return replace(layer, latent=True)
    raise refuse(
        f"layer {layer.index} attends to {seen} keys a token, its cache holds {cached}, and they "
        f"are no copies of these"
    )


class _Probe(Session):
    """Numbers the calls of a pass, where the modules' own numbers may repeat."""

    def _number(self, module: Any) -> int:
        found = getattr(module, "layer_idx", None)
        self._called.append(len(self._called))
        return self._called[-1] if found is None else int(found)

    def _checked(self, layer: Layer) -> Layer:
        return layer


class Calls:
    """A sink that keeps what the layers are and their few keys, and none of their rows."""

    def __init__(self) -> None:
        self.found: list[tuple[Layer, torch.Tensor]] = []

    def wants(self, layer: Layer) -> bool:
        """No rows."""
        return False

    def block(self, layer: Layer, block: RowBlock) -> None:
        """Never called."""
        raise AssertionError("no rows were wanted")

    def end(self, layer: Layer, start: int, q: Any, k: torch.Tensor, v: Any) -> None:
        """Keep the keys."""
        self.found.append((layer, k))
