// The stack kernel in depth order: any T7 rule that keeps state and evicts in every step, recorded
// rows, every budget in one pass.
//
// Follows common.cuh and a policy's rules. State lies in shared memory by depth, in lines of four
// depths a lane, so it is updated where it will be compared. PARTS warps replay one configuration of
// one unit: each has a range of lines, and what falls from one range goes to the next by mail, so
// that the first is a step ahead. The C configurations of a block replay the same unit and share its
// rows, but do not wait for each other. gpu/README.md explains the steps.
//
// Constants: C configurations, PARTS (1 or 2), T = C * PARTS * WARP threads, HEADS, ROW (bytes of a
// staged row), STAGES (rows), SPLIT (so many lines give the first part of two another one), LINES
// (most of a part), CELLS (tokens that there is room for, a multiple of 8), PLAIN (the rank is the
// only field of state, and never negative), EVENTS (evictions of listed budgets are recorded), BLOCKS
// that a multiprocessor should hold.
#include "staged.cuh"
#include "tokens.cuh"
#include "arguments.cuh"
#define SLOTS 4                                  // tokens in the mail at a time
#define FIRST(m) ((m) / (SPLIT * 4 * WARP) + 1)  // lines of the first part, of a stack of m tokens
#define GROUPS ((LINES + WARP - 1) / WARP)       // of WARP lines, one a lane
#define HIGHEST 0xffffffffu
#define KEYLESS ~0ull  // of an empty cell

// A token on its way down. `key`: its rank's bits, arranged so that they order like the numbers do.
struct Token {
    u64 key;
#if !PLAIN
    double state[F];
#endif
    int place, top;  // top: the least budget that has not lost it yet, where EVENTS asks
};
#define TOP(budget) (EVENTS ? (budget) : 0)

// What the warps of a block tell one another.
struct Desk {
    u64 ready[STAGES];
    int readers[STAGES];  // warps that are done with the row in a stage
};
// What the two warps of a configuration tell one another.
struct Link {
    Token mail[SLOTS];
    u64 sent[SLOTS], taken[SLOTS], updated, handed;
};
#define DESKS ((sizeof(Desk) + C * sizeof(Link) + 15) / 16 * 16)
struct alignas(16) Two {
    double of[2];
};

DEVICE bool sinks_below(const Token &a, const Token &b) {
    return before(a.key, a.place, b.key, b.place);
}
DEVICE unsigned high_of(u64 key) { return (unsigned)(key >> 32); }

// The token of another lane.
DEVICE Token token_of(const Token &own, int from) {
    Token other = own;
    other.key = __shfl_sync(ALL_LANES, own.key, from);
    other.place = __shfl_sync(ALL_LANES, own.place, from);
#if !PLAIN
#pragma unroll
    for (int f = 0; f < F; f++) other.state[f] = __shfl_sync(ALL_LANES, own.state[f], from);
#endif
#if EVENTS
    other.top = __shfl_sync(ALL_LANES, own.top, from);
#endif
    return other;
}

extern "C" __global__ void __launch_bounds__(T, BLOCKS) depths(
    const u16 *bits,         // packed rows; row t of head h at bits[places[unit, h] + tri(t)]
    const i64 *places,       // [units, HEADS]
    const int *units,        // [blocks] the unit each block replays
    const int *windows,      // [blocks, C] newest tokens that stay, by age; -1: no configuration
    NUMBERS,
    RESULTS,
    int nb, int n, int p
) {
    const int tid = threadIdx.x, lane = tid % WARP, block = blockIdx.x;
    const int c = tid / WARP / PARTS, part = tid / WARP % PARTS;
    const int recent = windows[block * C + c];
    DYNAMIC_SHARED(shared);
    unsigned char *base = shared;
    OPAQUE(base);
    Desk *desk = (Desk *)base;
    Link *link = (Link *)(desk + 1) + c;
    unsigned char *stages = base + DESKS;  // [STAGES, HEADS, ZEROS + ROW]
    const int each = ZEROS + ROW;
    double *states = (double *)(stages + STAGES * HEADS * each);  // [C, F, CELLS]
    u16 *tokens = (u16 *)(states + C * F * CELLS) + c * CELLS;    // [C, CELLS]
    states += c * F * CELLS;
    double *ring = states + (CELLS - recent);  // the window's, in the last cells of a field

    i64 placed[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++) placed[h] = places[(i64)units[block] * HEADS + h];
    const Numbers told = numbers_of(ints, floats, inputs, inputs_at, block * C + c);
    i64 *hit = hits + ((i64)block * C + c) * (n + 1);
    int *lost = evicted + ((i64)block * C + c) * nb * n;
    (void)lost;

    for (int i = tid; i < STAGES * HEADS * ZEROS / 2; i += T)
        ((u16 *)(stages + i / (ZEROS / 2) * each))[i % (ZEROS / 2)] = 0;
    int running = 0;
    for (int i = 0; i < C; i++) running += windows[block * C + i] >= 0;
    if (tid == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_start(&desk->ready[i], ARRIVALS);
            desk->readers[i] = 0;
        }
    }
