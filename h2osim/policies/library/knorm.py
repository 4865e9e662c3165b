"""Keys of small norm are the ones that get attention."""

from h2osim.policies.declaration import INF, Policy
from h2osim.policies.inputs import key_norm
from h2osim.policies.parameters import shared


def rank(key_norm: float, pos: int, age: int, sinks: int, recent: int) -> float:
    if age < recent or pos < sinks:
        return INF
    return -key_norm


POLICY = Policy(
    name="knorm",
    summary="evict the key of largest L2 norm",
    source="arXiv 2406.11430; kvpress KnormPress",
    params=(shared("recent", 0), shared("sinks", 0)),
    inputs={"key_norm": key_norm},
    needs=("key_norms",),
    rank=rank,
    inclusive=lambda values, heads: values["recent"] == 0 or float(values["recent"]) >= 1,
    notes="The source leaves its first two layers whole. cold-compress protects 4 sinks and the "
    "newest 10 tokens while decoding.",
)
