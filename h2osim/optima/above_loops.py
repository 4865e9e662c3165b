"""The compiled solver from the last budget down: shortest augmenting paths, on short lists.

Imported lazily (numba is slow to import) by `h2osim.optima.exact`, which states the problem. The
method, in the words used below:

* A *node* is a step t = first ... n-2 after which tokens leave; evicting token v <= t there costs
  C[t, v], the mass that rows after t give to v. ``at[v]`` is the node of token v, -1 while it is
  kept to the end. Budgets go down from n-1; budget k adds one eviction at node max(k, first).
* Duals: u[t] for nodes, y[v] <= 0 for tokens (0 for kept ones), C[t, v] - u[t] - y[v] >= 0 with
  equality where at[v] = t. One more eviction at node s is a shortest path from s in these reduced
  costs: s takes a token of another node, that node takes one of a third, and so on until a node
  takes a kept token. u grows along the way, y falls.

A plain Dijkstra reads a whole row of C for every node it visits, and it visits almost all nodes
for every budget: n^3/3 numbers. What makes it fast here:

* Each node keeps a *list* of the tokens that can matter to it. Tokens off the list are known to
  have a reduced cost above a bound; only when the search gets as far as that bound (an *alarm* in
  the same heap) does the node look further.
* Prices of neighbouring nodes rise together: if u[t] and u[at[v]] rise by the same amount, the
  reduced cost of (t, v) stays. So bounds are kept for classes of tokens, B ranges of u[at[v]],
  and ``fallen[b]``, the least fall of y within class b, is credited to all bounds of the class.
* Within one search a token whose node has been visited cannot matter any more. When the alarm of a
  class goes off, often few of its tokens, or none, are left to look at.
* The search is told to stop at a guess of its length, taken from the last paths; in the few
  cases where it finds nothing it runs again with a longer one.

All decisions compare int64 integers; floating point only sizes the lists.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from h2osim.attention.row_loops import fixed

INF = 1 << 60
CLASSES = 32  # classes of tokens by the price at their node; class 0: kept tokens
LONGEST = 200  # tokens on a node's list
AIM = 100  # the length that lists are steered to
LEFT = 16  # so many tokens of classes whose alarm went off are looked at one by one
RECLASS = 4  # budgets between two assignments of tokens to classes
FARTHEST = 2.0**56  # no bound is set further beyond a price; no sum of masses comes near
SLACK = 0.03  # of the highest price: how far neighbouring prices are taken to stray


@njit(cache=True, nogil=True)
def add_rows(
    bits: Any, base: int, start: int, stop: int, first: int, mass: Any, past: Any
) -> None:
    """Sum rows start ... stop-1 of a block, those after row `first` only.

    bits uint16 [heads, packed], row t at t(t+1)/2 - base. mass int64 [n] is added to. What a token
    has received from rows first+1 ... t goes to row t of `past` (packed, its first row is `first`).
    """
    n = mass.shape[0]
    for t in range(max(start, first), stop):
        if t > first:
            begin = t * (t + 1) // 2 - base
            for h in range(bits.shape[0]):
                row = bits[h, begin : begin + t + 1]
                for v in range(t + 1):
                    mass[v] += fixed(np.int64(row[v]))
        if t < n - 1:
            begin = t * (t + 1) // 2 - first * (first + 1) // 2
            past[begin : begin + t + 1] = mass[: t + 1]


@njit(cache=True, nogil=True)
def turn(past: Any, first: int, mass: Any) -> None:
    """From what tokens have received to what they will receive: C[t, v] = mass[v] - past[t, v]."""
    begin = 0
    for t in range(first, mass.shape[0] - 1):
        row = past[begin : begin + t + 1]
        for v in range(t + 1):
            row[v] = mass[v] - row[v]
        begin += t + 1


@njit(cache=True, nogil=True)
def push(keys: Any, items: Any, place: Any, size: int, key: int, item: int) -> int:
    """Put an item into the heap, or move it up; returns the heap's size."""
    j = place[item]
    if j < 0:
        j = size
        size += 1
    while j > 0:
        up = (j - 1) >> 1
        if keys[up] <= key:
            break
        keys[j] = keys[up]
        items[j] = items[up]
        place[items[j]] = j
        j = up
    keys[j] = key
    items[j] = item
    place[item] = j
    return size


