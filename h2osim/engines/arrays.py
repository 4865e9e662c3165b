"""The arrays that compiled loops of caches work on."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

STAYS = 2**31 - 1  # what `left` holds for a token that is cached
NO_LISTS = np.zeros((0, 0), np.uint32), np.zeros(0, np.int64)
NO_SPANS = np.zeros(1, np.int64)


class Rules(NamedTuple):
    """A policy's parameters and inputs for each unit; the unit is the first axis of all arrays."""

    budgets: NDArray[np.int64]  # [units]
    ints: NDArray[np.int64]  # [units, whole parameters]
    floats: NDArray[np.float64]  # [units, fractional parameters]
    inputs: NDArray[np.float64]  # [units, inputs, tokens]
    vectors: NDArray[np.float64]  # [units, tokens, widths] those of a token one after the other
    spans: NDArray[np.int64]  # [vectors + 1] where each begins
    state_spans: NDArray[np.int64]  # [vectors + 1] the same of state


class Cache(NamedTuple):
    """What lasts from row to row."""

    tokens: NDArray[np.uint32]  # [units, tokens] positions cached, oldest first
    sizes: NDArray[np.int64]  # [units, 2] how many are; most keys a decode step attended, own aside
    left: NDArray[np.int32]  # [units, tokens] step after which each left the cache, or STAYS
    state: NDArray[np.float64]  # [units, fields, tokens]
    vectors: NDArray[np.float64]  # [units, tokens, widths] state that is vectors
    history: NDArray[np.float64]  # [units, lag, tokens] what the policy was shown lately
    head_scores: NDArray[np.float64]  # [units, heads, tokens] its sum, where asked for


class Room(NamedTuple):
    """Working space for one unit's row."""

    ranks: NDArray[np.float64]  # [tokens] by place in the cache
    at: NDArray[np.int64]  # [1] the step
    means: NDArray[np.float64]  # [inputs] over the cached tokens
    vector_means: NDArray[np.float64]  # [widths]
    line: NDArray[np.int64]  # [tokens] the row in fixed point, summed over heads
    rows: NDArray[np.int32]  # [heads, tokens] the same of each head
    head_row: NDArray[np.float64]  # [heads, tokens] what each head showed, where asked for
    seen: NDArray[np.int64]  # [heads] mass attended
    whole: NDArray[np.int64]  # [heads] mass of the row


def grown(array: NDArray[Any], size: int, axis: int = -1, fill: int = 0) -> NDArray[Any]:
    """A copy with room for more along an axis."""
    shape = list(array.shape)
    shape[axis] = size
    found = np.full(shape, fill, array.dtype) if fill else np.zeros(shape, array.dtype)
    found[tuple(slice(size) for size in array.shape)] = array
    return found
