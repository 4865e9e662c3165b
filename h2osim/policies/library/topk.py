"""The per-step bound: every step attends its own best k tokens."""

from h2osim.policies.arithmetic import by_score, latest
from h2osim.policies.declaration import Policy

POLICY = Policy(
    name="topk",
    summary="bound: each step attends the k earlier tokens of most attention, with re-admission",
    source="bound, never below the offline optimum",
    state=("score",),
    update=latest,
    rank=by_score,
    readmits=True,
    oracle=True,
    inclusive=True,
    notes="Not a schedule: a token left out may return, so nothing counts as evicted.",
)
