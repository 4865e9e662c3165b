"""Keep the newest k tokens: a sliding window."""

from h2osim.policies.declaration import Policy


def rank(pos: int) -> float:
    return pos


POLICY = Policy(
    name="recency",
    summary="keep the newest k tokens (window attention)",
    source="baseline",
    rank=rank,
    inclusive=True,
)
