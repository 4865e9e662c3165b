"""LagKV: how far a token's key and value spread, measured by the tokens that follow."""

import math

import numpy as np

from h2osim.policies.arithmetic import softmax
from h2osim.policies.declaration import INF, Array, Policy
from h2osim.policies.inputs import key, value
from h2osim.policies.parameters import shared
from h2osim.support.parameters import Param


def spread(x: Array, start: int, lag: int, found: Array) -> None:
    # softmax over a partition of the deviation, over dimensions, of what is scaled to 0 … 1 by the
    # least and most of the next partition
    d = x.shape[1]
    low, high = x[start + lag].copy(), x[start + lag].copy()
    for j in range(start + lag, start + 2 * lag):
        low = np.minimum(low, x[j])
        high = np.maximum(high, x[j])
    width = high - low
    for c in range(d):
        if width[c] == 0.0:
            width[c] = 1.0
    deviation = np.zeros(lag)
    for i in range(lag):
        scaled = (x[start + i] - low) / width
        mean, square = 0.0, 0.0
        for c in range(d):
            mean += scaled[c]
        mean = mean / d
        for c in range(d):
            square += (scaled[c] - mean) * (scaled[c] - mean)
        deviation[i] = math.sqrt(square / max(1, d - 1))
    softmax(deviation)
    for i in range(lag):
        found[i] += deviation[i]


def rank_cache(
    positions: Array, ranks: Array, key: Array, value: Array, sinks: int, lag: int
) -> None:
    # Acts at the prompt's end alone, where the cache is the whole prompt: position = slot.
    m = len(positions)
    for i in range(m):
        ranks[i] = INF
    if m < sinks + 2 * lag:  # too short for two partitions: sinks, and the newest
        for i in range(sinks, m):
            ranks[i] = i
        return
    for start in range(sinks, m - 2 * lag + 1, lag):
        score = np.zeros(lag)
        spread(key, start, lag, score)
        spread(value, start, lag, score)
        order = np.argsort(score, kind="mergesort")
        for place in range(lag):
            ranks[start + order[place]] = place


POLICY = Policy(
    name="lagkv",
    summary="once, at the prompt's end: of each `lag` tokens those whose keys and values spread "
    "most, measured by the next `lag`",
    source="arXiv 2504.04704; kvpress LagKVPress",
    params=(
        Param("lag", 128, "tokens of a partition", "int", 1),
        shared("sinks", 4),
        shared("when", "prompt", doc="once at the prompt's end alone", choices=("prompt",)),
    ),
    vectors={"key": key, "value": value},
    needs=("keys", "values"),
    rank_cache=rank_cache,
    notes="The last partition and what follows it stay, as the sinks do. The authors' code keeps "
    "the same share of every partition and goes on while decoding; here, as in kvpress, places "
    "within partitions are compared over all of the prompt.",
)
