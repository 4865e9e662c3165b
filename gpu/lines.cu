// The stack kernel of scores that rows add to: H2O and decay with recorded rows, a fixed window and
// sinks; every budget in one pass.
//
// Follows common.cuh. One block replays one unit under C configurations. The stack below the window
// is kept in lines of WARP depths, each with a lower bound on the scores in it: a score can only
// grow (or fall by the known factor), so a line whose bound lies above the carried token is passed
// without a look. gpu/README.md explains the steps.
//
// Warps have roles. Updaters hold the scores of all tokens and add each row to them; leader c keeps
// the stack of configuration c. While leaders move the tokens of step t, updaters add row t + 1 in
// their registers and publish the sums once the leaders are done.
//
// Constants: T threads, C leaders among them, NS tokens an updater, HEADS, ROW (bytes of a staged
// row), LINES (groups of WARP lines), DECAYS (scores are multiplied by one of S factors in each
// step), EVENTS (evictions of listed budgets are recorded), BLOCKS a multiprocessor should hold.
#define UPDATERS (T - C * WARP)
#define STAGES 3
#define FEW 3  // so many tokens of a line that fall go one by one

// Copies of 16-byte pieces from device memory that run beside the computation: one instruction a row
// where there is the bulk copy engine (compute capability 9.0), else one a piece.
#ifdef H2OSIM_SHIM
#define COPY(to, from, pieces, ready)                                                           \
    if (lane == 0) std::memcpy(to, from, (pieces) * 16)
#define COPY_START(ready, bytes)
#define COPY_WAIT(ready, phase)
#define COPY_READY(ready)
#define COPY_LANDED()
#else
DEVICE unsigned address(const void *place) { return (unsigned)__cvta_generic_to_shared(place); }
#if __CUDA_ARCH__ >= 900
#define COPY_READY(ready)                                                                       \
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address(ready)) : "memory")
#define COPY_START(ready, bytes)                                                                \
    if (lane == 0)                                                                              \
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(                \
                     address(ready)), "r"(bytes) : "memory")
#define COPY(to, from, pieces, ready)                                                           \
    if (lane == 0)                                                                              \
    asm volatile(                                                                               \
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" \
        ::"r"(address(to)), "l"(from), "r"((pieces) * 16), "r"(address(ready)) : "memory")
#define COPY_WAIT(ready, phase)                                                                 \
    {                                                                                           \
        unsigned done = 0;                                                                      \
        while (!done)                                                                           \
            asm volatile(                                                                       \
                "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;"          \
                " selp.u32 %0, 1, 0, p; }" : "=r"(done) : "r"(address(ready)), "r"(phase)        \
                : "memory");                                                                    \
    }
#define COPY_LANDED()
#else  // the leader that copies waits for its copies before the barrier that shows them to others
#define COPY_READY(ready)
#define COPY_START(ready, bytes)
#define COPY(to, from, pieces, ready)                                                           \
    for (int i = lane; i < (pieces); i += WARP)                                                 \
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address(to) + i * 16),       \
                 "l"((const char *)(from) + i * 16) : "memory")
#define COPY_WAIT(ready, phase)
#define COPY_LANDED() asm volatile("cp.async.wait_all;" ::: "memory")
#endif
#endif

// A token on its way down. Scores are never negative, so as bits they order like the numbers.
#if DECAYS
typedef double Bound;
#define HIGHEST 0x7ff0000000000000ull  // infinity
#else
typedef unsigned Bound;
#define HIGHEST 0xffffffffffffffffull
#endif
struct Token {
    u64 rank;
    int pos, top;  // top: the least budget that has not lost it yet
};

DEVICE bool sinks_below(const Token &a, const Token &b) {
    return a.rank < b.rank || (a.rank == b.rank && a.pos < b.pos);
}

// A lower bound on ranks, from the 32 bits that one warp-wide minimum compares, and whether a token
// may have to go below tokens of that bound.
DEVICE Bound bound_of(unsigned high) {
#if DECAYS
    return __longlong_as_double((i64)((u64)high << 32));
#else
    return high;
#endif
}
DEVICE bool may_pass(Bound bound, u64 rank) {
#if DECAYS
    return __longlong_as_double((i64)rank) < bound;
#else
    return (unsigned)(rank >> 32) < bound;
#endif
}

