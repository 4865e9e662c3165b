"""R-KV: attention of the last queries, less how alike a key is to the other cached keys."""

import math

import numpy as np
from numpy.typing import NDArray

from h2osim.policies.arithmetic import dot, exp, products
from h2osim.policies.declaration import INF, Array, Policy
from h2osim.policies.inputs import key, key_direction, query
from h2osim.policies.parameters import shared
from h2osim.support.parameters import Param


def attended(
    positions: NDArray[np.uint32],
    key: Array,
    query: Array,
    heads: int,
    g: int,
    groups: int,
    cut: int,
) -> Array:
    # Of one KV head: softmax over the keys before the window of the largest logit of its query
    # heads, mean over the window's queries.
    d = query.shape[1] // heads
    m = len(positions)
    found = np.zeros(cut)
    for s in range(cut, m):
        logits = np.zeros(cut)
        most = -INF
        for i in range(cut):
            logits[i] = -INF
            for h in range(heads):
                if h * groups // heads == g:
                    asked = query[positions[s], h * d : (h + 1) * d]
                    there = key[positions[i], g * d : (g + 1) * d]
                    logits[i] = max(logits[i], dot(asked, there) / math.sqrt(d))
            most = max(most, logits[i])
        total = 0.0
        for i in range(cut):
            logits[i] = exp(logits[i] - most)
            total += logits[i]
        for i in range(cut):
            found[i] += logits[i] / total / (m - cut)
    return found


def alike(positions: NDArray[np.uint32], directions: Array, threshold: float) -> Array:
    # Softmax over keys of the mean cosine with the others; in each row the last that is above the
    # threshold (else the first key) is left out, so that the newest of a kind stays.
    m = len(positions)
    cosines = products(directions, positions)
    mean = np.zeros(m)
    for i in range(m):
        last = 0
        for j in range(m):
            if j != i and cosines[i, j] > threshold:
                last = j
        for j in range(m):
            if j != i and j != last:
                mean[j] += cosines[i, j]
    most = -INF
    for i in range(m):
        mean[i] = mean[i] / m
        most = max(most, mean[i])
    total = 0.0
    for i in range(m):
        mean[i] = exp(mean[i] - most)
        total += mean[i]
    return mean / total


def rank_cache(
    positions: NDArray[np.uint32],
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
    for i in range(m):
        ranks[i] = 0.0 if i < cut else INF
    for g in range(groups):
        shown = attended(positions, key, query, heads, g, groups, cut)
        like = alike(positions, key_direction[:, g * d : (g + 1) * d], threshold)
        for i in range(cut):
            pooled = 0.0
            for s in range(max(0, i - kernel // 2), min(cut, i + kernel // 2 + 1)):
                pooled = max(pooled, shown[s])
            ranks[i] += mix * pooled - (1.0 - mix) * like[i]


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
