"""The second way to a model's rows: the weights that its own attention code returns.

The hook (hook.py) replaces a model's softmax, and sees one block of rows at a time. Models whose
attention does not go through transformers' interface, or goes through it with something the hook
does not know (position biases, sparse indices), are recorded by this way instead: they run with
their eager attention and are asked for its weights (`output_attentions`). The innermost module that
returns a layer's weights is found in a run over a few tokens. While the model runs, a forward hook
on that module hands the weights on and puts an empty tensor in their place, so that the weights of
one layer are in memory at a time: heads x rows x keys numbers, and what the model's own softmax
takes beside.

Queries, keys and values stay unknown on this way: only rows can be stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from h2osim.models.layers import TOKENS, cached_keys, call
from h2osim.models.loading import Model
from h2osim.models.rows import BLOCK_BYTES, Layer, RowBlock
from h2osim.support.errors import UserError

NOISE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""By how much a row's sum may miss 1, and logits their largest one's share, by the weights' type:
rounding, over thousands of keys."""


class RowSink(Protocol):
    """What a session hands its layers to."""

    def wants(self, layer: Layer) -> bool:
        """Whether the rows of this layer are to be made."""

    def block(self, layer: Layer, block: RowBlock) -> None:
        """Take rows; they come in order."""

    def end_of_rows(self, layer: Layer, start: int, rows: int) -> None:
        """Take the end of a layer's call with rows `start` on, wanted or not."""


class NotGiven(Exception):
    """Why a model's own weights cannot be recorded either, in words that follow "it"."""


@dataclass(frozen=True)
class Source:
    """Where a layer's weights come from: a module, and their place among what it returns."""

    module: Any
    place: int


