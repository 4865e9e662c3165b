"""The paper's dynamic greedy, and a swap rule with a threshold, for heads that share one cache."""

import math

import numpy as np

from h2osim.policies.arithmetic import log1p
from h2osim.policies.declaration import INF, Array, Policy
from h2osim.policies.parameters import shared
from h2osim.support.parameters import Param

OBJECTIVES = ("mass", "sqrt", "log", "coverage", "facility")


def concave(z: float, objective: int) -> float:
    if objective == 1:
        return math.sqrt(1.0 + z)
    if objective == 2:
        return log1p(z)
    return min(0.5, z)


def rank_cache(
    positions: Array,
    ranks: Array,
    head_scores: Array,
    head_row: Array,
    k: int,
    heads: int,
    objective: int,
    swap: int,
) -> None:
    m = len(positions)
    scores = head_row if objective == 3 else head_scores
    for i in range(m):
        ranks[i] = INF
    # One token leaves at a time; those that leave are ranked in the order in which they do.
    # With the threshold the tokens beyond the first k are offered one by one, as on a stream:
    # deleting down from a whole prompt has no guarantee.
    for turn in range(m - k):
        last = k + turn if swap == 1 else m - 1  # the newest token that is looked at
        value = np.zeros(m)  # of the set that is left when slot i goes
        for h in range(heads):
            total, most, second = 0.0, 0.0, 0.0
            for i in range(last + 1):
                if ranks[i] == INF:
                    x = scores[h][positions[i]]
                    total += x
                    if x > most:
                        most, second = x, most
                    elif x > second:
                        second = x
            for i in range(last + 1):
                x = scores[h][positions[i]]
                if objective == 0 and swap == 0:  # what all sets share is left out: no rounding
                    value[i] -= x
                elif objective == 0:
                    value[i] += max(0.0, total - x)
                elif objective == 4:
                    value[i] += second if x == most else most
                else:
                    value[i] += concave(max(0.0, total - x), objective)
        best = -1
        for i in range(last + 1 - swap):  # with the threshold, among those held before
            if ranks[i] == INF and (best < 0 or value[i] > value[best]):
                best = i
        if swap == 1 and k * (value[best] - value[last]) < value[last]:
            best = last  # the gain is below f(S)/k: the new token goes
        ranks[best] = turn


POLICY = Policy(
    name="greedy",
    summary="evict the token whose removal leaves the largest objective over the unit's heads",
    source="arXiv 2306.14048 (Def. 4.1 and 4.3, Algorithm 2 over shared caches)",
    params=(
        Param(
            "objective",
            "sqrt",
            "f(T), the sum over heads of: mass z of T, sqrt(1+z), log(1+z) on accumulated scores; "
            "coverage, min(1/2, z) on the current row; facility, the largest score in T",
            "choice",
            choices=OBJECTIVES,
        ),
        Param(
            "swap",
            "always",
            "always: the token goes that is missed least; threshold: it goes only if the new token "
            "gains f(S)/k in its place, else the new one does",
            "choice",
            choices=("always", "threshold"),
        ),
        shared("scores", "cached"),
    ),
    rank_cache=rank_cache,
    notes="With objective=mass, or a concave objective in a unit of one head, the choice is H2O's "
    "without a recent window (full scores: exactly; else up to the rounding of sums). With "
    "swap=threshold a prompt's tokens are offered one by one at its end. On an objective that does "
    "not change this keeps a quarter of the best k tokens' value, where swap=always keeps 1/k "
    "(Chakrabarti and Kale, IPCO 2014; proof M1).",
)
