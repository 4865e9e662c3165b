# ruff: noqa: F821
# mypy: ignore-errors
"""Text of the numba engine's loop: one unit, one policy, one budget, some rows at a time.

Never imported: `specialise` puts a policy's own rules in front of this text (the functions named
with an underscore, and the constants in capitals) and compiles the two together, so that LLVM
inlines them. The loop does what `naive.run` says, on arrays:

    cache[:m]       positions, oldest first        left[j]      step after which j left, or n
    state[f, j]     field f of token j             kept[t - p]  mass attended in decode step t
    shown[0, h, t]  mass of row t attended         cell         m and held, between calls
    shown[1, h, t]  mass of the whole row          line, rows   the row in fixed point: sum, heads
    by_head[0, h, j], by_head[1, h, j]             what head h showed of j, now and so far

Positions are unsigned 32-bit: LLVM then knows that an index is not negative and drops the test for
Python's indexing from the end.
"""


@njit(**OPTIONS)
def decode(bits, at, t, line, rows, shown):
    """Row t in fixed point: each head in `rows`, their sum in `line`."""
    for h in range(bits.shape[0]):
        source, target = bits[h, at : at + t + 1], rows[h, : t + 1]
        whole = np.int64(0)
        for j in range(t + 1):
            x = fixed(np.int64(source[j]))
            target[j] = x
            whole += x
        shown[1, h, t] = whole
        for j in range(t + 1):
            line[j] = target[j] if h == 0 else line[j] + target[j]


@njit(**OPTIONS)
def renormalised(x, h, t, shown):
    """An entry of head h's row t divided by the row's recall, with one rounding."""
    if shown[0, h, t] == 0:
        return 0.0
    return float(x * shown[1, h, t]) / float(shown[0, h, t]) * UNIT


@njit(**OPTIONS)
def recall_old(bits, base, j, u, p, kind, shown, ints, floats, k, n):
    """What the policy was shown of token j in row u."""
    heads, at = bits.shape[0], u * (u + 1) // 2 - base
    total = 0.0
    if HIDES and u >= p and not _visible(ints, floats, j, u, k, p, n, heads):
        return total
    for h in range(heads):
        x = fixed(np.int64(bits[h, at + j]))
        total += x * UNIT if u < p or kind == FULL else renormalised(x, h, u, shown)
    return total


@njit(**OPTIONS)
def advance(
    bits, first, start, stop, k, p, kind, lag,
    state, inputs, ints, floats, cell, cache, left, kept, shown, ranks, line, rows, by_head,
):  # fmt: skip
    """Replay rows start … stop - 1; `bits` hold rows first … stop - 1, packed."""
    heads, n = bits.shape[0], left.shape[0]
    m, held = cell[0], cell[1]
    base = first * (first + 1) // 2
    for t in range(start, stop):
        dense = t < p
        cache[m] = t
        m += 1
        _init(state, inputs, ints, floats, t, t, k, p, n, heads)
        decode(bits, t * (t + 1) // 2 - base, t, line, rows, shown)

        # Attend. Where every cached key is seen in full, its mass is summed on the way below.
        plain = dense or not (HIDES or LINGERS or kind == CACHED)
        seen = m
        mass = np.int64(0)
        if not plain:
            for h in range(heads):
                one = np.int64(0)
                seen = 0
                for i in range(m):
                    j = np.int64(cache[i])
                    if not HIDES or _visible(ints, floats, j, t, k, p, n, heads):
                        one += rows[h, j]
                        seen += 1
                if LINGERS:
                    for j in range(max(0, t - _linger(ints, floats, t, k, p, n, heads)), t):
                        if left[j] < n:
                            one += rows[h, j]
                            seen += 1
                mass += one
                shown[0, h, t] = one

        # Update every cached token and, if one must go, find the least rank on the way.
        keep = m
        if t >= p - 1 and not READMITS:
            keep = _keep(ints, floats, m, t, k, p, n, heads)
        evicting = m > keep or (EXPIRES and t >= p - 1)
        ranking = (evicting or READMITS) and not WHOLE
        least = np.inf
        worst = 0
        for i in range(m):
            j = np.int64(cache[i])
            seeing = plain or not HIDES or _visible(ints, floats, j, t, k, p, n, heads)
            a = 0.0
            if plain:
                mass += line[j]
                a = line[j] * UNIT
            elif seeing and kind == FULL:
                a = line[j] * UNIT
            elif seeing:
                for h in range(heads):
                    a += renormalised(rows[h, j], h, t, shown)
            if BY_HEAD:
                for h in range(heads):
                    x = rows[h, j] * UNIT
                    if not (dense or kind == FULL):
                        x = renormalised(rows[h, j], h, t, shown)
                    by_head[0, h, j] = x if seeing else 0.0
                    by_head[1, h, j] += by_head[0, h, j]
            old = 0.0
            if lag > 0 and t - lag >= j:
                old = recall_old(bits, base, j, t - lag, p, kind, shown, ints, floats, k, n)
            _update(state, inputs, ints, floats, j, a, old, t, k, p, n, heads)
            if ranking:
                r = float(_rank(state, inputs, ints, floats, j, t, k, p, n, heads))
                ranks[i] = r
                if r < least:
                    least = r
                    worst = i

        if READMITS:
            mass = readmitted(line, t, k, ranks)
            seen = min(t, k) + 1
        if not dense:
            kept[t - p] = mass
            held = max(held, seen - 1)

        # Evict the least ranks, the oldest first among equals.
        if not evicting:
            continue
        if WHOLE:
            _rank_cache(
                cache[:m], ranks[:m], by_head[1], by_head[0], state, inputs, ints, floats,
                t, k, p, n, heads,
            )  # fmt: skip
        if m - keep == 1 and not EXPIRES and not WHOLE:
            left[cache[worst]] = t
            for i in range(worst, m - 1):
                cache[i] = cache[i + 1]
            m -= 1
        else:
            order = np.argsort(ranks[:m], kind="mergesort")
            for i in range(m):
                if i < m - keep or (EXPIRES and ranks[order[i]] == -np.inf):
                    left[cache[order[i]]] = t
            stay = 0
            for i in range(m):
                if left[cache[i]] == n:
                    cache[stay] = cache[i]
                    stay += 1
            m = stay
    cell[0], cell[1] = m, held


@njit(**OPTIONS)
def readmitted(line, t, k, ranks):
    """Mass of the k earlier keys of highest rank (the newest among equals) and of the own key."""
    spare = max(0, t - k)
    bar = np.partition(ranks[:t], spare)[spare] if spare else -np.inf
    room = min(t, k)
    for j in range(t):
        room -= ranks[j] > bar
    mass = np.int64(line[t])
    for j in range(t - 1, -1, -1):
        if ranks[j] > bar:
            mass += line[j]
        elif ranks[j] == bar and room > 0:
            mass += line[j]
            room -= 1
    return mass
