"""The best split of slots over units, from a curve for each unit: greedy, exact, or on hulls.

For the offline optimum, OPT(k) of every unit is concave in k (it is the value of a linear program
as a function of its right-hand side, proofs/12-optimum-concave-in-budget.md), so giving each next
slot to the unit that gains most by it is optimal. The curve of a policy need not be concave; its
best split is found by dynamic programming, or on the concave hulls of the curves, with a bound on
what that loses.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
EXACT_STEPS = 2 * 10**9  # sums that dynamic programming may take before `auto` uses the hulls


def best_split(
    curves: Ints, slots: int, method: str = "auto", low: int = 1, high: int | None = None
) -> tuple[Ints, int]:
    """The split of `slots` that maximises sum_u curves[u, k_u], low <= k_u <= high (else n).

    curves int64 [units, n+1], curves[u, k] for k slots (column 0 is not used). Returns the split,
    int64 [units], and an upper bound on every split's value: the value of the split itself, except
    for ``hull`` on curves that are not concave.
    """
    count, n = curves.shape[0], curves.shape[1] - 1
    high = n if high is None else high
    if not (1 <= low <= high <= n and count * low <= slots <= count * high):
        raise ValueError(f"{slots} slots for {count} units of {low} to {high}, of curves to {n}")
    if (low, high) != (1, n):  # the same on the part of the curves that may be used
        inside = np.ascontiguousarray(curves[:, low - 1 : high + 1])
        split, limit = best_split(inside, slots - count * (low - 1), method)
        return split + low - 1, limit
    if n < 3 or bool((np.diff(curves[:, 1:], 2, axis=1) <= 0).all()):
        return _by_gains(curves, slots)
    if method == "auto":
        method = "dp" if count * slots * n <= EXACT_STEPS else "hull"
    return _by_dp(curves, slots) if method == "dp" else _by_hull(curves, slots)


def concave_hull(curve: Ints) -> Ints:
    """The corners k of the least concave function above curve[1 … n], ascending, 1 and n included.

    Integers throughout: a corner is dropped if it lies on or below the line between its neighbours.
    """
    corners: list[int] = []
    for k in range(1, len(curve)):
        while len(corners) >= 2:
            a, b = corners[-2], corners[-1]
            if int(curve[b] - curve[a]) * (k - b) > int(curve[k] - curve[b]) * (b - a):
                break
            corners.pop()
        corners.append(k)
    return np.array(corners, np.int64)


def _by_gains(curves: Ints, slots: int) -> tuple[Ints, int]:
    """Concave curves: the largest gains of a single slot, the first units first among equals."""
    count = len(curves)
    gains = np.diff(curves[:, 1:], axis=1)
    order = np.argsort(-gains.ravel(), kind="stable")[: slots - count]
    split = 1 + np.bincount(order // max(1, gains.shape[1]), minlength=count)
    return split, int(curves[np.arange(count), split].sum())


def _by_hull(curves: Ints, slots: int) -> tuple[Ints, int]:
    """Steepest pieces of the hulls first; slots that remain inside the first piece that does not
    fit are given to the best rise per slot that does.

    The value of the hulls at `slots`, rounded down, bounds every split. The split gives up no more
    than the height of one hull above its curve.
    """
    count, n = curves.shape[0], curves.shape[1] - 1
    pieces = []
    for u in range(count):
        corners = concave_hull(curves[u]).tolist()
        for a, b in pairwise(corners):
            pieces.append((-Fraction(int(curves[u, b] - curves[u, a]), b - a), u, b))
    split, left = np.ones(count, np.int64), slots - count
    limit = int(curves[:, 1].sum())
    for slope, u, b in sorted(pieces):
        size = b - int(split[u])
        if size > left:
            limit += int(-slope * left)
            break
        split[u] = b
        left -= size
        limit += int(-slope * size)
    while left:
        steepest = (-1.0, 0, 0)
        for u in range(count):
            reach = min(left, n - int(split[u]))
            if reach:
                ahead = curves[u, split[u] + 1 : split[u] + 1 + reach] - curves[u, split[u]]
                rise = ahead / np.arange(1, reach + 1)
                steepest = max(steepest, (float(rise.max()), -u, int(rise.argmax()) + 1))
        if steepest[2] == 0:  # no rise is positive: any unit with room takes the rest
            u = int(np.argmax(split < n))
            steepest = (0.0, -u, min(left, n - int(split[u])))
        split[-steepest[1]] += steepest[2]
        left -= steepest[2]
    return split, limit


def _by_dp(curves: Ints, slots: int) -> tuple[Ints, int]:
    """value[s] = the most that the units so far keep with s slots; one unit after the other."""
    from h2osim.optima.allocating_loops import NEVER, add_unit

    count, n = curves.shape[0], curves.shape[1] - 1
    value = np.full(slots + 1, NEVER, np.int64)
    value[0] = 0
    choice = np.zeros((count, slots + 1), np.int32)
    for u in range(count):
        after = np.full(slots + 1, NEVER, np.int64)
        add_unit(value, np.ascontiguousarray(curves[u]), min(slots, (u + 1) * n), after, choice[u])
        value = after
    split = np.zeros(count, np.int64)
    left = slots
    for u in range(count - 1, -1, -1):
        split[u] = choice[u, left]
        left -= int(split[u])
    return split, int(value[slots])
