// Lower and upper bounds on the offline optimum at one budget, for many units at once: the dual value
// of prices, and a schedule that evicts by Lagrangian value. gpu/README.md describes the method.
//
// Compiled after common.cuh. All sums are of integers below 2^53, so float64 adds them exactly.
// `first` is the first step after which tokens are evicted. Constants: T threads, HEADS.
#define WARPS (T / WARP)
#define BATCH 16

#ifndef H2OSIM_SHIM
DEVICE double half_value(u16 bits) {
    double value;
    asm("cvt.f64.f16 %0, %1;" : "=d"(value) : "h"(bits));
    return value;
}
#endif

// A row's entry in units of 2^-24, summed over the unit's heads.
DEVICE double entry(const u16 *bits, const i64 *base, i64 at) {
    double x = half_value(bits[base[0] + at]);
#pragma unroll
    for (int h = 1; h < HEADS; h++) x += half_value(bits[base[h] + at]);
    return x * 16777216.0;
}

// Returns the sum over the block to every thread.
DEVICE double block_sum(double x) {
    __shared__ double part[WARPS];
    for (int far = WARP / 2; far; far /= 2) x += __shfl_xor_sync(ALL_LANES, x, far);
    __syncthreads();
    if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = x;
    __syncthreads();
    double sum = 0.0;
    for (int w = 0; w < WARPS; w++) sum += part[w];
    return sum;
}

// One thread for each token: the greatest sum of its mass less the prices (`best`), over all steps
// after which it can be evicted, and the step where the sum is greatest (`stops`).
extern "C" __global__ void __launch_bounds__(T) price_rows(
    const u16 *bits, const i64 *bases, const int *active, const double *prices, double *best,
    int *stops, int n, int p, int first
) {
    const int blocks = (n + T - 1) / T;
    const int u = active[blockIdx.x / blocks], j = blockIdx.x % blocks * T + (int)threadIdx.x;
    const i64 *base = bases + (i64)u * HEADS;
    const double *price = prices + (i64)u * n;
    double worth = 0.0, most = 0.0;
    // The lanes of a warp read the same rows; the first of these have only some of its tokens.
    const int lane = threadIdx.x % WARP, free_until = min(n - 1, first);
    int stop = max(j, first), t = max(p, j - lane + 1);
    i64 at[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++) at[h] = base[h] + tri(t) + j;
    auto next = [&]() {  // returns this token's entry in row t and moves to row t + 1
        double x = 0.0;
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            x += half_value(bits[at[h]]);
            at[h] += t + 1;
        }
        t++;
        return x * 16777216.0;
    };
    auto priced = [&]() {
        const double cost = price[t];
        worth = worth + next() - cost;
        if (worth > most) most = worth, stop = t - 1;
    };
    while (t < min(n, j - lane + WARP)) {
        if (j >= t) {
#pragma unroll
            for (int h = 0; h < HEADS; h++) at[h] += t + 1;
            t++;
        } else if (t <= first) {
            worth += next();
            most = worth;
        } else {
            priced();
        }
    }
    // Entries of BATCH rows are loaded before they are added, so that the loads overlap.
    double x[BATCH], cost[BATCH];
    if (t <= free_until) {
        while (t + BATCH - 1 <= free_until) {
#pragma unroll
            for (int i = 0; i < BATCH; i++) x[i] = next();
#pragma unroll
            for (int i = 0; i < BATCH; i++) worth += x[i];
        }
        while (t <= free_until) worth += next();
        most = worth;
    }
    while (t + BATCH <= n) {
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            cost[i] = price[t];
            x[i] = next();
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            worth = worth + x[i] - cost[i];
            if (worth > most) most = worth, stop = t - BATCH + i;
        }
    }
    while (t < n) priced();
    if (j < n) {
        best[(i64)u * n + j] = most;
        stops[(i64)u * n + j] = stop;
    }
}

