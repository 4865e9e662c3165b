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
// their registers; they publish the sums once the leaders are done.
//
// Constants: T threads, C leaders' warps among them, NS tokens an updater, HEADS, ROW (bytes of a
// staged row), LINES (groups of WARP lines), SINKS (some configuration has any), EVENTS (evictions of
// listed budgets are recorded), BLOCKS that a multiprocessor should hold.
#include "staged.cuh"
#include "told.cuh"
#define UPDATERS (T - C * WARP)
#define MOST (NS * UPDATERS)  // tokens, rounded up
#define NOBODY MOST  // lies at depths below the stack
#define STAGES 3
#define WATCH 16  // rows between two looks at how large sums are
#define LINE (4 * WARP)  // depths, four in a row a lane

// Updaters work at the tokens that there are, GROUP at a time. How many groups these are is known
// when the kernel is compiled: steps come in phases, one for each number of groups.
#define GROUP 4
template <int N> struct Groups { static const int count = N; };
template <int N, class Steps> DEVICE void phases(Steps &steps) {
    if constexpr (N > 1) phases<N - 1>(steps);
    steps(Groups<N>());
}

// One role tells the other what it has done, and does not wait. At the prompt's end all wait.
#define MOVED 1
#define ADDED 2
#define PROMPT 3
#ifdef H2OSIM_SHIM
#define TELL(what) __syncthreads()
#define AWAIT(what) __syncthreads()
#define fixed_value fixed_point
#else
#define TELL(what) asm volatile("bar.arrive %0, %1;" ::"n"(what), "n"(T) : "memory")
#define AWAIT(what) asm volatile("bar.sync %0, %1;" ::"n"(what), "n"(T) : "memory")
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
    RESULTS,
    int nb, int n, int p
) {
    const int tid = threadIdx.x, lane = tid % WARP, block = blockIdx.x;
    const int warp = __shfl_sync(ALL_LANES, tid / WARP, 0);  // seen to be the same in all lanes
    const bool updates = warp < UPDATERS / WARP;
    const int c = updates ? 0 : warp - UPDATERS / WARP;
    const i64 *place = places + (i64)units[block] * HEADS;
    DYNAMIC_SHARED(shared);
    unsigned char *rows = shared;                              // [STAGES, HEADS, ROW]
    // A token's score is its mass, fixed point: low + 2^32 high. NOBODY's is the highest there is.
    unsigned *low = (unsigned *)(rows + STAGES * HEADS * ROW);  // [MOST + 1], and 12 bytes
    u16 *orders = (u16 *)(low + MOST + 4);                     // [C, MOST] tokens of the stack
    unsigned char *high = (unsigned char *)(orders + C * MOST);  // [MOST + 1]
    __shared__ u64 barriers[STAGES];
    u64 *ready = barriers;
    OPAQUE(ready);
    i64 asked[HEADS];  // where the next row that is asked for lies
#pragma unroll
    for (int h = 0; h < HEADS; h++) asked[h] = place[h];

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
        shift[h] = (int)asked[h] & 7;
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
    auto fetch = [&](int t, int stage) {  // one row after the other
        stage_row_at(bits, asked, t, rows + stage * HEADS * ROW, ROW, ready + stage, lane);
#pragma unroll
        for (int h = 0; h < HEADS; h++) asked[h] += t + 1;
    };

    for (int j = tid; j < MOST; j += T) low[j] = 0, high[j] = 0;
    for (int i = tid; i < C * MOST; i += T) orders[i] = NOBODY;
    if (tid == 0) low[NOBODY] = 0xffffffff, high[NOBODY] = 0xff;
    if (tid == 0)
        for (int i = 0; i < STAGES; i++) barrier_start(ready + i, ARRIVALS);
    __syncthreads();
    if (warp == 0)
        for (int i = 0; i < min(n, STAGES); i++) fetch(i, i);

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
        int stop = p;
        auto steps = [&](auto groups) {
            const int most = groups.count * GROUP;
            for (; now.t < min(stop, most * UPDATERS); next_row()) {
                const int t = now.t;
                barrier_wait(ready + now.stage, now.phase);
#pragma unroll
                for (int i = 0; i < most; i++) {
                    unsigned x = 0;
#pragma unroll
                    for (int h = 0; h < HEADS; h++) x += fixed_value(row[h][i * UPDATERS + tid]);
                    // what lies beyond a row's end is read, too, but not added
                    if (i < most - GROUP || i * UPDATERS + tid <= t) sum[i] += x;
                }
                if (counts && t >= p) {
                    const int oldest = min(widest, t);
                    if (lane <= oldest) near += entry(lane);
                    if (WARP + lane <= oldest) next += entry(WARP + lane);
                    if (widest >= 2 * WARP)
                        for (int age = 2 * WARP + lane; age <= oldest; age += WARP)
                            give(age, entry(age));
                }
                AWAIT(MOVED);  // in step t - 1
                if (near_wrap) {
#pragma unroll
                    for (int i = 0; i < most; i++)
                        if (sum[i] < low[i * UPDATERS + tid]) high[i * UPDATERS + tid]++;
                }
#pragma unroll
                for (int i = 0; i < most; i++) low[i * UPDATERS + tid] = sum[i];
                TELL(ADDED);
                if (warp == 0 && t + STAGES < n) fetch(t + STAGES, now.stage);
                if ((unsigned)t % WATCH == WATCH - 1) {
                    unsigned highest = 0;
#pragma unroll
                    for (int i = 0; i < most; i++) highest = max(highest, sum[i]);
                    near_wrap = highest + (u64)WATCH * HEADS * 0x1000000 >= 1ull << 32;
                }
            }
        };
#pragma unroll 1
        for (int part = 0; part < 2; part++, stop = n) {
            phases<NS / GROUP>(steps);
            if (part == 0) {
                AWAIT(PROMPT);
                for (int which = 0; which < C; which++) sort(which);
                AWAIT(PROMPT);
            }
        }
        if (counts) give(lane, near), give(WARP + lane, next);
        return;
    }

    const int recent = windows[block * C + c], first = sinks[block * C + c];
    u16 *order = orders + c * MOST;
    u64 *fours = (u64 *)order + lane;  // this lane's depths of the first line
    OPAQUE(fours);
    i64 *hit = hits + ((i64)block * C + c) * (n + 1) + recent + 1;  // from below the window on
    KEEP_POINTER(hit);
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
        const u64 four = fours[line * WARP];
        Token own[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            own[i].pos = (u16)(four >> 16 * i);
            own[i].top = recent + 1 + d + i;
            own[i].rank = rank(first, own[i].pos);
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
                i64 *its = hit + d;
                KEEP_POINTER(its);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    if (sinks_below(own[i], in)) {
                        add(&its[i], mass_of(own[i]) - mass_of(in));
                        book(in.pos, in.top, recent + 1 + d + i, t, n, budgets, following, nb, lost);
                        const Token out = own[i];
                        own[i] = in, in = out;
                    }
                    now |= (u64)own[i].pos << 16 * i;
                }
                fours[line * WARP] = now;
            }
            least = HIGHEST >> 32;