@njit(cache=True, nogil=True)
def pop(keys: Any, items: Any, place: Any, size: int) -> int:
    """Take the least item out of the heap; returns the heap's size."""
    size -= 1
    place[items[0]] = -1
    if size == 0:
        return 0
    key, item = keys[size], items[size]
    j = 0
    while True:
        down = 2 * j + 1
        if down >= size:
            break
        if down + 1 < size and keys[down + 1] < keys[down]:
            down += 1
        if keys[down] >= key:
            break
        keys[j] = keys[down]
        items[j] = items[down]
        place[items[j]] = j
        j = down
    keys[j] = key
    items[j] = item
    place[item] = j
    return size


@njit(cache=True, nogil=True)
def classify(
    lowest: int, at: Any, u: Any, y: Any, start: Any, members: Any, where: Any,
    label: Any, y_then: Any, fallen: Any, floor: Any, bound: Any,
) -> None:  # fmt: skip
    """Assign tokens to classes anew and carry the bounds of every node >= `lowest` over.

    bound[t, b]: tokens of class b that are off t's list have C[t, v] - y_then[v] >= bound[t, b]
    (with y falling by fallen[b] or more since: C[t, v] - y[v] >= bound[t, b] + fallen[b]).
    """
    n = at.shape[0]
    width = u[lowest] // (CLASSES - 1) + 1
    moved = np.zeros((CLASSES, CLASSES), np.bool_)
    start[:] = 0
    for v in range(n):
        b = 0 if at[v] < 0 else 1 + min(CLASSES - 2, u[at[v]] // width)
        moved[label[v], b] = True
        label[v] = b
        y_then[v] = y[v]
        start[b + 1] += 1
    for b in range(CLASSES):
        start[b + 1] += start[b]
        floor[b] = max(0, b - 1) * width
    filled = start[:-1].copy()
    for v in range(n):
        b = label[v]
        members[filled[b]] = v
        where[v] = filled[b]
        filled[b] += 1
    pairs = np.argwhere(moved)
    carried = np.empty(CLASSES, np.int64)
    for t in range(lowest, n - 1):
        carried[:] = INF
        for i in range(pairs.shape[0]):
            a, b = pairs[i, 0], pairs[i, 1]
            carried[b] = min(carried[b], bound[t, a] + fallen[a])
        bound[t] = carried
    fallen[:] = 0


@njit(cache=True, nogil=True)
def relist(
    t: int, row: Any, size: float, reach: int, highest: int, u: Any, label: Any, y_then: Any,
    fallen: Any, floor: Any, goal: Any, limit: Any, some: Any, flags: Any, words: Any,
    bound: Any, listed: Any, costs: Any, length: Any,
) -> tuple[int, float]:  # fmt: skip
    """Make node t's list and bounds anew; returns how many tokens are in `some`, and a size.

    `some` gets the tokens that the list holds or the search can use now (C < goal + reach).
    `size` scales how far beyond u[t] the list goes; what it should be next time is returned.
    """
    away = np.empty(CLASSES, np.int64)
    while True:
        for b in range(CLASSES):
            ahead = SLACK * highest + max(0, u[t] - floor[b])
            away[b] = u[t] + 1 + np.int64(min(size * ahead, FARTHEST)) - fallen[b]
        for v in range(t + 1):
            limit[v] = away[label[v]]
        for v in range(t + 1):
            flags[v] = max(limit[v] + y_then[v], goal[v] + reach) > row[v]
        flags[t + 1 : t + 9] = False
        found = 0
        for i in range((t + 8) >> 3):
            if words[i] != 0:
                for v in range(8 * i, 8 * i + 8):
                    some[found] = v
                    found += flags[v]
        count = 0
        for i in range(found):
            v = some[i]
            if row[v] < limit[v] + y_then[v]:
                if count < LONGEST:
                    listed[t, count] = v
                    costs[t, count] = row[v]
                count += 1
        if count <= LONGEST:
            break
        size *= 0.6 if count < 2 * LONGEST else 0.3
        if size < 1e-9:
            # too many ties for a list: the whole row is read on every visit
            length[t] = 0
            bound[t] = -INF
            return found, 1e-9
    length[t] = count
    bound[t] = away
    if 2 * count < AIM:
        size = min(1.5 * size, 1e6)  # where there are fewer tokens, nothing is gained by more
    elif count > AIM:
        size *= 0.8
    return found, size


@njit(cache=True, nogil=True)
def note(u: Any, at: Any, price: Any, gone: Any) -> None:
    """Write down a budget's prices, and the node where each token leaves (n: never)."""
    price[:] = u
    for v in range(at.shape[0]):
        gone[v] = at[v] if at[v] >= 0 else at.shape[0]


@njit(cache=True, nogil=True)
def solve(
    C: Any, n: int, first: int, least: int, wanted: Any, loss: Any, gone: Any, price: Any
) -> None:
    """The optimum of every budget n-1, n-2, ... least.

    C int64, packed rows first ... n-2. loss int64 [n+1]: loss[k] is set to the least total cost at
    budget k. For the i-th of the budgets `wanted` (descending), gone[i] int32 [n] is set to the
    node where each token leaves (n: never) and price[i] int64 [n] to u of every node.
    """
    u = np.zeros(n, np.int64)
    y = np.zeros(n, np.int64)
    at = np.full(n, -1, np.int64)
    cost = np.zeros(n, np.int64)  # C[at[v], v]
    head = np.full(n, -1, np.int64)  # the tokens of each node, a doubly linked list
    after = np.full(n, -1, np.int64)
    before = np.full(n, -1, np.int64)
    used = np.zeros(n, np.bool_)
    # lists and bounds
    listed = np.empty((n, LONGEST), np.int32)
    costs = np.empty((n, LONGEST), np.int64)
    length = np.zeros(n, np.int64)
    size = np.full(n, 1e-3)
    bound = np.full((n, CLASSES), -INF, np.int64)
    # classes; members[start[b] : start[b] + left[b]] are those whose nodes have not been visited
    label = np.zeros(n, np.int64)
    y_then = np.zeros(n, np.int64)
    fallen = np.zeros(CLASSES, np.int64)
    floor = np.zeros(CLASSES, np.int64)
    start = np.full(CLASSES + 1, n, np.int64)
    start[0] = 0
    members = np.arange(n)
    where = np.arange(n)
    left = np.zeros(CLASSES, np.int64)
    credit = np.zeros(CLASSES, np.int64)  # fallen[b], or INF when nothing of class b is left
    # one search
    dist = np.empty(n, np.int64)
    goal = np.empty(n, np.int64)  # reaching v from t helps only if C[t, v] < goal[v] + u[t] - d
    heard = np.zeros(n, np.int64)  # bit b: node has looked at what was left of class b
    by = np.empty(n, np.int64)  # the token that node t would lose, and
    to = np.empty(n, np.int64)  # the node that takes it
    visited = np.empty(n, np.int64)
    keys = np.empty(2 * n, np.int64)  # heap: item 2t is a visit of node t, 2t+1 an alarm there
    items = np.empty(2 * n, np.int64)
    place = np.full(2 * n, -1, np.int64)
    # work space
    limit = np.empty(n, np.int64)
    some = np.empty(n + 8, np.int64)
    words = np.zeros(n // 8 + 3, np.uint64)
    flags = words.view(np.bool_)
    recent = np.zeros(16, np.int64)
    tri_first = first * (first + 1) // 2

    total = np.int64(0)
    next_wanted = 0
    age = 0
    for k in range(n - 1, least - 1, -1):
        if k < n - 1:
            s = max(k, first)
            age += 1
            if age == RECLASS:
                age = 0
                lowest = s if used[s] else s + 1
                if lowest < n - 1:
                    classify(
                        lowest, at, u, y, start, members, where,
                        label, y_then, fallen, floor, bound,
                    )  # fmt: skip
            begin = s * (s + 1) // 2 - tri_first
            if not used[s]:
                used[s] = True
                least_cost = INF
                row = C[begin : begin + s + 1]
                for v in range(s + 1):
                    least_cost = min(least_cost, row[v] - y[v])
                u[s] = least_cost
                if s + 1 < n - 1:
                    size[s] = size[s + 1]
            guess = np.int64(1)
            for i in range(16):
                guess = max(guess, recent[i])
            guess += guess >> 1

            while True:  # until a search finds a kept token
                best = guess
                last = -1  # the kept token that it found, and
                taker = -1  # the node that takes it
                seen = 0
                heap = 0
                for b in range(CLASSES):
                    left[b] = start[b + 1] - start[b]
                    credit[b] = fallen[b] if left[b] > 0 else INF
                for v in range(n):
                    dist[v] = INF
                    heard[v] = 0
                    goal[v] = guess + y[v]
                dist[s] = 0
                heap = push(keys, items, place, heap, 0, 2 * s)
                while heap > 0 and keys[0] < best:
                    key = keys[0]
                    t = items[0] >> 1
                    alarm = items[0] & 1
                    heap = pop(keys, items, place, heap)
                    d = dist[t]
                    reach = u[t] - d
                    begin = t * (t + 1) // 2 - tri_first
                    found = 0
                    if alarm == 0:
                        visited[seen] = t
                        seen += 1
                        v = head[t]
                        while v >= 0:  # its tokens are of no use any more
                            b = label[v]
                            left[b] -= 1
                            goal[v] = -INF
                            if left[b] == 0:
                                credit[b] = INF
                            i, j = where[v], start[b] + left[b]
                            w = members[j]
                            members[i], members[j] = w, v
                            where[w], where[v] = i, j
                            v = after[v]
                        for i in range(length[t]):
                            v = listed[t, i]
                            if costs[t, i] < goal[v] + reach:
                                some[found] = v
                                found += 1
                    else:
                        open_classes = np.int64(0)
                        remain = 0
                        for b in range(CLASSES):
                            if bound[t, b] + credit[b] <= key + reach and not heard[t] >> b & 1:
                                open_classes |= np.int64(1) << b
                                remain += left[b]
                        if remain <= LEFT:
                            heard[t] |= open_classes
                            for b in range(CLASSES):
                                if open_classes >> b & 1:
                                    for i in range(start[b], start[b] + left[b]):
                                        if members[i] <= t:
                                            some[found] = members[i]
                                            found += 1
                        else:
                            found, size[t] = relist(
                                t, C[begin : begin + t + 1], size[t], reach, u[s], u, label,
                                y_then, fallen, floor, goal, limit, some, flags, words,
                                bound, listed, costs, length,
                            )  # fmt: skip
                            # everything within reach has been found, beyond the list as well
                            heard[t] = -1
                    for i in range(found):
                        v = some[i]
                        via = C[begin + v] - reach
                        if via >= goal[v] or via - y[v] >= best:
                            continue
                        a = at[v]
                        if a < 0:
                            best = via
                            last = v
                            taker = t
                        elif via - y[v] < dist[a]:
                            dist[a] = via - y[v]
                            by[a] = v
                            to[a] = t
                            if after[head[a]] < 0:
                                goal[v] = via
                            heap = push(keys, items, place, heap, via - y[v], 2 * a)
                    if heard[t] >= 0:
                        nearest = INF
                        if heard[t] == 0:
                            for b in range(CLASSES):
                                nearest = min(nearest, bound[t, b] + credit[b])
                        else:
                            for b in range(CLASSES):
                                if not heard[t] >> b & 1:
                                    nearest = min(nearest, bound[t, b] + credit[b])
                        if nearest - reach < best:
                            key = max(d, nearest - reach)
                            heap = push(keys, items, place, heap, key, 2 * t + 1)
                for i in range(heap):
                    place[items[i]] = -1
                if last >= 0:
                    break
                guess = min(4 * guess, np.int64(INF >> 2))

            recent[k & 15] = best
            for i in range(seen):
                u[visited[i]] += best - dist[visited[i]]
            v, t = last, taker
            while True:  # move tokens along the path
                a = at[v]
                if a >= 0:
                    if before[v] >= 0:
                        after[before[v]] = after[v]
                    else:
                        head[a] = after[v]
                    if after[v] >= 0:
                        before[after[v]] = before[v]
                before[v] = -1
                after[v] = head[t]
                if head[t] >= 0:
                    before[head[t]] = v
                head[t] = v
                at[v] = t
                cost[v] = C[t * (t + 1) // 2 - tri_first + v]
                if t == s:
                    break
                v, t = by[t], to[t]
            fallen[:] = INF
            for v in range(n):
                if at[v] >= 0:
                    y[v] = cost[v] - u[at[v]]
                b = label[v]
                fallen[b] = min(fallen[b], y_then[v] - y[v])
            total += u[s]
        loss[k] = total
        if next_wanted < wanted.shape[0] and wanted[next_wanted] == k:
            note(u, at, price[next_wanted], gone[next_wanted])
            next_wanted += 1
