"""DropKV: how far the outputs of the last queries would move without a token."""

import math

import numpy as np

from h2osim.policies.arithmetic import dot, products_with, softmax
from h2osim.policies.declaration import Array, Policy, Positions
from h2osim.policies.inputs import key, query, value
from h2osim.policies.parameters import shared
from h2osim.policies.whole_cache import protect


def rank_cache(
    positions: Positions,
    ranks: Array,
    key: Array,
    query: Array,
    value: Array,
    heads: int,
    window: int,
) -> None:
    m = len(positions)
    d = query.shape[1] // heads
    groups = key.shape[1] // d
    wide = value.shape[1] // groups
    cut = max(0, m - window)
    protect(ranks, cut)
    for h in range(heads):
        g = h * groups // heads
        for s in range(cut, m):
            asked = query[positions[s], h * d : (h + 1) * d]
            a = products_with(key[:, g * d : (g + 1) * d], positions[: s + 1], asked)
            a = a / math.sqrt(d)
            softmax(a)
            output = np.zeros(wide)
            for i in range(s + 1):
                output += a[i] * value[positions[i], g * wide : (g + 1) * wide]
            for i in range(cut):
                odds = a[i] / max(1.0 - a[i], 1e-9)
                moved = value[positions[i], g * wide : (g + 1) * wide] - output
                ranks[i] += odds * odds * dot(moved, moved)


POLICY = Policy(
    name="dropkv",
    summary="keep the last `window` tokens and those without which their queries' outputs would "
    "move most: sum of (a / (1 - a))² |v - o|²",
    source="DropKV (openreview MqfNzH3TVH); proposed for kvpress",
    params=(
        shared("window", 64),
        shared("when", "prompt", doc="once at the prompt's end alone", choices=("prompt",)),
    ),
    vectors={"key": key, "query": query, "value": value},
    needs=("keys", "queries", "values"),
    rank_cache=rank_cache,
    notes="Attention of the window's queries is over what is cached, with the scale 1/√d. No code "
    "of the authors is public; heads that share a cache are added.",
)
