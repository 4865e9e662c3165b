"""H2O's Algorithm 1 as printed: an exhibit. It keeps the first k tokens for ever."""

from h2osim.policies.arithmetic import latest
from h2osim.policies.declaration import Policy


def rank(score: float, age: int) -> float:
    # Row i of K restricted to S_{i-1} is zero, so the newest token's own score is 0. It goes even
    # where an older key's attention was rounded to 0 as well.
    if age == 0:
        return -1.0
    return score


POLICY = Policy(
    name="h2o-alg1",
    summary="exhibit: evict by the current row, in which the new token scores nothing (it freezes)",
    source="arXiv 2306.14048, Algorithm 1 as printed",
    scores="cached",
    state=("score",),
    update=latest,
    rank=rank,
    inclusive=True,
    notes="The paper has no prompt phase: replay it with prompt_len=1. After a prompt it keeps "
    "what the prompt's last row attends most, its own token excepted.",
)
