"""Accumulated attention over the number of queries that could give it."""

from h2osim.policies.arithmetic import accumulate
from h2osim.policies.declaration import INF, Policy, fixed_window
from h2osim.policies.parameters import shared


def rank(score: float, pos: int, age: int, sinks: int, recent: int) -> float:
    if age < recent or pos < sinks:
        return INF
    return score / (age + 1)


POLICY = Policy(
    name="h2o-mean",
    summary="evict the least mean attention per query that could see the token",
    source="kvpress ObservedAttention; cold-compress heavy hitter",
    params=(
        shared("recent", 0.5),
        shared("scores", "cached"),
        shared("sinks", 0),
        shared("when", "always"),
    ),
    state=("score",),
    update=accumulate,
    rank=rank,
    inclusive=fixed_window,
    notes="kvpress evicts once after the prompt (`recent=0,when=prompt` is its rule); "
    "cold-compress counts the whole prompt as one query and evicts before it attends.",
)
