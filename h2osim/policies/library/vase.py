"""VaSE: values of wide range stay, the rest is drawn by attention."""

import math

import numpy as np

from h2osim.policies.arithmetic import around, drawn, products_with, softmax
from h2osim.policies.declaration import INF, Array, Policy, Positions
from h2osim.policies.inputs import key, noise, query, value_range
from h2osim.policies.parameters import shared
from h2osim.policies.whole_cache import protect
from h2osim.support.parameters import Param


def rank_cache(
    positions: Positions,
    ranks: Array,
    key: Array,
    query: Array,
    value_range: Array,
    noise: Array,
    noise_now: float,
    heads: int,
    sinks: int,
    window: int,
    kernel: int,
    n_large: int,
    temperature: float,
) -> None:
    m = len(positions)
    d = query.shape[1] // heads
    groups = key.shape[1] // d
    cut = max(0, m - window)
    width = np.zeros(cut)
    protect(ranks, cut)
    for i in range(cut):
        width[i] = INF if positions[i] < sinks else value_range[positions[i]]
    for h in range(heads):
        g = h * groups // heads
        shown = np.zeros(cut)
        for s in range(cut, m if cut > 0 else 0):
            asked = query[positions[s], h * d : (h + 1) * d]
            logits = products_with(key[:, g * d : (g + 1) * d], positions[:cut], asked)
            logits /= math.sqrt(d) * temperature
            softmax(logits)
            shown += logits
        for i in range(cut):
            ranks[i] += around(shown, i, kernel)
    for i in range(cut):  # the largest weights over exponential draws: a sample by weight
        ranks[i] = ranks[i] / drawn(noise[positions[i]], noise_now, 0)
    order = np.argsort(width, kind="mergesort")
    for place in range(max(0, cut - n_large), cut):
        ranks[order[place]] = INF


POLICY = Policy(
    name="vase",
    summary="every 64 steps: the last `window` tokens, the sinks and the values of widest range, "
    "and a sample of the rest by attention from the window",
    source="arXiv 2606.03928 (VaSE-AttnV); terarachang/VaSE",
    params=(
        shared("window", 64, doc="newest tokens, whose queries count and which stay"),
        Param("n_large", 0.25, "tokens that stay for the range of their values, or of the sinks",
              "window"),
        shared("sinks", 4, doc="oldest tokens, which are the first of those"),
        shared("kernel", 5, doc="keys whose attention is added up (1: no smoothing)"),
        Param("temperature", 1.0, "by which logits are divided", "float", 0.01, 100),
        shared("seed", 0),
        shared("when", "every:64"),
    ),
    inputs={"value_range": value_range, "noise": noise},
    vectors={"key": key, "query": query},
    needs=("keys", "queries", "values"),
    rank_cache=rank_cache,
    notes="Range is the largest less the smallest entry of a value. Attention is over the keys "
    "before the window alone. The source has 1024 such places in budgets of 4096 tokens, evicts "
    "where the cache's size is a multiple of the window and never at the prompt's end, and draws "
    "from torch's generator. Its other form, VaSE-DKV, is not here.",
)  # fmt: skip
