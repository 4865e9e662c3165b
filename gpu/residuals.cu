// The residual error of every budget of an inclusive policy, from the order of a stack (docs/output-error.md):
// as `depth_errors`, but the heads of a unit add up before the norm is taken.
//
// Compiled after common.cuh. Constants: those of residuals.cuh, SIZE (coordinates of a value), WIDTH
// (its length in memory), SLICES (blocks that share the steps of a unit).
#include "lanes.cuh"
#include "residuals.cuh"
#define SPAN (4 * LANES)  // budgets whose errors are added up over a block's steps at a time
#define ROWS 4            // vectors that a thread projects

// R_h of `many` vectors of each head, side by side: [units, many, ROW]. kv: where a head's are.
template <class X> DEVICE void project(
    const X *vectors, const int *kv, const double *triangles, double *projected, int units, int many
) {
    const int groups = (many + ROWS - 1) / ROWS;
    const i64 at = (i64)blockIdx.x * T + threadIdx.x;
    const int place = (int)(at % ROW), unit = (int)(at / ROW / groups);
    const int first = (int)(at / ROW % groups) * ROWS;
    if (unit >= units) return;
    int h = 0;
    while (place >= OWN(h + 1) * LANES) h++;
    const int head = unit * HEADS + h;
    const X *vector = vectors + (i64)(kv ? kv[head] : head) * many * WIDTH;
    const double *triangle = triangles + (i64)unit * SIZE * ROW + place;
    double sum[ROWS] = {};
    for (int c = 0; c < SIZE; c++) {
        const double r = triangle[(i64)c * ROW];
#pragma unroll
        for (int i = 0; i < ROWS; i++)
            sum[i] = fma((double)vector[(i64)min(first + i, many - 1) * WIDTH + c], r, sum[i]);
    }
    for (int i = 0; i < ROWS && first + i < many; i++)
        projected[((i64)unit * many + first + i) * ROW + place] = sum[i];
}

extern "C" __global__ void __launch_bounds__(T) project_values(
    const float *values,      // [KV heads of all units, n, WIDTH]
    const int *kv,            // [heads of all units] the KV head of each
    const double *triangles,  // [units, SIZE, ROW] R_h, transposed
    double *projected,        // [units, n, ROW]
    int units, int n
) {
    project(values, kv, triangles, projected, units, n);
}

extern "C" __global__ void __launch_bounds__(T) project_outputs(
    const double *out,  // of `outputs`, [heads of all units, rows, WIDTH]
    const double *triangles,
    double *projected,  // [units, rows, ROW]
    int units, int rows
) {
    project(out, (const int *)0, triangles, projected, units, rows);
}

extern "C" __global__ void __launch_bounds__(T) depth_residuals(
    const u16 *bits, const i64 *bases,
    const double *values, const double *out,  // projected
    const i64 *sums,                          // of `outputs`
    const double *power,                      // [units, n] |x|^2
    const int *units, const int *orders,      // as in `depth_errors`
    double *errors,                           // [jobs, SLICES, n + 1] added up over steps, by budget
    int n, int p, int start, int stop
) {
    const int tid = threadIdx.x, mine = tid % LANES, step = tid / LANES, first = tid % WARP - mine;
    const int slice = blockIdx.x % SLICES, job = blockIdx.x / SLICES, unit = units[job];
    const int many = stop - start;
    const double *value = values + (i64)unit * n * ROW;
    double *total = errors + (i64)blockIdx.x * (n + 1);
    __shared__ double parts[2][STEPS][SPAN];  // one is added up while the other is filled
    int which = 0;

    for (int t0 = max(start, p) + slice * STEPS; t0 < stop; t0 += SLICES * STEPS) {
        const int t = min(t0 + step, stop - 1);
        const int *order = orders + ((i64)job * many + t - start) * n;
        const int m = t0 + step < stop ? order[0] : 0;
        Step now = step_of(out + ((i64)unit * many + t - start) * ROW, mine);
        const double stream = power[(i64)unit * n + t];
        const u16 *entries[HEADS];
        i64 left[HEADS];    // mass of the tokens not yet passed
        double norm = 0.0;  // |sum of what is lost|^2
    EACH_HEAD
        for (int h = 0; h < HEADS; h++) {
            entries[h] = bits + bases[unit * HEADS + h] + tri(t);
            left[h] = sums[2 * ((i64)(unit * HEADS + h) * many + t - start)];
        }
        const int top = (min(t0 + STEPS, stop) - 1) / SPAN * SPAN;
        // Loads run ahead: tokens by two turns, their entries by one.
        auto token_of = [&](int k) { return k >= 0 && k < m ? order[k + 1] : -1; };
        int token = token_of(top + SPAN - 1 - mine), next = token_of(top + SPAN - LANES - 1 - mine);
        u16 entry[HEADS];
    EACH_HEAD
        for (int h = 0; h < HEADS; h++) entry[h] = token < 0 ? (u16)0 : entries[h][token];
        for (int low = top; low >= 0; low -= SPAN, which ^= 1) {
            auto part = parts[which];
            for (int d = low + SPAN - LANES; d >= low; d -= LANES) {
                const int now_at = max(0, token);
                token = next, next = token_of(d - LANES - 1 - mine);
                // A lane has the token at depth d + LANES - mine, the first lane the deepest.
                double x[HEADS], scales[HEADS];
                int any = 0;
    EACH_HEAD
                for (int h = 0; h < HEADS; h++) {
                    const int here = fixed_point(entry[h]);
                    entry[h] = token < 0 ? (u16)0 : entries[h][token];
                    i64 passed = here;
                    for (int far = 1; far < LANES; far *= 2) {
                        const i64 deeper = __shfl_up_sync(ALL_LANES, passed, far);
                        if (mine >= far) passed += deeper;
                    }
                    const i64 seen = left[h] - passed;
                    left[h] = __shfl_sync(ALL_LANES, seen, first + LANES - 1);
                    x[h] = (double)here, scales[h] = seen ? 1.0 / (double)seen : 0.0;
                    any |= here;
                }
                if (__any_sync(ALL_LANES, any)) {
                    double own[LANES];  // by depth: this lane's share
#pragma unroll
                    for (int i = 0; i < LANES; i++) {
                        add_token(now, value, now_at, x, first + i, mine);
                        own[i] = moved(now, scales, first + i);
                    }
                    norm = own_sum(own, mine);
                }
                part[step][d + LANES - 1 - mine - low] = error_of(norm, stream);
                norm = __shfl_sync(ALL_LANES, norm, first + LANES - 1);
            }
            __syncthreads();
            for (int i = tid; i < SPAN; i += T) {  // the steps one after the other
                double sum = 0.0;
                for (int s = 0; s < STEPS; s++) sum += part[s][i];
                if (low + i <= n) total[low + i] += sum;
            }
        }
    }
}
