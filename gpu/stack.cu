// Replays every budget of any inclusive policy (proofs/14-inclusion.md) in one pass.
//
// Compiled after common.cuh and a policy's rules. One block replays C configurations of one policy on
// one unit. Thread pos % T keeps the state of the token at position pos in registers. The ranks, the
// stack (tokens by depth) and the mass that each token has received lie in memory that the block
// shares. gpu/README.md describes the algorithm.
//
// Constants: T threads, NS tokens of a thread, C configurations, HEADS, SHARED (1: the block's arrays
// lie in shared memory, 0: in scratch), EVENTS (1: evictions at listed budgets are recorded), ORDERS
// (1: the stack of each row is written down), UNROLL (turns of the loops over a thread's tokens that
// are unrolled).
#include "arguments.cuh"
static const int UNROLLED = UNROLL;  // `#pragma unroll` reads constants, not macros
#define FIELDS (F > 0 ? F : 1)
#define WARPS (T / WARP)

struct Carry {  // a token that moves down the stack; top: the least budget that still holds it
    double rank;
    int pos, top;
};

DEVICE bool evicted_first(const Carry &a, const Carry &b) {
    return below(a.rank, a.pos, b.rank, b.pos);
}

// A row's entry, summed over the unit's heads.
DEVICE int entry(const u16 *bits, const i64 *base, i64 at, int j) {
    int x = 0;
#pragma unroll
    for (int h = 0; h < HEADS; h++) x += fixed_point(bits[base[h] + at + j]);
    return x;
}

extern "C" __global__ void __launch_bounds__(T) stack(
    const u16 *bits,         // packed rows; row t of head h at bits[bases[unit, h] + tri(t)]
    const i64 *bases,        // [units, HEADS]
    const int *units,        // [blocks] the unit of each block
    const int *patterns,     // [blocks] index of its row of `evicts`
    const unsigned char *evicts,  // [patterns, n] whether a step evicts
    PARAMETERS,
    RESULTS,
    unsigned char *scratch,  // [blocks, scratch_each]
    int *orders,             // [blocks, C, stop - start, n] the stack that a row finds, if ORDERS
    i64 scratch_each, int nb, int n, int p, int start, int stop
) {
    const int tid = threadIdx.x, block = blockIdx.x, lane = tid % WARP, warp = tid / WARP;
    DYNAMIC_SHARED(shared);
    __shared__ Carry totals[C][WARPS];

    unsigned char *saved = scratch + block * scratch_each;
    double *saved_state = (double *)saved;                 // [NS, C, F, T]
    i64 *saved_mass = (i64 *)(saved_state + (i64)NS * C * FIELDS * T);
#if SHARED
    i64 *mass = (i64 *)shared;                             // [n] received while decoding
    int *saved_order = (int *)(saved_mass + n);
    double *ranks = (double *)(mass + n);                  // [C, n]
    int *order = (int *)(ranks + (i64)C * n);              // [C, n + 1] tokens by depth, from 1 on
    int *saved_count = saved_order + (i64)C * (n + 1);
#else
    i64 *mass = saved_mass;
    double *ranks = (double *)(mass + n);
    int *order = (int *)(ranks + (i64)C * n);
    int *saved_count = order + (i64)C * (n + 1);
#endif

    const i64 *base = bases + (i64)units[block] * HEADS;
    const unsigned char *evict_in = evicts + (i64)patterns[block] * n;
    Parameters params[C];
#pragma unroll
    for (int c = 0; c < C; c++)
        params[c] = parameters_of(ints, floats, inputs, inputs_at, block * C + c);

    double state[NS][C][FIELDS];
    int row[NS];     // this thread's entries of the next row
    int m = 0;       // tokens in the stack: 0 … m - 1; later ones wait, oldest first
    i64 always = 0;  // mass of this thread's tokens that every budget attends
    if (start > 0) {
        m = saved_count[0];
#pragma unroll UNROLLED
        for (int i = 0; i < NS; i++)
            for (int c = 0; c < C; c++)
                for (int f = 0; f < FIELDS; f++)
                    state[i][c][f] = saved_state[((i * C + c) * FIELDS + f) * T + tid];
#if SHARED
        for (int j = tid; j < n; j += T) mass[j] = saved_mass[j];
        for (int d = tid; d < C * (n + 1); d += T) order[d] = saved_order[d];
#endif
        __syncthreads();
    }
#pragma unroll UNROLLED
    for (int i = 0; i < NS; i++) {
        int j = i * T + tid;
        row[i] = j <= start ? entry(bits, base, tri(start), j) : 0;
    }

    for (int t = start; t < stop; t++) {
        const bool evicts_now = evict_in[t];
#if ORDERS  // from depth 1 on; at 0 how many tokens there are
        for (int c = 0; c < C; c++) {
            int *found = orders + (((i64)block * C + c) * (stop - start) + t - start) * n;
            for (int d = tid; d <= m; d += T) found[d] = d ? order[(i64)c * (n + 1) + d] : m;
        }
#endif

        // Each thread updates and ranks its own tokens.
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
                    const Parameters &own = params[c];
                    rule_init(state[i][c], own.in, own.ip, own.fp, j, t, n, p, n, HEADS);
                }
            }
            if (t >= p) mass[j] += row[i];
            if (evicts_now && j >= m) always += mass[j];
