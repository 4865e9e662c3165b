"""H2O's lm-eval code (OPT, GPT-NeoX): heavy keys, chosen whatever their age, and a recent band."""

from h2osim.policies.arithmetic import accumulate, by_score
from h2osim.policies.declaration import Policy
from h2osim.policies.parameters import shared


def keep(k: int, recent: int) -> int:
    # The heavy set is k - recent keys with the next token's own among them.
    return max(0, k - recent - 1)


def linger(k: int, recent: int) -> int:
    return min(k, recent)


POLICY = Policy(
    name="h2o-lmeval",
    summary="a heavy set that protects nothing (full rows), united with the recent + 1 newest keys",
    source="FMInference/H2O utils_lm_eval (OPT, GPT-NeoX)",
    params=(shared("recent", 0.5),),
    scores="full",
    state=("score",),
    update=accumulate,
    rank=by_score,
    keep=keep,
    linger=linger,
    notes="The source evicts before it attends; evicting after the step before is the same. A key "
    "that left the heavy set is attended while the band covers it but can not return.",
)
