// The stack kernel of scores that rows add to: H2O and decay with recorded rows, a fixed window and
// sinks; every budget in one pass.
//
// Follows common.cuh. One block replays one unit under C configurations. The stack below the window
// is kept in lines of WARP depths, each with a lower bound on the scores in it: a score can only
// grow (or fall by the known factor), so a line whose bound lies above the carried token is passed
// without a look. gpu/README.md explains the steps.
//
// Warps have roles. Updaters fetch rows and add them to the scores of all tokens; leader c keeps the
// stack of configuration c. While leaders move the tokens of step t, updaters add row t + 1 in
// their registers and publish the sums once the leaders are done.
//
// Constants: T threads, C leaders' warps among them, NS tokens an updater, HEADS, ROW (bytes of a
// staged row), LINES (groups of WARP lines), DECAYS (scores are multiplied by one of S factors in
// each step), SINKS (some configuration has any), EVENTS (evictions of listed budgets are recorded),
// BLOCKS that a multiprocessor should hold.
#define UPDATERS (T - C * WARP)
#define MOST (NS * UPDATERS)  // tokens, rounded up
#define STAGES 3
#define WATCH 16  // rows between two looks at how large sums are
#define GROUP (NS < 4 ? NS : 4)
#define FEW 2  // so many tokens of a line that fall go one by one

// What updaters do to all tokens of a step, in groups; a thread's token i is one of them if
// i * UPDATERS <= t - tid.
#define EACH_GROUP(work)                                                                        \
    _Pragma("unroll") for (int g = 0; g < NS; g += GROUP) {                                     \
        if (g * UPDATERS > now.t) break;                                                        \
        work(g, now.t - tid);                                                                   \
    }

// Copies of 16-byte pieces from device memory that run beside the computation: one instruction a row
// where there is the bulk copy engine (compute capability 9.0), else one a piece.
#ifdef H2OSIM_SHIM
#define COPY(to, from, pieces, ready)                                                           \
    if (lane == 0) std::memcpy(to, from, (pieces) * 16)
#define COPY_START(ready, bytes)
#define COPY_WAIT(ready, phase)
#define COPY_READY(ready)
#define COPY_LANDED()
#define fixed_value fixed_point
#else
DEVICE unsigned fixed_value(u16 bits) {  // as fixed_point, in fewer instructions
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return (unsigned)(int)(value * 16777216.0f);
}
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

// A token on its way down. `rank` orders tokens: a score with factors is a number that is never
// negative, and its bits order like the number; without them it is a mass below 2^40, and the
// position, which decides between equals, stands below it in the same 64 bits.
#if DECAYS
typedef double Bound;
#define HIGHEST 0x7ff0000000000000ull  // infinity
#else
typedef unsigned Bound;
#define HIGHEST 0xffffffffff000000ull
#endif
struct Token {
    u64 rank;
    int pos, top;  // top: the least budget that has not lost it yet
};

DEVICE bool sinks_below(const Token &a, const Token &b) {
#if DECAYS
    return a.rank < b.rank || (a.rank == b.rank && a.pos < b.pos);
#else
    return a.rank < b.rank;
#endif
}

