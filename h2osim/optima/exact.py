"""The exact optimum of many budgets of a unit, in one run.

With attention A >= 0 it never pays to evict early, so at budget k one token leaves after every step
t = k ... n-2, at the loss C[t, v] = sum of A[u, v] over the rows u > t: a least-cost assignment of
tokens to steps. After a prompt of p rows, the first eviction (node p-1) drops p-k tokens at once
and only rows t >= p count. Neighbouring budgets differ by one step, hence by one shortest path:

* *from above*, one budget less adds a step, from the last one down, whose eviction pushes others
  out of place until a kept token goes (`h2osim.optima.above_loops`);
* *from below*, one budget more takes a step away, from the first one up, whose token pushes others
  out of place until one of them is kept (`h2osim.optima.below_loops`).

Either run passes through the optimum of every budget on its way, and either way its duals are
prices that prove it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from h2osim.attention.triangle import tri
from h2osim.traces.unit import Unit

Ints = NDArray[np.int64]

# What the runs cost, in nanoseconds (one core of an AMD EPYC, n = 2048 and 4096, five real units):
# the matrix takes BUILD an entry of the square; a search of the run from above takes ABOVE per node
# that takes part at its budget (345-680 seen), one from below takes BELOW per token (125-295 seen).
# Only their ratio matters, see `h2osim bench optimum`.
BUILD = 4.0
ABOVE = 450.0
BELOW = 220.0


@dataclass(frozen=True)
class Curve:
    """OPT(k) in fixed point for every budget, and what was asked about some of them.

    ``kept`` int64 [n+1]: the decode mass an optimal schedule keeps at budgets 0 ... n, -1 where it
    was not solved. ``whole``: all decode mass. ``evicted_at[k]`` int32 [n]: the step after
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
    from h2osim.optima import above_loops as _exact

    n, first = unit.n, prompt_len - 1
    mass = np.zeros(n, np.int64)
    later = np.empty(max(0, tri(n - 1) - tri(first)), np.int64)
    for block in unit.blocks():
        base = tri(block.first)
        _exact.add_rows(block.bits, base, block.start, block.stop, first, mass, later)
    _exact.turn(later, first, mass)
    return later, mass


def curve(
    unit: Unit, prompt_len: int, *, wanted: Sequence[int] = (), least: int = 1,
    most: int | None = None,
) -> Curve:  # fmt: skip
    """The optimum of the budgets from `least` to `most` (n), by whichever run is cheaper.

    With schedules and prices for `wanted`. Memory: n² / 2 int64 numbers.
    """
    n = unit.n
    most = max([n if most is None else most, *wanted])
    least = min([least, *wanted])
    if cost_below(n, most) <= cost_above(n, prompt_len, least):
        return from_below(unit, prompt_len, wanted=wanted, most=most)
    return from_above(unit, prompt_len, wanted=wanted, least=least)


def cost_above(n: int, prompt_len: int, least: int) -> float:
    """About how many nanoseconds `from_above` takes down to budget `least`."""
    budgets = max(0, n - 1 - least)
    return BUILD * n * n + ABOVE * budgets * min(budgets / 2, n - prompt_len)


def cost_below(n: int, most: int) -> float:
    """About how many nanoseconds `from_below` takes up to budget `most`."""
    most = min(most, n - 1)
    return BUILD * n * n + BELOW * most * (n - most / 2)


def from_above(unit: Unit, prompt_len: int, *, wanted: Sequence[int] = (), least: int = 0) -> Curve:
    """The optimum of every budget from n down to `least`, with schedules and prices for `wanted`.

    Memory: n² / 2 int64 numbers.
    """
    from h2osim.optima import above_loops as _exact

    n, first = unit.n, prompt_len - 1
    later, mass = future_mass(unit, prompt_len)
    order = np.array(sorted({k for k in wanted if k <= n - 1}, reverse=True), np.int64)
    loss, gone, node_price = _empty(n, len(order))
    least = max(0, min([least, *order.tolist()]))
    if prompt_len < n:
        _exact.solve(later, n, first, least, order, loss, gone, node_price)
    kept = int(mass.sum()) - loss
    kept[:least] = -1
    return _curve(kept, first, wanted, order, gone, node_price)


def from_below(
    unit: Unit, prompt_len: int, *, wanted: Sequence[int] = (), most: int | None = None
) -> Curve:
    """The optimum of every budget from 0 up to `most` (n), with schedules and prices for `wanted`.

    Memory: n² / 2 int64 numbers, and n / 64 of them a token.
    """
    from h2osim.optima import below_loops as _below

    n, first = unit.n, prompt_len - 1
    mass, peak = np.zeros(n, np.int64), np.zeros(n, np.int64)
    begin = np.maximum(np.arange(n), first)  # the first node open to each token
    size = np.maximum(n - 1 - begin, 0)
    column = np.cumsum(size) - size - begin
    past = np.empty(int(size.sum()), np.int64)
    for block in unit.blocks():
        base = tri(block.first)
        _below.add_rows(block.bits, base, block.start, block.stop, first, mass, peak, column, past)
    order = np.array(sorted({k for k in wanted if k <= n - 1}), np.int64)
    loss, gone, node_price = _empty(n, len(order))
    most = min(n - 1, max([n if most is None else most, *order.tolist()]))
    if prompt_len < n:
        _below.solve(past, column, mass, peak, first, most, order, loss, gone, node_price)
    kept = int(mass.sum()) - loss
    kept[most + 1 : n - 1] = -1
    return _curve(kept, first, wanted, order, gone, node_price)


def _empty(n: int, wanted: int) -> tuple[Ints, NDArray[np.int32], Ints]:
    """What a run fills in: losses, and of every wanted budget a schedule and the duals of nodes."""
    loss = np.zeros(n + 1, np.int64)
    return loss, np.full((wanted, n), n, np.int32), np.zeros((wanted, n), np.int64)


def _curve(
    kept: Ints, first: int, wanted: Sequence[int], order: Ints, gone: NDArray[np.int32],
    node_price: Ints,
) -> Curve:  # fmt: skip
    """The result of a run that solved the budgets `order` of those wanted."""
    n = len(kept) - 1
    schedules = {k: np.full(n, n, np.int32) for k in wanted if k > n - 1}
    prices = {k: np.zeros(n, np.int64) for k in wanted if k > n - 1}
    for i, k in enumerate(order.tolist()):
        schedules[k] = gone[i]
        prices[k] = slot_prices(node_price[i], max(k, first))
    return Curve(kept, int(kept[n]), schedules, prices)


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
