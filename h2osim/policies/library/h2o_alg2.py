"""H2O's Algorithm 2 as printed: an exhibit. Accumulation starts only when the cache is full."""

from h2osim.policies.declaration import Policy


def update(score: float, a: float, t: int, k: int) -> float:
    if t < k:
        return 0.0
    return score + a


def rank(score: float) -> float:
    return score


POLICY = Policy(
    name="h2o-alg2",
    summary="exhibit: accumulated attention counted only from the step that fills the cache",
    source="arXiv 2306.14048, Algorithm 2 as printed",
    scores="cached",
    state=("score",),
    update=update,
    rank=rank,
    notes="The new token's own column counts. Without it (as in Algorithm 1) nothing is ever "
    "admitted; with it, some tokens are while the accumulators are young.",
)