// A lane's token, or that of `far` lanes before, in every lane.
DEVICE Token token_of(const Token &own, int from) {
    Token other = own;
    other.rank = __shfl_sync(ALL_LANES, own.rank, from);
#if DECAYS
    other.pos = __shfl_sync(ALL_LANES, own.pos, from);
#else
    other.pos = (int)(other.rank & 0xffffff);
#endif
#if EVENTS
    other.top = __shfl_sync(ALL_LANES, own.top, from);
#endif
    return other;
}
DEVICE Token token_before(const Token &own, int far) {
    Token other = own;
    other.rank = __shfl_up_sync(ALL_LANES, own.rank, far);
#if DECAYS
    other.pos = __shfl_up_sync(ALL_LANES, own.pos, far);
#else
    other.pos = (int)(other.rank & 0xffffff);
#endif
    return other;
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
    double *scores = (double *)(rows + STAGES * HEADS * ROW);  // [S, MOST]
    unsigned *low = (unsigned *)(scores + S * MOST);           // [MOST]
#else
    unsigned *low = (unsigned *)(rows + STAGES * HEADS * ROW);
#endif
    // A token's mass, fixed point: low + 2^32 high. Without factors it is its score as well, from
    // the first row on; with factors it counts decode rows only.
    u16 *orders = (u16 *)(low + MOST);                         // [C, MOST] tokens of the stack
    unsigned char *high = (unsigned char *)(orders + C * MOST);
    __shared__ u64 ready[STAGES];
    i64 placed[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++) placed[h] = place[h];

    auto mass = [&](int j) { return (i64)((u64)high[j] << 32 | low[j]); };
    auto rank = [&](int s, int first, int j) {  // `first` tokens are sinks
#if DECAYS
        return SINKS && j < first ? HIGHEST : (u64)__double_as_longlong(scores[s * MOST + j]);
#else
        return (SINKS && j < first ? HIGHEST : (u64)mass(j) << 24) + j;
#endif
    };
    auto mass_of = [&](const Token &token) {
#if DECAYS || SINKS
        return mass(token.pos);
#else
        return (i64)(token.rank >> 24);
#endif
    };
    // Rows come in whole 16-byte pieces, so a row starts up to 14 bytes after its stage does. This
    // goes from row to row with the roles' loops.
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
        int bytes = 0;
#pragma unroll
        for (int h = 0; h < HEADS; h++)
            bytes += ((((int)placed[h] + t * (t + 1) / 2) & 7) * 2 + 2 * t + 17) & ~15;
        COPY_START(&ready[stage], bytes);
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            const i64 at = placed[h] + tri(t);
            const int pieces = ((int)(at & 7) * 2 + 2 * t + 17) / 16;
            COPY(rows + (stage * HEADS + h) * ROW, bits + (at & ~7LL), pieces, &ready[stage]);
        }
    };

    for (int j = tid; j < MOST; j += T) low[j] = 0, high[j] = 0;
#if DECAYS
    for (int j = tid; j < S * MOST; j += T) scores[j] = 0.0;
#endif
    if (tid == 0)
        for (int i = 0; i < STAGES; i++) COPY_READY(&ready[i]);
    __syncthreads();
    if (warp == 0) {
        fetch(0, 0);
        if (n > 1) fetch(1, 1);
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
#if DECAYS
        double factor[S];
#pragma unroll
        for (int s = 0; s < S; s++) factor[s] = factors[block * S + s];
#endif
        bool near_wrap = true;  // a sum may pass 2^32 soon
        // Tokens are worked at in groups of GROUP a thread, so that their loads overlap. What lies
        // beyond a row's end is read, but not added.
        auto load = [&](int i) {
            unsigned x = 0;
#pragma unroll
            for (int h = 0; h < HEADS; h++) x += fixed_value(row[h][i * UPDATERS + tid]);
            return x;
        };
#if !DECAYS
        auto sum_rows = [&](int g, int ends) {
            unsigned x[GROUP];
#pragma unroll
            for (int i = 0; i < GROUP; i++) x[i] = load(g + i);
#pragma unroll
            for (int i = 0; i < GROUP; i++)
                if ((g + i) * UPDATERS <= ends) sum[g + i] += x[i];
        };
#else
        auto fade = [&](int g, int ends) {
            unsigned x[GROUP];
            double score[S][GROUP];
#pragma unroll
            for (int i = 0; i < GROUP; i++) {
                x[i] = load(g + i);
#pragma unroll
                for (int s = 0; s < S; s++) score[s][i] = scores[s * MOST + (g + i) * UPDATERS + tid];
            }
#pragma unroll
            for (int i = 0; i < GROUP; i++) {
                if ((g + i) * UPDATERS > ends) continue;
                const double a = (int)x[i] * ONE;
#pragma unroll
                for (int s = 0; s < S; s++)
                    scores[s * MOST + (g + i) * UPDATERS + tid] = factor[s] * score[s][i] + a;
                if (now.t >= p) sum[g + i] += x[i];
            }
        };
#endif
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
            COPY_WAIT(&ready[now.stage], now.phase);
#if !DECAYS
            EACH_GROUP(sum_rows)
#endif
            if (counts && t >= p) {
                const int oldest = min(widest, t);
                if (lane <= oldest) near += entry(lane);
                if (WARP + lane <= oldest) next += entry(WARP + lane);
                if (widest >= 2 * WARP)
                    for (int age = 2 * WARP + lane; age <= oldest; age += WARP)
                        give(age, entry(age));
            }
            if (warp == 0) COPY_LANDED();
            __syncthreads();  // leaders are done with step t - 1
#if DECAYS
            EACH_GROUP(fade)
#endif
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
    const int s = factor_of[block * C + c];
#if DECAYS
    const double factor = factors[block * S + s];
#endif
    u16 *order = orders + c * MOST;
    i64 *hit = hits + ((i64)block * C + c) * (n + 1);
    int *lost = evicted + ((i64)block * C + c) * nb * n;
    (void)lost;
    Bound bound[LINES];  // [b]: of line b * WARP + lane
#pragma unroll
    for (int b = 0; b < LINES; b++) bound[b] = bound_of(HIGHEST >> 32);
    int m = 0;  // tokens in the stack

    // The token at depth d of the stack leaves it, another takes its place.
    auto swap = [&](int d, int t, const Token &out, const Token &in) {
        add(&hit[recent + 1 + d], mass_of(out) - mass_of(in));
        book(in.pos, in.top, recent + 1 + d, t, n, budgets, following, nb, lost);
    };

    // A line that tokens fall from: each lane's own, the lanes below the carried one, the depth.
    auto pass = [&](Token &mine, unsigned fall, Token &carry, int d, int t) {
        const int before = mine.pos;
        if (!EVENTS && __popc(fall) > FEW) {
            // each lane's token and all above it: the least goes on
            Token least = mine;
#pragma unroll
            for (int far = 1; far < WARP; far *= 2) {
                const Token other = token_before(least, far);
                if (lane >= far && sinks_below(other, least)) least = other;
            }
            Token in = token_before(least, 1);
            if (lane == 0 || sinks_below(carry, in)) in = carry;
            if (sinks_below(mine, in)) {
                swap(d, t, mine, in);
                mine = in;
            }
            // some token of the line falls, so the least of it is below the carried one
            carry = token_of(least, WARP - 1);
        } else {
            while (fall) {
                const int from = __ffs(fall) - 1;
                const Token lowest = token_of(mine, from);
                if (lane == from) {
                    swap(d, t, mine, carry);
                    mine = carry;
                }
                carry = lowest;
                fall = __ballot_sync(ALL_LANES, sinks_below(mine, carry));
            }
        }
        if (mine.pos != before) order[d] = (u16)mine.pos;
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
                for (int i = line * WARP; i < min(m, line * WARP + WARP); i++)
                    least = min(least, (unsigned)(rank(s, first, order[i]) >> 32));
                if (line * WARP < m) bound[b] = bound_of(least);
            }
        }
        if (t < p || recent < 0) continue;
