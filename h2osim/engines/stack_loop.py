# ruff: noqa: F821
# mypy: ignore-errors
"""Text of the stack engine's loop: one unit, one policy, every budget in one pass (theorem T7).

Never imported: see `direct_loop`. Where ranks and their timing do not depend on the cache, the
caches of growing budgets are nested, and one order of the tokens holds them all:

    stack[:m]        tokens by depth; the cache of budget k is stack[:k]
    depth[j]         where token j lies, 1 …; 0 while it is pending (held by every budget)
    pending[:w]      tokens that came since the last eviction, oldest first
    since[j]         mass that decode rows gave token j since it came to its depth
    hits[d]          mass that decode rows gave to whatever lay at depth d; hits[0]: to pending ones
    evicted[b, j]    step after which token j is not in the cache of budgets[b], n if it stays
    following[d]     index of the first listed budget of at least d
    ranks[j]         rank of token j in this step
    sizes[:, t - p]  m and w as decode step t found them
    cell             m and w, between calls
"""

CHUNK = 16


@njit(**OPTIONS)
def settle(j, at, depth, since, hits):
    """Token j comes to depth `at`: what it gave at its old depth is booked there."""
    hits[depth[j]] += since[j]
    since[j] = 0
    depth[j] = at


@njit(**OPTIONS)
def book(j, top, bottom, t, following, budgets, evicted):
    """Budgets from `top` up to below `bottom` lose token j after step t."""
    for b in range(following[top], budgets.shape[0]):
        if budgets[b] >= bottom:
            break
        evicted[b, j] = t


@njit(**OPTIONS)
def percolate(x, t, m, stack, depth, since, hits, ranks, following, budgets, evicted):
    """Insert token x on top; what it displaces falls past every resident of higher rank.

    The token carried past depth d is the one that a cache of d tokens evicts: the least rank among
    x and stack[:d], the oldest among equals. Depths where that changes are few, so the search
    looks at a whole chunk for any of them before it looks at one depth at a time.
    """
    carried, top = x, 1  # caches of `top` tokens and more still hold the carried one
    bar = ranks[x]
    d = 0
    while d < m:
        end = min(m, d + CHUNK)
        if end - d == CHUNK:
            lower = 0
            for i in range(CHUNK):
                lower |= ranks[stack[d + i]] <= bar
            if lower == 0:
                d = end
                continue
        for i in range(d, end):
            y = np.int64(stack[i])
            if ranks[y] < bar or (ranks[y] == bar and y < carried):
                book(carried, top, i + 1, t, following, budgets, evicted)
                settle(carried, i + 1, depth, since, hits)
                stack[i] = carried
                carried, top, bar = y, i + 1, ranks[y]
        d = end
    book(carried, top, m + 1, t, following, budgets, evicted)
    settle(carried, m + 1, depth, since, hits)
    stack[m] = carried


@njit(**OPTIONS)
def advance(
    bits, first, start, stop, p,
    state, inputs, ints, floats, cell, stack, depth, pending, since, hits,
    budgets, following, evicted, masses, sizes, ranks, line,
):  # fmt: skip
    """Replay rows start … stop - 1; `bits` hold rows first … stop - 1, packed."""
    heads, n = bits.shape[0], depth.shape[0]
    m, w = cell[0], cell[1]
    base = first * (first + 1) // 2
    most = n + 1
    for t in range(start, stop):
        if t >= p:
            sizes[0, t - p], sizes[1, t - p] = m, w
        pending[w] = t
        w += 1
        _init(state, inputs, ints, floats, t, t, n, p, n, heads)
        at = t * (t + 1) // 2 - base
        line[: t + 1] = 0
        for h in range(heads):
            source = bits[h, at : at + t + 1]
            for j in range(t + 1):
                line[j] += fixed(source[j])
        if t >= p:
            whole = np.int64(0)
            for j in range(t + 1):
                since[j] += line[j]
                whole += line[j]
            masses[t - p] = whole
        for j in range(t + 1):
            _update(state, inputs, ints, floats, j, line[j] * ONE, 0.0, t, n, p, n, heads)

        # A rule that evicts now does so at every budget: ask it about a budget of one token.
        if t < p - 1 or _keep(ints, floats, most, t, 1, p, n, heads) == most:
            continue
        if WHOLE:
            _rank_cache(pending[:w], ranks[:w], state, inputs, ints, floats, t, n, p, n, heads)
        else:
            for j in range(t + 1):
                ranks[j] = _rank(state, inputs, ints, floats, j, t, n, p, n, heads)
        if m == 0:
            order = np.argsort(ranks[:w], kind="mergesort")
            for i in range(w):
                j = np.int64(order[w - 1 - i])
                book(j, 1, i + 1, t, following, budgets, evicted)
                settle(j, i + 1, depth, since, hits)
                stack[i] = j
            m = w
        else:
            for i in range(w):
                percolate(
                    np.int64(pending[i]), t, m, stack, depth, since, hits, ranks,
                    following, budgets, evicted,
                )  # fmt: skip
                m += 1
        w = 0
    cell[0], cell[1] = m, w


@njit(**OPTIONS)
def bound(
    bits, first, start, stop, p,
    state, inputs, ints, floats, hits, masses, sizes, ranks, line,
):  # fmt: skip
    """The same sums where every step chooses its keys afresh: by rank, the newest among equals."""
    heads, n = bits.shape[0], line.shape[0]
    base = first * (first + 1) // 2
    for t in range(start, stop):
        _init(state, inputs, ints, floats, t, t, n, p, n, heads)
        at = t * (t + 1) // 2 - base
        line[: t + 1] = 0
        for h in range(heads):
            for j in range(t + 1):
                line[j] += fixed(bits[h, at + j])
        for j in range(t + 1):
            _update(state, inputs, ints, floats, j, line[j] * ONE, 0.0, t, n, p, n, heads)
            ranks[j] = _rank(state, inputs, ints, floats, j, t, n, p, n, heads)
        if t < p:
            continue
        sizes[0, t - p] = t
        order = np.argsort(ranks[:t], kind="mergesort")
        whole = np.int64(line[t])
        hits[0] += line[t]
        for i in range(t):
            x = line[order[t - 1 - i]]
            hits[i + 1] += x
            whole += x
        masses[t - p] = whole
