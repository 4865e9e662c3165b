"""Bounds on the optimum of one budget that close in on it, in memory linear in n.

The dual bound D(λ) (see `h2osim.optimum.optimum`) needs one reading of the rows and O(n) numbers.
Subgradient steps on λ alone need hundreds of readings, and a schedule made from them greedily stays
1e-4 or more short of the optimum. Instead:

1. a flat price, then some subgradient steps, give prices of the right size;
2. a second reading at the same prices collects *candidates*: for each step, some dozens of tokens
   that lose least by leaving there (a token's loss there: its best worth less its worth after that
   step), besides the step where each is best off and the one where the last schedule drops it;
3. on these few thousand pairs the assignment of tokens to steps is solved exactly, starting from
   everyone's best step and moving tokens along shortest paths from steps where too many leave to
   those where too few do. That gives a schedule, which is feasible, and new prices;
4. reading the rows at the new prices gives the value of the schedule (lower bound) and D (upper
   bound). They meet once the candidates hold all pairs that matter; candidates are kept from round
   to round, so two or three rounds reach 1e-4 and a few more the exact optimum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from h2osim.fixedpoint import tri
from h2osim.trace import Unit

Ints = NDArray[np.int64]
LEVELS = 6  # readings at most to find the level of a flat price
SUBGRADIENT = 16  # price steps before the first round


@dataclass(frozen=True)
class Bracket:
    """lower <= OPT(budget) <= upper <= whole, in fixed point, with what proves either side.

    ``evicted_at`` int32 [n] keeps exactly `lower`; ``price`` int64 [n] has D(price) = `upper`.
    ``readings``: how often the rows were read.
    """

    lower: int
    upper: int
    whole: int
    evicted_at: NDArray[np.int32]
    price: Ints
    readings: int


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
        while not search.within(gap) and search.readings < readings:
            prices = search.repair(prices)
            search.read(prices)
    gone = search.best_plan.copy()
    gone[gone == unit.n - 1] = unit.n
    return Bracket(
        search.lower, search.upper, search.whole, gone.astype(np.int32), search.best_prices,
        search.readings,
    )  # fmt: skip


class _Search:
    """What is known about one budget of a unit so far.

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
        from h2osim.optimum import _bracket

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

    def repair(self, prices: Ints) -> Ints:
        """Collect candidates at these prices and solve on them: a new plan, and new prices."""
        from h2osim.optimum import _bracket

        n, first = self.n, self.first
        if self.candidates is None:
            tokens = np.zeros((n, _bracket.ROOM), np.int32)
            self.candidates = tokens, np.zeros(tokens.shape, np.int64), np.zeros(n, np.int64)
            self.depth = 1.0 + self.whole / n / n / 100
        row, worth, received, rise, *ends = (np.zeros(n, np.int64) for _ in range(8))
        away = np.zeros(n + _bracket.ROOM, np.int64)
        mark = np.full(n, -1, np.int64)
        for block in self.unit.blocks():
            self.depth = _bracket.candidates(
                block.bits, tri(block.first), block.start, block.stop, self.p, first, prices,
                self.best, self.plan, self.stops, row, worth, received, away, mark, self.depth,
                *self.candidates, *ends,
            )  # fmt: skip
        self.readings += 1
        later = np.zeros(n, np.int64)
        later[first : n - 1] = np.cumsum(prices[:first:-1])[::-1]
        found = _bracket.repair(
            n, first, self.room, later, self.stops, self.best, self.plan, *self.candidates,
            *ends, rise,
        )  # fmt: skip
        if not found:
            raise AssertionError("the plan before is among the candidates, so a plan exists")
        # An optimal dual falls with t (see exact.slot_prices); on candidates alone it may not, and
        # raising it to the largest of what follows costs nothing.
        later += rise - rise[n - 1]
        later = np.maximum.accumulate(later[::-1])[::-1]
        after = np.zeros(n, np.int64)
        after[first + 1 :] = later[first : n - 1] - later[first + 1 :]
        return after
