// The stack kernel of H2O: scores that only grow, recorded rows, a fixed window and sinks; every
// budget in one pass.
//
// Follows common.cuh. One block replays one unit under C configurations. The stack below the window
// is kept in lines of LINE depths, each with a lower bound on the scores in it: a score can only
// grow, so a line whose bound lies above the carried token is passed without a look. gpu/README.md
// explains the steps.
//
// Warps have roles. Updaters fetch rows and add them to the scores of all tokens; leader c keeps the
// stack of configuration c. While leaders move the tokens of step t, updaters add row t + 1 in
// their registers and publish the sums once the leaders are done.
//
// Constants: T threads, C leaders' warps among them, NS tokens an updater, HEADS, ROW (bytes of a
// staged row), LINES (groups of WARP lines), SINKS (some configuration has any), EVENTS (evictions of
// listed budgets are recorded), BLOCKS that a multiprocessor should hold.
#include "staged.cuh"
#define UPDATERS (T - C * WARP)
#define MOST (NS * UPDATERS)  // tokens, rounded up
#define STAGES 3
#define WATCH 16  // rows between two looks at how large sums are
#define GROUP (NS < 4 ? NS : 4)
#define LINE (4 * WARP)  // depths, four in a row a lane

// What updaters do to all tokens of a step, in groups; a thread's token i is one of them if
// i * UPDATERS <= t - tid.
#define EACH_GROUP(work)                                                                        \
    _Pragma("unroll") for (int g = 0; g < NS; g += GROUP) {                                     \
        if (g * UPDATERS > now.t) break;                                                        \
        work(g, now.t - tid);                                                                   \
    }

#ifdef H2OSIM_SHIM
#define fixed_value fixed_point
#else
DEVICE unsigned fixed_value(u16 bits) {  // as fixed_point, in fewer instructions
    return (unsigned)(int)(half_to_float(bits) * 16777216.0f);
}
#endif

// A token on its way down. `rank`: its mass, below 2^40, then its position, which decides between
// equals. `top`: the least budget that has not lost it yet.
#define HIGHEST 0xffffffffff000000ull
struct Token {
    u64 rank;
    int pos, top;
};

DEVICE bool sinks_below(const Token &a, const Token &b) { return a.rank < b.rank; }

// The token of another lane.
DEVICE Token token_of(const Token &own, int from) {
    Token other = own;
    other.rank = __shfl_sync(ALL_LANES, own.rank, from);
    other.pos = (int)(other.rank & 0xffffff);
#if EVENTS
    other.top = __shfl_sync(ALL_LANES, own.top, from);
#endif
    return other;
}

