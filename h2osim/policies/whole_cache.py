"""What several rules that rank the whole cache have in common; translated as they are."""

from __future__ import annotations

import numpy as np

from h2osim.policies.arithmetic import INF, Vector, around, products, softmax
from h2osim.policies.declaration import Positions


def snapkv_scores(score: Vector, m: int, window: int, kernel: int) -> Vector:
    """SnapKV's score of a prompt of m tokens: the mean over rows and neighbours of what its last
    ``window`` rows gave; tokens of the window have one more than the most.
    """
    cut = max(0, m - window)
    found = np.zeros(m)
    most = 0.0
    for i in range(cut):
        found[i] = around(score[:cut], i, kernel) / (kernel * window)
        most = max(most, found[i])
    for i in range(cut, m):
        found[i] = most + 1.0
    return found


def alike(positions: Positions, directions: Vector, threshold: float, instead: int) -> Vector:
    """How much each cached key is like the others, as R-KV has it: the softmax over keys of the
    mean cosine.

    Of each key's cosines that of the last key above the threshold does not count (if there is none
    that of slot ``instead``, -1 for none), so that the newest of a kind is not like the others.
    """
    m = len(positions)
    cosines = products(directions, positions)
    mean = np.zeros(m)
    for i in range(m):
        last = instead
        for j in range(m):
            if j != i and cosines[i, j] > threshold:
                last = j
        for j in range(m):
            if j != i and j != last:
                mean[j] += cosines[i, j]
    mean = mean / m
    softmax(mean)
    return mean


def protect(ranks: Vector, cut: int) -> None:
    """Ranks begin at 0, those of the newest tokens, from slot ``cut`` on, at infinity."""
    for i in range(len(ranks)):
        ranks[i] = 0.0 if i < cut else INF
