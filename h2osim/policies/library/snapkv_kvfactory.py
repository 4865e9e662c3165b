"""SnapKV as KVCache-Factory runs it: the heads of a group are one by their sums over the window."""

import numpy as np

from h2osim.policies.arithmetic import around, most_around
from h2osim.policies.declaration import Array, Policy, Positions
from h2osim.policies.parameters import shared
from h2osim.policies.whole_cache import protect
from h2osim.support.parameters import Param


def update_cache(
    positions: Positions, head_row: Array, seen: Array, t: int, p: int, heads: int, window: int
) -> None:
    if p - window <= t < p:
        for j in positions:
            for h in range(heads):
                seen[j][h] += head_row[h][j]


def rank_cache(
    positions: Positions,
    ranks: Array,
    seen: Array,
    heads: int,
    window: int,
    kernel: int,
    pool: int,
    gqa_score_agg: int,
) -> None:
    # Acts at the prompt's end alone, where the cache is the whole prompt: position = slot.
    cut = max(0, len(positions) - window)
    protect(ranks, cut)
    score = np.zeros(cut)
    for i in range(cut):
        for h in range(heads):
            score[i] = max(score[i], seen[i][h]) if gqa_score_agg == 1 else score[i] + seen[i][h]
    for i in range(cut):
        ranks[i] = around(score, i, kernel) if pool == 0 else most_around(score, i, kernel)


POLICY = Policy(
    name="snapkv-kvfactory",
    summary="once, at the prompt's end: the last `window` tokens and those of most pooled "
    "attention from them, of a group's heads the mean or the one that gave a key most",
    source="Zefan-Cai/KVCache-Factory SnapKVCluster, after arXiv 2404.14469",
    params=(
        shared("window", 8),
        shared("kernel", 7),
        Param("pool", "max", "how neighbouring keys are pooled", "choice", choices=("avg", "max")),
        Param("gqa_score_agg", "mean", "over a group's heads, of their sums over the window",
              "choice", choices=("mean", "max")),
        shared("when", "prompt", doc="once at the prompt's end alone", choices=("prompt",)),
    ),
    vector_state={"seen": "heads"},
    update_cache=update_cache,
    rank_cache=rank_cache,
    notes="Defaults are those of its LongBench runner. `snapkv:heads=max` takes the largest head "
    "row by row instead. Its option `sum` decides as `mean` does; `--share head` is its layout "
    "query_head.",
)  # fmt: skip
