"""Attention of one pass in which a policy evicts, layer by layer, while the model runs.

By causality a layer can be computed for all decode steps at once: its rows depend on its own input
only, the policy reads the rows from the first to the last, and what it evicts is masked in the rows
after it. Every layer gets the input that the evicted layers below it produced, so the pass equals
decoding token by token with a cache that really drops keys and values.

In row t, with the cached tokens G_t that the policy has left (its own token included),

    o_t = sum_{j in G_t} a_j v_j / sum_{j in G_t} a_j,

a the softmax over all keys that the layer's mask allows. The quotient is the softmax over G_t. The
policy sees a rounded to float16, as a recorded trace would hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from h2osim.closed_loop.caches import (
    Eviction,
    LayerCache,
    LayerFound,
    MaskedLayer,
    PolicyLayer,
    layer_jobs,
    packed,
    units_of,
)
from h2osim.closed_loop.queries import QueryLog
from h2osim.models.hook import Session
from h2osim.models.rows import (
    BLOCK_BYTES,
    Call,
    Layer,
    RowBlock,
    logits,
    mix,
    softmax_,
    softmax_blocks,
)

GPU_BLOCK_BYTES = 1 << 30
"""Memory for the logits of one block of rows on a GPU, where half of it is free; else half that."""
FAINT = 1e-30
"""Rows that gave less of their mass to what is left are made anew: float32 ends at 1e-45."""
PROMPT_BYTES = 1 << 29
"""Memory for the prompt's rows, all layers together; beyond it they are made again when needed."""


class PromptSession(Session):
    """Runs the prompt densely, and has its rows for every pass.

    called: what each layer is. queries: of the prompt, those of these tensors.
    """

    def __init__(self, model: str, queries: Collection[str] = ()):
        super().__init__(model, NoRows())
        self.queries = QueryLog(model, queries)
        self.called: dict[int, Layer] = {}
        self._calls: dict[int, Call] = {}
        self._kept: dict[int, NDArray[np.uint16]] = {}

    def watching(self, model: Any) -> AbstractContextManager[None]:
        """See the queries that are wanted."""
        return self.queries.watching(model)

    def output(self, call: Call) -> torch.Tensor:
        """Dense attention; the rows are kept while there is room for them."""
        self.queries.add(call)
        output, index, rows = call.empty_output(), call.layer.index, []
        heads, length = call.q.shape[:2]
        room = PROMPT_BYTES - sum(some.nbytes for some in self._kept.values())
        keep = heads * length * (length + 1) <= room
        for block in _blocks(call):
            if keep:
                rows.append(pack_rows(block))
            mix(block, call, output)
        if keep:
            self._kept[index] = np.concatenate(rows, axis=1)
        else:
            self._calls[index] = call
        self.called[index] = call.layer
        return output

    def rows(self, layer: int) -> Iterator[tuple[int, int, NDArray[np.uint16]]]:
        """Rows of a layer in blocks: the first, the one after the last, and float16 patterns
        [heads, packed].
        """
        if layer in self._kept:
            yield 0, self.seen, self._kept[layer]
        else:
            for block in _blocks(self._calls[layer]):
                yield block.start, block.start + block.p.shape[1], pack_rows(block)


