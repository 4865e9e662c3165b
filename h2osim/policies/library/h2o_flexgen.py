"""H2O's FlexGen code: heavy slots and a ring of recent ones."""

from h2osim.policies.arithmetic import accumulate
from h2osim.policies.declaration import INF, Policy


def keep(k: int) -> int:
    return 2 * ((k + 1) // 2) - 1


def rank(score: float, age: int, t: int, k: int, p: int) -> float:
    # h heavy slots and a ring of h - 1. In a decode step the token that leaves the ring moves into
    # the slot of the evicted token without being compared, so it cannot be evicted itself.
    h = (k + 1) // 2
    if age < h - 1 or (age == h - 1 and t >= p):
        return INF
    return score


POLICY = Policy(
    name="h2o-flexgen",
    summary="h heavy slots and h - 1 recent ones (k = 2h - 1); the oldest recent always moves up",
    source="FMInference/H2O h2o_flexgen",
    scores="cached",
    state=("score",),
    update=accumulate,
    rank=rank,
    keep=keep,
    notes="An even budget leaves one slot empty. The source takes h from the prompt's length and "
    "needs h >= 2 and a prompt of at least 2h - 1 tokens.",
)
