"""VATP: accumulated attention times the size of the value it would fetch."""

from h2osim.policies.arithmetic import accumulate
from h2osim.policies.declaration import INF, Policy, fixed_window
from h2osim.policies.inputs import value_norm
from h2osim.policies.parameters import shared


def rank(score: float, value_norm: float, pos: int, age: int, sinks: int, recent: int) -> float:
    if age < recent or pos < sinks:
        return INF
    return score * value_norm


POLICY = Policy(
    name="vatp",
    summary="accumulated attention times the L1 norm of the value; sinks and recent tokens stay",
    source="arXiv 2406.12335",
    params=(shared("recent", 0.5), shared("scores", "cached"), shared("sinks", 20)),
    state=("score",),
    inputs={"value_norm": value_norm},
    needs=("value_norms",),
    update=accumulate,
    rank=rank,
    inclusive=fixed_window,
    notes="The source's code runs on H2O's masks and puts the sinks inside the heavy half.",
)