#pragma unroll
            for (int i = 0; i < 4; i++) least = min(least, (unsigned)(own[i].rank >> 32));
        }
        return __reduce_min_sync(ALL_LANES, least);
    };

#pragma unroll 1
    for (int t = 0; t < p; t++) {
        TELL(MOVED);
        AWAIT(ADDED);  // row t, to all scores
    }
    AWAIT(PROMPT);
    for (int which = 0; which < C; which++) sort(which);
    AWAIT(PROMPT);
    if (recent >= 0) m = max(0, p - recent);
#pragma unroll
    for (int b = 0; b < LINES; b++) {
        const int line = b * WARP + lane;
        for (int d = line * LINE; d < min(m, line * LINE + LINE); d++)
            bound[b] = min(bound[b], (unsigned)(rank(first, order[d]) >> 32));
    }
    for (int t = p; t < n; t++) {
        TELL(MOVED);
        AWAIT(ADDED);
        if (recent < 0) continue;
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
                    const bool there = !SINKS || (b * WARP + lane) * LINE < m;
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
                if ((unsigned)m / LINE == b * WARP + lane) bound[b] = min(bound[b], its);
            if (lane == (unsigned)m / 4 % WARP) {
                // m, but seen to differ between lanes: compilers add up what lanes give to one place
                const int d = (unsigned)m / LINE * LINE + lane * 4 + (unsigned)m % 4;
                order[d] = (u16)carry.pos;
                add(&hit[d], -mass_of(carry));
                book(carry.pos, carry.top, recent + 1 + d, t, n, budgets, following, nb, lost);
            }
            m++;
        }
    }

    // What still lies in the stack has given its mass at its depth.
    if (recent < 0) return;
    __syncwarp();
    for (int d = lane; d < m; d += WARP) add(&hit[d], mass(order[d]));
}
