"""Keep a uniform k-subset of the tokens."""

from h2osim.policies.declaration import Policy
from h2osim.policies.inputs import noise
from h2osim.policies.parameters import shared


def rank(noise: float) -> float:
    return noise


POLICY = Policy(
    name="random",
    summary="a fixed random rank per token: the cache is a uniform k-subset (reservoir sampling)",
    source="baseline",
    params=(shared("seed", 0),),
    inputs={"noise": noise},
    rank=rank,
    inclusive=True,
)