// Budgets from `top` up to below `bottom` lose token j after step t.
DEVICE void book(
    int j, int top, int bottom, int t, int n, const int *budgets, const int *following, int nb,
    int *evicted
) {
#if EVENTS
    for (int b = following[top]; b < nb && budgets[b] < bottom; b++) evicted[(i64)b * n + j] = t;
#endif
}

extern "C" __global__ void __launch_bounds__(T, BLOCKS) lines(
    const u16 *bits,        // packed rows; row t of head h at bits[places[unit, h] + tri(t)]
    const i64 *places,      // [units, HEADS]
    const int *units,       // [blocks] the unit each block replays
    const int *windows,     // [blocks, C] newest tokens that stay; -1: no configuration
    const int *sinks,       // [blocks, C] oldest tokens that stay
    const int *factor_of,   // [blocks, C] which factor a configuration follows
    const double *factors,  // [blocks, S]
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
#if DECAYS
    double *scores = (double *)(rows + STAGES * HEADS * ROW);  // [S, n]
    unsigned *low = (unsigned *)(scores + S * n);
#else
    unsigned *low = (unsigned *)(rows + STAGES * HEADS * ROW);
#endif
    // A token's mass, fixed point: low + 2^32 high. Without factors it is its score as well, from
    // the first row on; with factors it counts decode rows only.
    u16 *orders = (u16 *)(low + n);                            // [C, n] tokens of the stack
    unsigned char *high = (unsigned char *)(orders + C * n);
    __shared__ u64 ready[STAGES];
    i64 placed[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++) placed[h] = place[h];

    auto mass = [&](int j) { return (i64)((u64)high[j] << 32 | low[j]); };
    auto rank = [&](int s, int first, int j) {  // `first` tokens are sinks
        if (j < first) return (u64)HIGHEST;
#if DECAYS
        return (u64)__double_as_longlong(scores[s * n + j]);
#else
        return (u64)mass(j) << 24;  // a score is below 2^40
#endif
    };
    // Rows come in whole 16-byte pieces, so a row starts up to 14 bytes after its stage does.
    auto row_of = [&](int h, int t) {
        const int shift = (((int)placed[h] + t * (t + 1) / 2) & 7) * 2;
        return (const u16 *)(rows + (t % STAGES * HEADS + h) * ROW + shift);
    };
    auto fetch = [&](int t) {
        u64 *arrived = &ready[t % STAGES];
        int bytes = 0;
#pragma unroll
        for (int h = 0; h < HEADS; h++)
            bytes += ((((int)placed[h] + t * (t + 1) / 2) & 7) * 2 + 2 * t + 17) & ~15;
        COPY_START(arrived, bytes);
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            const i64 at = placed[h] + tri(t);
            const int pieces = ((int)(at & 7) * 2 + 2 * t + 17) / 16;
            COPY(rows + (t % STAGES * HEADS + h) * ROW, bits + (at & ~7LL), pieces, arrived);
        }
    };

    for (int j = tid; j < n; j += T) low[j] = 0, high[j] = 0;
#if DECAYS
    for (int j = tid; j < S * n; j += T) scores[j] = 0.0;
