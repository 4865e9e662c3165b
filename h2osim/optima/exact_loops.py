"""The compiled solver of the assignment problem: shortest paths, with bounds on blocks of steps.

Imported lazily (numba is slow to import) by `h2osim.optima.exact`, which states the problem.

A *node* is a step t = first ... n-2 after which tokens leave; evicting token v <= t there costs
C[t, v]. ``at[v]`` is the node of token v, -1 while it is kept to the end. The dual variables are
u[t] for nodes and y[v] <= 0 for tokens (0 for kept ones), with C[t, v] - u[t] - y[v] >= 0, and
equality where at[v] = t.

At budget 0 everything is forced: node t takes token t, the first node all tokens of the prompt.
With λ_t the largest entry of row t besides its own token's, u[t] the sum of λ over the rows after t
and y[v] = C[t, v] - u[t] at v's node t are duals: a token that stays longer pays at least what it
receives.

From budget k to k+1 the first node, max(k, first), takes one token less. The token that it gives
up is kept to the end, at the cost -y[v], or another node t takes it, at C[t, v] - u[t] - y[v], and
gives up its own token in turn: a shortest path that ends with a token that is kept. A token that
is kept at one budget is kept at all larger ones. Along the path u falls and y rises.

A search reaches nearly every token, and a token may go to every later node: n^2 / 2 numbers for
each budget. They are read in *blocks* of nodes, and most blocks need not be read:

* C is stored by token, so that a block is a short run of numbers and its loops vectorise. Stored
  is `past`, the mass that v has received by t; C[t, v] is all that v receives less that.
* For every token and block a bound on past + u is kept from the last reading, and for every block
  ``fallen``, the least fall of u within it, which tightens the bounds of all tokens. Neighbouring
  prices fall together, so the bounds stay good for long.
* A token reads a block only if it could shorten the distance of some node in it. All nodes start
  at a guess of the path's length, taken from the last searches; in the few cases where no path is
  that short, the search runs again with a larger guess.

All decisions compare int64 integers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from h2osim.attention.row_loops import sum_heads
from h2osim.support.compiling import njit

INF = 1 << 60
BLOCK = 64  # nodes that share a bound
RECENT = 16  # searches whose length is remembered


@njit(cache=True, nogil=True)
def add_rows(
    bits: Any, base: int, start: int, stop: int, first: int, mass: Any, peak: Any, column: Any,
    past: Any,
) -> None:  # fmt: skip
    """Sum rows start ... stop-1 of a block, those after row `first` only.

    bits uint16 [heads, packed], row t at t(t+1)/2 - base. mass int64 [n] is added to. What token v
    has received from rows first+1 ... t goes to past[column[v] + t]; the largest entry of row t
    besides its own token's to peak[t].
    """
    n = mass.shape[0]
    row = np.empty(n, np.int64)
    for t in range(max(start, first), stop):
        if t > first:
            sum_heads(bits, t * (t + 1) // 2 - base, t + 1, row)
            most = np.int64(0)
            for v in range(t):
                most = max(most, row[v])
                mass[v] += row[v]
            mass[t] += row[t]
            peak[t] = most
        if t < n - 1:
            for v in range(t + 1):
                past[column[v] + t] = mass[v]


@njit(cache=True, nogil=True)
def survey(dist: Any, closed: Any, low: int, high: int) -> tuple[int, int]:
    """Of the open nodes low ... high-1 the least distance and the largest."""
    least, most = INF, -INF
    near, shut = dist[low:high], closed[low:high]
    for i in range(high - low):
        least = min(least, near[i] | shut[i])
        most = max(most, near[i] - shut[i])
    return least, most


@njit(cache=True, nogil=True)
def search(
    s: int, limit: int, past: Any, column: Any, mass: Any, u: Any, y: Any, head: Any, after: Any,
    cap: Any, fallen: Any, dist: Any, by: Any, closed: Any, visited: Any, nearest: Any,
    farthest: Any, looks: Any,
) -> tuple[int, int, int]:  # fmt: skip
    """The shortest path from node s to a token that is kept, if it is shorter than `limit`.

    Returns its length, the token (-1: there is none) and how many nodes were visited. dist [n]:
    how far a node is, at most `limit`; by [n]: the token that it takes on the way; closed [n]: INF
    once visited. cap[v, b]: past + u of token v is cap[v, b] - fallen[b] or less at all nodes of
    block b. nearest, farthest [blocks]: the least and the largest distance of open nodes, the
    latter less fallen[b].
    """
    n = mass.shape[0]
    blocks = fallen.shape[0]
    dist[s:] = limit
    closed[s:] = 0
    dist[s] = 0
    nearest[:] = limit
    for b in range(blocks):
        farthest[b] = limit - fallen[b]
    best = limit
    last = -1
    seen = 0
    t: Any = s
    d = np.int64(0)
    while d < best:
        closed[t] = INF
        visited[seen] = t
        seen += 1
        b = t // BLOCK
        nearest[b], most = survey(dist, closed, max(b * BLOCK, s), min((b + 1) * BLOCK, n - 1))
        farthest[b] = most - fallen[b]
        v = head[t]
        while v >= 0:
            if d - y[v] < best:
                best = d - y[v]
                last = v
            begin = max(v, s + 1)
            base = d + mass[v] - y[v]  # less past + u: how far a node is by way of v
            bound = cap[v]
            count = 0
            for b in range(begin // BLOCK, blocks):
                looks[count] = b
                count += base < farthest[b] + bound[b]
            for i in range(count):
                b = looks[i]
                low, high = max(begin, b * BLOCK), min((b + 1) * BLOCK, n - 1)
                received = past[column[v] + low : column[v] + high]
                price, far, way = u[low:high], dist[low:high], by[low:high]
                most = nearer = -INF
                for j in range(high - low):
                    x = received[j] + price[j]
                    most = max(most, x)
                    nearer = max(nearer, x + far[j])
                bound[b] = most + fallen[b]
                if nearer > base:
                    for j in range(high - low):
                        x = base - received[j] - price[j]
                        better = x < far[j]
                        far[j] = x if better else far[j]
                        way[j] = v if better else way[j]
                    nearest[b], most = survey(dist, closed, max(b * BLOCK, s), high)
                    farthest[b] = most - fallen[b]
            v = after[v]
        next_block = np.argmin(nearest)
        d = nearest[next_block]
        if d < best:
            t = max(next_block * BLOCK, s)
            while dist[t] | closed[t] != d:
                t += 1
    return best, last, seen


@njit(cache=True, nogil=True)
def solve(
    past: Any, column: Any, mass: Any, peak: Any, first: int, most: int, wanted: Any, loss: Any,
    gone: Any, price: Any,
) -> None:  # fmt: skip
    """The optimum of every budget 0, 1, ... most.

    past int64: C[t, v] = mass[v] - past[column[v] + t]; peak int64 [n]: see `add_rows`. loss int64
    [n+1]: loss[k] is set to the least total cost at budget k. For the i-th of the budgets `wanted`
    (ascending), gone[i] int32 [n] is set to the node where each token leaves (n: never) and
    price[i] int64 [n] to u of every node.
    """
    n = mass.shape[0]
    u = np.zeros(n, np.int64)
    for t in range(n - 2, -1, -1):
        u[t] = u[t + 1] + peak[t + 1]
    y = np.zeros(n, np.int64)
    at = np.full(n, -1, np.int64)
    head = np.full(n, -1, np.int64)  # the tokens of each node, a linked list
    after = np.full(n, -1, np.int64)
    total = np.int64(0)
    for v in range(n - 1):
        t = max(v, first)
        cost = mass[v] - past[column[v] + t]
        y[v] = cost - u[t]
        total += cost
        at[v] = t
        after[v] = head[t]
        head[t] = v
    blocks = (n + BLOCK - 1) // BLOCK
    cap = np.full((n, blocks), INF, np.int64)
    fallen = np.zeros(blocks, np.int64)
    dist = np.empty(n, np.int64)
    by = np.empty(n, np.int64)
    closed = np.empty(n, np.int64)
    visited = np.empty(n, np.int64)
    nearest = np.empty(blocks, np.int64)
    farthest = np.empty(blocks, np.int64)
    looks = np.empty(blocks + 1, np.int64)
    recent = np.full(RECENT, INF >> 2, np.int64)

    next_wanted = 0
    for k in range(most + 1):
        if k > 0:
            s = max(k - 1, first)
            surely = INF  # a token of s itself can be kept
            v = head[s]
            while v >= 0:
                surely = min(surely, 1 - y[v])
                v = after[v]
            guess = recent.max()
            guess = min(surely, guess + (guess >> 2) + 1)
            while True:
                best, last, seen = search(
                    s, guess, past, column, mass, u, y, head, after, cap, fallen, dist, by, closed,
                    visited, nearest, farthest, looks,
                )  # fmt: skip
                if last >= 0:
                    break
                guess = min(surely, 4 * guess)
            recent[k % RECENT] = best
            for i in range(seen):
                t = visited[i]
                fall = best - dist[t]
                u[t] -= fall
                v = head[t]
                while v >= 0:
                    y[v] += fall
                    v = after[v]
            for b in range((s + 1) // BLOCK, blocks):
                fall = INF
                for t in range(max(s + 1, b * BLOCK), min((b + 1) * BLOCK, n - 1)):
                    fall = min(fall, max(0, best - dist[t]))
                fallen[b] += fall if fall < INF else 0
            v, to = last, -1
            while True:  # move tokens along the path, from its end
                t = at[v]
                total -= mass[v] - past[column[v] + t]
                if head[t] == v:
                    head[t] = after[v]
                else:
                    w = head[t]
                    while after[w] != v:
                        w = after[w]
                    after[w] = after[v]
                at[v] = to
                if to >= 0:
                    total += mass[v] - past[column[v] + to]
                    after[v] = head[to]
                    head[to] = v
                if t == s:
                    break
                v, to = by[t], t
        loss[k] = total
        if next_wanted < wanted.shape[0] and wanted[next_wanted] == k:
            price[next_wanted] = u
            for v in range(n):
                gone[next_wanted, v] = at[v] if at[v] >= 0 else n
            next_wanted += 1
