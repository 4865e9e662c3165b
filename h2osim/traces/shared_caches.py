"""Layers that share one cache (Gemma 3n, Gemma 4), as one layer with the heads of them all.

The last layers of these models keep no keys and values: they attend to those of an earlier layer
(`cache_of` in the manifest). A token that is evicted there is gone for all of them, so a policy has
to decide by the rows of them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2osim.support.errors import UserError
from h2osim.traces import in_memory
from h2osim.traces.trace import Trace

_OF_THE_CACHE = ("v_norm1", "v_norm2", "k_norm2", "v")
_OF_THE_RUN = ("command", "model", "tokenizer", "text", "tokens", "generation", "provenance")


def by_cache(trace: Trace) -> list[Trace]:
    """Traces in memory in which a unit is a whole cache, where layers share some.

    Layers that attend to the keys of one of them become one layer, which has its number and the
    heads of them all: KV head g brings the query heads of g in each of these layers. One trace for
    each number of layers that share, the plain ones first, since a trace has as many heads in every
    layer. Rows and norms are copied, float16 rows made from queries and keys where only these are
    stored. UserError where the layer that keeps the keys is not recorded.
    """
    layers = _sharing(trace)
    sizes = sorted({len(together) for together in layers.values()})
    return [
        Trace._in_memory(*_content(trace, [o for o in layers if len(layers[o]) == size], layers))
        for size in sizes
    ]


def _sharing(trace: Trace) -> dict[int, list[int]]:
    """The recorded layers by the layer whose cache they attend to, in ascending order.

    UserError for a layer whose cache belongs to one that is not recorded.
    """
    found: dict[int, list[int]] = {}
    for layer in trace.layers:
        owner = trace.layer_entry(layer).get("cache_of")
        found.setdefault(layer if owner is None else owner, []).append(layer)
    for owner, layers in found.items():
        if owner not in layers:
            raise UserError(
                f"trace {trace.name}: layer {layers[0]} attends to the keys of layer {owner}, "
                f"which is not in the trace; record it too"
            )
    return found


def _content(
    trace: Trace, owners: Sequence[int], layers: Mapping[int, Sequence[int]]
) -> tuple[dict[str, Any], dict[int, dict[str, NDArray[Any]]]]:
    """The manifest and the tensors of a trace of these caches, as `in_memory.content` gives them.

    Each of them serves as many layers. A KV head brings the heads of the first layer, then those of
    the second, and so on.
    """
    together = len(layers[owners[0]])
    rows = {unit.layer: unit.all_bits for unit in trace.units("layer")}

    def merged(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """One array [heads of all layers, ...] of those of the layers, [heads, ...]."""
        grouped = [x.reshape(len(trace.kv_heads), trace.group_size, *x.shape[1:]) for x in parts]
        return np.concatenate(grouped, axis=1).reshape(-1, *parts[0].shape[1:])

    tensors: dict[str, Any] = {
        "scores": np.stack([merged([rows[layer]() for layer in layers[o]]) for o in owners])
    }
    if all("row_sum" in trace.tensors(layer) for o in owners for layer in layers[o]):
        sums = [[trace.tensor(layer, "row_sum") for layer in layers[o]] for o in owners]
        tensors["row_sum"] = np.stack([merged(parts) for parts in sums])
    for name in _OF_THE_CACHE:
        if all(name in trace.tensors(owner) for owner in owners):
            tensors[name] = np.stack([trace.tensor(owner, name) for owner in owners])
    first = trace.layer_entry(owners[0])
    return in_memory.content(
        tensors,
        ["scores"],
        trace.n,
        len(trace.heads) * together,
        trace.group_size * together,
        trace.prompt_len,
        list(owners),
        trace.name if together == 1 else f"{trace.name}, {together} layers a cache",
        {name: first[name] for name in ("sink", "computed_in") if first.get(name)},
        {name: trace.manifest[name] for name in _OF_THE_RUN if trace.manifest.get(name)},
    )
