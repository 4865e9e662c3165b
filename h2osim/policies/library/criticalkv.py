"""CriticalKV: half of the budget by attention, the rest by what a token would add to the output."""

import numpy as np

from h2osim.policies.arithmetic import observed
from h2osim.policies.declaration import INF, Array, Policy
from h2osim.policies.inputs import output_norm
from h2osim.policies.parameters import shared
from h2osim.policies.whole_cache import snapkv_scores
from h2osim.support.parameters import Param


def rank_cache(
    positions: Array,
    ranks: Array,
    score: Array,
    output_norm: Array,
    k: int,
    window: int,
    kernel: int,
    first: float,
    epsilon: float,
) -> None:
    # Acts at the prompt's end alone, where the cache is the whole prompt: position = slot.
    m = len(positions)
    by_score = snapkv_scores(score, m, window, kernel)
    order = np.argsort(by_score, kind="mergesort")
    for i in range(m):
        ranks[i] = (by_score[i] + epsilon) * output_norm[i]
    for place in range(max(0, m - max(1, int(first * k))), m):
        ranks[order[place]] = INF


POLICY = Policy(
    name="criticalkv",
    summary="once, at the prompt's end: a share of the budget by SnapKV's score, the rest by score "
    "times the L1 norm of the projected value",
    source="arXiv 2502.03805; kvpress CriticalKVPress(SnapKVPress())",
    params=(
        Param("first", 0.5, "share of the budget that goes by the score alone", "float", 0, 1),
        Param("epsilon", 1e-4, "added to the score before it is multiplied", "float", 0, 1),
        shared("window", 64),
        shared("kernel", 5),
        shared("when", "prompt", doc="once at the prompt's end alone", choices=("prompt",)),
    ),
    scores="cached",
    state=("score",),
    inputs={"output_norm": output_norm},
    needs=("output_norms",),
    update=observed,
    rank_cache=rank_cache,
    notes="A token of the window scores one more than the largest score, in the source of all "
    "heads of the layer, here of the unit.",
)
