"""Bounds on the optimum of one budget that close in on it, in memory linear in n.

The dual bound D(λ) (see `h2osim.optimum`) needs one reading of the rows and O(n) numbers.
Subgradient steps on λ alone need hundreds of readings, and a schedule made from them greedily stays
1e-4 or more short of the optimum. Instead:

1. a flat price, then a few subgradient steps, give prices of the right size;
2. such prices are wrong in *waves*: for hundreds of steps too few tokens leave, then too many
   do. With the steps in groups the problem is small enough to be solved on all tokens, roughly,
   by an auction: a group that lacks tokens raises its price until it has enough. What that changes,
   interpolated, is added to the prices;
3. a second reading at the same prices collects *candidates*: for each step, some dozens of tokens
   that lose least by leaving there (a token's loss there: its best worth less its worth after that
   step), besides the step where each is best off and the one where the last schedule drops it;
4. on these pairs alone the assignment of tokens to steps is solved: in the first round by auctions
   with falling tolerance, in later ones exactly, by moving tokens along shortest paths from steps
   where too many leave to those where too few do. That gives a schedule, which is feasible, and new
   prices;
5. reading the rows at the new prices gives the value of the schedule (lower bound) and D (upper
   bound). They meet once the candidates hold all pairs that matter; candidates are kept from round
   to round, so one round reaches 1e-4 and a second one nearly always the exact optimum.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from h2osim.attention.triangle import tri
from h2osim.engines.results import Bracket
from h2osim.traces.unit import Unit

Ints = NDArray[np.int64]
LEVELS = 6  # readings at most to find the level of a flat price
SUBGRADIENT = 4  # price steps before the first round
GROUPS = 192  # groups of steps to correct waves in
# Tolerances of auctions, relative to the bound and summed over all tokens: falling ones are faster,
# since the first, coarse ones bridge most of the way.
DEALS = (4e-3, 1e-3, 2e-4)  # in groups
AUCTIONS = (1e-3, 2e-4, 5e-5)  # in the first round
CLOSER = 1e-5  # in the second round, and an eighth of it in every further one
RAISES = 100  # times the number of nodes: raises of prices after which an auction gives up

# Nanoseconds that closing a bracket takes, times n² (10-18 seen); compared with exact.running_cost.
CLOSING = 14.0


def narrow(
    unit: Unit, budget: int, prompt_len: int, gap: float = 1e-4, readings: int = 300
) -> Bracket:
    """Raise the lower and lower the upper bound until upper - lower <= gap * upper.

    Stops after about so many `readings` of the rows, whatever the gap is by then.
    """
    search = _Search(unit, budget, prompt_len)
    prices = np.zeros(unit.n, np.int64)
    search.read(prices)
    if search.first < unit.n - 1:
        prices = search.flat_price()
        for _ in range(SUBGRADIENT):
            if search.within(gap):
                break
            prices = search.step(prices)
            search.read(prices)
        if not search.within(gap):
            prices = search.deal(prices)
            search.read(prices)
        tolerances: tuple[float, ...] = AUCTIONS
        closer = CLOSER
        while not search.within(gap) and search.readings < readings:
            prices = search.repair(prices, tolerances, exact=tolerances is not AUCTIONS)
            search.read(prices)
            tolerances, closer = (closer,), closer / 8
    gone = search.best_plan.copy()
    gone[gone == unit.n - 1] = unit.n
    return Bracket(
        search.lower, search.upper, search.whole, gone.astype(np.int32), search.best_prices,
        search.readings,
    )  # fmt: skip


class _Search:
    """The bounds and schedules found so far for one budget of a unit.

    A node is a step after which tokens leave: first ... n-2, and n-1 for those that stay to the
    end. ``room`` says how many tokens each node takes, ``plan`` is the node of every token in the
    last schedule, ``stops`` the node where it is best off at the prices read last.
    """

    def __init__(self, unit: Unit, budget: int, prompt_len: int) -> None:
        n = unit.n
        self.unit, self.k, self.p, self.n = unit, budget, prompt_len, n
        self.first = min(max(budget, prompt_len - 1), n - 1)
        self.room = np.zeros(n, np.int64)
        self.room[self.first : n - 1] = 1
        self.room[self.first] = max(1, prompt_len - budget)
        self.room[n - 1] = n - self.room[: n - 1].sum()
        # the first plan: the oldest tokens leave first
        self.plan: Ints = np.repeat(np.arange(n), self.room)
        self.best_plan, self.best_prices = self.plan, np.zeros(n, np.int64)
        self.best, self.stops = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.lower = self.upper = self.here = -1
        self.whole = self.readings = 0
        self.candidates: tuple[NDArray[np.int32], Ints, Ints] | None = None
        self.depth = 0.0

    def within(self, gap: float) -> bool:
        """Whether the bounds are as close as asked."""
        return self.upper - self.lower <= gap * self.upper

    def read(self, prices: Ints) -> None:
        """Read the rows: D at these prices and the value of the plan; both bounds are updated."""
        from h2osim.optima import bracket_loops as _bracket

        n = self.n
        row, worth = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.best = np.zeros(n, np.int64)
        self.stops = np.maximum(np.arange(n), self.first)
        own = kept = whole = 0
        for block in self.unit.blocks():
            part = _bracket.price_rows(
                block.bits, tri(block.first), block.start, block.stop, self.p, self.first, prices,
                self.plan, row, worth, self.best, self.stops,
            )  # fmt: skip
            own, kept, whole = own + int(part[0]), kept + int(part[1]), whole + int(part[2])
        self.readings += 1
        self.whole = whole
        self.here = self.k * int(prices.sum()) + int(self.best.sum()) + own
        if own + kept > self.lower:
            self.lower, self.best_plan = own + kept, self.plan.copy()
        if self.upper < 0 or self.here < self.upper:
            self.upper, self.best_prices = self.here, prices.copy()

    def surplus(self) -> Ints:
        """Per step: how many older tokens would be held at the prices read last, less k.

        0 up to the first node, where no price is needed.
        """
        n = self.n
        change = np.zeros(n + 1, np.int64)
        begin = np.maximum(np.arange(n), self.first) + 1
        np.add.at(change, begin, 1)
        np.add.at(change, self.stops + 1, -1)
        surplus = np.cumsum(change)[:n] - self.k
        surplus[: self.first + 1] = 0
        return np.asarray(surplus)

    def flat_price(self) -> Ints:
        """The flat price at which about as much is held as there is room for."""
        price = max(1, self.whole // self.n // (4 * (self.k + 16)))
        low = high = 0
        for _ in range(LEVELS):
            prices = np.zeros(self.n, np.int64)
            prices[self.first + 1 :] = price
            self.read(prices)
            surplus = float(self.surplus().sum()) / (self.n - 1 - self.first)
            if abs(surplus) < 0.1 * self.k:
                break
            if surplus > 0:
                low = price
                price = (price + high) // 2 if high else 3 * price
            else:
                high = price
                price = (price + low) // 2 if low else max(1, price // 3)
        return prices

    def step(self, prices: Ints) -> Ints:
        """One subgradient step, of the size that would reach a bound a little below the best."""
        slope = -self.surplus().astype(np.float64)
        slope[(prices == 0) & (slope > 0)] = 0
        ahead = max(2 * (self.here - self.upper), self.upper / 1000)
        size = ahead / max(1.0, float((slope * slope).sum()))
        return np.maximum(np.rint(prices - size * slope), 0).astype(np.int64)

    def deal(self, prices: Ints) -> Ints:
        """Correct waves in the prices: the problem with steps in groups, solved roughly."""
        from h2osim.optima import bracket_loops as _bracket

        n, first = self.n, self.first
        group = -(-(n - 1 - first) // GROUPS)
        ends = np.array([first, *range(n - 2, first, -group)[::-1], n - 1], np.int64)
        row, received = np.zeros(n, np.int64), np.zeros(n, np.int64)
        gains = np.zeros((len(ends), n), np.int64)
        for block in self.unit.blocks():
            _bracket.snapshots(
                block.bits, tri(block.first), block.start, block.stop, self.p, ends, row, received,
                gains,
            )  # fmt: skip
        self.readings += 1
        room = np.diff(np.cumsum(self.room)[ends], prepend=0)
        later = self.later(prices)
        level = later[ends]
        for tolerance in DEALS:
            one = max(1, round(tolerance * self.upper / n))
            _bracket.deal(ends, room, gains, level, one, RAISES * len(ends))
        change = np.interp(np.arange(n), ends, level - later[ends])
        return self.prices(later + np.rint(change).astype(np.int64))

    def repair(self, prices: Ints, tolerances: Sequence[float], exact: bool) -> Ints:
        """Collect candidates at these prices and solve on them: a new plan, and new prices.

        By auctions with smaller and smaller tolerances (relative, summed over all tokens), and then
        by shortest paths if it is to be exact on the candidates or the last auction gave up.
        """
        from h2osim.optima import bracket_loops as _bracket

        n, first = self.n, self.first
        if self.candidates is None:
            tokens = np.zeros((n, _bracket.ROOM), np.int32)
            self.candidates = tokens, np.zeros(tokens.shape, np.int64), np.zeros(n, np.int64)
            self.depth = 1.0 + self.whole / n / n / 100
        row, worth, received, *ends = (np.zeros(n, np.int64) for _ in range(7))
        away = np.zeros(n + _bracket.ROOM, np.int64)
        mark = np.full(n, -1, np.int64)
        for block in self.unit.blocks():
            self.depth = _bracket.candidates(
                block.bits, tri(block.first), block.start, block.stop, self.p, first, prices,
                self.best, self.plan, self.stops, row, worth, received, away, mark, self.depth,
                *self.candidates, *ends,
            )  # fmt: skip
        self.readings += 1
        later = self.later(prices)
        end_loss = self.best + later[np.maximum(np.arange(n), first)] - ends[1]
        pairs = _bracket.pairs(
            n, first, self.room, end_loss, self.stops, self.plan, *self.candidates, *ends
        )
        at, got = np.zeros(n, np.int64), np.zeros(n, np.int64)
        done = False
        for tolerance in tolerances:
            one = max(1, round(tolerance * self.upper / n))
            _bracket.settle(*pairs, later, at, got)
            done = _bracket.auction(self.room, *pairs, later, at, got, one, RAISES * n)
        if exact or not done:
            _bracket.settle(*pairs, later, at, got)
            if not _bracket.repair(self.room, *pairs, later, at, got):
                raise AssertionError("the plan before is among the pairs, so a plan exists")
        self.plan = at
        return self.prices(later)

    def later(self, prices: Ints) -> Ints:
        """Per node: the sum of the prices of the steps after it."""
        later = np.zeros(self.n, np.int64)
        later[self.first : self.n - 1] = np.cumsum(prices[: self.first : -1])[::-1]
        return later

    def prices(self, later: Ints) -> Ints:
        """The prices with these sums, once they are made to fall with t.

        An optimal dual falls with t (see exact.slot_prices); on some pairs alone it may not, and
        raising it to the largest of what follows costs nothing.
        """
        n, first = self.n, self.first
        falling = np.maximum.accumulate((later - later[n - 1])[::-1])[::-1]
        prices = np.zeros(n, np.int64)
        prices[first + 1 :] = falling[first : n - 1] - falling[first + 1 :]
        return prices
