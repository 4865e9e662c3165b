"""CurDKV: keys and values that are long beside their neighbours'."""

import numpy as np
from numpy.typing import NDArray

from h2osim.policies.declaration import INF, Array, Policy, Positions
from h2osim.policies.inputs import Numbers, Values
from h2osim.policies.parameters import shared
from h2osim.support.parameters import Param
from h2osim.traces.unit import Unit


def key_squares(unit: Unit, values: Values) -> Numbers:
    """The squared length of each KV head's key."""
    return squares(unit.keys())


def value_squares(unit: Unit, values: Values) -> Numbers:
    """The squared length of each KV head's value."""
    return squares(unit.values())


def squares(vectors: NDArray[np.floating]) -> Numbers:
    """|x|² of vectors [heads, n, d], one square added after the other, as [n, heads]."""
    found = vectors.astype(np.float64)
    return np.asarray(np.add.accumulate(found * found, axis=2)[:, :, -1].T)


def share(squares: Array, positions: Positions, g: int, start: int, stop: int) -> Array:
    # What each of these slots has of their sum.
    found = np.zeros(stop - start)
    total = 0.0
    for i in range(start, stop):
        found[i - start] = squares[positions[i], g]
        total += found[i - start]
    return found / total if total > 0.0 else found


def rank_cache(
    positions: Positions,
    ranks: Array,
    key_squares: Array,
    value_squares: Array,
    sinks: int,
    leverage_type: int,
    local_window_size: int,
) -> None:
    m = len(positions)
    for i in range(m):
        ranks[i] = 0.0
    for g in range(key_squares.shape[1]):
        for start in range(0, m, local_window_size):
            stop = min(m, start + local_window_size)
            keys = share(key_squares, positions, g, start, stop)
            values = share(value_squares, positions, g, start, stop)
            for i in range(start, stop):
                k, v = keys[i - start], values[i - start]
                if leverage_type == 0:
                    ranks[i] += k
                elif leverage_type == 1:
                    ranks[i] += v
                elif leverage_type == 2:
                    ranks[i] += (k + v) / 2.0
                else:
                    ranks[i] += k * v
    for i in range(m):
        if positions[i] < sinks:
            ranks[i] = INF


POLICY = Policy(
    name="cur",
    summary="once, at the prompt's end: the largest product of a key's and a value's share of the "
    "squared lengths of its 16 neighbours",
    source="arXiv 2509.15038 (CurDKV); kvpress CURPress",
    params=(
        Param("leverage_type", "kv_product", "what counts: the key's share, the value's, the mean "
              "of both or their product", "choice",
              choices=("key", "value", "kv_avg", "kv_product")),
        Param("local_window_size", 16, "tokens that share a sum, from the first on", low=1),
        shared("sinks", 4),
        shared("when", "prompt"),
    ),
    vectors={"key_squares": key_squares, "value_squares": value_squares},
    needs=("keys", "values"),
    rank_cache=rank_cache,
    notes="Squared lengths stand for the leverage scores of the paper's CUR decomposition. Of a "
    "unit with several KV heads the shares are added. Random projections "
    "(use_random_leverage) and sums over the whole prompt (use_local_approximation=False) are not "
    "here.",
)  # fmt: skip
