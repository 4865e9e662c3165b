"""StreamingLLM: attention sinks and a sliding window."""

from h2osim.policies.declaration import Policy
from h2osim.policies.parameters import shared

BEYOND = 2**40  # above every position


def rank(pos: int, sinks: int) -> float:
    if pos < sinks:
        return BEYOND - pos  # where the budget is less than the sinks, the first of them stay
    return pos


POLICY = Policy(
    name="streaming",
    summary="keep the first `sinks` tokens and the newest k - sinks (StreamingLLM)",
    source="arXiv 2309.17453",
    params=(shared("sinks", 4),),
    rank=rank,
    inclusive=True,
    notes="Positions are those of the text; the source re-numbers them inside the cache, which "
    "changes later layers but not a replay.",
)
