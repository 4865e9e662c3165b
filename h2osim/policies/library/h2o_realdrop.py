"""H2O's code that really drops keys: the canonical rule with a window of a fixed size."""

from h2osim.policies.arithmetic import accumulate
from h2osim.policies.declaration import INF, Policy
from h2osim.policies.parameters import shared


def rank(score: float, age: int, recent: int) -> float:
    if age < recent:
        return INF
    return score


POLICY = Policy(
    name="h2o-realdrop",
    summary="H2O as its dropping code runs: fixed window, cached scores",
    source="FMInference/H2O utils_real_drop",
    params=(shared("recent", 512),),
    scores="cached",
    state=("score",),
    update=accumulate,
    rank=rank,
    notes="The same rule as `h2o` with a window in tokens; 512 is the source's default.",
)
