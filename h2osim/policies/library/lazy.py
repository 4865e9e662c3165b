"""LazyEviction: tokens that come back after long pauses are kept through their pauses."""

from h2osim.policies.arithmetic import sigmoid
from h2osim.policies.declaration import INF, Policy
from h2osim.policies.parameters import shared
from h2osim.support.parameters import Param


def init(t: int) -> tuple[float, float]:
    return t, 1.0


def update(
    last: float, pause: float, a: float, t: int, heads: int, alpha: float
) -> tuple[float, float]:
    if a / heads > alpha:
        return t, max(pause, t - last)
    return last, pause


def rank(last: float, pause: float, t: int, age: int, window: int) -> float:
    if age < window:
        return INF
    return 2.0 * sigmoid((last - t) / pause) + 2.0 * sigmoid(-1.0 / pause)


def keep(size: int, t: int, k: int, p: int, window: int) -> int:
    if (t - p + 1) % window == 0:
        return k
    return size


POLICY = Policy(
    name="lazy",
    summary="every `window` steps evict to k by how long a token has been idle, against its "
    "longest pause so far",
    source="arXiv 2506.15969 (LazyEviction)",
    params=(
        shared("window", 16, doc="steps between evictions; as many newest tokens stay"),
        Param("alpha", 1e-4, "attention above which a token counts as used", "float", 0, 1),
        shared("scores", "cached"),
    ),
    state=("last", "pause"),
    init=init,
    update=update,
    rank=rank,
    keep=keep,
    inclusive=lambda values, heads: values["scores"] == "full",
    within_budget=False,
    notes="Rank 2σ(-(t - last)/pause) + 2σ(-1/pause), pauses from 1 on; a unit's attention is the "
    "mean over its heads. Between evictions up to k + window - 1 tokens are held.",
)
