# ruff: noqa: F821
# mypy: ignore-errors
"""Text of the stepper's loop: units that share one policy, some rows at a time.

Never imported: `to_numba` puts a policy's own rules in front of this text (the functions named
with an underscore, and the constants in capitals) and compiles the two together, so that LLVM
inlines them. The loop does what `naive.NaiveStepper` says, on the arrays of `stepper`: `rules`
(Rules), `cache` (Cache, what lasts from call to call) and `room` (Room, what does not).

Positions are unsigned 32-bit: LLVM then knows that an index is not negative and drops the test for
Python's indexing from the end.
"""

STAYS = 2**31 - 1


@njit(**OPTIONS)
def decode(bits, at, t, line, rows, whole):
    """Row t in fixed point: heads in `rows`, their sum in `line`, their masses in `whole`."""
    for h in range(bits.shape[0]):
        source, target = bits[h, at : at + t + 1], rows[h, : t + 1]
        mass = np.int64(0)
        for j in range(t + 1):
            x = fixed(np.int64(source[j]))
            target[j] = x
            mass += x
        whole[h] = mass
        for j in range(t + 1):
            line[j] = target[j] if h == 0 else line[j] + target[j]


@njit(**OPTIONS)
def renormalised(x, whole, seen):
    """An entry of a row divided by the row's recall, with one rounding."""
    return float(x * whole) / float(seen) * UNIT if seen else 0.0


