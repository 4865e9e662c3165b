"""TriAttention: how far the model looks, told from where its queries lie before RoPE."""

import math
from typing import Any

import numpy as np

from h2osim.policies.arithmetic import dot
from h2osim.policies.declaration import INF, Array, Policy, Positions
from h2osim.policies.inputs import Numbers, Values, paired_key
from h2osim.policies.rotary import Complex, beside, rotary_of
from h2osim.support.errors import UserError
from h2osim.support.parameters import Param
from h2osim.traces.unit import Unit

STATS = ("q_mean_real", "q_mean_imag", "q_abs_mean")


def centres(unit: Unit, values: Values) -> tuple[Complex, Numbers]:
    """Of each head: the mean of its queries before RoPE as complex pairs, and their mean length,
    [heads, n, pairs], over the queries up to each token, or as a file gives them.
    """
    given: Any = values["stats"]
    if not given:
        queries = rotary_of(unit).complex(unit.plain_queries())
        count = np.arange(1, unit.n + 1)[:, None]
        mean: Complex = np.cumsum(queries, axis=1) / count
        return mean, np.add.accumulate(np.abs(queries), axis=1) / count
    pairs = len(rotary_of(unit).angle)
    heads = slice(unit.heads[0], unit.heads[-1] + 1)
    try:
        real, imaginary, length = (
            np.broadcast_to(given[name][unit.layer, heads][:, None], (len(unit.heads), 1, pairs))
            for name in STATS
        )
    except (KeyError, IndexError, ValueError):
        raise UserError(
            f"policy triattention: stats: expected arrays {', '.join(STATS)}, each [layers, heads, "
            f"{pairs}], with layer {unit.layer} and head {unit.heads[-1]}"
        ) from None
    whole = np.ones((1, unit.n, 1))
    return (real + 1j * imaginary) * whole, length * whole


def asked(unit: Unit, values: Values) -> Numbers:
    """The mean query as RoPE will turn it 1, 2, 4, … positions after the next one, on average."""
    rotary = rotary_of(unit)
    offsets = 2.0 ** np.arange(int(math.log2(int(values["offset_max_length"]))) + 1)
    ahead = rotary.turn(1 + offsets).mean(axis=0)
    now = np.exp(1j * np.arange(unit.n)[:, None] * rotary.angle)
    found = centres(unit, values)[0] * ahead * now
    return beside(found * (1 - int(values["disable_trig"])))


def spread(unit: Unit, values: Values) -> Numbers:
    """By how much queries are longer, pair by pair, than their mean is."""
    mean, length = centres(unit, values)
    found = (length - np.abs(mean) * (1 - int(values["disable_mlr"]))) * rotary_of(unit).stretch
    return np.ascontiguousarray(found.transpose(1, 0, 2).reshape(unit.n, -1))


def rank_cache(
    positions: Positions,
    ranks: Array,
    paired_key: Array,
    asked_now: Array,
    spread_now: Array,
    p: int,
    heads: int,
    normalize_scores: int,
    aggregation: int,
    allow_prefill_compression: int,
) -> None:
    m = len(positions)
    half = len(spread_now) // heads
    groups = paired_key.shape[1] // (2 * half)
    first = 0
    while allow_prefill_compression == 0 and first < m and positions[first] < p:
        first += 1
    for i in range(m):
        ranks[i] = INF if i < first else 0.0
    if first == m:
        return
    for h in range(heads):
        g = h * groups // heads
        far = spread_now[h * half : (h + 1) * half]
        score = np.zeros(m - first)
        for i in range(m - first):
            there = paired_key[positions[first + i], 2 * g * half : 2 * (g + 1) * half]
            score[i] = dot(asked_now[2 * h * half : 2 * (h + 1) * half], there)
            for c in range(half):
                x, y = there[c], there[half + c]
                score[i] += far[c] * math.sqrt(x * x + y * y)
        if normalize_scores == 1:
            mean, square = 0.0, 0.0
            for i in range(len(score)):
                mean += score[i]
            mean = mean / len(score)
            for i in range(len(score)):
                square += (score[i] - mean) * (score[i] - mean)
            score = (score - mean) / max(math.sqrt(square / len(score)), 1e-6)
        for i in range(m - first):
            if aggregation == 1:
                ranks[first + i] += score[i]
            else:
                ranks[first + i] = score[i] if h == 0 else max(ranks[first + i], score[i])


def keep(size: int, k: int, divide_length: int) -> int:
    if size >= k + divide_length:
        return k
    return size


POLICY = Policy(
    name="triattention",
    summary="when the cache is 128 tokens over the budget: keys that the mean query before RoPE, "
    "turned to positions to come, would give most, and long keys where queries differ",
    source="arXiv 2604.04921; WeianMao/triattention",
    params=(
        Param("stats", "", f"{', '.join(STATS)}, each [layers, heads, pairs]; none: means over the "
              "queries so far", "arrays"),
        Param("divide_length", 128, "tokens over the budget at which it evicts", low=1),
        Param("offset_max_length", 65536, "the farthest of the positions looked at, 1, 2, 4, …",
              low=1),
        Param("normalize_scores", 1, "1: each head's scores less their mean, over their deviation",
              high=1),
        Param("aggregation", "max", "over the heads that share a cache", "choice",
              choices=("max", "mean")),
        Param("allow_prefill_compression", 1, "0: the prompt stays", high=1),
        Param("disable_mlr", 0, "1: the whole length of queries counts, not its excess", high=1),
        Param("disable_trig", 0, "1: that alone counts, not the mean query", high=1),
    ),
    vectors={"paired_key": paired_key, "asked": asked, "spread": spread},
    needs=("keys", "queries", "plain_queries"),
    rank_cache=rank_cache,
    keep=keep,
    within_budget=False,
    notes="The source takes means of queries from another text; `stats` has them from a file, by "
    "the model's layers and its recorded heads. There the prompt stays "
    "(`allow_prefill_compression=0`), one choice for each KV head is the mean over all layers, and "
    "ties are broken by noise; here each unit decides for itself, as with "
    "per_layer_perhead_pruning. Angles are NumPy's, so that their last bit is the machine's.",
)  # fmt: skip
