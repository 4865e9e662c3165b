"""TOVA: the current row alone decides."""

from h2osim.policies.arithmetic import by_score, latest
from h2osim.policies.declaration import Policy
from h2osim.policies.parameters import shared

POLICY = Policy(
    name="tova",
    summary="evict the token that the newest query attends least",
    source="arXiv 2401.06104",
    params=(shared("scores", "cached"),),
    state=("score",),
    update=latest,
    rank=by_score,
    inclusive=lambda values, heads: values["scores"] == "full" or heads == 1,
    source_share="layer",
    notes="The source decides for a whole layer, by the mean over its heads: replay it with "
    "share=layer. Nothing is protected, the newest token included.",
)
