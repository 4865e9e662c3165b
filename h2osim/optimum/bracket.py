"""Bounds on the optimum of one budget that close in on it, in memory linear in n."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from h2osim.trace import Unit

Ints = NDArray[np.int64]
LINE = 6  # readings at most to find the level of a flat price
SUBGRADIENT = 3  # price steps before the first repair


@dataclass(frozen=True)
class Bracket:
    """lower <= OPT(budget) <= upper <= whole, fixed point; with what proves either side.

    ``evicted_at`` int32 [n] keeps exactly `lower`; ``price`` int64 [n] has D(price) = `upper`.
    ``readings``: how often the rows were read.
    """

    lower: int
    upper: int
    whole: int
    evicted_at: NDArray[np.int32]
    price: Ints
    readings: int


def bracket(
    unit: Unit, budget: int, prompt_len: int, gap: float = 1e-4, readings: int = 300
) -> Bracket:
    """Raise the lower and lower the upper bound until they are within `gap` of each other."""
    return _Search(unit, budget, prompt_len).run(gap, readings)


class _Search:
    def __init__(self, unit: Unit, budget: int, prompt_len: int) -> None:
        self.unit, self.k, self.p, n = unit, budget, prompt_len, unit.n
        self.n = n
        self.first = min(max(budget, prompt_len - 1), n - 1)
        self.room = np.zeros(n, np.int64)  # tokens that leave at each node; at the last: that stay
        self.room[self.first : n - 1] = 1
        self.room[self.first] = max(1, prompt_len - budget)
        self.room[n - 1] = n - self.room[: n - 1].sum()
        # the first plan: the oldest tokens leave first
        self.plan = np.repeat(np.arange(n), self.room)
        self.lower, self.upper, self.whole = -1, -1, 0
        self.readings = 0

    def read(self, prices: Ints) -> None:
        """D at these prices, and what the plan keeps; both bounds are updated."""
        from h2osim.optimum import _bracket

        n = self.n
        row, worth = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.best = np.zeros(n, np.int64)
        self.stops = np.maximum(np.arange(n), self.first)
        own = kept = whole = 0
        for block in self.unit.blocks():
            part = _bracket.price_rows(
                block.bits, block.first * (block.first + 1) // 2, block.start, block.stop, self.p,
                self.first, prices, self.plan, row, worth, self.best, self.stops,
            )  # fmt: skip
            own, kept, whole = own + part[0], kept + part[1], whole + part[2]
        self.readings += 1
        self.whole = whole
        self.here = self.k * int(prices.sum()) + int(self.best.sum()) + own
        self.value = own + kept
        if self.value > self.lower:
            self.lower, self.best_plan = self.value, self.plan.copy()
        if self.upper < 0 or self.here < self.upper:
            self.upper, self.best_prices = self.here, prices.copy()

    def held(self) -> Ints:
        """How many older tokens each step would hold at the prices read last."""
        n = self.n
        change = np.zeros(n + 1, np.int64)
        begin = np.maximum(np.arange(n), self.first) + 1
        np.add.at(change, np.minimum(begin, n), 1)
        np.add.at(change, self.stops + 1, -1)
        return np.asarray(np.cumsum(change)[:n])

    def close(self, gap: float) -> bool:
        return self.upper - self.lower <= gap * self.upper

    def run(self, gap: float, readings: int) -> Bracket:
        from h2osim.optimum import _bracket

        n, first = self.n, self.first
        prices = np.zeros(n, np.int64)
        later_steps = slice(first + 1, n)
        count = n - 1 - first
        if count <= 0:
            self.read(prices)
            return self.result()
        prices = self.level()
        for _ in range(SUBGRADIENT):
            prices = self.step(prices)
            self.read(prices)
        self.tokens = np.zeros((n, _bracket.ROOM), np.int32)
        self.gains = np.zeros((n, _bracket.ROOM), np.int64)
        self.length = np.zeros(n, np.int64)
        self.depth = 1.0 + self.whole / n / n / 100
        while not self.close(gap) and self.readings < readings:
            later = np.zeros(n, np.int64)
            later[first : n - 1] = np.cumsum(prices[:first:-1])[::-1]
            rise = self.repair(prices, later)
            later += rise - rise[n - 1]
            later[n - 1] = 0
            later = np.maximum.accumulate(later[::-1])[::-1]
            later[n - 1] = 0
            prices = np.zeros(n, np.int64)
            prices[later_steps] = later[first : n - 1] - later[first + 1 :]
            self.read(prices)
        return self.result()

    def level(self) -> Ints:
        """The flat price at which about as much is held as there is room for."""
        n, first = self.n, self.first
        self.read(np.zeros(n, np.int64))
        price = max(1, self.whole // n // (4 * (self.k + 16)))
        low, high = 0, 0
        for _ in range(LINE):
            prices = np.zeros(n, np.int64)
            prices[first + 1 :] = price
            self.read(prices)
            slack = float((self.held()[first + 1 :] - self.k).sum()) / (n - 1 - first) / self.k
            if abs(slack) < 0.1:
                break
            if slack > 0:
                low = price
                price = (price + high) // 2 if high else 3 * price
            else:
                high = price
                price = (price + low) // 2 if low else max(1, price // 3)
        return prices

    def step(self, prices: Ints) -> Ints:
        """One subgradient step towards a bound a little below the best."""
        slope = (self.k - self.held()).astype(np.float64)
        slope[: self.first + 1] = 0
        slope[(prices == 0) & (slope > 0)] = 0
        aim = self.upper - max(self.here - self.upper, self.upper / 1000)
        size = (self.here - aim) / max(1.0, float((slope * slope).sum()))
        return np.maximum(np.rint(prices - size * slope), 0).astype(np.int64)

    def repair(self, prices: Ints, later: Ints) -> Ints:
        from h2osim.optimum import _bracket

        n = self.n
        zeros = [np.zeros(n, np.int64) for _ in range(8)]
        row, worth, received, mark, at_first, at_end, at_plan, at_stop = zeros
        away = np.zeros(n + _bracket.ROOM, np.int64)
        mark[:] = -1
        for block in self.unit.blocks():
            self.depth = _bracket.candidates(
                block.bits, block.first * (block.first + 1) // 2, block.start, block.stop, self.p,
                self.first, prices, self.best, self.plan, self.stops, row, worth, received, away,
                mark, self.depth, self.tokens, self.gains, self.length, at_first, at_end, at_plan,
                at_stop,
            )  # fmt: skip
        self.readings += 1
        rise = np.zeros(n, np.int64)
        assert _bracket.repair(
            n, self.first, self.room, later, self.stops, self.best, self.plan, self.tokens,
            self.gains, self.length, at_first, at_end, at_plan, at_stop, rise,
        )  # fmt: skip
        return rise

    def result(self) -> Bracket:
        gone = self.best_plan.copy()
        gone[gone == self.n - 1] = self.n
        return Bracket(
            self.lower, self.upper, self.whole, gone.astype(np.int32), self.best_prices,
            self.readings,
        )  # fmt: skip
