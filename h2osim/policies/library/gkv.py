"""G-KV: what a key was worth at earlier evictions counts beside what it is worth now."""

import math

import numpy as np

from h2osim.policies.arithmetic import products_with, softmax
from h2osim.policies.declaration import Array, Policy, Positions
from h2osim.policies.inputs import key, key_direction, query
from h2osim.policies.parameters import shared
from h2osim.policies.whole_cache import alike, protect
from h2osim.support.parameters import Param


def init() -> float:
    return -1.0  # no score yet


def attended(
    positions: Positions, key: Array, query: Array, heads: int, groups: int, cut: int
) -> Array:
    # Softmax of each head over the cached keys that a query of the window can see; of heads the
    # largest, of queries the sum. What the keys before the window have of it, over the most.
    d = query.shape[1] // heads
    found = np.zeros(cut)
    for s in range(cut, len(positions)):
        most = np.zeros(cut)
        for h in range(heads):
            g = h * groups // heads
            asked = query[positions[s], h * d : (h + 1) * d]
            given = products_with(key[:, g * d : (g + 1) * d], positions[: s + 1], asked)
            given = given / math.sqrt(d)
            softmax(given)
            most = np.maximum(most, given[:cut])
        found += most
    return over_the_most(found)


def over_the_most(x: Array) -> Array:
    most = 0.0
    for i in range(len(x)):
        most = max(most, x[i])
    return x / most if most > 0.0 else x


def rank_cache(
    positions: Positions,
    ranks: Array,
    score: Array,
    key: Array,
    key_direction: Array,
    query: Array,
    heads: int,
    window: int,
    mix: float,
    threshold: float,
    alpha: float,
    smooth_method: int,
) -> None:
    m = len(positions)
    d = query.shape[1] // heads
    groups = key.shape[1] // d
    cut = max(0, m - window)
    protect(ranks, cut)
    now = attended(positions, key, query, heads, groups, cut)
    like = np.zeros(m)
    for g in range(groups):
        like += alike(positions, key_direction[:, g * d : (g + 1) * d], threshold, -1)
    like = over_the_most(like[:cut])
    for i in range(cut):
        old = score[positions[i]]
        if old >= 0.0 and smooth_method == 0:
            now[i] = max(alpha * old, now[i])
        elif old >= 0.0 and smooth_method == 1:
            now[i] = alpha * old + (1.0 - alpha) * now[i]
        elif old >= 0.0:
            now[i] = alpha * old + now[i]
        score[positions[i]] = now[i]
        ranks[i] = mix * now[i] - (1.0 - mix) * like[i]


POLICY = Policy(
    name="gkv",
    summary="every 128 steps: the last `window` tokens and those of largest mix · (attention, or "
    "alpha times what it was at the last eviction) - (1 - mix) · similarity to the other keys",
    source="arXiv 2512.00504; microsoft/G-KV score_based.py",
    params=(
        shared("window", 16, doc="newest tokens, whose queries count and which stay"),
        Param("mix", 0.5, "weight of attention (the source's mix_lambda)", "float", 0, 1),
        Param("threshold", 0.5, "cosine above which keys are of a kind", "float", 0, 1),
        Param("alpha", 0.8, "what the score of the last eviction is multiplied by", "float", 0, 1),
        Param("smooth_method", "max", "how it and the new one make a score: the larger, their "
              "mean with weights alpha and 1 - alpha, or their sum", "choice",
              choices=("max", "mean", "sum")),
        shared("when", "every:128"),
    ),
    state=("score",),
    init=init,
    vectors={"key": key, "key_direction": key_direction, "query": query},
    needs=("keys", "queries"),
    rank_cache=rank_cache,
    notes="Attention and similarity are each divided by their largest before the window. Scores "
    "change only in steps in which tokens are evicted. The defaults are those of the source's "
    "scripts. For a unit with several KV heads attention is the largest over all of its heads and "
    "similarity the sum over its KV heads.",
)  # fmt: skip