@dataclass
class OwnSession:
    """One run of a model that attends by itself, over one or several calls of the model.

    sources, layers: what `probe` found, in the order in which the model calls its layers. Like
    `hook.Session`, it is told by `begin` of every call of the model.
    """

    model: str
    sink: RowSink
    layers: Sequence[Layer]
    sources: Sequence[Source]
    block_bytes: int = BLOCK_BYTES
    seen: int = 0
    _new: int = 0
    _next: int = 0

    options: ClassVar[dict[str, Any]] = {"output_attentions": True}
    """What the model's forward is told beside."""

    def begin(self, new_tokens: int) -> None:
        """Say that the model is now called with this many tokens more."""
        self.seen += new_tokens
        self._new, self._next = new_tokens, 0

    def refuse(self, why: str) -> UserError:
        """The error that says by name why this model is not recorded."""
        return UserError(f"{self.model}: cannot be recorded: {why}")

    @contextmanager
    def running(self, model: Any) -> Iterator[None]:
        """Within the block the model attends eagerly, and this session gets its weights."""
        modules = {id(source.module): source.module for source in self.sources}
        with ExitStack() as stack:
            stack.enter_context(_attending(model, "eager"))
            for module in modules.values():
                # Before transformers' own hooks, which would keep the weights of every layer.
                hook = module.register_forward_hook(self._returned, prepend=True)
                stack.callback(hook.remove)
            yield

    def _returned(self, module: Any, given: Any, output: Any) -> Any:
        """The module's output without its weights, which go to the sink."""
        if self._next == len(self.sources):
            raise self.refuse(f"it attends more than {len(self.sources)} times in one pass")
        source = self.sources[self._next]
        if source.module is not module:
            raise self.refuse("it calls its layers in another order than before")
        weights = output[source.place]
        try:
            self._take(self.layers[self._next], one_sequence(weights))
        except NotGiven as why:
            raise self.refuse(f"layer {self.layers[self._next].index} {why}") from None
        self._next += 1
        rest = list(output)
        rest[source.place] = weights.new_empty(0)
        return type(output)(*rest) if hasattr(output, "_fields") else type(output)(rest)

    def _take(self, layer: Layer, weights: torch.Tensor) -> None:
        heads, rows, keys = weights.shape
        start, origin = self.seen - rows, self.seen - keys
        if (heads, rows) != (layer.heads, self._new) or origin < 0 or (origin and not start):
            raise NotGiven(
                f"gives weights of {heads} heads, {rows} queries and {keys} keys for {self._new} "
                f"new tokens after {start}"
            )
        check_rows(weights, start, layer.sink)
        if self.sink.wants(layer):
            step = max(1, self.block_bytes // (4 * heads * keys))
            for top in range(0, rows, step):
                stop = min(top + step, rows)
                p = weights[:, top:stop, : start + stop - origin].float()
                self.sink.block(layer, RowBlock(start + top, origin, p, None, p.sum(dim=2)))
        self.sink.end_of_rows(layer, start, rows)


def one_sequence(weights: Any) -> torch.Tensor:
    """Weights [heads, rows, keys] of what a module returned; NotGiven when it is no such tensor."""
    if not isinstance(weights, torch.Tensor):
        raise NotGiven(f"gives {type(weights).__name__} for its weights")
    if weights.dim() == 4 and weights.shape[0] == 1:
        weights = weights[0]
    if weights.dim() != 3:
        raise NotGiven(f"gives weights of shape {list(weights.shape)}, not [1, heads, rows, keys]")
    return weights


def check_rows(weights: torch.Tensor, start: int, sink: bool) -> None:
    """NotGiven unless weights [heads, rows, keys] are rows of a causal softmax.

    start: the first row's number. sink: whether a learned sink may take a part of a row, so that it
    sums to less than 1.
    """
    if bool((weights < 0).any()):
        raise NotGiven("gives negative weights")
    over = weights.sum(dim=2, dtype=torch.float32) - 1
    bad = ~((over if sink else over.abs()) <= NOISE[weights.dtype])  # true where it is NaN
    if bool(bad.any()):
        head, row = (int(place) for place in bad.nonzero()[0])
        raise NotGiven(
            f"gives weights that sum to {1 + float(over[head, row]):.4g} in row {start + row}, "
            f"not to 1"
        )
    late = weights.shape[2] - torch.arange(weights.shape[1], 0, -1, device=weights.device)
    columns = torch.arange(weights.shape[2], device=weights.device)
    if bool((weights.amax(dim=0) > 0)[columns > late[:, None]].any()):
        raise NotGiven("is not causal")


def probe(loaded: Model, ids: list[int]) -> tuple[tuple[Layer, ...], tuple[Source, ...]]:
    """The attention layers of a model that attends by itself, in the order of their calls.

    Heads share a cache as in the model's own; keys and values that it holds in several equal copies
    count as one (falcon-40b repeats those of a KV group). Of a model that keeps no cache the module
    says how many heads form a group, or each head is by itself.
    NotGiven for a model that returns no weights, whose weights are no rows of a causal softmax, or
    that computes something else when it is asked for them.
    """
    few = ids[:TOKENS]
    with _attending(loaded.model, loaded.model.config._attn_implementation):
        plain = call(loaded, few, len(few), use_cache=False).logits
    sources, weights, result = _traced(loaded, few)
    apart = float((result.logits - plain).abs().max() / plain.abs().max())
    if not apart <= NOISE[plain.dtype]:
        raise NotGiven(
            f"gives weights of its own, but other logits when it is asked for them (off by "
            f"{apart:.2g} of the largest)"
        )
    keys = cached_keys(getattr(result, loaded.cache_argument, None))
    if keys and len(keys) != len(sources):
        raise NotGiven(f"gives {len(sources)} layers' weights, but its cache holds {len(keys)}")
    found = []
    for place, (source, each) in enumerate(zip(sources, weights, strict=True)):
        index = sorted(keys)[place] if keys else place
        try:
            found.append(_layer(index, source, one_sequence(each), keys.get(index)))
        except NotGiven as why:
            raise NotGiven(f"gives its own weights, but layer {index} {why}") from None
    return tuple(found), tuple(sources)


def _layer(
    index: int, source: Source, weights: torch.Tensor, cached: tuple[torch.Tensor, ...] | None
) -> Layer:
    """The layer of these weights [heads, tokens, tokens] of a text's start.

    cached: its keys and values [kv_heads, tokens, d], None of a model that keeps no cache.
    """
    heads, rows, keys = weights.shape
    sink = any("sink" in name for name, _ in source.module.named_parameters())
    if rows != keys:
        raise NotGiven(f"gives weights of {rows} queries and {keys} keys for {rows} tokens")
    check_rows(weights, 0, sink)
    if cached is None:
        kv_heads, size = heads // getattr(source.module, "num_key_value_groups", 1), 0
    else:
        kv_heads, size = _distinct(*cached), cached[0].shape[2]
    if heads % kv_heads:
        raise NotGiven(f"has {heads} heads for {kv_heads} cached keys")
    return Layer(
        index=index,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=size,
        value_dim=0,
        scale=1.0,
        softcap=None,
        window=None,
        regular=False,
        sink=sink,
        computed_in=str(weights.dtype).removeprefix("torch."),
    )


def _traced(loaded: Model, few: list[int]) -> tuple[list[Source], list[torch.Tensor], Any]:
    """(where each layer's weights come from, the weights, the model's result) of a few tokens."""
    returned: list[tuple[Source, torch.Tensor]] = []

    def see(module: Any, given: Any, output: Any) -> None:
        if isinstance(output, (tuple, list)):
            for place, one in enumerate(output):
                if isinstance(one, torch.Tensor):
                    returned.append((Source(module, place), one))

    with ExitStack() as stack:
        stack.enter_context(_attending(loaded.model, "eager"))
        for module in loaded.model.modules():
            stack.callback(module.register_forward_hook(see).remove)
        try:
            result = call(loaded, few, len(few), use_cache=True, **OwnSession.options)
        except UserError:  # as of a decoder that wants its encoder with its cache
            returned.clear()
            result = call(loaded, few, len(few), use_cache=False, **OwnSession.options)
    weights = [one for one in getattr(result, "attentions", None) or () if one is not None]
    if not weights:
        raise NotGiven("gives no attention weights of its own")
    sources, left = [], iter(returned)
    for one in weights:
        found = next((source for source, other in left if other is one), None)
        if found is None:
            raise NotGiven(
                "gives attention weights, but none of its modules returns them as they are"
            )
        sources.append(found)
    return sources, weights, result


def _distinct(keys: torch.Tensor, values: torch.Tensor) -> int:
    """How many different keys and values a token has among those cached, [heads, tokens, d].

    Copies stand together: 0 0 1 1.
    """
    heads = len(keys)
    for count in range(1, heads):
        if heads % count == 0 and all(
            bool((split == split[:, :1]).all())
            for split in (x.unflatten(0, (count, -1)) for x in (keys, values))
        ):
            return count
    return heads


@contextmanager
def _attending(model: Any, name: str) -> Iterator[None]:
    """Within the block the model attends by this code of transformers'; afterwards as before."""
    before, training = model.config._attn_implementation, model.training

    def choose(implementation: str) -> None:
        model.set_attn_implementation(implementation)
        # transformers leaves models as they are whose code has no use for its interface. Falcon's
        # reads the choice none the less, and adds a mask made for another one to its logits.
        model.config._attn_implementation = implementation

    try:
        choose(name)
        model.eval()
        yield
    finally:
        model.train(training)
        choose(before)