#if EVENTS  // budgets smaller than the window lose its tokens by age
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
#pragma unroll 1
            for (int b = 0; b * WARP * WARP < m; b++) {
                Bound its = bound[0];
#pragma unroll
                for (int i = 1; i < LINES; i++) its = i == b ? bound[i] : its;
                auto open = [&]() { return __ballot_sync(ALL_LANES, !may_pass(its, carry.rank)); };
                unsigned todo = open();
                while (todo) {
                    const int line = __ffs(todo) - 1, d = (b * WARP + line) * WARP + lane;
                    todo &= todo - 1;
                    Token mine = {HIGHEST + 0xffffff, 0x7fffffff, recent + 1 + d};
                    if (d < m) {
                        mine.pos = order[d];
                        mine.rank = rank(s, first, mine.pos);
                    }
                    const unsigned fall = __ballot_sync(ALL_LANES, sinks_below(mine, carry));
                    if (fall) {
                        pass(mine, fall, carry, d, t);
                        todo &= open();
                    }
                    const unsigned least = __reduce_min_sync(ALL_LANES, (unsigned)(mine.rank >> 32));
                    if (lane == line) its = bound_of(least);
                }
#pragma unroll
                for (int i = 0; i < LINES; i++) bound[i] = i == b ? its : bound[i];
            }
            // and comes to rest at the bottom
            const Bound its = bound_of((unsigned)(carry.rank >> 32));
#pragma unroll
            for (int b = 0; b < LINES; b++)
                if (m / WARP == b * WARP + lane) bound[b] = min(bound[b], its);
            if (lane == m % WARP) {
                order[m] = (u16)carry.pos;
                add(&hit[recent + 1 + m], -mass_of(carry));
                book(carry.pos, carry.top, recent + 1 + m, t, n, budgets, following, nb, lost);
            }
            m++;
        }
    }

    // What still lies in the stack has given its mass at its depth.
    if (recent < 0) return;
    for (int d = lane; d < m; d += WARP) add(&hit[recent + 1 + d], mass(order[d]));
}