class EvictingSession(Session):
    """Runs the decode steps of a text with a policy in force, in one call of the model or several.

    evictions: one for each of the sequences that the model is called with; none: one sequence with
    the full cache, computed by the same operations in the same order. prompt: the one before. n:
    tokens of the whole text. layers: where the policy is in force (None: in every layer); in the
    others nothing is evicted. projections: a layer's output projections [heads, d, D], for policies
    that ask for norms of projected values.

    Sequences do not know of each other. Their policies run in as many threads as PyTorch's, while
    rows come from a GPU.
    """

    def __init__(
        self,
        model: str,
        prompt: PromptSession,
        evictions: Sequence[Eviction],
        n: int,
        share: str,
        layers: Sequence[int] | None = None,
        projections: Callable[[Layer], NDArray[np.float32]] | None = None,
    ):
        super().__init__(model, NoRows(), seen=prompt.seen, copies=len(evictions) or 1)
        self.queries = QueryLog(model, prompt.queries.names, self.copies, prompt.queries)
        self._projections = projections
        self._prompt, self._evictions = prompt, evictions
        self._n, self._share, self._layers = n, share, layers
        self._caches: dict[int, list[LayerCache]] = {}
        self.lost = [False] * len(evictions)
        self._prompt_len = prompt.seen

    def found(self, copy: int = 0) -> dict[int, LayerFound]:
        """What the policy of one sequence has done so far, by the model's layer."""
        return {index: caches[copy].found() for index, caches in self._caches.items()}

    def watching(self, model: Any) -> AbstractContextManager[None]:
        """See the queries that are wanted."""
        return self.queries.watching(model)

    def output(self, call: Call) -> torch.Tensor:
        """Attention over what the policies have left in each row."""
        self.queries.add(call)
        output = call.empty_output()
        evicting = self._layers is None or call.layer.index in self._layers
        with ThreadPoolExecutor(min(self.copies, torch.get_num_threads())) as pool:
            each = map if self.copies == 1 else pool.map
            caches = self._layer(call, each) if evicting and self._evictions else []
            for block in _blocks(call):
                if caches:
                    self._drop(call, block, self._feed(caches, block, each))
                mix(block, call, output)
        return output

    def _drop(self, call: Call, block: RowBlock, attended: torch.Tensor) -> None:
        """Renormalise rows over the keys attended, bool [all units, rows, columns]."""
        units, rows, columns = attended.shape
        whole = attended.all(dim=2)  # such a row is the full one, to the last bit
        same = whole.view(self.copies, -1).all(dim=1).tolist()
        self.lost = [lost or not one for lost, one in zip(self.lost, same, strict=True)]
        if all(same):
            return
        by_unit = block.p.view(units, -1, rows, columns)
        by_unit.mul_(attended[:, None].to(block.p.dtype))
        total = by_unit.sum(dim=3)
        if call.sinks is not None:  # a learned sink keeps its share of what is left
            assert block.lse is not None  # they were made from logits
            total += (call.sinks[:, None] - block.lse).exp().view_as(total)
        by_unit.div_(total.masked_fill_(whole[:, None], 1)[..., None])
        if bool((faint := total < FAINT).any()):
            x, _ = logits(call, block.start - call.start, block.start - call.start + rows)
            x.view_as(by_unit).masked_fill_(~attended[:, None], -torch.inf)
            softmax_(x, call.sinks)
            by_unit.copy_(torch.where(faint[..., None], x.view_as(by_unit), by_unit))

    def _feed(
        self, caches: Sequence[LayerCache], block: RowBlock, each: Callable[..., Any]
    ) -> torch.Tensor:
        """Give all caches their rows; which keys they attend, bool [all units, rows, columns]."""
        (_, rows, columns), device = block.p.shape, block.p.device
        start, stop, seen = block.start, block.start + rows, slice(block.first, None)

        def feed(cache: LayerCache, part: Callable[[], NDArray[np.uint16]]) -> Any:
            cache.feed(part(), block.start, block.first)
            return cache.evicted_at()[:, block.first : block.first + columns]

        last = np.concatenate(list(each(feed, caches, _half(block.p, self.copies))))
        t = torch.arange(start, stop, device=device)
        attended = torch.from_numpy(last).to(device)[:, None, :] >= t[:, None]
        for units, cache in zip(attended.chunk(self.copies), caches, strict=True):
            if (visible := cache.visible(start, stop)) is not None:
                units &= torch.from_numpy(visible[:, :, seen]).to(device)
        return attended

    def _layer(self, call: Call, each: Callable[..., Any]) -> list[LayerCache]:
        """The caches of a layer, one for each sequence; new ones get the prompt's rows."""
        index, units = call.layer.index, units_of(call.layer, self._share)
        if found := self._caches.get(index):
            for copy, cache in enumerate(found):
                if isinstance(cache, PolicyLayer) and cache.asks:
                    cache.jobs[:] = self._jobs(call, copy)
            return found
        found = self._caches[index] = []
        for copy, eviction in enumerate(self._evictions):
            if eviction.masks is not None:
                found.append(MaskedLayer(eviction.masks[index]))
                continue
            assert eviction.configured is not None
            found.append(
                PolicyLayer(
                    eviction.configured, eviction.of(index, units), self._prompt_len,
                    call.layer.heads // units, self._jobs(call, copy),
                )
            )  # fmt: skip
        new = [cache for cache in found if isinstance(cache, PolicyLayer)]
        for start, stop, bits in self._prompt.rows(index) if new else ():
            list(each(lambda cache: cache.feed_packed(bits, start, stop), new))  # noqa: B023
        return found

    def _jobs(self, call: Call, copy: int) -> Any:
        index = call.layer.index
        more: dict[str, Callable[[], Any]] = {
            name: partial(self.queries.of, index, name, copy) for name in self.queries.names
        }
        if self._projections is not None:
            more["w_o"] = partial(self._projections, call.layer)
        return layer_jobs(
            self.model, call, copy, self._n, self._share, self._prompt_len, self._evictions[copy],
            more,
        )  # fmt: skip


def _half(p: torch.Tensor, copies: int) -> list[Callable[[], NDArray[np.uint16]]]:
    """Rows rounded to float16, as patterns on the host: for each sequence what waits for them."""
    half = p.to(torch.float16)
    if half.device.type == "cpu":
        return [partial(_patterns, part) for part in half.chunk(copies)]
    host = torch.empty(half.shape, dtype=half.dtype, pin_memory=True)
    ready: list[Callable[[], NDArray[np.uint16]]] = []
    for here, there in zip(host.chunk(copies), half.chunk(copies), strict=True):
        here.copy_(there, non_blocking=True)
        copied = torch.cuda.current_stream(half.device).record_event()
        ready.append(partial(_waited, here, copied))
    return ready


def _waited(rows: torch.Tensor, copied: torch.cuda.Event) -> NDArray[np.uint16]:
    copied.synchronize()
    return _patterns(rows)


def _patterns(rows: torch.Tensor) -> NDArray[np.uint16]:
    return rows.numpy().view(np.uint16)


def _blocks(call: Call) -> Iterator[RowBlock]:
    """The rows of a call, in blocks that fit a core's cache, or that keep a GPU busy."""
    room = BLOCK_BYTES
    if call.q.device.type == "cuda":
        free = torch.cuda.mem_get_info(call.q.device)[0]
        free += torch.cuda.memory_reserved(call.q.device)
        free -= torch.cuda.memory_allocated(call.q.device)
        room = min(GPU_BLOCK_BYTES, max(BLOCK_BYTES, free // 8))
    return softmax_blocks(call, room)


class NoRows:
    """A sink that wants no rows."""

    def wants(self, layer: Layer) -> bool:
        """No."""
        return False

    def block(self, layer: Layer, block: Any) -> None:
        """Never called."""
        raise AssertionError("no rows were wanted")

    def end(self, layer: Layer, start: int, q: Any, k: Any, v: Any) -> None:
        """Nothing to do."""


def pack_rows(block: RowBlock) -> NDArray[np.uint16]:
    """Rows rounded to float16: packed patterns [heads, packed] from row `block.start` on."""
    return packed(_half(block.p, 1)[0](), block.start, block.first)
