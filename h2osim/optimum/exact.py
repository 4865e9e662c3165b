"""The exact optimum of every budget of a unit, in one run.

With attention A >= 0 it never pays to evict early, so at budget k one token leaves after every step
t = k ... n-2, at the loss C[t, v] = sum over the rows u > t of A[u, v]: a least-cost assignment of
tokens to steps. One budget less adds one step, so adding steps from the last one down, each by one
shortest augmenting path, passes through the optimum of every budget. After a prompt of p rows, the
first eviction (node p-1) drops p-k tokens at once and only rows t >= p count. The compiled solver,
and why it does not cost n^3, is in `h2osim.optimum._exact`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from h2osim.fixedpoint import tri
from h2osim.trace import Unit

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Curve:
    """OPT(k) in fixed point for every budget, and what was asked about some of them.

    ``kept`` int64 [n+1]: the decode mass an optimal schedule keeps at budgets 0 ... n, -1 below the
    least budget solved. ``whole``: all decode mass. ``evicted_at[k]`` int32 [n]: the step after
    which each token leaves, n if never. ``price[k]`` int64 [n]: prices λ with D(λ) = kept[k].
    """

    kept: Ints
    whole: int
    evicted_at: dict[int, NDArray[np.int32]]
    price: dict[int, Ints]


def future_mass(unit: Unit, prompt_len: int) -> tuple[Ints, Ints]:
    """C, packed int64, and the decode mass that each token receives, int64 [n].

    Row t = prompt_len-1 ... n-2 of C: the mass that the rows after t give to tokens 0 ... t.
    """
    from h2osim._scan import FIXED
    from h2osim.optimum import _exact

    n, first = unit.n, prompt_len - 1
    mass = np.zeros(n, np.int64)
    later = np.empty(max(0, tri(n - 1) - tri(first)), np.int64)
    for block in unit.blocks():
        base = tri(block.first)
        _exact.add_rows(block.bits, base, block.start, block.stop, first, FIXED, mass, later)
    _exact.turn(later, first, mass)
    return later, mass


def curve(
    unit: Unit,
    prompt_len: int,
    *,
    wanted: Sequence[int] = (),
    least: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Curve:
    """The optimum of every budget from n down to `least`, with schedules and prices for `wanted`.

    Memory: n² / 2 int64 numbers. Time: about a microsecond per pair of budget and step.
    """
    from h2osim.optimum import _exact

    n, p = unit.n, prompt_len
    later, mass = future_mass(unit, p)
    order = np.array(sorted({k for k in wanted if k <= n - 1}, reverse=True), np.int64)
    loss = np.zeros(n + 1, np.int64)
    gone = np.full((len(order), n), n, np.int32)
    node_price = np.zeros((len(order), n), np.int64)
    least = max(0, min([least, *order.tolist()]))
    if p < n:
        _exact.solve(later, n, p - 1, least, order, loss, gone, node_price)
    whole = int(mass.sum())
    kept = whole - loss
    kept[:least] = -1
    schedules = {k: np.full(n, n, np.int32) for k in wanted if k > n - 1}
    prices = {k: np.zeros(n, np.int64) for k in wanted if k > n - 1}
    for i, k in enumerate(order.tolist()):
        schedules[k] = gone[i]
        prices[k] = slot_prices(node_price[i], max(k, p - 1))
    return Curve(kept, whole, schedules, prices)


def slot_prices(node_price: Ints, first: int) -> Ints:
    """λ[t] = u[t-1] - u[t] from the duals u of the nodes first ... n-2, with u[n-1] = 0.

    An optimal u never grows with t: with v <= s <= t, C[s, v] >= C[t, v], so raising u[s] to u[t]
    would stay feasible and be worth more. Hence λ >= 0.
    """
    n = len(node_price)
    price = np.zeros(n, np.int64)
    if first < n - 1:
        price[first + 1 : n - 1] = node_price[first : n - 2] - node_price[first + 1 : n - 1]
        price[n - 1] = node_price[n - 2]
    return price
