"""NACL: part of the prompt's cache is chosen by proxy rows, part is drawn at random."""

import numpy as np

from h2osim.policies.arithmetic import observed
from h2osim.policies.declaration import INF, Array, Policy
from h2osim.policies.inputs import gumbel
from h2osim.policies.parameters import shared
from h2osim.support.parameters import Param


def rank_cache(
    positions: Array,
    ranks: Array,
    score: Array,
    gumbel: Array,
    k: int,
    p: int,
    recent: int,
    sinks: int,
    random: float,
) -> None:
    # Acts at the prompt's end alone, where the cache is the whole prompt: position = slot.
    free = 0
    for j in range(len(positions)):
        ranks[j] = score[j]
        if j < sinks or j >= p - recent:
            ranks[j] = INF
            free += 1
    top = min(len(positions), max(k, free)) - int(random * max(0, k - free))
    order = np.argsort(ranks, kind="mergesort")
    for i in range(len(positions)):
        j = order[i]
        ranks[j] = INF if i >= len(positions) - top else score[j] + gumbel[j]


POLICY = Policy(
    name="nacl",
    summary="once, at the prompt's end: the proxy rows' best keys, and a sample from "
    "softmax(score) of the rest",
    source="arXiv 2408.03675",
    params=(
        shared("window", 16, doc="proxy rows: the prompt's last"),
        shared("recent", 16, doc="the prompt's newest tokens, which stay"),
        Param("random", 0.37, "share of the free budget that is drawn at random", "float", 0, 1),
        shared("sinks", 4),
        shared("seed", 0),
        shared("when", "prompt", doc="once at the prompt's end alone", choices=("prompt",)),
    ),
    inputs={"gumbel": gumbel},
    state=("score",),
    update=observed,
    rank_cache=rank_cache,
    notes="The source takes 1 % of the prompt as proxies, which are not the tokens that stay, and "
    "lets them see later keys, which a causal matrix does not have; it protects 256 sinks, and "
    "acts from 2048 tokens on. The sample is the largest of score + Gumbel noise, distributed as a "
    "draw without replacement. Nothing is evicted later, so the cache grows while decoding.",
)
