"""H2O's LLaMA evaluation code: heavy hitters of the whole text, its future included."""

from h2osim.policies.declaration import INF, Policy
from h2osim.policies.inputs import place
from h2osim.policies.parameters import shared


def rank(place: float, age: int, k: int, recent: int) -> float:
    if place < k - recent or age < recent:
        return INF
    return -INF


POLICY = Policy(
    name="h2o-global",
    summary="oracle: the k - recent columns of most attention over all rows, and the newest",
    source="FMInference/H2O utils_lm_eval, LLaMA at HEAD",
    params=(shared("recent", 0.5),),
    inputs={"place": place},
    rank=rank,
    expires=True,
    oracle=True,
    notes="Sizes are shares of the budget here, of the whole text in the source. A column outside "
    "the chosen ones leaves when its window ends, even where there is room.",
)
