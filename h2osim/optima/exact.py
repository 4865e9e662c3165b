"""The exact optimum of all budgets of a unit up to the largest one asked for, in one run.

With attention A >= 0 it never pays to evict early, so at budget k one token leaves after every step
t = k ... n-2, at the loss C[t, v] = sum of A[u, v] over the rows u > t: a least-cost assignment of
tokens to steps (proofs/11-offline-optimum-is-an-assignment.md). After a prompt of p rows, the first
eviction (after step p-1) drops p-k tokens at once and only rows t >= p count.

Neighbouring budgets differ by one step, hence by one shortest path: budget k+1 takes away the first
step of budget k, whose token displaces others until one of them is kept to the end. The run starts
at budget 0, where every token leaves at once, and passes through the optimum of every budget on its
way; its dual variables are prices that prove each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from h2osim.attention.triangle import tri
from h2osim.traces.unit import Unit

Ints = NDArray[np.int64]

# What a run costs, in nanoseconds (one core of an AMD EPYC, n = 2048 and 4096, five real units):
# the matrix takes BUILD an entry of the square, and the search of one budget SEARCH a token
# (125-295 seen). Only their ratio to bracket.CLOSING matters, see `h2osim bench optimum`.
BUILD = 4.0
SEARCH = 220.0


@dataclass(frozen=True)
class OptimalCurve:
    """OPT(k) in fixed point for every budget, and schedules and prices for some of them.

    ``kept`` int64 [n+1]: the decode mass an optimal schedule keeps at budgets 0 ... n, -1 where it
    was not solved. ``whole``: all decode mass. ``evicted_at[k]`` int32 [n]: the step after
    which each token leaves, n if never. ``price[k]`` int64 [n]: prices λ with D(λ) = kept[k].
    """

    kept: Ints
    whole: int
    evicted_at: dict[int, NDArray[np.int32]]
    price: dict[int, Ints]


def running_cost(n: int, most: int) -> float:
    """About how many nanoseconds `optimal_curve` takes up to budget `most`."""
    most = min(most, n - 1)
    return BUILD * n * n + SEARCH * most * (n - most / 2)


def optimal_curve(
    unit: Unit, prompt_len: int, *, wanted: Sequence[int] = (), most: int | None = None
) -> OptimalCurve:
    """The optimum of every budget from 0 up to `most` (n), with schedules and prices for `wanted`.

    Memory: n² / 2 int64 numbers, and n / 64 of them a token.
    """
    from h2osim.optima import exact_loops

    n, first = unit.n, prompt_len - 1
    mass, peak = np.zeros(n, np.int64), np.zeros(n, np.int64)
    begin = np.maximum(np.arange(n), first)  # the first step after which each token may leave
    size = n - 1 - begin
    column = np.cumsum(size) - size - begin
    past = np.empty(int(size.sum()), np.int64)
    for block in unit.blocks():
        exact_loops.add_rows(
            block.bits, tri(block.first), block.start, block.stop, first, mass, peak, column, past
        )
    order = np.array(sorted({k for k in wanted if k <= n - 1}), np.int64)
    loss = np.zeros(n + 1, np.int64)
    gone = np.full((len(order), n), n, np.int32)
    dual = np.zeros((len(order), n), np.int64)
    most = min(n - 1, max([n if most is None else most, *order.tolist()]))
    if prompt_len < n:
        exact_loops.solve(past, column, mass, peak, first, most, order, loss, gone, dual)
    kept = int(mass.sum()) - loss
    kept[most + 1 : n - 1] = -1
    schedules = {k: np.full(n, n, np.int32) for k in wanted if k > n - 1}
    prices = {k: np.zeros(n, np.int64) for k in schedules}
    for i, k in enumerate(order.tolist()):
        schedules[k] = gone[i]
        prices[k] = slot_prices(dual[i], max(k, first))
    return OptimalCurve(kept, int(kept[n]), schedules, prices)


def slot_prices(dual: Ints, first: int) -> Ints:
    """λ[t] = u[t-1] - u[t] from the duals u of the steps first ... n-2, with u[n-1] = 0.

    An optimal u never grows with t: with v <= s <= t, C[s, v] >= C[t, v], so raising u[s] to u[t]
    would stay feasible and be worth more. Hence λ >= 0.
    """
    n = len(dual)
    price = np.zeros(n, np.int64)
    if first < n - 1:
        price[first + 1 : n - 1] = dual[first : n - 2] - dual[first + 1 : n - 1]
        price[n - 1] = dual[n - 2]
    return price
