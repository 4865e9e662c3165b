"""RoCo: the mean of received attention decides, among the tokens whose attention is steady."""

import numpy as np

from h2osim.policies.declaration import INF, Array, Policy
from h2osim.policies.parameters import shared
from h2osim.support.parameters import Param


def update(score: float, square: float, a: float) -> tuple[float, float]:
    return score + a, square + a * a


def rank_cache(
    positions: Array,
    ranks: Array,
    score: Array,
    square: Array,
    t: int,
    robust: int,
    recent: int,
    sinks: int,
) -> None:
    m = len(positions)
    deviation = np.empty(m)
    for i in range(m):
        j = positions[i]
        ranks[i] = score[j] / (t - j + 1)
        deviation[i] = max(0.0, square[j] / (t - j + 1) - ranks[i] * ranks[i])
        if t - j < recent or j < sinks:
            deviation[i] = INF
    # The robust + 1 largest deviations are no candidates (k - robust are, of k + 1 tokens). The
    # square root of the variance would not change their order.
    order = np.argsort(deviation, kind="mergesort")
    for i in range(max(0, m - robust - 1), m):
        ranks[order[i]] = INF


POLICY = Policy(
    name="roco",
    summary="evict the least mean attention among the k - robust tokens of smallest deviation",
    source="arXiv 2402.06262 (EasyKV)",
    params=(
        Param("robust", 0.3, "tokens of largest deviation that are never evicted", "window"),
        shared("recent", 10, doc="newest tokens whose deviation counts as infinite"),
        shared("sinks", 0, doc="oldest tokens whose deviation counts as infinite"),
        shared("scores", "cached"),
    ),
    state=("score", "square"),
    update=update,
    rank_cache=rank_cache,
    notes="The source's decoding mode; it never evicts the prompt, here the prompt's end is cut by "
    "the same rule. Its encoding mode protects 4 sinks.",
)
