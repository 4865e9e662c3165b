"""Evict the token that the rest of the text attends least."""

from h2osim.policies.declaration import Policy
from h2osim.policies.inputs import total


def init(total: float) -> float:
    return total


def update(left: float, a: float) -> float:
    return left - a


def rank(left: float) -> float:
    return left


POLICY = Policy(
    name="future",
    summary="oracle: evict the token of least remaining attention mass",
    source="reference",
    inputs={"total": total},
    state=("left",),
    init=init,
    update=update,
    rank=rank,
    oracle=True,
    inclusive=True,
)
