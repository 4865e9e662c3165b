"""Sharing a mean budget among units so that their losses add up to little."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


def split_budget(losses: Numbers, shares: Numbers, mean: float) -> Numbers:
    """The budget of each unit, as a share of n, that makes the sum of losses least at a mean.

    losses: [budgets, units] at ascending ``shares`` below 1; at 1 nothing is lost, and in between
    losses are straight lines. On the lower convex hulls of the curves, what lies above
    ``shares[0]`` goes to the steepest descents (exact for the hulls; at most one unit ends inside
    a piece). Returns float64 [units], of mean ``mean``, from ``shares[0]`` to 1.
    """
    at = np.append(shares, 1.0)
    curves = np.vstack([losses, np.zeros(losses.shape[1])])
    pieces = []
    for unit, curve in enumerate(curves.T):
        corners: list[int] = []
        for b in range(len(at)):
            while len(corners) > 1 and _above(at, curve, corners[-2], corners[-1], b):
                corners.pop()
            corners.append(b)
        pieces += [
            ((curve[b] - curve[a]) / (at[b] - at[a]), unit, at[b] - at[a])
            for a, b in pairwise(corners)
        ]
    found = np.full(losses.shape[1], at[0])
    left = (mean - at[0]) * len(found)
    for _, unit, width in sorted(pieces):
        part = min(width, left)
        found[unit] += part
        left -= part
    return found


def _above(at: Numbers, curve: Numbers, a: int, b: int, c: int) -> bool:
    """Whether corner b lies on or above the line from a to c."""
    return bool((curve[b] - curve[a]) * (at[c] - at[b]) >= (curve[c] - curve[b]) * (at[b] - at[a]))


def lost(losses: Numbers, shares: Numbers, split: Numbers) -> float:
    """The sum of the units' losses at these budgets, on the straight lines of the curves."""
    at = np.append(shares, 1.0)
    return float(
        sum(np.interp(k, at, np.append(c, 0.0)) for k, c in zip(split, losses.T, strict=True))
    )
