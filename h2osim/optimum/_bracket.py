"""The compiled loops of the bracket: reading rows at given prices, and repairing a plan.

Imported lazily by `h2osim.optimum.bracket`, which states the method. Notation as there: a node is
a step after which tokens leave, node n-1 meaning kept to the end; ``worth[v]`` is what token v has
received so far less the prices paid; ``best[v]`` its largest worth at a node, ``stop[v]`` where.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from h2osim.optimum._exact import pop, push

INF = 1 << 60
SHORT = 32  # candidates per node that a reading aims at
ROOM = 96  # candidates per node that are remembered


@njit(cache=True, nogil=True)
def decode(bits: Any, begin: int, size: int, row: Any) -> None:
    """Fixed point of one packed row, summed over the heads of `bits`, into row[:size], int64."""
    row[:size] = 0
    for h in range(bits.shape[0]):
        part = bits[h, begin : begin + size]
        for v in range(size):
            pattern = np.int32(part[v])
            exponent = pattern >> 10
            normal = np.int32(exponent > 0)
            row[v] += (pattern & 1023 | normal << 10) << exponent - normal


@njit(cache=True, nogil=True)
def price_rows(
    bits: Any, base: int, start: int, stop: int, p: int, first: int, prices: Any, plan: Any,
    row: Any, worth: Any, best: Any, stops: Any,
) -> Any:  # fmt: skip
    """Go through rows start ... stop-1 at given prices.

    Returns the mass of the rows' own tokens, what `plan` (the node of each token) keeps of the
    others', and all mass of the rows.
    """
    own = np.int64(0)
    kept = np.int64(0)
    whole = np.int64(0)
    for t in range(max(start, p), stop):
        decode(bits, t * (t + 1) // 2 - base, t + 1, row)
        own += row[t]
        price = prices[t]
        for v in range(t):
            whole += row[v]
            kept += row[v] if plan[v] >= t else 0
        if t <= first:
            for v in range(t):
                worth[v] += row[v]
                best[v] = worth[v]
        else:
            for v in range(t):
                x = worth[v] + row[v] - price
                worth[v] = x
                better = x > best[v]
                best[v] = x if better else best[v]
                stops[v] = t if better else stops[v]
    return own, kept, whole + own


@njit(cache=True, nogil=True)
def candidates(
    bits: Any, base: int, start: int, stop: int, p: int, first: int, prices: Any, best: Any,
    plan: Any, stops: Any, row: Any, worth: Any, received: Any, away: Any, mark: Any,
    depth: float, tokens: Any, gains: Any, length: Any, at_first: Any, at_end: Any, at_plan: Any,
    at_stop: Any,
) -> float:  # fmt: skip
    """Go through the rows again and collect, per node, the tokens that lose least by leaving there.

    The loss of v at node t is best[v] - worth[v] after row t. tokens, gains [n, ROOM]: candidates
    and what they have received by then; those of earlier readings stay while there is room.
    at_first, at_end, at_plan, at_stop [n]: what every token has received by the first node, the
    end, its planned node and its stop. `depth` is the loss up to which candidates are taken; what
    suited the last node is returned.
    """
    n = best.shape[0]
    for t in range(max(start, min(p, first)), stop):
        if t >= p:
            decode(bits, t * (t + 1) // 2 - base, t + 1, row)
            price = prices[t]
            for v in range(t):
                received[v] += row[v]
                worth[v] += row[v] - price
        if t < first:
            continue
        for v in range(t + 1):
            if plan[v] == t:
                at_plan[v] = received[v]
            if stops[v] == t:
                at_stop[v] = received[v]
        if t == first:
            at_first[: t + 1] = received[: t + 1]
        if t == n - 1:
            at_end[:] = received
            continue
        grow = True
        while True:
            count = 0
            for v in range(t + 1):
                away[count] = v
                count += best[v] - worth[v] <= depth
            if count > 2 * SHORT and depth > 0:
                depth = depth * 0.6 if depth > 1 else 0.0
                grow = False
            elif grow and count < SHORT // 4 and count < t + 1:
                depth = 2 * depth + 1
            else:
                break
        if count < SHORT // 2:
            depth = 1.4 * depth + 1
        elif count > SHORT:
            depth *= 0.8
        count = min(count, 2 * SHORT)
        for i in range(count):
            mark[away[i]] = t
        size = count
        for i in range(length[t]):
            if size < ROOM and mark[tokens[t, i]] != t:
                away[size] = tokens[t, i]
                size += 1
        for i in range(size):
            tokens[t, i] = away[i]
            gains[t, i] = received[away[i]]
        length[t] = size
    return depth


@njit(cache=True, nogil=True)
def repair(
    n: int, first: int, room: Any, later: Any, stops: Any, best: Any, plan: Any, tokens: Any,
    gains: Any, length: Any, at_first: Any, at_end: Any, at_plan: Any, at_stop: Any, rise: Any,
) -> bool:  # fmt: skip
    """Move tokens between nodes until no node holds more or fewer than `room`, at least loss.

    Starts with every token at its stop (no loss at the present prices) and moves them along
    shortest paths over the candidates, from nodes that have too many to nodes that lack some.
    later[t]: the prices from node t on, so that worth of v at t = received - (later[v'] - later[t])
    with v' the first node open to v. `plan` is replaced by the new plan; rise[t] is what is to be
    added to later[t]. False when the candidates do not connect (never: the old plan is one).
    """
    at = stops.copy()
    # loss of v at a node where it has received g: base[v] - g - later[node]
    base = np.empty(n, np.int64)
    for v in range(n):
        base[v] = best[v] + later[max(v, first)]
    over = -room
    loss = np.empty(n, np.int64)
    extra = np.full(2 * n, -1, np.int64)  # per node: a linked list of stops (2v) and plans (2v+1)
    head = np.full(n, -1, np.int64)
    for v in range(n):
        over[at[v]] += 1
        loss[v] = base[v] - at_stop[v] - later[at[v]]
        extra[2 * v] = head[stops[v]]
        head[stops[v]] = 2 * v
        extra[2 * v + 1] = head[plan[v]]
        head[plan[v]] = 2 * v + 1
    rise[:] = 0
    # the tokens that lose least by staying to the end
    end_loss = base - at_end
    bar = min(n, room[n - 1] + n // 16 + SHORT)
    stayers = np.flatnonzero(end_loss <= np.partition(end_loss, bar - 1)[bar - 1])
    dist = np.empty(n, np.int64)
    by = np.empty(n, np.int64)
    cost_by = np.empty(n, np.int64)
    to = np.empty(n, np.int64)
    visited = np.empty(n, np.int64)
    keys = np.empty(n, np.int64)
    items = np.empty(n, np.int64)
    place = np.full(n, -1, np.int64)
    cand = np.empty(3 * n + ROOM, np.int64)
    cost = np.empty(3 * n + ROOM, np.int64)
    done = np.zeros(n, np.bool_)
    for s in range(first, n):
        while over[s] < 0:
            dist[:] = INF
            done[:] = False
            dist[s] = 0
            heap = push(keys, items, place, 0, 0, s)
            seen = 0
            found = -1
            within = INF  # a node with too many tokens has been seen this far away
            while heap > 0:
                t = items[0]
                heap = pop(keys, items, place, heap)
                d = dist[t]
                if over[t] > 0:
                    found = t
                    break
                done[t] = True
                visited[seen] = t
                seen += 1
                m = 0
                for i in range(length[t]):
                    cand[m] = tokens[t, i]
                    cost[m] = base[cand[m]] - gains[t, i] - later[t]
                    m += 1
                link = head[t]
                while link >= 0:
                    v = link >> 1
                    cand[m] = v
                    cost[m] = base[v] - (at_plan[v] if link & 1 else at_stop[v]) - later[t]
                    m += 1
                    link = extra[link]
                if t == first and room[t] > 1:
                    for v in range(t + 1):
                        cand[m] = v
                        cost[m] = base[v] - at_first[v] - later[t]
                        m += 1
                if t == n - 1:
                    for i in range(stayers.shape[0]):
                        v = stayers[i]
                        cand[m] = v
                        cost[m] = base[v] - at_end[v] - later[t]
                        m += 1
                for i in range(m):
                    v = cand[i]
                    a = at[v]
                    if done[a]:
                        continue
                    far = d + (cost[i] - rise[t]) - (loss[v] - rise[a])
                    if far < dist[a] and far < within:
                        if over[a] > 0:
                            within = far
                        dist[a] = far
                        by[a] = v
                        cost_by[a] = cost[i]
                        to[a] = t
                        heap = push(keys, items, place, heap, far, a)
            for i in range(heap):
                place[items[i]] = -1
            if found < 0:
                return False
            for i in range(seen):
                rise[visited[i]] += dist[found] - dist[visited[i]]
            over[s] += 1
            over[found] -= 1
            t = found
            while t != s:
                v = by[t]
                loss[v] = cost_by[t]
                t = to[t]
                at[v] = t
    plan[:] = at
    return True
