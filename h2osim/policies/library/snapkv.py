"""SnapKV: the last rows choose which keys stay: in the source once, for the prompt."""

import numpy as np

from h2osim.policies.arithmetic import around, most_around
from h2osim.policies.declaration import Array, Policy
from h2osim.policies.parameters import shared
from h2osim.policies.whole_cache import protect
from h2osim.support.parameters import Param


def update(score: float, a: float, a_old: float, t: int, p: int, window: int) -> float:
    if t < p - window:
        return score
    return score + a - (a_old if t >= p else 0.0)


def rank_cache(
    positions: Array, ranks: Array, score: Array, t: int, window: int, kernel: int, pool: int
) -> None:
    m = len(positions)
    cut = m
    while cut > 0 and positions[cut - 1] > t - window:
        cut -= 1
    protect(ranks, cut)
    given = np.zeros(cut)
    for i in range(cut):
        given[i] = score[positions[i]]
    for i in range(cut):
        ranks[i] = around(given, i, kernel) if pool == 0 else most_around(given, i, kernel)


POLICY = Policy(
    name="snapkv",
    summary="once, at the prompt's end: keep the last `window` tokens and the k - window of most "
    "pooled attention from them",
    source="arXiv 2404.14469",
    params=(
        shared("window", 64),
        shared("kernel", 5),
        Param("pool", "avg", "how neighbouring keys are pooled", "choice", choices=("avg", "max")),
        shared("when", "prompt"),
    ),
    scores="cached",
    state=("score",),
    update=update,
    lag="window",
    rank_cache=rank_cache,
    inclusive=lambda values, heads: values["when"] == "prompt",
    notes="Pooling pads with zeros, over the keys before the window that are cached. `pool=max` is "
    "KVCache-Factory's. `heads=max` takes the largest of a group's heads row by row; its "
    "gqa_score_agg=max takes the head of the largest sum over the window, which is "
    "`snapkv-kvfactory`. With `when=every:m` the newest `window` rows choose again every m steps, "
    "as rows renormalised over the cache.",
)