// One block for each unit: the dual value at these prices, and the next prices by a Polyak step.
extern "C" __global__ void __launch_bounds__(T) price_step(
    const u16 *bits, const i64 *bases, const int *active, double *prices, const double *best,
    const int *stops, double *best_prices, double *bounds, int *change, int n, int p,
    int first, int k
) {
    const int u = active[blockIdx.x], tid = threadIdx.x;
    const i64 *base = bases + (i64)u * HEADS;
    double *price = prices + (i64)u * n, *lower = bounds + 2 * u, *upper = lower + 1;
    int *held = change + (i64)u * (n + 2);
    __shared__ int counts[T];
    double sum = 0.0;
    for (int t = tid; t < n; t += T) {
        sum += (double)k * price[t] + best[(i64)u * n + t];
        if (t >= p) sum += entry(bits, base, tri(t) + t);
    }
    for (int t = tid; t < n + 2; t += T) held[t] = 0;
    const double here = block_sum(sum);
    const double before = *upper, goal = *lower > 0.0 ? *lower : 0.95 * min(before, here);
    __syncthreads();
    if (here < before) {
        if (tid == 0) *upper = here;
        for (int t = tid; t < n; t += T) best_prices[(i64)u * n + t] = price[t];
    }
    // The slope: how many older tokens these prices hold in each step, less k.
    for (int j = tid; j < n; j += T) {
        atomicAdd(&held[max(j, first) + 1], 1);
        atomicAdd(&held[stops[(i64)u * n + j] + 1], -1);
    }
    __syncthreads();
    const int length = (n + T - 1) / T, low = min(n, tid * length), high = min(n, low + length);
    int count = 0;
    for (int t = low; t < high; t++) count += held[t];
    counts[tid] = count;
    __syncthreads();
    count = 0;
    for (int i = 0; i < tid; i++) count += counts[i];
    double square = 0.0;
    for (int t = low; t < high; t++) {
        count += held[t];
        int slope = count - k;
        if (t <= first || (price[t] == 0.0 && slope < 0)) slope = 0;
        held[t] = slope;
        square += (double)slope * slope;
    }
    square = block_sum(square);
    const double size = max(here - goal, 2e-4 * here) / max(1.0, square);
    for (int t = low; t < high; t++)
        price[t] = max(0.0, floor(price[t] + size * held[t] + 0.5));
}

// One thread for each token: what it is worth to hold it after each step, at the best prices.
extern "C" __global__ void __launch_bounds__(T) token_values(
    const u16 *bits, const i64 *bases, const int *active, const double *prices, float *value,
    int n, int first
) {
    const int blocks = (n + T - 1) / T, b = blockIdx.x / blocks;
    const int u = active[b], j = blockIdx.x % blocks * T + (int)threadIdx.x;
    const i64 *base = bases + (i64)u * HEADS;
    const double *price = prices + (i64)u * n;
    float *mine = value + (i64)b * tri(n);
    double worth = 0.0;
    if (j >= n) return;
    const int last = max(j, first);
    int t = n - 1;
    double x[BATCH];
    for (; t - BATCH >= last; t -= BATCH) {
#pragma unroll
        for (int i = 0; i < BATCH; i++)
            x[i] = entry(bits, base, tri(t - i) + j) - price[t - i];
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            mine[tri(t - i) + j] = (float)worth;
            worth = max(0.0, worth + x[i]);
        }
    }
    for (; t > last; t--) {
        mine[tri(t) + j] = (float)worth;
        worth = max(0.0, worth + entry(bits, base, tri(t) + j) - price[t]);
    }
    mine[tri(last) + j] = (float)worth;
}

// One block for each unit: the schedule that evicts the token of least value (the oldest among
// equals), and the mass that it keeps.
extern "C" __global__ void __launch_bounds__(T) make_schedule(
    const u16 *bits, const i64 *bases, const int *active, const float *value, int *cached,
    int *evicted_at, double *kept, int n, int p, int first, int k
) {
    const int u = active[blockIdx.x], tid = threadIdx.x;
    const i64 *base = bases + (i64)u * HEADS;
    const float *worth = value + (i64)blockIdx.x * tri(n);
    int *cache = cached + (i64)u * (n + 1), *evicted = evicted_at + (i64)u * n;
    __shared__ float least[WARPS];
    __shared__ int position[WARPS], where[WARPS];
    double sum = 0.0;
    int m = 0;
    for (int t = 0; t < n; t++) {
        if (tid == 0) cache[m] = t, evicted[t] = n;
        m++;
        __syncthreads();
        if (t >= p)
            for (int i = tid; i < m; i += T) sum += entry(bits, base, tri(t) + cache[i]);
        for (; t >= first && t < n - 1 && m > k; m--) {
            float best = 3.4e38f;
            int pos = 0x7fffffff, at = 0;
            for (int i = tid; i < m; i += T) {
                const int j = cache[i];
                const float x = worth[tri(t) + j];
                if (x < best || (x == best && j < pos)) best = x, pos = j, at = i;
            }
            for (int far = WARP / 2; far; far /= 2) {
                const float x = __shfl_xor_sync(ALL_LANES, best, far);
                const int j = __shfl_xor_sync(ALL_LANES, pos, far);
                const int i = __shfl_xor_sync(ALL_LANES, at, far);
                if (x < best || (x == best && j < pos)) best = x, pos = j, at = i;
            }
            if (tid % WARP == 0) {
                least[tid / WARP] = best;
                position[tid / WARP] = pos;
                where[tid / WARP] = at;
            }
            __syncthreads();
            if (tid == 0) {
                for (int w = 1; w < WARPS; w++)
                    if (least[w] < best || (least[w] == best && position[w] < pos))
                        best = least[w], pos = position[w], at = where[w];
                evicted[pos] = t;
                cache[at] = cache[m - 1];
            }
            __syncthreads();
        }
    }
    sum = block_sum(sum);
    if (tid == 0) kept[u] = sum;
}
