"""H2O's simulation code for generation: a mask, with a key that hides for one step."""

from h2osim.policies.arithmetic import accumulate, guarded_score
from h2osim.policies.declaration import Policy
from h2osim.policies.parameters import shared


def visible(age: int, t: int, k: int, recent: int) -> bool:
    # The mask for the next step is made before that step's token shifts the window, so the token
    # that leaves the window is neither recent nor a candidate for one step.
    return age != recent or age == 0 or t <= k


POLICY = Policy(
    name="h2o-mask",
    summary="H2O as its masking code runs: k - recent heavy keys, recent - 1 newest, one hidden",
    source="FMInference/H2O utils_hh (since d5962aa)",
    params=(shared("recent", 0.5), shared("sinks", 0)),
    scores="cached",
    state=("score",),
    update=accumulate,
    rank=guarded_score,
    visible=visible,
    notes="Sizes are shares of the budget here, of the prompt in the source. The source sets the "
    "score of a masked key to 0, so it could return only by a tie; here it is evicted. With "
    "recent=0 the source keeps the first tokens for ever; here it keeps heavy hitters alone.",
)