#pragma unroll
            for (int c = 0; c < C; c++) {
                const Parameters &own = params[c];
                rule_update(state[i][c], a, 0.0, own.in, own.ip, own.fp, j, t, n, p, n, HEADS);
                if (evicts_now) {
                    double r = rule_rank(state[i][c], own.in, own.ip, own.fp, j, t, n, p, n, HEADS);
                    if (r != r) hits[((i64)block * C + c) * (n + 1)] = NOT_A_RANK, r = -INF;
                    ranks[(i64)c * n + j] = r;
                }
            }
        }
        if (t + 1 < stop) {  // loaded now for the next step
            const i64 at = tri(t + 1);
#pragma unroll UNROLLED
            for (int i = 0; i < NS; i++) {
                const int j = i * T + tid;
                if (i * T > t + 1) break;
                if (j <= t + 1) row[i] = entry(bits, base, at, j);
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
                    record_evictions(
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
                    if (evicted_first(other, own)) own = other;
                }
                least[c] = own;
#pragma unroll
                for (int far = 1; far < WARP; far *= 2) {
                    Carry other;
                    other.rank = __shfl_up_sync(ALL_LANES, own.rank, far);
                    other.pos = __shfl_up_sync(ALL_LANES, own.pos, far);
                    other.top = __shfl_up_sync(ALL_LANES, own.top, far);
                    if (lane >= far && evicted_first(other, own)) own = other;
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
                    if (evicted_first(totals[c][w], carry)) carry = totals[c][w];
                if (evicted_first(before[c], carry)) carry = before[c];
                if (low < high && evicted_first(least[c], carry)) {
                    for (int d = low; d < high; d++) {
                        const int y = tokens[d];
                        const Carry other = {rank[y], y, d};
                        if (!evicted_first(other, carry)) continue;
                        tokens[d] = carry.pos;
                        add(&hit[d], mass[y] - mass[carry.pos]);
                        record_evictions(
                            carry.pos, carry.top, d, t, n, budgets, following, nb, lost);
                        carry = other;
                    }
                }
                if (tid == T - 1) {  // the token that falls below all depths goes to the bottom
                    tokens[m + 1] = carry.pos;
                    add(&hit[m + 1], -mass[carry.pos]);
                    record_evictions(
                        carry.pos, carry.top, m + 1, t, n, budgets, following, nb, lost);
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
                    saved_state[((i * C + c) * FIELDS + f) * T + tid] = state[i][c][f];
        if (tid == 0) saved_count[0] = m;
        __syncthreads();
#if SHARED
        for (int j = tid; j < n; j += T) saved_mass[j] = mass[j];
        for (int d = tid; d < C * (n + 1); d += T) saved_order[d] = order[d];
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
