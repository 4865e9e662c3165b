"""The generators: imitations of real attention, and the counterexamples of the proofs.

The statements about these counterexamples (tests/statements) take their rows from here before they
are rounded to float16 (C2), or are held equal to them (C3). C4's statement has rows of its own: 1s,
as here, are not what a model's prompt looks like.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from h2osim.support.errors import UserError
from h2osim.support.parameters import Param
from h2osim.traces.generator import (
    Generator,
    HeadRows,
    RandomSource,
    Value,
    normalised,
    power,
    powers,
)

# --- imitations of real patterns -----------------------------------------------------------------


def _powerlaw(n: int, source: RandomSource, values: Mapping[str, Value]) -> HeadRows:
    """Heavy hitters: tokens whose weights follow a power law, with sinks and locality.

    Row t is the mixture

        sink * S_t + local * L_t + (1 - sink - local) * P_t.

    S_t spreads over the first `sinks` tokens, half to the first, a quarter to the second and so
    on; L_t falls by half every `halflife` tokens back from t; P_t is proportional to r_j^-exponent
    over the tokens j <= t, r a random ranking of the n tokens (every head has its own), each entry
    first multiplied by an independent uniform factor in [1 - noise, 1 + noise].
    """
    weights = powers(n, values["exponent"])[source.permutation(n)]
    noise = values["noise"]

    def heavy(start: int, stop: int) -> NDArray[np.float64]:
        factor = 1.0 - noise + 2.0 * noise * source.uniform(stop - start, stop)
        return normalised(weights[:stop] * factor, start)

    return _mixture(n, values, heavy)


def _drift(n: int, source: RandomSource, values: Mapping[str, Value]) -> HeadRows:
    """Topics that change over time: yesterday's heavy hitters are not today's.

    Every token has one of `topics` topics, at random, and a weight r_j^-exponent for its random
    rank r_j. The text is about one topic for `period` tokens, then about another one, at random.
    Row t is a mixture as in `powerlaw`, P_t being proportional to the weights of the tokens of the
    topic in force, and to `leak` times the weights of the others.
    """
    topics, period = int(values["topics"]), int(values["period"])
    weights = powers(n, values["exponent"])[source.permutation(n)]
    topic = source.below(topics, n)
    # each change is to one of the other topics, so that it is a change
    steps = 1 + source.below(max(topics - 1, 1), -(-n // period))
    in_force = np.add.accumulate(steps) % topics

    def heavy(start: int, stop: int) -> NDArray[np.float64]:
        now = in_force[np.arange(start, stop) // period]
        share = np.where(topic[None, :stop] == now[:, None], 1.0, values["leak"])
        return normalised(weights[:stop] * share, start)

    return _mixture(n, values, heavy)


def _mixture(n: int, values: Mapping[str, Value], heavy: HeadRows) -> HeadRows:
    """Rows sink * S_t + local * L_t + (1 - sink - local) * `heavy`, normalised: see `powerlaw`."""
    sink, local = values["sink"], values["local"]
    if sink + local > 1:
        raise UserError(f"generator: sink={sink:g}, local={local:g}: expected a sum up to 1")
    sinks = int(values["sinks"])
    near = np.empty(n)
    near[0] = 1.0
    near[1:] = power(2, -1.0 / values["halflife"])
    near = np.multiply.accumulate(near)
    first = np.multiply.accumulate(np.full(sinks, 0.5)) if sinks else np.ones(1)

    def rows(start: int, stop: int) -> NDArray[np.float64]:
        t, j = np.arange(start, stop)[:, None], np.arange(stop)[None, :]
        back = np.where(j <= t, near[np.maximum(t - j, 0)], 0.0)
        to_first = np.zeros((stop - start, stop))
        width = min(len(first), stop)
        to_first[:, :width] = first[:width]
        mixed = (
            sink * normalised(to_first, start)
            + local * normalised(back, start)
            + (1.0 - sink - local) * heavy(start, stop)
        )
        return normalised(mixed, start)

    return rows


# --- the counterexamples of the proofs -----------------------------------------------------------


def _freeze(n: int, source: RandomSource, values: Mapping[str, Value]) -> HeadRows:
    """C1, the freeze: attention looks one token back, the frozen cache holds the first k.

    A[0,0] = 1, then A[t,t] = own and A[t,t-1] = 1 - own. The printed Algorithm 1 of the H2O paper
    gives a new token the score 0, so it always drops the new token and keeps the first k for ever:
    from step k+1 on its recall is `own`, while one slot for the latest token gives 1. Nothing is
    random.
    """
    own = values["own"]

    def rows(start: int, stop: int) -> NDArray[np.float64]:
        block = np.zeros((stop - start, stop))
        t = np.arange(max(start, 1), stop)
        block[t - start, t] = own
        block[t - start, t - 1] = 1.0 - own
        if start == 0:
            block[0, 0] = 1.0
        return block

    return rows


def _trap(n: int, source: RandomSource, values: Mapping[str, Value]) -> HeadRows:
    """C2, the trap for k = 1: one early row makes H2O drop the token that will matter.

    A[0,0] = 1; row 1 is (0.6, 0.4); from then on A[t,1] = 1 - d and A[t,0] = A[t,t] = d/2. With
    k = 1 and no recent window, accumulated scores 1.6 and 0.4 drop token 1 after step 1; it never
    comes back. The accumulated mass of the token kept, over that of token 1 (which another schedule
    keeps), falls towards 0 as n grows: 0.47, 0.034, 0.0037 at n = 5, 50, 500 for d = 0.001. Nothing
    is random.
    """
    d = values["d"]

    def rows(start: int, stop: int) -> NDArray[np.float64]:
        block = np.zeros((stop - start, stop))
        t = np.arange(max(start, 2), stop)
        if len(t):
            block[t - start, 0] = block[t - start, t] = d / 2
            block[t - start, 1] = 1.0 - d
        if start == 0:
            block[0, 0] = 1.0
            if stop > 1:
                block[1, :2] = 0.6, 0.4
        return block

    return rows


def _needle(n: int, source: RandomSource, values: Mapping[str, Value]) -> HeadRows:
    """C4, the needle: many tokens that nothing tells apart, then all attention on one of them.

    A[t,t] = 1 for t < tokens; the needle is one of these tokens, at random with every seed, layer
    and head (or `at` when that is not -1), and A[t,needle] = 1 from then on. Whatever a policy
    does online, the needle is among its k with probability at most k/tokens; an optimum that sees
    the future keeps it with one slot. The prompt's length is set to `tokens`, so that the recall of
    a replay is the share of needles kept.
    """
    tokens, at = int(values["tokens"]), int(values["at"])
    if tokens > n or at >= tokens:
        raise UserError(f"generator needle: tokens={tokens}, at={at}: expected at < tokens <= {n}")
    needle = int(source.below(tokens, 1)[0]) if at < 0 else at

    def rows(start: int, stop: int) -> NDArray[np.float64]:
        t = np.arange(start, stop)
        block = np.zeros((stop - start, stop))
        block[t - start, np.where(t < tokens, t, needle)] = 1.0
        return block

    return rows


def _coverage(n: int, source: RandomSource, values: Mapping[str, Value]) -> HeadRows:
    """C3, coverage: where the one-swap greedy of a shared cache keeps k/(2k-1) of the optimum.

    Where heads share a cache, a set of tokens may be worth less than its tokens one by one. Let the
    worth of a set T at step t be how well it covers the heads in the current row,

        f_t(T) = sum over heads h of min(1/2, sum_{j in T} A_h[t, j]),

    monotone and submodular, not modular. The unit has M = copies heads for each of x_1 ... x_k, to
    be covered by x_i alone, and M + 1 heads for each of y_1 ... y_k, to be covered by y_i or by Z:
    so a y weighs 1 + 1/M of an x (copies = 0: one head each, equal weights, and ties decide, the
    oldest going first). Tokens in order of arrival: x_1 ... x_k (0 ... k-1), y_1 ... y_k
    (k ... 2k-1), Z (2k), then tokens that no head attends to. The rows:

    * t < 2k: the heads of x_m attend to x_m, those of y_m to y_m; before y_m has arrived to x_m,
      and before x_m has arrived (nothing is evicted so early) to token 0. When y_i arrives, it
      takes heads from x_i, which is then worth least: the greedy swaps x_i for y_i, and holds the
      best k tokens at every step;
    * t >= 2k: the heads of x_m on x_m, those of y_m half on y_m, half on Z. The greedy holds all
      of the y, which Z only repeats: no swap gains anything, its worth stays k(M+1)/2. The best k
      tokens are Z and k-1 of the x: (k(M+1) + (k-1)M)/2.

    The ratio is k(M+1) / (k(M+1) + (k-1)M), which falls to k/(2k-1) as M grows (and equals it for
    copies = 0). It is below 1 - 1/e = .632 for k = 3 from copies = 8 on. Nothing is random; the
    number of heads is fixed, all in one group: k(2M+1), or 2k for copies = 0. Replay it with k
    slots.
    """
    k, copies = int(values["k"]), int(values["copies"])
    of_x, of_y = (copies, copies + 1) if copies else (1, 1)
    is_x = source.head < k * of_x
    member = source.head // of_x if is_x else (source.head - k * of_x) // of_y

    def rows(start: int, stop: int) -> NDArray[np.float64]:
        block = np.zeros((stop - start, stop))
        for t in range(start, stop):
            row = block[t - start]
            if t >= 2 * k and not is_x:
                row[[k + member, 2 * k]] = 0.5
            elif t >= k + member and not is_x:
                row[k + member] = 1.0
            else:
                row[member if t >= member else 0] = 1.0
        return block

    return rows


def _coverage_heads(values: Mapping[str, Value]) -> int:
    k, copies = int(values["k"]), int(values["copies"])
    return k * (2 * copies + 1) if copies else 2 * k


_PATTERN = (
    Param("sink", 0.2, "share of each row on the first tokens", "float", 0, 1),
    Param("sinks", 4, "how many first tokens are sinks", "int", 1),
    Param("local", 0.3, "share of each row on near tokens", "float", 0, 1),
    Param("halflife", 8.0, "tokens back over which locality falls by half", "float", 0.01),
)

GENERATORS: dict[str, Generator] = {
    g.name: g
    for g in (
        Generator(
            "powerlaw",
            "heavy hitters with power-law weights, plus sinks and locality",
            _powerlaw,
            (
                Param("exponent", 1.0, "of the power law; 0: all tokens alike", "float", 0, 16),
                *_PATTERN,
                Param("noise", 0.5, "relative spread of every entry", "float", 0, 1),
            ),
        ),
        Generator(
            "drift",
            "topics that change over time, each with its own heavy hitters",
            _drift,
            (
                Param("topics", 8, "number of topics", "int", 1),
                Param("period", 1, "tokens on one topic", "int", 1),
                Param("leak", 0.02, "weight of tokens of another topic", "float", 0.0, 1),
                Param("exponent", 1.0, "of the power law within a topic", "float", 0, 16),
                *_PATTERN,
            ),
            sized={"period": lambda n: max(1, n // 16)},
        ),
        Generator(
            "needle",
            "C4: tokens nothing tells apart, then all attention on one of them",
            _needle,
            (
                Param("tokens", 1, "symmetric tokens, the prompt", "int", 1),
                Param("at", -1, "position of the needle; -1: at random", "int", -1),
            ),
            sized={"tokens": lambda n: max(1, n // 2)},
            prompt_len=lambda values: int(values["tokens"]),
        ),
        Generator(
            "freeze",
            "C1: attention one token back, where the printed Algorithm 1 keeps the first k",
            _freeze,
            (Param("own", 0.25, "share of a row on its own token", "float", 0, 1),),
        ),
        Generator(
            "trap",
            "C2: one early row makes H2O with k = 1 drop the token that will matter",
            _trap,
            (Param("d", 0.001, "what the trapped token does not get", "float", 0, 1),),
        ),
        Generator(
            "coverage",
            "C3: heads sharing a cache, where the one-swap greedy keeps k/(2k-1) of the best",
            _coverage,
            (
                Param("k", 3, "slots of the cache the instance is made for", "int", 1, 64),
                Param("copies", 8, "M heads an x, M+1 a y; 0: one each, all tie", "int", 0, 256),
            ),
            heads=_coverage_heads,
            least=lambda values: 2 * int(values["k"]) + 1,
        ),
    )
}
"""All generators by name."""