extern "C" __global__ void __launch_bounds__(T, BLOCKS) lines(
    const u16 *bits,        // packed rows; row t of head h at bits[places[unit, h] + tri(t)]
    const i64 *places,      // [units, HEADS]
    const int *units,       // [blocks] the unit each block replays
    const int *windows,     // [blocks, C] newest tokens that stay; -1: no configuration
    const int *sinks,       // [blocks, C] oldest tokens that stay
    const int *budgets,     // [nb] ascending
    const int *following,   // [n + 2] index of the first budget of at least d
    int *evicted,           // [blocks, C, nb, n]
    i64 *hits,              // [blocks, C, n + 1] mass by depth, zeros; depth 0: every budget sees it
    int nb, int n, int p
) {
    const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP, block = blockIdx.x;
    const bool updates = tid < UPDATERS;
    const int c = updates ? 0 : warp - UPDATERS / WARP;
    const i64 *place = places + (i64)units[block] * HEADS;
    DYNAMIC_SHARED(shared);
    unsigned char *rows = shared;                              // [STAGES, HEADS, ROW]
    // A token's score is its mass, fixed point: low + 2^32 high.
    unsigned *low = (unsigned *)(rows + STAGES * HEADS * ROW);  // [MOST]
    u16 *orders = (u16 *)(low + MOST);                         // [C, MOST] tokens of the stack
    unsigned char *high = (unsigned char *)(orders + C * MOST);
    __shared__ u64 ready[STAGES];
    i64 placed[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++) placed[h] = place[h];

    auto mass = [&](int j) { return (i64)((u64)high[j] << 32 | low[j]); };
    auto rank = [&](int first, int j) {  // `first` tokens are sinks
        return (SINKS && j < first ? HIGHEST : (u64)mass(j) << 24) + j;
    };
    auto mass_of = [&](const Token &token) {
#if SINKS
        return mass(token.pos);
#else
        return (i64)(token.rank >> 24);
#endif
    };
    // Goes from row to row with the roles' loops.
    struct {
        int t, stage;
        unsigned phase;
    } now = {0, 0, 0};
    const u16 *row[HEADS];
    int shift[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        shift[h] = (int)placed[h] & 7;
        row[h] = (const u16 *)(rows + h * ROW) + shift[h];
    }
    auto next_row = [&]() {
        now.t++;
        if (++now.stage == STAGES) now.stage = 0, now.phase ^= 1;
        const u16 *stage = (const u16 *)(rows + now.stage * (HEADS * ROW));
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            shift[h] = (shift[h] + now.t) & 7;
            row[h] = stage + h * (ROW / 2) + shift[h];
        }
    };
    auto fetch = [&](int t, int stage) {
        stage_row(bits, placed, t, rows + stage * HEADS * ROW, ROW, &ready[stage], lane);
    };

    for (int j = tid; j < MOST; j += T) low[j] = 0, high[j] = 0;
    if (tid == 0)
        for (int i = 0; i < STAGES; i++) barrier_start(&ready[i], ARRIVALS);
    __syncthreads();
    if (warp == 0) {
        fetch(0, 0);
        if (n > 1) fetch(1, 1);
    }

    // The stack at the prompt's end: a sort by counting, by all threads.
    auto sort = [&](int which) {
        const int recent = windows[block * C + which], first = sinks[block * C + which];
        if (recent < 0) return;
        i64 *hit = hits + ((i64)block * C + which) * (n + 1);
        int *lost = evicted + ((i64)block * C + which) * nb * n;
        for (int j = tid; j < p; j += T) {
            int depth = p - j;
            if (j < p - recent) {
                const Token own = {rank(first, j), j, 0};
                int above = 0;
                for (int i = 0; i < p - recent; i++)
                    above += sinks_below(own, {rank(first, i), i, 0});
                orders[which * MOST + above] = (u16)j;
                depth = recent + 1 + above;
                add(&hit[depth], -mass(j));
            }
            book(j, 1, depth, p - 1, n, budgets, following, nb, lost);
        }
    };

    if (updates) {
        unsigned sum[NS];
#pragma unroll
        for (int i = 0; i < NS; i++) sum[i] = 0;
        bool near_wrap = true;  // a sum may pass 2^32 soon
        // Tokens are worked at in groups of GROUP a thread, so that their loads overlap. What lies
        // beyond a row's end is read, but not added.
        auto load = [&](int i) {
            unsigned x = 0;
#pragma unroll
            for (int h = 0; h < HEADS; h++) x += fixed_value(row[h][i * UPDATERS + tid]);
            return x;
        };
        auto sum_rows = [&](int g, int ends) {
            unsigned x[GROUP];
#pragma unroll
            for (int i = 0; i < GROUP; i++) x[i] = load(g + i);
#pragma unroll
            for (int i = 0; i < GROUP; i++)
                if ((g + i) * UPDATERS <= ends) sum[g + i] += x[i];
        };
        auto publish = [&](int g, int ends) {
#pragma unroll
            for (int i = 0; i < GROUP; i++) low[(g + i) * UPDATERS + tid] = sum[g + i];
        };
        // The window: depth = age, so nothing moves, and all configurations share one count. A
        // token's own attention counts at depth 0.
        i64 near = 0, next = 0;  // what decode rows gave to ages `lane` and WARP + `lane`
        auto entry = [&](int age) {
            int x = 0;
#pragma unroll
            for (int h = 0; h < HEADS; h++) x += fixed_value(row[h][now.t - age]);
            return x;
        };
        auto give = [&](int age, i64 x) {
            for (int which = 0; which < C; which++)
                if (age <= windows[block * C + which])
                    add(&hits[((i64)block * C + which) * (n + 1) + age], x);
        };
        const bool counts = warp == UPDATERS / WARP - 1;
        int widest = 0;
        for (int which = 0; which < C; which++) widest = max(widest, windows[block * C + which]);
        for (; now.t < n; next_row()) {
            const int t = now.t;
            barrier_wait(&ready[now.stage], now.phase);
            EACH_GROUP(sum_rows)
            if (counts && t >= p) {
                const int oldest = min(widest, t);
                if (lane <= oldest) near += entry(lane);
                if (WARP + lane <= oldest) next += entry(WARP + lane);
                if (widest >= 2 * WARP)
                    for (int age = 2 * WARP + lane; age <= oldest; age += WARP)
                        give(age, entry(age));
            }
            __syncthreads();  // leaders are done with step t - 1
            if (near_wrap) {
#pragma unroll
                for (int i = 0; i < NS; i++) {
                    const int j = i * UPDATERS + tid;
                    if (j <= t && sum[i] < low[j]) high[j]++;
                }
            }
            EACH_GROUP(publish)
            __syncthreads();
            if (warp == 0 && t + 2 < n) fetch(t + 2, now.stage == 0 ? STAGES - 1 : now.stage - 1);
            if (t % WATCH == WATCH - 1) {
                unsigned most = 0;
#pragma unroll
                for (int i = 0; i < NS; i++) most = max(most, sum[i]);
                near_wrap = most + (u64)WATCH * HEADS * 0x1000000 >= 1ull << 32;
            }
            if (t == p - 1) {
                for (int which = 0; which < C; which++) sort(which);
                __syncthreads();
            }
        }
        if (counts) give(lane, near), give(WARP + lane, next);
        return;
    }

    const int recent = windows[block * C + c], first = sinks[block * C + c];
    u16 *order = orders + c * MOST;
    i64 *hit = hits + ((i64)block * C + c) * (n + 1);
    int *lost = evicted + ((i64)block * C + c) * nb * n;
    (void)lost;
    unsigned bound[LINES];  // [b]: of line b * WARP + lane
