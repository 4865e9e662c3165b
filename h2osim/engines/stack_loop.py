# ruff: noqa: F821
# mypy: ignore-errors
"""Text of the stack engine's loop: one unit, one policy, every budget in one pass.

Never imported: `to_numba` compiles it behind a policy's rules. Where ranks and
their timing do not depend on the cache, the caches of growing budgets are nested
(proofs/14-inclusion.md), and one order of the tokens holds them all.
The arrays of a run are those of `stack.Pass`.
"""


@njit(**OPTIONS)
def book(j, top, bottom, t, following, budgets, evicted):
    """Budgets from `top` up to below `bottom` lose token j after step t."""
    for b in range(following[top], budgets.shape[0]):
        if budgets[b] >= bottom:
            break
        evicted[b, j] = t


@njit(**OPTIONS)
def percolate(x, t, m, stack, ranks, following, budgets, evicted):
    """Insert token x on top; what it displaces falls past every resident of higher rank.

    The token carried past depth d is the one that a cache of d tokens evicts: the least rank among
    x and stack[:d], the oldest among equals.
    """
    carried, top = x, 1  # caches of `top` tokens and more still hold the carried one
    bar = ranks[x]
    for i in range(m):
        y = np.int64(stack[i])
        r = ranks[y]
        if r < bar or (r == bar and y < carried):
            if budgets.shape[0]:
                book(carried, top, i + 1, t, following, budgets, evicted)
            stack[i] = carried
            carried, top, bar = y, i + 1, r
    if budgets.shape[0]:
        book(carried, top, m + 1, t, following, budgets, evicted)
    stack[m] = carried


@njit(**OPTIONS)
def advance(bits, first, start, stop, p, run, orders, counts):
    """Replay rows start … stop - 1; `bits` hold rows first … stop - 1, packed.

    orders, counts: stack[:m] and m as each decode row found them, unless they have no rows. Gives
    -1, or the step in which a rank is NaN.
    """
    state, inputs, ints, floats = run.state, run.inputs, run.ints, run.floats
    stack, pending, ranks, line = run.stack, run.pending, run.ranks, run.line
    hits, masses, sizes = run.hits, run.masses, run.sizes
    budgets, following, evicted = run.budgets, run.following, run.evicted
    heads, n = bits.shape[0], ranks.shape[0]
    m, w = run.sizes_now
    base = first * (first + 1) // 2
    most = n + 1
    for t in range(start, stop):
        pending[w] = t
        w += 1
        _init(state, inputs, ints, floats, t, t, n, p, n, heads)
        sum_heads(bits, t * (t + 1) // 2 - base, t + 1, line)

        # Attend: what lies at depth d is seen by every budget from d on.
        if t >= p:
            sizes[0, t - p], sizes[1, t - p] = m, w - 1
            if counts.shape[0]:
                for i in range(m):  # a slice would compile numba's message for unequal shapes
                    orders[t - start, i] = stack[i]
                counts[t - start] = m
            whole = np.int64(0)
            for j in range(t + 1):
                whole += line[j]
            masses[t - p] = whole
            for i in range(w):
                hits[0] += line[np.int64(pending[i])]
            for i in range(m):
                hits[i + 1] += line[np.int64(stack[i])]

        for j in range(t + 1):
            _update(state, line[j] * UNIT, 0.0, inputs, ints, floats, j, t, n, p, n, heads)
            if not WHOLE:
                ranks[j] = _rank(state, inputs, ints, floats, j, t, n, p, n, heads)
                if ranks[j] != ranks[j]:
                    return t

        # A rule that evicts now does so at every budget: ask it about a budget of one token.
        if t < p - 1 or _keep(most, ints, floats, t, 1, p, n, heads) == most:
            continue
        if WHOLE:
            none = np.zeros((heads, 0))  # no inclusive rule asks for attention head by head
            _rank_cache(
                state, pending[:w], ranks[:w], none, none, inputs, ints, floats,
                t, n, p, n, heads,
            )  # fmt: skip
        if m == 0:  # the prompt's end: sorting does what percolating one by one would
            order = np.argsort(ranks[:w], kind="mergesort")
            for i in range(w):
                stack[i] = order[w - 1 - i]
                book(np.int64(stack[i]), 1, i + 1, t, following, budgets, evicted)
            m = w
        else:
            for i in range(w):
                x = np.int64(pending[i])
                percolate(x, t, m, stack, ranks, following, budgets, evicted)
                m += 1
        w = 0
    run.sizes_now[0], run.sizes_now[1] = m, w
    return -1


@njit(**OPTIONS)
def bound(bits, first, start, stop, p, run, orders, counts):
    """The same sums where every step chooses its keys afresh: by rank, the newest among equals."""
    state, inputs, ints, floats = run.state, run.inputs, run.ints, run.floats
    hits, masses, sizes, ranks, line = run.hits, run.masses, run.sizes, run.ranks, run.line
    heads, n = bits.shape[0], line.shape[0]
    base = first * (first + 1) // 2
    for t in range(start, stop):
        _init(state, inputs, ints, floats, t, t, n, p, n, heads)
        sum_heads(bits, t * (t + 1) // 2 - base, t + 1, line)
        for j in range(t + 1):
            _update(state, line[j] * UNIT, 0.0, inputs, ints, floats, j, t, n, p, n, heads)
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
            if counts.shape[0]:
                orders[t - start, i] = order[t - 1 - i]
                counts[t - start] = t
        masses[t - p] = whole
    return -1
