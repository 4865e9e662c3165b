# ruff: noqa: F821
# mypy: ignore-errors
"""Text of the numba engine's loop: one unit, one policy, one budget, some rows at a time.

Never imported: `specialise` puts a policy's own rules in front of this text (the functions named
with an underscore, and the constants in capitals) and compiles the two together, so that LLVM
inlines them. The loop does what `naive.run` says, on arrays:

    cache[:m]       positions, oldest first        left[j]   step after which j left, or n
    state[f, j]     field f of token j             kept[t]   mass attended in decode step t
    shown[0, h, t]  mass of row t attended         cell      m and held, kept between calls
    shown[1, h, t]  mass of the whole row
"""


@njit(**OPTIONS)
def observe(bits, at, j, t, dense, kind, shown):
    """What the policy is shown of token j in row t, which starts at bits[:, at]."""
    total = 0.0
    for h in range(bits.shape[0]):
        x = fixed(bits[h, at + j])
        if dense or kind == FULL:
            total += x * ONE
        elif shown[0, h, t] > 0:
            total += float(x * shown[1, h, t]) / float(shown[0, h, t]) * ONE
    return total


@njit(**OPTIONS)
def advance(
    bits, first, start, stop, masses, k, p, kind, lag,
    state, inputs, ints, floats, cell, cache, left, kept, shown, ranks,
):  # fmt: skip
    """Replay rows start … stop - 1; `bits` hold rows first … stop - 1, packed."""
    heads, n = bits.shape[0], left.shape[0]
    m, held = cell[0], cell[1]
    base = first * (first + 1) // 2
    for t in range(start, stop):
        at = t * (t + 1) // 2 - base
        dense = t < p
        cache[m] = t
        m += 1
        _init(state, inputs, ints, floats, t, t, k, p, n, heads)

        # Attend: the mass seen in each head, and how many keys gave it.
        seen = 0
        mass = 0
        for h in range(heads):
            one = 0
            seen = 0
            for i in range(m):
                j = cache[i]
                if dense or not HIDES or _visible(ints, floats, j, t, k, p, n, heads):
                    one += fixed(bits[h, at + j])
                    seen += 1
            if LINGERS:
                for j in range(max(0, t - _linger(ints, floats, t, k, p, n, heads)), t):
                    if left[j] < n:
                        one += fixed(bits[h, at + j])
                        seen += 1
            mass += one
            shown[0, h, t] = one
            shown[1, h, t] = masses[h, t - start]

        # Update every cached token and, if one must go, find the least rank on the way.
        keep = m
        if t >= p - 1 and not READMITS:
            keep = _keep(ints, floats, m, t, k, p, n, heads)
        evicting = m > keep or (EXPIRES and t >= p - 1)
        ranking = (evicting or READMITS) and not WHOLE
        least = np.inf
        worst = 0
        for i in range(m):
            j = cache[i]
            a = 0.0
            if dense or not HIDES or _visible(ints, floats, j, t, k, p, n, heads):
                a = observe(bits, at, j, t, dense, kind, shown)
            old = 0.0
            if lag > 0 and t - lag >= j:
                u = t - lag
                if u < p or not HIDES or _visible(ints, floats, j, u, k, p, n, heads):
                    old = observe(bits, u * (u + 1) // 2 - base, j, u, u < p, kind, shown)
            _update(state, inputs, ints, floats, j, a, old, t, k, p, n, heads)
            if ranking:
                r = float(_rank(state, inputs, ints, floats, j, t, k, p, n, heads))
                ranks[i] = r
                if r < least:
                    least = r
                    worst = i

        if READMITS:
            mass = readmitted(bits, at, t, k, ranks)
            seen = min(t, k) + 1
        if not dense:
            kept[t - p] = mass
            held = max(held, seen - 1)

        # Evict the least ranks, the oldest first among equals.
        if not evicting:
            continue
        if WHOLE:
            _rank_cache(cache[:m], ranks[:m], state, inputs, ints, floats, t, k, p, n, heads)
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
def readmitted(bits, at, t, k, ranks):
    """Mass of the k earlier keys of highest rank (the newest among equals) and of the own key."""
    spare = max(0, t - k)
    line = np.partition(ranks[:t], spare)[spare] if spare else -np.inf
    room = min(t, k)
    for j in range(t):
        room -= ranks[j] > line
    mass = 0
    for j in range(t, -1, -1):
        chosen = j == t or ranks[j] > line
        if not chosen and ranks[j] == line and room > 0:
            chosen = True
            room -= 1
        if chosen:
            for h in range(bits.shape[0]):
                mass += fixed(bits[h, at + j])
    return mass
