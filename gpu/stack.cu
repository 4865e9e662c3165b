// The stack kernel: one unit, C configurations of one policy, every budget in one pass (theorem T7).
//
// Follows common.cuh and a policy's rules. One block replays one unit. A token belongs to the thread
// pos % T, which keeps its state in registers; ranks, the stack (tokens by depth) and the mass each
// token has received lie in memory that the block shares. gpu/README.md explains the steps.
//
// Constants: T threads, NS tokens a thread, C configurations, HEADS, SHARED (arrays in shared
// memory, else in scratch), EVENTS (evictions of listed budgets are recorded), UNROLL.
#include "arguments.cuh"
static const int UNROLLED = UNROLL;  // `#pragma unroll` reads constants, not macros
#define FIELDS (F > 0 ? F : 1)
#define WARPS (T / WARP)

struct Carry {  // a token on its way down, and the least budget that has not lost it yet
    double rank;
    int pos, top;
};

DEVICE bool sinks_below(const Carry &a, const Carry &b) {
    return below(a.rank, a.pos, b.rank, b.pos);
}

// A row's entry, summed over the unit's heads.
DEVICE int entry(const u16 *bits, const i64 *place, i64 at, int j) {
    int x = 0;
#pragma unroll
    for (int h = 0; h < HEADS; h++) x += fixed_point(bits[place[h] + at + j]);
    return x;
}

