"""H2O's Algorithm 2 nearly to the letter: an exhibit. Accumulation starts at a full cache."""

from h2osim.policies.arithmetic import by_score
from h2osim.policies.declaration import Policy


def update(score: float, a: float, t: int, k: int) -> float:
    if t < k:
        return 0.0
    return score + a


POLICY = Policy(
    name="h2o-alg2",
    summary="exhibit: accumulated attention counted only from the step that fills the cache",
    source="arXiv 2306.14048, Algorithm 2 read literally",
    scores="cached",
    state=("score",),
    update=update,
    rank=by_score,
    notes="The new token's score for itself counts, and rows are normalised over the cache and it. "
    "The pseudo-code instead gives every token outside the cache exp(0) over the cache's "
    "sum, which cannot be had from a recorded row. If the new token's own score did not count (as "
    "in Algorithm 1), no token would ever enter the full cache; as it counts, some do while "
    "accumulated scores are small. See proof C1.",
)
