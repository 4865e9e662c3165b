"""Expected Attention: what queries to come will look at, if they are like those so far."""

import math

import numpy as np

from h2osim.policies.arithmetic import dot, softmax
from h2osim.policies.declaration import INF, Array, Policy, Positions
from h2osim.policies.inputs import Numbers, Values, paired_key, paired_query, value_length
from h2osim.policies.parameters import shared
from h2osim.policies.rotary import rotary_of
from h2osim.support.parameters import Param
from h2osim.traces.unit import Unit


def ahead(unit: Unit, values: Values) -> Numbers:
    """By how much RoPE turns the next n_future_positions positions, on average: cosines, sines."""
    rotary = rotary_of(unit)
    steps = np.arange(1, int(values["n_future_positions"]) + 1)
    mean = rotary.turn(steps).mean(axis=0) * np.exp(
        1j * np.arange(unit.n)[:, None] * rotary.angle
    )
    return np.concatenate([mean.real, mean.imag], axis=1)


def turned_back(key: Array, ahead: Array) -> Array:
    # q turned by r, times k, is q times this
    half = len(key) // 2
    x, y, cos, sin = key[:half], key[half:], ahead[:half], ahead[half:]
    return np.concatenate((cos * x + sin * y, cos * y - sin * x))


def expected(
    positions: Positions, key: Array, query: Array, ahead: Array, use_covariance: int
) -> Array:
    # Softmax over these keys of the mean logit of queries q ~ Normal(mean, covariance), to which
    # their spread adds half of its variance.
    d = query.shape[1]
    mean = np.zeros(d)
    for s in range(len(query)):
        mean += query[s]
    mean /= len(query)
    spread = np.zeros((d, d))
    for s in range(len(query) * use_covariance):
        off = query[s] - mean
        for c in range(d):
            spread[c] += off[c] * off
    found = np.zeros(len(positions))
    for i in range(len(positions)):
        back = turned_back(key[positions[i]], ahead)
        moved = np.zeros(d)
        for c in range(d * use_covariance):
            moved += back[c] * spread[c]
        found[i] = dot(mean, back) / math.sqrt(d) + dot(moved, back) / len(query) / d / 2.0
    softmax(found)
    return found


def rank_cache(
    positions: Positions,
    ranks: Array,
    paired_key: Array,
    paired_query: Array,
    ahead_now: Array,
    value_length: Array,
    t: int,
    heads: int,
    sinks: int,
    use_covariance: int,
    use_vnorm: int,
    epsilon: float,
) -> None:
    m = len(positions)
    first = 0
    while first < m and positions[first] < sinks:
        first += 1
    for i in range(m):
        ranks[i] = INF if i < first else 0.0
    if first == m:
        return
    d = len(ahead_now)
    groups = paired_key.shape[1] // d
    for h in range(heads):
        g = h * groups // heads
        found = expected(
            positions[first:],
            paired_key[:, g * d : (g + 1) * d],
            paired_query[sinks : t + 1, h * d : (h + 1) * d],
            ahead_now,
            use_covariance,
        )
        for i in range(first, m):
            ranks[i] += found[i - first] / heads
    for i in range(first, m):
        if use_vnorm == 1:
            ranks[i] = (ranks[i] + epsilon) * value_length[positions[i]]


POLICY = Policy(
    name="expected-attention",
    summary="once, at the prompt's end: most attention expected from the next 512 positions, whose "
    "queries are taken to spread as those so far, times the L2 norm of the value",
    source="arXiv 2510.00636; kvpress ExpectedAttentionPress",
    params=(
        Param("n_future_positions", 512, "positions after the newest that are looked at", low=1),
        shared("sinks", 4, doc="oldest tokens, which stay and whose queries do not count"),
        Param("use_covariance", 1, "1: the spread of queries counts; 0: their mean alone", high=1),
        Param("use_vnorm", 1, "1: times the norm of the value; 0: not", high=1),
        Param("epsilon", 0.0, "added before the value's norm is multiplied", "float", 0, 1),
        shared("when", "prompt"),
    ),
    inputs={"value_length": value_length},
    vectors={"paired_key": paired_key, "paired_query": paired_query, "ahead": ahead},
    needs=("keys", "queries", "plain_queries", "value_norms"),
    rank_cache=rank_cache,
    notes="The mean over a unit's heads; of several KV heads the norms of values are added. RoPE "
    "is read off from the queries before and after it, and logits have the scale 1/√d. While "
    "decoding (`when=every:m`) all queries so far count; kvpress's DecodingPress takes the last "
    "256. Angles are NumPy's, so that their last bit is the machine's.",
)
