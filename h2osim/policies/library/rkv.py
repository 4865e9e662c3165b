"""R-KV: attention of the last queries, less how alike a key is to the other cached keys."""

import math

import numpy as np

from h2osim.policies.arithmetic import most_around, products_with, softmax
from h2osim.policies.declaration import INF, Array, Policy, Positions
from h2osim.policies.inputs import key, key_direction, query
from h2osim.policies.parameters import shared
from h2osim.policies.whole_cache import alike, protect
from h2osim.support.parameters import Param


def attended(
    positions: Positions, key: Array, query: Array, heads: int, g: int, groups: int, cut: int
) -> Array:
    # Of one KV head: softmax over the keys before the window of the largest logit of its query
    # heads, mean over the window's queries.
    d = query.shape[1] // heads
    m = len(positions)
    found = np.zeros(cut)
    for s in range(cut, m):
        logits = np.full(cut, -INF)
        for h in range(heads):
            if h * groups // heads == g:
                asked = query[positions[s], h * d : (h + 1) * d]
                given = products_with(key[:, g * d : (g + 1) * d], positions[:cut], asked)
                logits = np.maximum(logits, given / math.sqrt(d))
        softmax(logits)
        found += logits / (m - cut)
    return found


def rank_cache(
    positions: Positions,
    ranks: Array,
    key: Array,
    key_direction: Array,
    query: Array,
    heads: int,
    window: int,
    kernel: int,
    mix: float,
    threshold: float,
) -> None:
    m = len(positions)
    d = query.shape[1] // heads
    groups = key.shape[1] // d
    cut = max(0, m - window)
    protect(ranks, cut)
    for g in range(groups):
        shown = attended(positions, key, query, heads, g, groups, cut)
        like = alike(positions, key_direction[:, g * d : (g + 1) * d], threshold, 0)
        for i in range(cut):
            ranks[i] += mix * most_around(shown, i, kernel) - (1.0 - mix) * like[i]


POLICY = Policy(
    name="rkv",
    summary="every 128 steps: keep the last `window` tokens and those of largest mix · attention "
    "- (1 - mix) · similarity to the other keys",
    source="arXiv 2505.24133; Zefan-Cai/R-KV r1_kv.py",
    params=(
        shared("window", 8, doc="newest tokens, whose queries count and which stay"),
        shared("kernel", 7, doc="keys whose largest attention counts (an odd number)"),
        Param("mix", 0.07, "weight of attention (the source's mix_lambda)", "float", 0, 1),
        Param("threshold", 0.5, "cosine above which keys are of a kind", "float", 0, 1),
        shared("when", "every:128"),
    ),
    vectors={"key": key, "key_direction": key_direction, "query": query},
    needs=("keys", "queries"),
    rank_cache=rank_cache,
    notes="Attention is over the keys before the window alone, of the largest logit of a group's "
    "heads, as in the source. Logits have the scale 1/√d. The source stores tokens in the order of "
    "their scores, so that neighbours and the newest of a kind are no longer those of the text; "
    "here they are.",
)