#endif
    if (tid == UPDATERS)
        for (int i = 0; i < STAGES; i++) COPY_READY(&ready[i]);
    __syncthreads();
    if (!updates && c == 0) {
        fetch(0);
        if (n > 1) fetch(1);
        COPY_LANDED();
    }
    __syncthreads();

    // The stack at the prompt's end: a sort by counting, by all threads.
    auto sort = [&](int which) {
        const int recent = windows[block * C + which], s = factor_of[block * C + which];
        const int first = sinks[block * C + which];
        if (recent < 0) return;
        i64 *hit = hits + ((i64)block * C + which) * (n + 1);
        int *lost = evicted + ((i64)block * C + which) * nb * n;
        for (int j = tid; j < p; j += T) {
            int depth = p - j;
            if (j < p - recent) {
                const Token own = {rank(s, first, j), j, 0};
                int above = 0;
                for (int i = 0; i < p - recent; i++)
                    above += sinks_below(own, {rank(s, first, i), i, 0});
                orders[which * n + above] = (u16)j;
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
#if DECAYS
        double factor[S];
#pragma unroll
        for (int s = 0; s < S; s++) factor[s] = factors[block * S + s];
#endif
        for (int t = 0; t < n; t++) {
            COPY_WAIT(&ready[t % STAGES], t / STAGES & 1u);
            const u16 *row[HEADS];
#pragma unroll
            for (int h = 0; h < HEADS; h++) row[h] = row_of(h, t);
            bool wraps = false;
#if !DECAYS
#pragma unroll
            for (int i = 0; i < NS; i++) {
                if (i * UPDATERS > t) break;
                const int j = i * UPDATERS + tid;
                if (j > t) continue;
                unsigned x = 0;
#pragma unroll
                for (int h = 0; h < HEADS; h++) x += fixed_point(row[h][j]);
                sum[i] += x;
                wraps |= sum[i] < x;
            }
#endif
            __syncthreads();  // leaders are done with step t - 1
#pragma unroll
            for (int i = 0; i < NS; i++) {
                if (i * UPDATERS > t) break;
                const int j = i * UPDATERS + tid;
                if (j > t) continue;
#if DECAYS
                int x = 0;
#pragma unroll
                for (int h = 0; h < HEADS; h++) x += fixed_point(row[h][j]);
                const double a = x * ONE;
#pragma unroll
                for (int s = 0; s < S; s++) {
                    double *score = scores + s * n + j;
                    *score = factor[s] * *score + a;
                }
                if (t < p) continue;
                sum[i] += x;
                if (sum[i] < (unsigned)x) high[j]++;
#else
                if (wraps && sum[i] < low[j]) high[j]++;
#endif
                low[j] = sum[i];
            }
            __syncthreads();
            if (t == p - 1) {
                for (int which = 0; which < C; which++) sort(which);
                __syncthreads();
            }
        }
        return;
    }

    const int recent = windows[block * C + c], first = sinks[block * C + c];
    const int s = factor_of[block * C + c];
#if DECAYS
    const double factor = factors[block * S + s];
#endif
    u16 *order = orders + c * n;
    i64 *hit = hits + ((i64)block * C + c) * (n + 1);
    int *lost = evicted + ((i64)block * C + c) * nb * n;
    (void)lost;
    Bound bound[LINES];  // [b]: of line b * WARP + lane
#pragma unroll
    for (int b = 0; b < LINES; b++) bound[b] = bound_of(HIGHEST >> 32);
    i64 near = 0;  // what decode rows gave to age `lane`
    int m = 0;     // tokens in the stack

    auto entry = [&](int t, int j) {
        int x = 0;
#pragma unroll
        for (int h = 0; h < HEADS; h++) x += fixed_point(row_of(h, t)[j]);
        return x;
    };
    // The token at depth d of the stack leaves it, another takes its place.
    auto swap = [&](int d, int t, const Token &out, const Token &in) {
        add(&hit[recent + 1 + d], mass(out.pos) - mass(in.pos));
        book(in.pos, in.top, recent + 1 + d, t, n, budgets, following, nb, lost);
    };

    for (int t = 0; t < n; t++) {
        __syncthreads();
        __syncthreads();  // row t has been added to all scores
        if (c == 0 && t + 2 < n) fetch(t + 2);
        if (t == p - 1) {
            for (int which = 0; which < C; which++) sort(which);
            __syncthreads();
            m = recent < 0 ? 0 : max(0, p - recent);
#pragma unroll
            for (int b = 0; b < LINES; b++) {
                const int line = b * WARP + lane;
                unsigned least = HIGHEST >> 32;
                for (int i = line * WARP; i < min(m, line * WARP + WARP); i++)
                    least = min(least, (unsigned)(rank(s, first, order[i]) >> 32));
                if (line * WARP < m) bound[b] = bound_of(least);
            }
        }
        if (t < p || recent < 0) {
            if (c == 0) COPY_LANDED();
            continue;
        }
        COPY_WAIT(&ready[t % STAGES], t / STAGES & 1u);

        // The window: depth = age, so nothing moves. A token's own attention counts at depth 0.
        const int oldest = min(recent, t);
        if (lane <= oldest) near += entry(t, t - lane);
        for (int age = lane + WARP; age <= oldest; age += WARP) add(&hit[age], entry(t, t - age));
#if EVENTS
        for (int b = lane; b < nb && budgets[b] < recent; b += WARP)
            if (budgets[b] <= t) lost[(i64)b * n + t - budgets[b]] = t;
#endif
#if DECAYS
#pragma unroll
        for (int b = 0; b < LINES; b++) bound[b] = bound[b] < INF ? factor * bound[b] : INF;
#endif
        if (t >= recent) {
            // The token that leaves the window falls past every token of a higher score.
            Token carry = {rank(s, first, t - recent), t - recent, max(1, recent)};
#pragma unroll
            for (int b = 0; b < LINES; b++) {
                if (b * WARP * WARP >= m) break;
                const Bound its = bound[b];
                auto open = [&]() { return __ballot_sync(ALL_LANES, !may_pass(its, carry.rank)); };
                unsigned todo = open();
                while (todo) {
                    const int line = __ffs(todo) - 1, d = (b * WARP + line) * WARP + lane;
                    Token mine = {HIGHEST, 0x7fffffff, recent + 1 + d};
                    if (d < m) {
                        mine.pos = order[d];
                        mine.rank = rank(s, first, mine.pos);
                    }
                    todo &= todo - 1;
                    unsigned fall = __ballot_sync(ALL_LANES, sinks_below(mine, carry));
                    if (fall) {
                        const int before = mine.pos;
                        if (!EVENTS && __popc(fall) > FEW) {
                            // each lane's token and all above it: the least goes on
                            Token least = mine;
#pragma unroll
                            for (int far = 1; far < WARP; far *= 2) {
                                Token other;
                                other.rank = __shfl_up_sync(ALL_LANES, least.rank, far);
                                other.pos = __shfl_up_sync(ALL_LANES, least.pos, far);
                                if (lane >= far && sinks_below(other, least)) least = other;
                            }
                            Token in;
                            in.rank = __shfl_up_sync(ALL_LANES, least.rank, 1);
                            in.pos = __shfl_up_sync(ALL_LANES, least.pos, 1);
                            if (lane == 0 || sinks_below(carry, in)) in = carry;
                            if (sinks_below(mine, in)) {
                                swap(d, t, mine, in);
                                mine = in;
                            }
                            // some token of the line falls, so the least of it is below the carried
                            carry.rank = __shfl_sync(ALL_LANES, least.rank, WARP - 1);
                            carry.pos = __shfl_sync(ALL_LANES, least.pos, WARP - 1);
                        } else {
                            while (fall) {
                                const int from = __ffs(fall) - 1;
                                Token next;
                                next.rank = __shfl_sync(ALL_LANES, mine.rank, from);
                                next.pos = __shfl_sync(ALL_LANES, mine.pos, from);
                                next.top = __shfl_sync(ALL_LANES, mine.top, from);
                                if (lane == from) {
                                    swap(d, t, mine, carry);
                                    mine = carry;
                                }
                                carry = next;
                                fall = __ballot_sync(ALL_LANES, sinks_below(mine, carry));
                            }
                        }
                        if (mine.pos != before) order[d] = (u16)mine.pos;
                        todo &= open();
                    }
                    const unsigned least = __reduce_min_sync(ALL_LANES, (unsigned)(mine.rank >> 32));
                    if (lane == line) bound[b] = bound_of(least);
                }
            }
            // and comes to rest at the bottom
            const Bound its = bound_of((unsigned)(carry.rank >> 32));
#pragma unroll
            for (int b = 0; b < LINES; b++)
                if (m / WARP == b * WARP + lane) bound[b] = min(bound[b], its);
            if (lane == m % WARP) {
                order[m] = (u16)carry.pos;
                add(&hit[recent + 1 + m], -mass(carry.pos));
                book(carry.pos, carry.top, recent + 1 + m, t, n, budgets, following, nb, lost);
            }
            m++;
        }
        if (c == 0) COPY_LANDED();
    }

    // What still lies in the stack has given its mass at its depth.
    if (recent < 0) return;
    for (int d = lane; d < m; d += WARP) add(&hit[recent + 1 + d], mass(order[d]));
    if (lane <= recent) add(&hit[lane], near);
}
