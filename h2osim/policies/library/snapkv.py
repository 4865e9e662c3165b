"""SnapKV: the prompt's last rows choose, once, which keys of the prompt stay."""

from h2osim.policies.arithmetic import once_after_prompt
from h2osim.policies.declaration import INF, Array, Policy
from h2osim.policies.parameters import shared


def update(score: float, a: float, t: int, p: int, window: int) -> float:
    if p - window <= t < p:
        return score + a
    return score


def rank_cache(
    positions: Array, ranks: Array, score: Array, p: int, window: int, kernel: int
) -> None:
    # Only ever called at the prompt's end, when the cache is the whole prompt: position = slot.
    cut = p - window
    for j in range(len(positions)):
        if j >= cut:
            ranks[j] = INF
            continue
        pooled = 0.0
        for i in range(max(0, j - kernel // 2), min(cut, j + kernel // 2 + 1)):
            pooled += score[i]
        ranks[j] = pooled


POLICY = Policy(
    name="snapkv",
    summary="once, at the prompt's end: keep the last `window` tokens and the k - window of most "
    "pooled attention from them",
    source="arXiv 2404.14469",
    params=(shared("window", 64), shared("kernel", 5)),
    state=("score",),
    update=update,
    rank_cache=rank_cache,
    keep=once_after_prompt,
    inclusive=True,
    within_budget=False,
    notes="Average pooling with zeros beyond the borders, over the keys before the window. Nothing "
    "is evicted later, so the cache grows while decoding.",
)
