"""The offline optimum of every budget by the textbook: shortest augmenting paths, a step at a time.

It goes the other way than `h2osim.optima.exact`, from budget n-1 down, reads whole rows of the cost
matrix, and shares no code with it: O(n³), for n of a hundred or so.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
FAR = 1 << 50  # the cost of a pair that is not allowed


def costs(rows: Ints, p: int) -> Ints:
    """C[t, v]: what token v would get from the decode rows after step t; FAR for v > t."""
    decoded = np.where(np.arange(len(rows))[:, None] >= p, rows, 0)
    later = decoded[::-1].cumsum(axis=0)[::-1]
    after = np.vstack([later[1:], np.zeros_like(later[:1])])
    return np.where(np.tri(len(rows), dtype=bool), after, FAR)


def least_losses(rows: Ints, p: int) -> Ints:
    """The least total cost of an assignment at budgets 0 ... n, int64 [n+1]."""
    n, cost = len(rows), costs(rows, p)
    steps: list[int] = []  # the steps that have to evict, in the order they were added
    step_price, token_price = np.zeros(n, np.int64), np.zeros(n, np.int64)
    taker = np.full(n, -1)  # which of `steps` evicts each token
    losses = np.zeros(n + 1, np.int64)
    for k in range(n - 2, -1, -1):
        steps.append(max(k, p - 1))
        length = np.full(n, FAR << 4)
        before = np.full(n, -1)  # the token before on the path
        done = np.zeros(n, np.bool_)
        at, token, reached = len(steps) - 1, -1, 0
        while True:
            through = reached + cost[steps[at]] - step_price[at] - token_price
            better = ~done & (through < length)
            length[better], before[better] = through[better], token
            token = int(np.argmin(np.where(done, FAR << 5, length)))
            reached = int(length[token])
            if taker[token] < 0:
                break
            done[token] = True
            at = int(taker[token])
        step_price[len(steps) - 1] += reached
        step_price[taker[done]] += reached - length[done]
        token_price[done] -= reached - length[done]
        while token >= 0:
            taker[token] = taker[before[token]] if before[token] >= 0 else len(steps) - 1
            token = int(before[token])
        held = np.flatnonzero(taker >= 0)
        losses[k] = cost[np.array(steps)[taker[held]], held].sum()
    return losses