#if PARTS > 1
    if (part == 0 && lane == 0) {
        for (int i = 0; i < SLOTS; i++) {
            barrier_start(&link->sent[i], 1);
            barrier_start(&link->taken[i], 1);
        }
        barrier_start(&link->updated, 1);
        barrier_start(&link->handed, 1);
    }
#endif
    for (int d = lane; part == 0 && d < CELLS; d += WARP) {
        tokens[d] = 0;
#if PLAIN
        states[d] = INF;
#else
        double s[F];
        rule_init(s, told.in, told.ip, told.fp, 0, 0, n, p, n, HEADS);
        for (int f = 0; f < F; f++) states[f * CELLS + d] = s[f];
#endif
    }
    __syncthreads();
    if (tid < WARP)
        for (int t = 0; t < STAGES && t < n; t++)
            stage_row(bits, placed, t, stages + t * HEADS * each + ZEROS, each, &desk->ready[t],
                      lane);
    if (recent < 0) return;

    int t = 0, stage = 0;
    unsigned phase = 0;
    const unsigned char *row[HEADS];
    int shift[HEADS];  // where in its first piece a row starts
#pragma unroll
    for (int h = 0; h < HEADS; h++) shift[h] = (int)placed[h] & 7;
    auto entry = [&](int place) {  // a sum of multiples of 2^-24: exact
        double a = half_to_double(*(const u16 *)(row[0] + place));
#pragma unroll
        for (int h = 1; h < HEADS; h++) a += half_to_double(*(const u16 *)(row[h] + place));
        return a;
    };
    // The last warp that is done with a row asks for the one that takes its place.
    auto release = [&]() {
        int others = 0;
        __syncwarp();
#if T > WARP
        __threadfence_block();
        if (lane == 0) others = atomicAdd(&desk->readers[stage], 1);
        others = __shfl_sync(ALL_LANES, others, 0);
#endif
        if (others == running * PARTS - 1 && t + STAGES < n) {
            if (lane == 0) {
                desk->readers[stage] = 0;
                __threadfence_block();  // seen by whoever sees the next row
            }
            __syncwarp();
            stage_row(bits, placed, t + STAGES, stages + stage * HEADS * each + ZEROS, each,
                      &desk->ready[stage], lane);
        }
    };
    auto key = [&](const double *s, int place) {
#if PLAIN
        return key_of(s[0]);
#else
        if (place == 0) return KEYLESS;
        return key_of(rule_rank(s, told.in, told.ip, told.fp, POSITION(place), t, n, p, n, HEADS));
#endif
    };
    auto update = [&](double *s, double a, int place) {
        const int pos = max(0, POSITION(place));
        rule_update(s, a, 0.0, told.in, told.ip, told.fp, pos, t, n, p, n, HEADS);
    };
    auto load = [&](double *s, const double *from) {
#pragma unroll
        for (int f = 0; f < F; f++) s[f] = from[f * CELLS];
    };
    auto store = [&](const double *s, double *to) {
#pragma unroll
        for (int f = 0; f < F; f++) to[f * CELLS] = s[f];
    };
    // This part's depths, from `first` on, and how many tokens it holds of those in the stack.
    int split = FIRST(max(0, p - recent)), first = part ? split * 4 * WARP : 0;
    int room = part + 1 < PARTS ? split * 4 * WARP : CELLS;
    auto had = [&](int all) { return min(max(all - first, 0), room); };
    // Four depths in a row are one lane's, and a line of them has 4 * WARP depths. Of a line's states
    // the first two of each lane lie before the last two, so that lanes read what is side by side.
    auto cell_of = [&](int d) {
        const unsigned line = d / (4 * WARP), mine = d / 4 % WARP, i = d % 4;
        return states + (line * 4 + i / 2 * 2) * WARP + mine * 2 + i % 2;
    };
    double *cells = states + first + lane * 2;  // this lane's of the part
    u16 *names = tokens + first + lane * 4;
    auto cell = [&](int line, int i) { return cells + (line * 4 + i) * WARP; };  // of i = 0, 2
    auto name = [&](int line) { return (u64 *)(names + line * 4 * WARP); };
    auto token = [&](const double *from, int place, int top) {
        Token it;
#if PLAIN
        it.key = key(from, place);
#else
        load(it.state, from);
        it.key = key(it.state, place);
#endif
        it.place = place, it.top = TOP(top);
        return it;
    };
    auto state_of = [&](const Token &it, int f) {
#if PLAIN
        return __longlong_as_double((i64)it.key);
#else
        return it.state[f];
#endif
    };

    unsigned sum[4 * LINES];      // what this lane's depths of the part got since the last flush
    unsigned near = 0, next = 0;  // what ages `lane` and WARP + `lane` of the window got
    unsigned least[GROUPS];       // [b]: no key of line b * WARP + lane has a lower high_of