#pragma unroll
    for (int b = 0; b < LINES; b++) bound[b] = HIGHEST >> 32;
    int m = 0;  // tokens in the stack

    // A token goes through a line: the one that is carried on is the least of it and the line's.
    // Gives a bound on the ranks that the line has then.
    auto pass = [&](Token &carry, int line, int t) {
        const int d = line * LINE + lane * 4;
        u64 *places = (u64 *)(order + d);
        const u64 four = *places;
        Token own[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            own[i].pos = d + i < m ? (u16)(four >> 16 * i) : 0;
            own[i].top = recent + 1 + d + i;
            own[i].rank = d + i < m ? rank(first, own[i].pos) : HIGHEST + 0xffffff;
        }
        Token best = own[0];
#pragma unroll
        for (int i = 1; i < 4; i++)
            if (sinks_below(own[i], best)) best = own[i];
        const unsigned below = __ballot_sync(ALL_LANES, sinks_below(best, carry));
        unsigned least = (unsigned)(best.rank >> 32);
        if (below) {
            Token in = carry;  // reaches this lane
            u64 low = best.rank;
            int from = __ffs(below) - 1;
            if (below & (below - 1)) {  // the least of each lane and all lanes above
                int top = best.top;
#pragma unroll
                for (int far = 1; far < WARP; far *= 2) {
                    const u64 other = __shfl_up_sync(ALL_LANES, low, far);
                    const int other_top = EVENTS ? __shfl_up_sync(ALL_LANES, top, far) : 0;
                    if (lane >= far && other < low) low = other, top = other_top;
                }
                const u64 above = __shfl_up_sync(ALL_LANES, low, 1);
                const int above_top = EVENTS ? __shfl_up_sync(ALL_LANES, top, 1) : 0;
                if (lane > 0 && above < carry.rank)
                    in = {above, (int)(above & 0xffffff), above_top};
                low = __shfl_sync(ALL_LANES, low, WARP - 1);
                from = __ffs(__ballot_sync(ALL_LANES, best.rank == low)) - 1;
            }
            carry = token_of(best, from);
            if (sinks_below(best, in)) {
                u64 now = 0;
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    if (sinks_below(own[i], in)) {
                        add(&hit[recent + 1 + d + i], mass_of(own[i]) - mass_of(in));
                        book(in.pos, in.top, recent + 1 + d + i, t, n, budgets, following, nb, lost);
                        const Token out = own[i];
                        own[i] = in, in = out;
                    }
                    now |= (u64)own[i].pos << 16 * i;
                }
                *places = now;
            }
            least = HIGHEST >> 32;
#pragma unroll
            for (int i = 0; i < 4; i++) least = min(least, (unsigned)(own[i].rank >> 32));
        }
        return __reduce_min_sync(ALL_LANES, least);
    };

    for (int t = 0; t < n; t++) {
        __syncthreads();
        __syncthreads();  // row t has been added to all scores
        if (t == p - 1) {
            for (int which = 0; which < C; which++) sort(which);
            __syncthreads();
            m = recent < 0 ? 0 : max(0, p - recent);
#pragma unroll
            for (int b = 0; b < LINES; b++) {
                const int line = b * WARP + lane;
                unsigned least = HIGHEST >> 32;
                for (int i = line * LINE; i < min(m, line * LINE + LINE); i++)
                    least = min(least, (unsigned)(rank(first, order[i]) >> 32));
                if (line * LINE < m) bound[b] = least;
            }
        }
        if (t < p || recent < 0) continue;
#if EVENTS  // budgets smaller than the window lose its tokens by age
        for (int b = lane; b < nb && budgets[b] < recent; b += WARP)
            if (budgets[b] <= t) lost[(i64)b * n + t - budgets[b]] = t;
#endif
        if (t >= recent) {
            // The token that leaves the window falls past every token of a higher score.
            Token carry = {rank(first, t - recent), t - recent, max(1, recent)};
#pragma unroll
            for (int b = 0; b < LINES; b++) {
                auto open = [&]() {
                    const bool there = (b * WARP + lane) * LINE < m;
                    return __ballot_sync(
                        ALL_LANES, there && bound[b] <= (unsigned)(carry.rank >> 32));
                };
                unsigned todo = open();
                while (todo) {
                    const int line = __ffs(todo) - 1;
                    const unsigned least = pass(carry, b * WARP + line, t);
                    if (lane == line) bound[b] = least;
                    todo &= todo - 1;
                    todo &= open();
                }
            }
            // and comes to rest at the bottom
            const unsigned its = (unsigned)(carry.rank >> 32);
#pragma unroll
            for (int b = 0; b < LINES; b++)
                if (m / LINE == b * WARP + lane) bound[b] = min(bound[b], its);
            if (lane == m / 4 % WARP) {
                order[m] = (u16)carry.pos;
                add(&hit[recent + 1 + m], -mass_of(carry));
                book(carry.pos, carry.top, recent + 1 + m, t, n, budgets, following, nb, lost);
            }
            m++;
        }
    }

    // What still lies in the stack has given its mass at its depth.
    if (recent < 0) return;
    __syncwarp();
    for (int d = lane; d < m; d += WARP) add(&hit[recent + 1 + d], mass(order[d]));
}
