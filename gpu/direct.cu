// Replays one policy on one unit at one budget, for rules that read only a token's own values.
//
// Compiled after common.cuh and a policy's rules. One block replays one job. All of its arrays lie in
// device memory (`scratch`), so a replay can stop after any row and continue in the next launch. The
// semantics are those of h2osim/engines/naive.py; gpu/README.md describes the steps.
//
// Constant: T threads of a block.
#include "arguments.cuh"
#define WARPS (T / WARP)

// Returns the sum over the block to every thread. `part`: shared memory for WARPS numbers.
DEVICE i64 block_sum(i64 x, i64 *part) {
    for (int far = WARP / 2; far; far /= 2) x += __shfl_xor_sync(ALL_LANES, x, far);
    __syncthreads();
    if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = x;
    __syncthreads();
    i64 sum = 0;
    for (int w = 0; w < WARPS; w++) sum += part[w];
    return sum;
}

// The attention to token j that the policy observes in row t, which starts at bits[base[h] + at].
DEVICE double observe(
    const u16 *bits, const i64 *base, i64 at, int j, int t, bool whole, bool largest,
    const i64 *shown, int n, int heads
) {
    double total = 0.0;
    for (int h = 0; h < heads; h++) {
        const i64 x = fixed_point(bits[base[h] + at + j]);
        const i64 seen = shown[(i64)h * n + t], mass = shown[((i64)heads + h) * n + t];
        double a = 0.0;
        if (whole)
            a = (double)x * UNIT;
        else if (seen > 0)
            a = (double)(x * mass) / (double)seen * UNIT;
        total = !largest ? total + a : a > total ? a : total;
    }
    return largest ? heads * total : total;
}

