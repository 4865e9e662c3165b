"""Scissorhands: tokens that were often below average lately are dropped, half a cache at once."""

from h2osim.policies.declaration import INF, Policy
from h2osim.policies.parameters import shared


def update(low: float, a: float, a_old: float, t: int, age: int, heads: int, window: int) -> float:
    if a < heads / (t + 1):
        low = low + 1.0
    if age >= window and a_old < heads / (t - window + 1):
        low = low - 1.0
    return low


def rank(low: float, age: int, recent: int) -> float:
    if age < recent:
        return INF
    return -low


def keep(size: int, k: int) -> int:
    if size > k:
        return k - k // 2
    return size


POLICY = Policy(
    name="scissorhands",
    summary="count, over the last `window` rows, how often a token got less than the average; "
    "when the cache overflows drop the most frequent half",
    source="arXiv 2305.17118",
    params=(
        shared("window", 400, doc="rows whose history counts"),
        shared("recent", 10),
        shared("scores", "cached"),
    ),
    state=("low",),
    update=update,
    rank=rank,
    keep=keep,
    lag="window",
    notes="The average of row t is 1 / (t + 1), a unit's attention the mean over its heads. Rows "
    "before a token existed do not count.",
)