@njit(**OPTIONS)
def advance(
    bits, first, start, stop, p, n, kind, largest, lag, rules, cache, room, kept, masses,
    missing, counts
):  # fmt: skip
    """Feed rows start … stop - 1 to every unit; `bits` hold rows first … stop - 1, packed.

    kept, masses int64 [units, stop - start]: what each row gave to what it attended, and in all.
    missing uint32 [stop - start, stop], counts [stop - start]: what each decode row of the only
    unit did not attend, unless they have no rows. Gives -1, or the step in which a rank is NaN.
    """
    heads = bits.shape[1]
    ranks, line, rows, head_row = room.ranks, room.line, room.rows, room.head_row
    seen_mass, whole = room.seen, room.whole
    base = first * (first + 1) // 2
    for u in range(bits.shape[0]):
        k, ints, floats = rules.budgets[u], rules.ints[u], rules.floats[u]
        inputs = Given(
            rules.inputs[u], rules.vectors[u], rules.spans, room.means, room.vector_means
        )
        state = Own(cache.state[u], cache.vectors[u], rules.state_spans)
        tokens, left = cache.tokens[u], cache.left[u]
        history, head_scores = cache.history[u], cache.head_scores[u]
        m, held = cache.sizes[u]
        for t in range(start, stop):
            dense = t < p
            room.at[0] = t
            tokens[m] = t
            m += 1
            _init(state, inputs, ints, floats, t, t, k, p, n, heads)
            decode(bits[u], t * (t + 1) // 2 - base, t, line, rows, whole)

            # Attend. Where every cached key is seen in full, its mass is summed on the way below.
            plain = dense or not (HIDES or LINGERS or kind == CACHED)
            seen = m
            mass = np.int64(0)
            if not plain:
                for h in range(heads):
                    one = np.int64(0)
                    seen = 0
                    for i in range(m):
                        j = np.int64(tokens[i])
                        if not HIDES or _visible(ints, floats, j, t, k, p, n, heads):
                            one += rows[h, j]
                            seen += 1
                    if LINGERS:
                        for j in range(max(0, t - _linger(ints, floats, t, k, p, n, heads)), t):
                            if left[j] < STAYS:
                                one += rows[h, j]
                                seen += 1
                    mass += one
                    seen_mass[h] = one

            # Update every cached token and, if one must go, find the least rank on the way.
            keep = m
            if t >= p - 1 and not READMITS:
                keep = _keep(m, ints, floats, t, k, p, n, heads)
            evicting = m > keep or (EXPIRES and t >= p - 1)
            ranking = (evicting or READMITS) and not WHOLE
            if MEANS and (MEANS_ALWAYS or evicting or READMITS):
                average(inputs, tokens[:m])
            least = np.inf
            worst = 0
            for i in range(m):
                j = np.int64(tokens[i])
                seeing = plain or not HIDES or _visible(ints, floats, j, t, k, p, n, heads)
                a = 0.0
                if plain:
                    mass += line[j]
                    a = line[j] * UNIT
                elif seeing and kind == FULL:
                    a = line[j] * UNIT
                elif seeing:
                    for h in range(heads):
                        a += renormalised(rows[h, j], whole[h], seen_mass[h])
                if largest and seeing:
                    a = 0.0
                    for h in range(heads):
                        x = rows[h, j] * UNIT
                        if not (plain or kind == FULL):
                            x = renormalised(rows[h, j], whole[h], seen_mass[h])
                        a = max(a, x)
                    a *= heads
                if BY_HEAD:
                    for h in range(heads):
                        x = rows[h, j] * UNIT
                        if not (dense or kind == FULL):
                            x = renormalised(rows[h, j], whole[h], seen_mass[h])
                        head_row[h, j] = x if seeing else 0.0
                        head_scores[h, j] += head_row[h, j]
                old = 0.0
                if lag > 0:  # the place of this row's attention still holds that of `lag` rows ago
                    if t - lag >= j:
                        old = history[t % lag, j]
                    history[t % lag, j] = a
                _update(state, a, old, inputs, ints, floats, j, t, k, p, n, heads)
                if ranking:
                    r = float(_rank(state, inputs, ints, floats, j, t, k, p, n, heads))
                    ranks[i] = r
                    if r != r:
                        return t
                    if r < least:
                        least = r
                        worst = i

            if UPDATES_WHOLE:
                _update_cache(
                    state, tokens[:m], head_scores, head_row, inputs, ints, floats,
                    t, k, p, n, heads,
                )  # fmt: skip
            if WHOLE and (READMITS or evicting):
                _rank_cache(
                    state, tokens[:m], ranks[:m], head_scores, head_row, inputs, ints, floats,
                    t, k, p, n, heads,
                )  # fmt: skip
                for i in range(m):
                    if ranks[i] != ranks[i]:
                        return t
            if READMITS:
                mass = readmitted(line, t, k, ranks)
                seen = min(t, k) + 1
            if counts.shape[0] and not dense:
                many = 0
                for j in range(t):
                    there = left[j] == STAYS
                    if HIDES and there:
                        there = _visible(ints, floats, j, t, k, p, n, heads)
                    elif LINGERS and not there:
                        there = t - j <= _linger(ints, floats, t, k, p, n, heads)
                    if not there:
                        missing[t - start, many] = j
                        many += 1
                if READMITS:
                    many = passed_over(t, k, ranks, missing[t - start])
                counts[t - start] = many
            kept[u, t - start] = mass
            masses[u, t - start] = whole[:heads].sum()
            if not dense:
                held = max(held, seen - 1)

            # Evict the least ranks, the oldest first among equals.
            if not evicting:
                continue
            if m - keep == 1 and not EXPIRES and not WHOLE:
                left[tokens[worst]] = t
                for i in range(worst, m - 1):
                    tokens[i] = tokens[i + 1]
                m -= 1
            else:
                order = np.argsort(ranks[:m], kind="mergesort")
                for i in range(m):
                    if i < m - keep or (EXPIRES and ranks[order[i]] == -np.inf):
                        left[tokens[order[i]]] = t
                stay = 0
                for i in range(m):
                    if left[tokens[i]] == STAYS:
                        tokens[stay] = tokens[i]
                        stay += 1
                m = stay
        cache.sizes[u, 0], cache.sizes[u, 1] = m, held
    return -1


@njit(**OPTIONS)
def average(inputs, tokens):
    """The means of inputs over the cached tokens, summed oldest first."""
    inputs.means[:] = 0.0
    inputs.vector_means[:] = 0.0
    for i in range(tokens.shape[0]):
        j = np.int64(tokens[i])
        for x in range(inputs.means.shape[0]):
            inputs.means[x] += inputs.numbers[x, j]
        for x in range(inputs.vector_means.shape[0]):
            inputs.vector_means[x] += inputs.vectors[j, x]
    inputs.means[:] /= float(tokens.shape[0])
    inputs.vector_means[:] /= float(tokens.shape[0])


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


@njit(**OPTIONS)
def passed_over(t, k, ranks, missing):
    """List the t - k earlier keys that `readmitted` does not choose; gives how many there are."""
    spare = max(0, t - k)
    order = np.argsort(ranks[:t], kind="mergesort")
    for i in range(spare):  # a slice would compile numba's message for unequal shapes
        missing[i] = order[i]
    return spare


@njit(**OPTIONS)
def see(rules, start, p, n, heads, found):
    """Which tokens the policy's rule lets rows `start` on attend: bool [units, rows, tokens]."""
    for u in range(found.shape[0]):
        k, ints, floats = rules.budgets[u], rules.ints[u], rules.floats[u]
        for r in range(found.shape[1]):
            for j in range(min(found.shape[2], start + r + 1)):
                found[u, r, j] = _visible(ints, floats, j, start + r, k, p, n, heads)