extern "C" __global__ void __launch_bounds__(T) direct(
    const u16 *bits,       // packed rows; row t of head h at bits[bases[unit, h] + tri(t)]
    const i64 *bases,      // [units, heads]
    const i64 *masses,     // [units, heads, stop - start] sum of each new row
    const int *units,      // [jobs] the unit of each job
    const int *budgets,    // [jobs]
    const int *views,      // [jobs] what the policy observes: 1 renormalised rows, 2 the largest head
    const int *lags,       // [jobs]
    PARAMETERS,
    int *evicted_at,       // [jobs, n] step of each token's eviction; n: not evicted
    i64 *kept,             // [jobs, n - p] mass attended in each decode step
    int *progress,         // [jobs, 2] tokens cached, most keys attended so far
    unsigned char *scratch, i64 scratch_each, int n, int p, int heads, int start, int stop
) {
    const int tid = threadIdx.x, job = blockIdx.x;
    __shared__ i64 part[WARPS];
    __shared__ double part_rank[WARPS];
    __shared__ int part_pos[WARPS], part_slot[WARPS], counts[T];

    double *state = (double *)(scratch + job * scratch_each);  // [F, n] by position
    double *ranks = state + (i64)F * n;                        // [n] by slot
    i64 *shown = (i64 *)(ranks + n);  // [2, heads, n] attended and whole mass of each row
    int *cache = (int *)(shown + (i64)2 * heads * n);          // [n] positions, in any order
    int *spare = cache + n;                                    // [n]

    const i64 *base = bases + (i64)units[job] * heads;
    const int k = budgets[job], lag = lags[job];
    const bool full = !(views[job] & 1), largest = views[job] & 2;
    const Parameters params = parameters_of(ints, floats, inputs, inputs_at, job);
    int *evicted = evicted_at + (i64)job * n;
    int m = progress[job * 2], held = progress[job * 2 + 1];
    bool nan = m < 0;
    if (nan) return;  // a rank was NaN

    for (int t = start; t < stop; t++) {
        const i64 at = tri(t);
        const bool dense = t < p;
        double own[F + 1];
        if (tid == 0) {
            cache[m] = t;
            evicted[t] = n;
            rule_init(own, params.in, params.ip, params.fp, t, t, k, p, n, heads);
            for (int f = 0; f < F; f++) state[(i64)f * n + t] = own[f];
        }
        m++;
        __syncthreads();

        // The mass that each head gives to the attended keys, and the number of these keys.
        i64 mass = 0, seen = 0;
        for (int h = 0; h < heads; h++) {
            const u16 *row = bits + base[h] + at;
            i64 one = 0, keys = 0;
            for (int i = tid; i < m; i += T) {
                const int j = cache[i];
                if (dense || !HIDES || rule_visible(params.ip, params.fp, j, t, k, p, n, heads)) {
                    one += fixed_point(row[j]);
                    keys++;
                }
            }
            if (LINGERS) {
                const int oldest = max(0, t - rule_linger(params.ip, params.fp, t, k, p, n, heads));
                for (int j = oldest + tid; j < t; j += T) {
                    if (evicted[j] < n) {
                        one += fixed_point(row[j]);
                        keys++;
                    }
                }
            }
            one = block_sum(one, part);
            mass += one;
            if (h == 0) seen = block_sum(keys, part);
            if (tid == 0) {
                shown[(i64)h * n + t] = one;
                shown[((i64)heads + h) * n + t] =
                    masses[((i64)units[job] * heads + h) * (stop - start) + t - start];
            }
        }
        __syncthreads();

        // Update every cached token and, if one must be evicted, find the least rank.
        const int keep = t >= p - 1 ? rule_keep(m, params.ip, params.fp, t, k, p, n, heads) : m;
        const bool evicting = m > keep || (EXPIRES && t >= p - 1);
        double least = INF;
        int least_pos = 0x7fffffff, least_slot = 0;
        for (int i = tid; i < m; i += T) {
            const int j = cache[i];
            double a = 0.0, old = 0.0;
            if (dense || !HIDES || rule_visible(params.ip, params.fp, j, t, k, p, n, heads))
                a = observe(bits, base, at, j, t, dense || full, largest, shown, n, heads);
            const int u = t - lag;
            if (lag > 0 && u >= j)
                if (u < p || !HIDES || rule_visible(params.ip, params.fp, j, u, k, p, n, heads))
                    old = observe(
                        bits, base, tri(u), j, u, u < p || full, largest, shown, n, heads);
            for (int f = 0; f < F; f++) own[f] = state[(i64)f * n + j];
            rule_update(own, a, old, params.in, params.ip, params.fp, j, t, k, p, n, heads);
            for (int f = 0; f < F; f++) state[(i64)f * n + j] = own[f];
            if (evicting) {
                double r = rule_rank(own, params.in, params.ip, params.fp, j, t, k, p, n, heads);
                if (r != r) nan = true, r = -INF;  // it has no place in an order
                ranks[i] = r;
                if (below(r, j, least, least_pos)) least = r, least_pos = j, least_slot = i;
            }
        }
        if (!dense) {
            if (tid == 0) kept[(i64)job * (n - p) + t - p] = mass;
            held = max(held, (int)seen - 1);
        }
        if (!evicting) {
            __syncthreads();
            continue;
        }

        if (m - keep == 1 && !EXPIRES) {
            for (int far = WARP / 2; far; far /= 2) {
                const double r = __shfl_xor_sync(ALL_LANES, least, far);
                const int q = __shfl_xor_sync(ALL_LANES, least_pos, far);
                const int s = __shfl_xor_sync(ALL_LANES, least_slot, far);
                if (below(r, q, least, least_pos)) least = r, least_pos = q, least_slot = s;
            }
            if (tid % WARP == 0) {
                part_rank[tid / WARP] = least;
                part_pos[tid / WARP] = least_pos;
                part_slot[tid / WARP] = least_slot;
            }
            __syncthreads();
            m--;
            if (tid == 0) {
                for (int w = 1; w < WARPS; w++) {
                    if (below(part_rank[w], part_pos[w], least, least_pos)) {
                        least = part_rank[w];
                        least_pos = part_pos[w];
                        least_slot = part_slot[w];
                    }
                }
                evicted[least_pos] = t;
                cache[least_slot] = cache[m];
            }
            __syncthreads();
            continue;
        }

        // Several at once: a token is evicted if fewer than m - keep tokens rank below it.
        __syncthreads();
        const int length = (m + T - 1) / T, low = tid * length, high = min(low + length, m);
        int staying = 0;
        for (int i = low; i < high; i++) {
            const int j = cache[i];
            const double r = ranks[i];
            int lower = 0;
            if (m > keep)
                for (int s = 0; s < m; s++) lower += below(ranks[s], cache[s], r, j);
            if (lower < m - keep || (EXPIRES && r == -INF))
                evicted[j] = t;
            else
                staying++;
        }
        counts[tid] = staying;
        __syncthreads();
        int slot = 0, stay = 0;
        for (int s = 0; s < T; s++) {
            if (s < tid) slot += counts[s];
            stay += counts[s];
        }
        for (int i = low; i < high; i++)
            if (evicted[cache[i]] == n) spare[slot++] = cache[i];
        __syncthreads();
        for (int i = tid; i < stay; i += T) cache[i] = spare[i];
        m = stay;
        __syncthreads();
    }
    if (tid == 0) {
        progress[job * 2] = m;
        progress[job * 2 + 1] = held;
    }
    __syncthreads();
    if (nan) progress[job * 2] = -1;
}
