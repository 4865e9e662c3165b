"""The compiled loops of the bracket: reading rows at given prices, and repairing a plan.

Imported lazily by `h2osim.optima.bracket`, which states the method. Notation as there: a node is
a step after which tokens leave, node n-1 meaning kept to the end; ``worth[v]`` is what token v has
received so far less the prices paid; ``best[v]`` its largest worth at a node, ``stop[v]`` where.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any

import numpy as np

from h2osim.attention.row_loops import sum_heads
from h2osim.support.compiling import njit

INF = 1 << 60
SHORT = 80  # candidates per node that a reading aims at
ROOM = 200  # candidates per node that are remembered


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
        sum_heads(bits, t * (t + 1) // 2 - base, t + 1, row)
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
            sum_heads(bits, t * (t + 1) // 2 - base, t + 1, row)
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
def snapshots(
    bits: Any, base: int, start: int, stop: int, p: int, ends: Any, row: Any, received: Any,
    gains: Any,
) -> None:  # fmt: skip
    """Go through rows start ... stop-1 and copy what tokens have received by the steps `ends`.

    ends int64 [m], ascending, the last one n-1. gains int64 [m, n]: row i is by step ends[i].
    """
    i = np.searchsorted(ends, start)
    for t in range(start, stop):
        if t >= p:
            sum_heads(bits, t * (t + 1) // 2 - base, t + 1, row)
            for v in range(t):
                received[v] += row[v]
        if ends[i] == t:
            gains[i, : t + 1] = received[: t + 1]
            i += 1


@njit(cache=True, nogil=True)
def deal(ends: Any, room: Any, gains: Any, later: Any, tolerance: int, most: int) -> None:
    """Prices at which about room[i] tokens leave at step ends[i], by an auction of the tokens.

    Token v leaving at step ends[i] >= v is worth gains[i, v] + later[i]. At first every token is
    assigned to the step where that is largest. Then, again and again, the step that lacks most
    tokens raises its price later[i] until as many as it lacks would come, and `tolerance` more;
    that takes them from other steps. Stops, at any rate, after so many raises as `most` says.
    `later` [m] is changed.
    """
    m, n = gains.shape
    at = np.empty(n, np.int64)
    worth = np.empty(n, np.int64)
    lack = room.copy()
    for v in range(n):
        worth[v] = -INF
        for i in range(m):
            if ends[i] >= v and gains[i, v] + later[i] > worth[v]:
                worth[v] = gains[i, v] + later[i]
                at[v] = i
        lack[at[v]] -= 1
    raise_by = np.empty(n, np.int64)
    for _ in range(most):
        g = np.argmax(lack)
        c = lack[g]
        if c == 0:
            break
        size = ends[g] + 1
        gain = gains[g]
        for v in range(size):
            raise_by[v] = worth[v] - gain[v] if at[v] != g else INF
        ordered = np.partition(raise_by[:size], min(c, size - 1))
        bar = ordered[min(c, size - 1)]
        if bar == INF:  # it takes all tokens
            bar = ordered[:c].max()
        price = max(later[g], bar + tolerance)
        for v in range(size):
            if at[v] == g:
                worth[v] = gain[v] + price
        later[g] = price
        for equal in (False, True):  # those below the bar, then of those at it as many as it takes
            for v in range(size):
                if c > 0 and at[v] != g and (raise_by[v] == bar if equal else raise_by[v] < bar):
                    lack[at[v]] += 1
                    at[v] = g
                    worth[v] = gain[v] + price
                    c -= 1
        lack[g] = 0


@njit(cache=True, nogil=True)
def pairs(
    n: int, first: int, room: Any, end_loss: Any, stops: Any, plan: Any, tokens: Any, gains: Any,
    length: Any, at_first: Any, at_end: Any, at_plan: Any, at_stop: Any,
) -> Any:  # fmt: skip
    """All pairs of node and token that are to be considered: start [n+1], token and gain [pairs].

    Those of node t are start[t] ... start[t+1]-1, no token twice; gain: what the token has received
    by t. Besides the candidates: every token's stop and planned node, all tokens of the prompt at
    the first node, and at the end those that lose least by staying (`end_loss` says how much).
    """
    most = length.sum() + 4 * n
    start = np.zeros(n + 1, np.int64)
    token = np.empty(most, np.int32)
    gain = np.empty(most, np.int64)
    mark = np.full(n, -1, np.int64)
    link = np.full(2 * n, -1, np.int64)  # per node: a linked list of stops (2v) and plans (2v+1)
    head = np.full(n, -1, np.int64)
    for v in range(n):
        link[2 * v] = head[stops[v]]
        head[stops[v]] = 2 * v
        link[2 * v + 1] = head[plan[v]]
        head[plan[v]] = 2 * v + 1
    enough = min(n, room[n - 1] + n // 16 + SHORT)
    bar = np.partition(end_loss, enough - 1)[enough - 1]
    size = 0
    for t in range(first, n):
        start[t] = size
        j = head[t]
        while j >= 0:
            v = j >> 1
            if mark[v] != t:
                mark[v] = t
                token[size], gain[size] = v, at_plan[v] if j & 1 else at_stop[v]
                size += 1
            j = link[j]
        for i in range(length[t]):
            v = tokens[t, i]
            if mark[v] != t:
                mark[v] = t
                token[size], gain[size] = v, gains[t, i]
                size += 1
        if t == n - 1 or (t == first and room[t] > 1):
            for v in range(t + 1):
                if mark[v] != t and (t == first or end_loss[v] <= bar):
                    token[size], gain[size] = v, at_first[v] if t == first else at_end[v]
                    size += 1
    start[n] = size
    return start, token[:size], gain[:size]


@njit(cache=True, nogil=True)
def settle(start: Any, token: Any, gain: Any, later: Any, at: Any, got: Any) -> None:
    """Assign every token to the node of largest gain + later: at[v], its gain there got[v]."""
    n = at.shape[0]
    worth = np.full(n, -INF, np.int64)
    for t in range(n):
        for i in range(start[t], start[t + 1]):
            v = token[i]
            if gain[i] + later[t] > worth[v]:
                worth[v] = gain[i] + later[t]
                at[v] = t
                got[v] = gain[i]


@njit(cache=True, nogil=True)
def auction(
    room: Any, start: Any, token: Any, gain: Any, later: Any, at: Any, got: Any,
    tolerance: int, most: int,
) -> bool:  # fmt: skip
    """Move tokens until no node holds more or fewer than `room`, at nearly the least loss.

    As in `deal`, a node that lacks tokens raises its price later[t] until they come and `tolerance`
    more, over the given pairs; a node that loses one to it follows. Every token stays within
    `tolerance` of its best node. False if it gave up after `most` raises, with prices that are
    better than before all the same.
    """
    n = at.shape[0]
    lack = room.copy()
    for v in range(n):
        lack[at[v]] -= 1
    stack = np.empty(n, np.int64)
    waiting = np.zeros(n, np.bool_)
    size = 0
    for t in range(n - 1):
        if lack[t] > 0:
            stack[size] = t
            size += 1
            waiting[t] = True
    chosen = np.empty(n, np.int64)
    raise_by = np.empty(n, np.int64)
    for _ in range(most):
        if size > 0:
            size -= 1
            t = stack[size]
        elif lack[n - 1] > 0:  # it takes many tokens, and is treated after all others
            t = n - 1
        else:
            return True
        waiting[t] = False
        c = lack[t]
        if c == 1:
            least = bar = INF
            for i in range(start[t], start[t + 1]):
                v = token[i]
                a = at[v]
                if a != t:
                    x = got[v] + later[a] - gain[i]
                    if x < least:
                        bar = least
                        least = x
                        chosen[0] = i
                    elif x < bar:
                        bar = x
            bar = least if bar == INF else bar
        else:
            m = 0
            for i in range(start[t], start[t + 1]):
                v = token[i]
                if at[v] != t:
                    chosen[m] = i
                    raise_by[m] = got[v] + later[at[v]] - gain[i]
                    m += 1
            order = np.argsort(raise_by[:m])
            bar = raise_by[order[min(c, m - 1)]]
            chosen[:c] = chosen[order[:c]]
        later[t] = max(later[t], bar + tolerance)
        lack[t] = 0
        for j in range(c):
            i = chosen[j]
            v = token[i]
            a = at[v]
            lack[a] += 1
            if lack[a] > 0 and not waiting[a] and a < n - 1:
                stack[size] = a
                size += 1
                waiting[a] = True
            at[v] = t
            got[v] = gain[i]
    return False


@njit(cache=True, nogil=True)
def repair(
    room: Any, start: Any, token: Any, gain: Any, later: Any, at: Any, got: Any
) -> bool:  # fmt: skip
    """Move tokens until no node holds more or fewer than `room`, at the least loss on these pairs.

    Starts with every token at its best node (see `settle`) and moves tokens along shortest paths
    from nodes that have too many to nodes that lack some; `later` rises so that every token is at
    its best node again. False when the pairs do not connect (never: the old plan is one).
    """
    n = at.shape[0]
    over = -room
    for v in range(n):
        over[at[v]] += 1
    dist = np.empty(n, np.int64)
    by = np.empty(n, np.int64)  # the pair by which node t would lose a token, and
    to = np.empty(n, np.int64)  # the node that takes it
    visited = np.empty(n, np.int64)
    done = np.zeros(n, np.bool_)
    t: Any  # a node
    for s in range(n):
        while over[s] < 0:
            dist[:] = INF
            done[:] = False
            dist[s] = 0
            heap = [(np.int64(0), np.int64(s))]
            seen = 0
            found: Any = -1
            within = INF  # a node with too many tokens has been seen this far away
            while len(heap) > 0:
                d, t = heappop(heap)
                if done[t]:  # it has been visited by a shorter path
                    continue
                if over[t] > 0:
                    found = t
                    break
                done[t] = True
                visited[seen] = t
                seen += 1
                for i in range(start[t], start[t + 1]):
                    v = token[i]
                    a = at[v]
                    far = d + (got[v] + later[a]) - (gain[i] + later[t])
                    if far < dist[a] and far < within and not done[a]:
                        if over[a] > 0:
                            within = far
                        dist[a] = far
                        by[a] = i
                        to[a] = t
                        heappush(heap, (far, a))
            if found < 0:
                return False
            for i in range(seen):
                later[visited[i]] += dist[found] - dist[visited[i]]
            over[s] += 1
            over[found] -= 1
            t = found
            while t != s:
                i = by[t]
                v = token[i]
                t = to[t]
                at[v] = t
                got[v] = gain[i]
    return True
