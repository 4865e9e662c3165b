"""Scissorhands: tokens that were often below average lately are dropped, half a cache at once."""

from h2osim.policies.arithmetic import guarded_score
from h2osim.policies.declaration import Policy
from h2osim.policies.parameters import shared
from h2osim.support.parameters import Param


def update(
    score: float, a: float, a_old: float, t: int, age: int, heads: int, window: int, count: int
) -> float:
    if count == 1:
        return score + a - a_old
    if a < heads / (t + 1):
        score = score - 1.0
    if age >= window and a_old < heads / (t - window + 1):
        score = score + 1.0
    return score


def keep(size: int, k: int, drop: int) -> int:
    if size > k and drop == 0:
        return k - k // 2
    return min(size, k)


POLICY = Policy(
    name="scissorhands",
    summary="count, over the last `window` rows, how often a token got less than the average; "
    "when the cache overflows drop the most frequent half",
    source="arXiv 2305.17118",
    params=(
        shared("window", 400, doc="rows whose history counts"),
        shared("recent", 10),
        shared("scores", "cached"),
        shared("sinks", 0),
        Param(
            "count",
            "low",
            "what is added up over the window: how often a token got less than average; or mass, "
            "what it got",
            "choice",
            choices=("low", "mass"),
        ),
        Param(
            "drop",
            "half",
            "what goes when the cache overflows: half of it, or what is too many",
            "choice",
            choices=("half", "one"),
        ),
    ),
    state=("score",),
    update=update,
    rank=guarded_score,
    keep=keep,
    lag="window",
    notes="The average of row t is 1 / (t + 1), a unit's attention the mean over its heads. Rows "
    "before a token existed do not count. Others mean other rules by the name: cold-compress drops "
    "one token a step (`drop=one`), VATP takes the mass of the last 400 rows "
    "(`count=mass,drop=one`).",
)
