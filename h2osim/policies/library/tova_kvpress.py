"""TOVA as kvpress runs it: the prompt's last row, whose own token stays."""

from h2osim.policies.arithmetic import guarded_score, latest
from h2osim.policies.declaration import Policy, fixed_window
from h2osim.policies.parameters import shared

POLICY = Policy(
    name="tova-kvpress",
    summary="once, at the prompt's end: the last token and those that its row attends most",
    source="kvpress TOVAPress, after arXiv 2401.06104",
    params=(
        shared("recent", 1),
        shared("scores", "cached"),
        shared("sinks", 0),
        shared("when", "prompt"),
    ),
    state=("score",),
    update=latest,
    rank=guarded_score,
    inclusive=lambda values, heads: fixed_window(
        values if heads > 1 else {**values, "scores": "full"}, heads
    ),
    source_share="layer",
    notes="The source decides for a whole layer: replay it with share=layer. The authors' TOVA, "
    "`tova`, evicts in every step and protects nothing, the newest token neither.",
)
