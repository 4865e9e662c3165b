"""ChunkKV: the prompt is kept or dropped in whole chunks."""

import numpy as np

from h2osim.policies.arithmetic import observed
from h2osim.policies.declaration import INF, Array, Policy
from h2osim.policies.parameters import shared
from h2osim.policies.whole_cache import snapkv_scores
from h2osim.support.parameters import Param


def keep(size: int) -> int:
    return size  # chunks expire


def rank_cache(
    positions: Array,
    ranks: Array,
    score: Array,
    t: int,
    k: int,
    p: int,
    window: int,
    kernel: int,
    chunk: int,
) -> None:
    m = len(positions)
    for i in range(m):
        ranks[i] = INF
    if t != p - 1:
        return
    # At the prompt's end position = slot.
    by_score = snapkv_scores(score, m, window, kernel)
    chunks = (m + chunk - 1) // chunk
    mean = np.zeros(chunks)
    for c in range(chunks):
        stop = min(m, (c + 1) * chunk)
        for i in range(c * chunk, stop):
            mean[c] += by_score[i]
        mean[c] = mean[c] / (stop - c * chunk)
    order = np.argsort(mean, kind="mergesort")
    for i in range(m):
        ranks[i] = -INF
    for place in range(max(0, chunks - max(1, chunks * k // p)), chunks):
        c = order[place]
        for i in range(c * chunk, min(m, (c + 1) * chunk)):
            ranks[i] = INF


POLICY = Policy(
    name="chunkkv",
    summary="once, at the prompt's end: the chunks of largest mean SnapKV score, each kept whole",
    source="arXiv 2502.00299; kvpress ChunkKVPress(SnapKVPress())",
    params=(
        Param("chunk", 20, "tokens of a chunk", "int", 1),
        shared("window", 64),
        shared("kernel", 5),
    ),
    scores="cached",
    state=("score",),
    update=observed,
    keep=keep,
    rank_cache=rank_cache,
    expires=True,
    within_budget=False,
    source_share="layer",
    notes="Of c chunks the c k / p best stay, rounded down, and at least one, so that less than a "
    "chunk is exceeded. The source decides for a whole layer: replay it with share=layer; tokens "
    "of the window count more than the largest score of any head, here of the heads' sum. That "
    "layers take over another one's choice is left out.",
)