extern "C" __global__ void __launch_bounds__(T) stack(
    const u16 *bits,         // packed rows; row t of head h at bits[place[unit, h] + tri(t)]
    const i64 *places,       // [units, HEADS]
    const int *units,        // [blocks] the unit each block replays
    const int *patterns,     // [blocks] which of `evicts` it follows
    const unsigned char *evicts,  // [patterns, n] whether a step evicts
    NUMBERS,
    RESULTS,
    unsigned char *scratch,  // [blocks, scratch_each]
    i64 scratch_each, int nb, int n, int p, int start, int stop
) {
    const int tid = threadIdx.x, block = blockIdx.x, lane = tid % WARP, warp = tid / WARP;
    DYNAMIC_SHARED(shared);
    __shared__ Carry totals[C][WARPS];

    unsigned char *kept = scratch + block * scratch_each;
    double *kept_state = (double *)kept;                   // [NS, C, F, T]
    i64 *kept_mass = (i64 *)(kept_state + (i64)NS * C * FIELDS * T);
#if SHARED
    i64 *mass = (i64 *)shared;                             // [n] received while decoding
    int *kept_order = (int *)(kept_mass + n);
    double *ranks = (double *)(mass + n);                  // [C, n]
    int *order = (int *)(ranks + (i64)C * n);              // [C, n + 1] tokens by depth, from 1 on
    int *kept_cell = kept_order + (i64)C * (n + 1);
#else
    i64 *mass = kept_mass;
    double *ranks = (double *)(mass + n);
    int *order = (int *)(ranks + (i64)C * n);
    int *kept_cell = order + (i64)C * (n + 1);
#endif

    const i64 *place = places + (i64)units[block] * HEADS;
    const unsigned char *evict_in = evicts + (i64)patterns[block] * n;
    Numbers told[C];
#pragma unroll
    for (int c = 0; c < C; c++)
        told[c] = numbers_of(ints, floats, inputs, inputs_at, block * C + c);

    double state[NS][C][FIELDS];
    int row[NS];     // this thread's entries of the next row
    int m = 0;       // tokens in the stack: 0 … m - 1; later ones wait, oldest first
    i64 always = 0;  // mass that every budget saw, by this thread's tokens
    if (start > 0) {
        m = kept_cell[0];
#pragma unroll UNROLLED
        for (int i = 0; i < NS; i++)
            for (int c = 0; c < C; c++)
                for (int f = 0; f < FIELDS; f++)
                    state[i][c][f] = kept_state[((i * C + c) * FIELDS + f) * T + tid];
#if SHARED
        for (int j = tid; j < n; j += T) mass[j] = kept_mass[j];
        for (int d = tid; d < C * (n + 1); d += T) order[d] = kept_order[d];
#endif
        __syncthreads();
    }
#pragma unroll UNROLLED
    for (int i = 0; i < NS; i++) {
        int j = i * T + tid;
        row[i] = j <= start ? entry(bits, place, tri(start), j) : 0;
    }

    for (int t = start; t < stop; t++) {
        const bool evicts_now = evict_in[t];

        // Every token's state and rank, each by its own thread.
#pragma unroll UNROLLED
        for (int i = 0; i < NS; i++) {
            const int j = i * T + tid;
            if (i * T > t) break;
            if (j > t) continue;
            const double a = row[i] * UNIT;
            if (j == t) {
                mass[j] = 0;
#pragma unroll
                for (int c = 0; c < C; c++) {
                    const Numbers &its = told[c];
                    rule_init(state[i][c], its.in, its.ip, its.fp, j, t, n, p, n, HEADS);
                }
            }
            if (t >= p) mass[j] += row[i];
            if (evicts_now && j >= m) always += mass[j];
#pragma unroll
            for (int c = 0; c < C; c++) {
                const Numbers &its = told[c];
                rule_update(state[i][c], a, 0.0, its.in, its.ip, its.fp, j, t, n, p, n, HEADS);
                if (evicts_now)
                    ranks[(i64)c * n + j] =
                        rule_rank(state[i][c], its.in, its.ip, its.fp, j, t, n, p, n, HEADS);
            }
        }
        if (t + 1 < stop) {  // asked for now, used in the next step
            const i64 at = tri(t + 1);
#pragma unroll UNROLLED
            for (int i = 0; i < NS; i++) {
                const int j = i * T + tid;
                if (i * T > t + 1) break;
                if (j <= t + 1) row[i] = entry(bits, place, at, j);
            }
        }
        if (!evicts_now) continue;
        __syncthreads();

        if (m == 0) {  // the first eviction: a sort by counting
            for (int j = tid; j <= t; j += T) {
                for (int c = 0; c < C; c++) {
                    const double *rank = ranks + (i64)c * n;
                    const double own = rank[j];
                    int depth = 1;
                    for (int i = 0; i <= t; i++) depth += below(own, j, rank[i], i);
                    order[(i64)c * (n + 1) + depth] = j;
                    add(&hits[((i64)block * C + c) * (n + 1) + depth], -mass[j]);
                    book(
                        j, 1, depth, t, n, budgets, following, nb,
                        evicted + ((i64)block * C + c) * nb * n
                    );
                }
            }
            m = t + 1;
            __syncthreads();
            continue;
        }

        for (; m <= t; m++) {
            // Token m enters on top; the carried token is the least of it and what it has passed.
            const int length = ((m + T - 1) / T) | 1;  // odd: no two lanes in one memory bank
            const int low = 1 + tid * length, high = min(low + length, m + 1);
            Carry least[C], before[C];
#pragma unroll
            for (int c = 0; c < C; c++) {
                const double *rank = ranks + (i64)c * n;
                const int *tokens = order + (i64)c * (n + 1);
                Carry own = {INF, 0x7fffffff, 0};
                for (int d = low; d < high; d++) {
                    const int y = tokens[d];
                    const Carry other = {rank[y], y, d};
                    if (sinks_below(other, own)) own = other;
                }
                least[c] = own;
#pragma unroll
                for (int far = 1; far < WARP; far *= 2) {
                    Carry other;
                    other.rank = __shfl_up_sync(ALL_LANES, own.rank, far);
                    other.pos = __shfl_up_sync(ALL_LANES, own.pos, far);
                    other.top = __shfl_up_sync(ALL_LANES, own.top, far);
                    if (lane >= far && sinks_below(other, own)) own = other;
                }
                if (lane == WARP - 1) totals[c][warp] = own;
                before[c].rank = __shfl_up_sync(ALL_LANES, own.rank, 1);
                before[c].pos = __shfl_up_sync(ALL_LANES, own.pos, 1);
                before[c].top = __shfl_up_sync(ALL_LANES, own.top, 1);
                if (lane == 0) before[c].rank = INF, before[c].pos = 0x7fffffff;
            }
            __syncthreads();
#pragma unroll
            for (int c = 0; c < C; c++) {
                const double *rank = ranks + (i64)c * n;
                int *tokens = order + (i64)c * (n + 1);
                i64 *hit = hits + ((i64)block * C + c) * (n + 1);
                int *lost = evicted + ((i64)block * C + c) * nb * n;
                Carry carry = {rank[m], m, 1};
                for (int w = 0; w < warp; w++)
                    if (sinks_below(totals[c][w], carry)) carry = totals[c][w];
                if (sinks_below(before[c], carry)) carry = before[c];
                if (low < high && sinks_below(least[c], carry)) {
                    for (int d = low; d < high; d++) {
                        const int y = tokens[d];
                        const Carry other = {rank[y], y, d};
                        if (!sinks_below(other, carry)) continue;
                        tokens[d] = carry.pos;
                        add(&hit[d], mass[y] - mass[carry.pos]);
                        book(carry.pos, carry.top, d, t, n, budgets, following, nb, lost);
                        carry = other;
                    }
                }
                if (tid == T - 1) {  // no thread is deeper: what it carries goes to the bottom
                    tokens[m + 1] = carry.pos;
                    add(&hit[m + 1], -mass[carry.pos]);
                    book(carry.pos, carry.top, m + 1, t, n, budgets, following, nb, lost);
                }
            }
            __syncthreads();
        }
    }

    if (stop < n) {
#pragma unroll UNROLLED
        for (int i = 0; i < NS; i++)
            for (int c = 0; c < C; c++)
                for (int f = 0; f < FIELDS; f++)
                    kept_state[((i * C + c) * FIELDS + f) * T + tid] = state[i][c][f];
        if (tid == 0) kept_cell[0] = m;
        __syncthreads();
#if SHARED
        for (int j = tid; j < n; j += T) kept_mass[j] = mass[j];
        for (int d = tid; d < C * (n + 1); d += T) kept_order[d] = order[d];
#endif
    } else {
        __syncthreads();
        for (int j = m + tid; j < n; j += T) always += mass[j];
        for (int c = 0; c < C; c++)
            for (int d = 1 + tid; d <= m; d += T)
                add(&hits[((i64)block * C + c) * (n + 1) + d], mass[order[(i64)c * (n + 1) + d]]);
    }
    for (int c = 0; c < C; c++)
        if (always) add(&hits[((i64)block * C + c) * (n + 1)], always);
}
