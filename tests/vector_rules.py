"""Rules that see vectors, for tests: together they ask for everything that there is."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# Rules are written as a user writes them.

from __future__ import annotations

import math

import numpy as np

from h2osim.policies import inputs
from h2osim.policies.arithmetic import cosine, distance, dot, norm, products, products_with
from h2osim.policies.declaration import Policy
from h2osim.policies.parameters import shared


def unlike_the_mean(key_direction, key_direction_mean, age, recent):
    if age < recent:
        return math.inf
    return -dot(key_direction, key_direction_mean)


KEYDIFF = Policy(
    name="unlike the mean",
    summary="evict the key most like the mean direction (KeyDiff)",
    source="arXiv 2504.15364",
    params=(shared("recent", 2),),
    vectors={"key_direction": inputs.key_direction},
    needs=("keys",),
    rank=unlike_the_mean,
)


def eviction_error(positions, ranks, head_row, value, value_mean, heads):
    for i in range(len(positions)):
        ranks[i] = 0.001 * distance(value[positions[i]], value_mean)
    for h in range(heads):
        output = np.zeros(value.shape[1])
        for j in positions:
            output += head_row[h][j] * value[j]
        for i in range(len(positions)):
            a = head_row[h][positions[i]]
            ranks[i] += a / max(1.0 - a, 1e-6) * distance(value[positions[i]], output)


CAOTE = Policy(
    name="eviction error",
    summary="evict the token whose loss moves the output least (CAOTE)",
    source="arXiv 2504.14051",
    vectors={"value": inputs.value},
    needs=("values",),
    scores="cached",
    rank_cache=eviction_error,
)


def remember(seen, asked, drift, a, query_now, length_mean, heads):
    share = a / heads
    return seen + share, 0.5 * asked + share * query_now, drift + length_mean


def alike(seen, asked, drift, query_now, length, length_now, length_mean):
    return seen * cosine(asked, query_now) + 0.1 * (length - length_mean) / length_now + drift[0]


def begin(query, length):
    return length, query, -length


ASKED = Policy(
    name="asked",
    summary="keep tokens that were looked at by queries like the newest one",
    source="test",
    state=("seen",),
    vector_state={"asked": "query", "drift": "heads"},
    inputs={"length": lambda unit, values: 1 + unit.key_norms()},
    vectors={"query": inputs.query},
    needs=("queries", "key_norms"),
    init=begin,
    update=remember,
    rank=alike,
)


def redundancy(positions, ranks, key, key_now, score, heads):
    pairs = products(key, positions)
    close = products_with(key, positions, key_now)
    for i in range(len(positions)):
        like = 0.0
        for j in range(len(positions)):
            like += pairs[i, j]
        ranks[i] = score[positions[i]] / heads + close[i] - like + norm(key[positions[i]])


def accumulate(score, a):
    return score + a


PAIRS = Policy(
    name="pairs",
    summary="evict what is most like the rest of the cache (R-KV's redundancy)",
    source="arXiv 2505.24133",
    params=(shared("when", "every:3"),),
    state=("score",),
    update=accumulate,
    vectors={"key": inputs.key},
    needs=("keys",),
    rank_cache=redundancy,
    within_budget=False,
)

def expected(plain_query_now, output_norm, key):
    return dot(plain_query_now[: len(key)], key) * output_norm


EXPECTED = Policy(
    name="expected",
    summary="the logit of the newest query as it was before RoPE, times the projected value's size",
    source="test",
    vectors={"plain_query": inputs.plain_query, "key": inputs.key},
    inputs={"output_norm": inputs.output_norm},
    needs=("plain_queries", "keys", "output_norms"),
    rank=expected,
)

RULES = (KEYDIFF, CAOTE, ASKED, PAIRS, EXPECTED)
