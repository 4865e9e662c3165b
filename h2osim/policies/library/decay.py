"""Accumulated attention that forgets (A2SF)."""

from h2osim.policies.arithmetic import fade, guarded_score
from h2osim.policies.declaration import Policy, fixed_window
from h2osim.policies.parameters import shared

POLICY = Policy(
    name="decay",
    summary="accumulated attention with the forgetting factor gamma: 1 is H2O, 0 is TOVA",
    source="arXiv 2407.20485 (A2SF)",
    params=(
        shared("gamma", 0.98),
        shared("recent", 0.5),
        shared("scores", "cached"),
        shared("sinks", 0),
    ),
    state=("score",),
    update=fade,
    rank=guarded_score,
    inclusive=fixed_window,
    notes="The old score is multiplied, the new row counts in full. The default of gamma is ours.",
)
