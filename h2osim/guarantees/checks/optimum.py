"""T6b and T6c: the best that any schedule of evictions can keep."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike

from h2osim.guarantees.history import Rows
from h2osim.guarantees.results import Result, Verdict, share


def concave_in_budget(optima: Sequence[int], budgets: Sequence[int] | None = None) -> Result:
    """T6b: the optimum rises with the budget, by gains per slot that never grow.

    optima: OPT of rising budgets, by default 0, 1, 2, ... step: the position in `optima` of the
    first that breaks it.
    """
    at = list(range(len(optima))) if budgets is None else list(budgets)
    rises = [
        Fraction(int(after) - int(before), high - low)
        for (before, after), (low, high) in zip(
            itertools.pairwise(optima), itertools.pairwise(at), strict=True
        )
    ]
    for i, gain in enumerate(rises):
        if gain < 0 or (i and gain > rises[i - 1]):
            return Result("T6b", Verdict.VIOLATED, i + 1)
    verdict = Verdict.HOLDS if len(rises) > 1 else Verdict.VACUOUS
    return Result("T6b", verdict, None, {"last gain": float(rises[-1])} if rises else {})


def dual_value(rows: Rows, k: int, prices: ArrayLike, prompt_len: int = 1) -> int:
    """D(prices) of proof T6c, an integer: an upper bound on OPT(k) for nonnegative prices [n].

    Prices are whole numbers in the unit of the rows (fixed point for a trace).
    """
    price = np.asarray(prices)
    if price.dtype.kind not in "iu":
        raise TypeError(f"prices are whole numbers, not {price.dtype}")
    n, p = rows.n, prompt_len
    running = np.zeros(n, dtype=np.int64)  # sum of (A - price) of each token so far
    best = np.zeros(n, dtype=np.int64)
    total = 0
    for t, heads in enumerate(rows.each()):
        if t < p:
            continue
        row = heads.sum(axis=0)
        total += min(k, t) * int(price[t]) + int(row[t])
        running[:t] += row[:t] - int(price[t])
        np.maximum(best[:t], running[:t], out=best[:t])
    return total + int(best.sum())


def dual_certificate(
    rows: Rows, k: int, prices: ArrayLike, achieved: int, prompt_len: int = 1
) -> Result:
    """T6c: D(prices) is at least the value `achieved` by any schedule; equality proves optimality.

    Numbers: achieved, bound, gap (relative).
    """
    bound = dual_value(rows, k, prices, prompt_len)
    gap = share(bound - achieved, bound) if bound else 0.0
    numbers = {"achieved": float(achieved), "bound": float(bound), "gap": gap}
    if np.asarray(prices).min(initial=0) < 0:
        return Result("T6c", Verdict.FAILS, None, numbers, "a price is negative")
    verdict = Verdict.HOLDS if bound >= achieved else Verdict.VIOLATED
    return Result("T6c", verdict, None, numbers)