#pragma unroll
    for (int l = 0; l < 4 * LINES; l++) sum[l] = 0;
#pragma unroll
    for (int b = 0; b < GROUPS; b++) least[b] = HIGHEST;

    auto booked = [&](const Token &it, int depth) {
#if EVENTS
        book(POSITION(it.place), it.top, depth, t, n, budgets, following, nb, lost);
#endif
    };

    // A token goes through a line: the one that is carried on is the least of it and the line's. True
    // if that is one of the line's.
    auto pass = [&](Token &carry, int line) {
        const int depth = recent + 1 + first + (line * WARP + lane) * 4;
        u64 places = *name(line);
        Token own[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            own[i].place = (u16)(places >> 16 * i), own[i].top = TOP(depth + i);
#if !PLAIN
#pragma unroll
            for (int f = 0; f < F; f++) own[i].state[f] = cell(line, i / 2 * 2)[f * CELLS + i % 2];
            own[i].key = key(own[i].state, own[i].place);
#else
            own[i].key = key(cell(line, i / 2 * 2) + i % 2, own[i].place);
            if (t < p && own[i].place == 0) own[i].key = KEYLESS;  // not in the stack yet
#endif
        }
        Token best = own[0];
#pragma unroll
        for (int i = 1; i < 4; i++)
            if (sinks_below(own[i], best)) best = own[i];
        const unsigned below = __ballot_sync(ALL_LANES, sinks_below(best, carry));
        if (!below) return false;
        Token in = carry;  // reaches this lane
        int from = __ffs(below) - 1;
        if (below & (below - 1)) {  // the least of each lane and all lanes above
            u64 key = best.key;
            int who = best.place * WARP + lane;  // orders like places
#pragma unroll
            for (int far = 1; far < WARP; far *= 2) {
                const u64 other_key = __shfl_up_sync(ALL_LANES, key, far);
                const int other_who = __shfl_up_sync(ALL_LANES, who, far);
                if (lane >= far && before(other_key, other_who, key, who))
                    key = other_key, who = other_who;
            }
            const u64 key_in = __shfl_up_sync(ALL_LANES, key, 1);
            const int who_in = __shfl_up_sync(ALL_LANES, who, 1);
            const Token other = token_of(best, who_in % WARP);
            if (lane > 0 && before(key_in, who_in / WARP, carry.key, carry.place)) in = other;
            from = __shfl_sync(ALL_LANES, who, WARP - 1) % WARP;
        }
        carry = token_of(best, from);
        if (sinks_below(best, in)) {
            places = 0;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (sinks_below(own[i], in)) {
                    booked(in, depth + i);
                    const Token out = own[i];
                    own[i] = in, in = out;
                }
                places |= (u64)own[i].place << 16 * i;
            }
            *name(line) = places;
#pragma unroll
            for (int f = 0; f < F; f++) {
#pragma unroll
                for (int i = 0; i < 4; i += 2) {
                    Two two = {{state_of(own[i], f), state_of(own[i + 1], f)}};
                    Two *to = (Two *)(cell(line, i) + f * CELLS);
                    if (t < p) {  // who is not in the stack yet stays as it is
                        if (own[i].place == 0) two.of[0] = to->of[0];
                        if (own[i + 1].place == 0) two.of[1] = to->of[1];
                    }
                    *to = two;
                }
            }
        }
        return true;
    };

    // A token falls past every token of a higher rank, of the m that the part holds; the one that
    // falls from them all comes to rest below them or goes to the next part.
    unsigned slot = 0;  // the next to be used; every SLOTS of them the phase changes
    auto percolate = [&](Token carry, int m) {
#pragma unroll
        for (int b = 0; b < GROUPS; b++) {
            auto open = [&]() { return __ballot_sync(ALL_LANES, least[b] <= high_of(carry.key)); };
            unsigned todo = open();
            while (todo) {
                const int line = b * WARP + __ffs(todo) - 1;
                todo &= todo - 1;
                if (pass(carry, line)) todo &= open();
            }
        }
#if PARTS > 1
        if (m == room) {
            barrier_wait(&link->taken[slot % SLOTS], (slot / SLOTS & 1) ^ 1);
            if (lane == 0) link->mail[slot % SLOTS] = carry;
            __syncwarp();
            if (lane == 0) barrier_arrive(&link->sent[slot % SLOTS]);
            slot++;
            return;
        }
#endif
        const unsigned its = high_of(carry.key);
#pragma unroll
        for (int b = 0; b < GROUPS; b++)
            if (m / (4 * WARP) == b * WARP + lane) least[b] = min(least[b], its);
        if (lane == m / 4 % WARP) {
#pragma unroll
            for (int f = 0; f < F; f++) cell_of(first + m)[f * CELLS] = state_of(carry, f);
            tokens[first + m] = (u16)carry.place;
            booked(carry, recent + 1 + first + m);
        }
    };
    auto receive = [&]() {
        Token carry = {};
#if PARTS > 1
        barrier_wait(&link->sent[slot % SLOTS], slot / SLOTS & 1);
        carry = link->mail[slot % SLOTS];
        if (!EVENTS) carry.top = 0;
        __syncwarp();
        if (lane == 0) barrier_arrive(&link->taken[slot % SLOTS]);
        slot++;
#endif
        return carry;
    };

    auto flush = [&]() {
#pragma unroll
        for (int l = 0; l < 4 * LINES; l++) {
            if (sum[l]) add(&hit[recent + 1 + first + (l / 4 * WARP + lane) * 4 + l % 4], sum[l]);
            sum[l] = 0;
        }
        if (near) add(&hit[lane], near);
        if (next) add(&hit[WARP + lane], next);
        near = next = 0;
    };

    int head = recent > 0 ? p % recent : 0;  // where the window's oldest token lies in the ring
    int unflushed = 0;
    unsigned hands = 0;  // phase of the next handing over
    (void)hands;
    for (; t < n; t++) {
        barrier_wait(&desk->ready[stage], phase);
#pragma unroll
        for (int h = 0; h < HEADS; h++)
            row[h] = stages + (stage * HEADS + h) * each + shift[h] * 2;

        if (t < p) {
            // While prompt rows come the tokens lie in order of their positions.
            for (int j = part * WARP + lane; j <= t; j += PARTS * WARP) {
                double *at = j < p - recent ? cell_of(j) : ring + j % recent;
                double s[F];
                if (j == t) rule_init(s, told.in, told.ip, told.fp, j, t, n, p, n, HEADS);
                else load(s, at);
                update(s, entry(PLACE(j)), PLACE(j));
                store(s, at);
            }
            release();
            if (t == p - 1) {
                // One after the other they percolate: a sort, in place.
#if PARTS > 1
                if (part == 1 && lane == 0) barrier_arrive(&link->updated);
                if (part == 0) barrier_wait(&link->updated, 0);
#endif
                for (int j = first; j < p - recent; j++) {
                    const Token carry = part ? receive() : token(cell_of(j), PLACE(j), 1);
                    __syncwarp();
                    percolate(carry, had(j));
                    __syncwarp();
                }
                for (int j = max(0, p - recent) + lane; part == 0 && j < p; j += WARP)
                    book(j, 1, p - j, t, n, budgets, following, nb, lost);
            }
        } else {
            Token carry;
            if (part == 0) {
                // The window: depth = age, and a token's own attention counts at depth 0.
                const int oldest = min(recent, t);
                if (lane <= oldest) near += units_of(entry(PLACE(t - lane)));
                if (WARP + lane <= oldest) next += units_of(entry(PLACE(t - WARP - lane)));
#pragma unroll 1
                for (int age = 2 * WARP + lane; age <= oldest; age += WARP)
                    add(&hit[age], units_of(entry(PLACE(t - age))));
#pragma unroll 1
                for (int i = lane; i < recent; i += WARP) {
                    const int j = i < head ? t - head + i : t - head + i - recent;
                    if (j < 0) continue;
                    double s[F];
                    load(s, ring + i);
                    update(s, entry(PLACE(j)), PLACE(j));
                    store(s, ring + i);
                }
                double fresh[F];
                rule_init(fresh, told.in, told.ip, told.fp, t, t, n, p, n, HEADS);
                update(fresh, entry(PLACE(t)), PLACE(t));
                if (recent > 0) {
                    __syncwarp();
                    carry = token(ring + head, PLACE(max(0, t - recent)), recent);
                    __syncwarp();
                    if (lane == head % WARP) store(fresh, ring + head);
                    if (++head == recent) head = 0;
                } else {
                    carry.key = key(fresh, PLACE(t));
                    carry.place = PLACE(t), carry.top = TOP(1);
#if !PLAIN
#pragma unroll
                    for (int f = 0; f < F; f++) carry.state[f] = fresh[f];
#endif
                }
            }

#if PARTS > 1
            if (const int now = FIRST(max(0, t - recent)); now != split) {
                // The second part hands lines over, once it is done with the step before.
                if (part) {
                    flush();
                    __syncwarp();
                    if (lane == 0) barrier_arrive(&link->handed);
                    cells += (now - split) * 4 * WARP, names += (now - split) * 4 * WARP;
                    first = now * 4 * WARP;
#pragma unroll
                    for (int b = 0; b < GROUPS; b++) least[b] = HIGHEST;  // of the lines as they were
                } else {
                    barrier_wait(&link->handed, hands);
                    hands ^= 1;
                    room = now * 4 * WARP;
                }
                split = now;
            }
#endif

            // The stack, line by line: state, what each depth got, the line's least key.
            const int m = had(t - recent);
#pragma unroll
            for (int l = 0; l < LINES; l++) {
                if (l * 4 * WARP >= m) break;
                const u64 places = *name(l);
                double s[4][F], a[4];
                unsigned low = HIGHEST;
#pragma unroll
                for (int f = 0; f < F; f++) {
#pragma unroll
                    for (int i = 0; i < 4; i += 2) {
                        const Two two = *(const Two *)(cell(l, i) + f * CELLS);
                        s[i][f] = two.of[0], s[i + 1][f] = two.of[1];
                    }
                }
#pragma unroll
                for (int i = 0; i < 4; i++) a[i] = entry((u16)(places >> 16 * i));
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int place = (u16)(places >> 16 * i);
                    sum[4 * l + i] += units_of(a[i]);
                    update(s[i], a[i], place);
                    low = min(low, high_of(key(s[i], place)));
                }
#pragma unroll
                for (int f = 0; f < F; f++) {
#pragma unroll
                    for (int i = 0; i < 4; i += 2)
                        *(Two *)(cell(l, i) + f * CELLS) = {{s[i][f], s[i + 1][f]}};
                }
                low = __reduce_min_sync(ALL_LANES, low);
                if (lane == l % WARP) least[l / WARP] = low;
            }
            release();
#if EVENTS  // budgets smaller than the window lose its tokens by age
            for (int b = lane; part == 0 && b < nb && budgets[b] < recent; b += WARP)
                if (budgets[b] <= t) lost[(i64)b * n + t - budgets[b]] = t;
#endif
            if (t - recent >= first) {
                if (part) carry = receive();
                percolate(carry, m);
            }
            if (++unflushed == FLUSH) flush(), unflushed = 0;
        }
        if (++stage == STAGES) stage = 0, phase ^= 1;
#pragma unroll
        for (int h = 0; h < HEADS; h++) shift[h] = (shift[h] + t + 1) & 7;
    }
    flush();
}
