"""H2O, the canonical rule: heavy hitters by accumulated attention, and a recent window."""

from h2osim.policies.arithmetic import accumulate, guarded_score
from h2osim.policies.declaration import Policy, fixed_window
from h2osim.policies.parameters import shared

POLICY = Policy(
    name="h2o",
    summary="evict the least accumulated attention outside the newest `recent` tokens",
    source="arXiv 2306.14048 (Fig. 3 and all of its code)",
    params=(
        shared("recent", 0.5),
        shared("scores", "cached"),
        shared("sinks", 0),
        shared("when", "always"),
    ),
    state=("score",),
    update=accumulate,
    rank=guarded_score,
    inclusive=fixed_window,
    notes="Accumulation starts at row 0 and counts a token's attention to itself, as the code "
    "does; the printed algorithms are h2o-alg1 and h2o-alg2. `recent=32,scores=full` is the form "
    "whose every budget comes from one pass. `when=prompt` is the prompt-only form of "
    "KVCache-Factory.",
)
