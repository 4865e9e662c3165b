"""CAOTE: the token whose loss moves the attention's output least."""

import numpy as np

from h2osim.policies.arithmetic import distance
from h2osim.policies.declaration import INF, Array, Policy
from h2osim.policies.inputs import value
from h2osim.policies.parameters import shared


def rank_cache(
    positions: Array,
    ranks: Array,
    head_row: Array,
    value: Array,
    t: int,
    heads: int,
    sinks: int,
    recent: int,
) -> None:
    m = len(positions)
    for i in range(m):
        ranks[i] = 0.0
    for h in range(heads):
        output = np.zeros(value.shape[1])
        for i in range(m):
            output += head_row[h][positions[i]] * value[positions[i]]
        for i in range(m):
            a = head_row[h][positions[i]]
            ranks[i] += a / max(1.0 - a, 1e-9) * distance(value[positions[i]], output)
    for i in range(m):
        if t - positions[i] < recent or positions[i] < sinks:
            ranks[i] = INF


POLICY = Policy(
    name="caote",
    summary="evict the token without which the newest query's output changes least: "
    "a / (1 - a) |v - o|",
    source="arXiv 2504.14051",
    params=(shared("recent", 0), shared("scores", "cached"), shared("sinks", 0)),
    vectors={"value": value},
    needs=("values",),
    rank_cache=rank_cache,
    notes="The paper puts this on top of another rule's scores; here they are the newest row, as "
    "with TOVA. Heads that share a cache are added. The paper decides for each KV head: with "
    "share=layer a head's output is taken over the values of all KV heads, side by side, so that "
    "values of heads that it never reads count too. No code of the authors is public.",
)
