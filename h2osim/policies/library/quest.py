"""Quest: every step reads the pages whose keys could give its query most."""

import numpy as np

from h2osim.policies.declaration import Array, Policy
from h2osim.policies.inputs import key, query
from h2osim.support.parameters import Param


def rank_cache(
    positions: Array,
    ranks: Array,
    key: Array,
    query_now: Array,
    heads: int,
    page: int,
) -> None:
    # Nothing is ever evicted: position = slot.
    m = len(positions)
    d = query_now.shape[0] // heads
    groups = key.shape[1] // d
    for start in range(0, m, page):
        stop = min(m, start + page)
        low, high = key[start].copy(), key[start].copy()
        for j in range(start, stop):
            low = np.minimum(low, key[j])
            high = np.maximum(high, key[j])
        bound = 0.0
        for h in range(heads):
            g = h * groups // heads
            for c in range(d):
                x = query_now[h * d + c]
                bound += max(x * low[g * d + c], x * high[g * d + c])
        for j in range(start, stop):
            ranks[j] = bound


POLICY = Policy(
    name="quest",
    summary="each step attends the k earlier tokens in the pages of largest bound on q·k, chosen "
    "anew: a selection, nothing leaves memory",
    source="arXiv 2406.10774",
    params=(Param("page", 16, "tokens of a page", "int", 1),),
    vectors={"key": key, "query": query},
    needs=("keys", "queries"),
    rank_cache=rank_cache,
    readmits=True,
    oracle=True,
    notes="A page's bound is the sum over dimensions of the larger of q·min and q·max. Where k is "
    "no whole number of pages, the newest tokens of the last one are read. The source chooses for "
    "each head (share=head) and leaves two layers whole; here a unit's heads are added.",
)
