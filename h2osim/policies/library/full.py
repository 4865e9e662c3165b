"""Keep every token: the reference without any loss."""

from h2osim.policies.declaration import Policy


def keep_all(size: int) -> int:
    return size


def rank(pos: int) -> float:
    return pos


POLICY = Policy(
    name="full",
    summary="keep every token, whatever the budget",
    source="reference",
    rank=rank,
    keep=keep_all,
    inclusive=True,
    within_budget=False,
)
