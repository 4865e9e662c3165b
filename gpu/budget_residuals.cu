// The residual error of each step of replays at one budget each, from the evictions that `direct` has
// found: as `budget_errors`, but the heads of a unit add up before the norm is taken.
//
// Compiled after common.cuh and a policy's rules. Constants: those of residuals.cuh.
#include "arguments.cuh"
#include "lanes.cuh"
#include "residuals.cuh"

extern "C" __global__ void __launch_bounds__(T) budget_residuals(
    const u16 *bits, const i64 *bases, const double *values, const double *out, const i64 *sums,
    const double *power,    // as in `depth_residuals`
    const int *units,       // [jobs] the unit of each job
    const int *budgets,     // [jobs]
    PARAMETERS,
    const int *evicted_at,  // [jobs, n] step of each token's eviction; later or n: not yet
    double *errors,         // [jobs, n - p]
    int jobs, int n, int p, int start, int stop
) {
    const int mine = threadIdx.x % LANES, first = threadIdx.x % WARP - mine;
    const int begin = max(start, p), many = stop - begin;
    const i64 at = ((i64)blockIdx.x * T + threadIdx.x) / LANES;
    const bool real = at < (i64)jobs * many;
    const int job = real ? (int)(at / many) : 0, t = begin + (real ? (int)(at % many) : 0);
    const int unit = units[job], k = budgets[job];
    const int *evicted = evicted_at + (i64)job * n;
    const double *value = values + (i64)unit * n * ROW;
    const Parameters params = parameters_of(ints, floats, inputs, inputs_at, job);
    Step now = step_of(out + ((i64)unit * (stop - start) + t - start) * ROW, mine);
    const int oldest = LINGERS ? t - rule_linger(params.ip, params.fp, t, k, p, n, HEADS) : t;
    i64 mass[HEADS];
    EACH_HEAD
    for (int h = 0; h < HEADS; h++) mass[h] = 0;
    for (int j0 = 0; j0 < stop; j0 += LANES) {
        const int j = min(j0 + mine, t);
        bool lost = j0 + mine <= t;
        if (evicted[j] < t) {
            if (LINGERS && j >= oldest) lost = false;
        } else if (!HIDES || rule_visible(params.ip, params.fp, j, t, k, p, n, HEADS)) {
            lost = false;  // it is attended
        }
        double x[HEADS];
        int any = 0;
    EACH_HEAD
        for (int h = 0; h < HEADS; h++) {
            const int here = lost ? fixed_point(bits[bases[unit * HEADS + h] + tri(t) + j]) : 0;
            mass[h] += here, any |= here, x[h] = (double)here;
        }
        if (__any_sync(ALL_LANES, any)) {
#pragma unroll
            for (int i = 0; i < LANES; i++) add_token(now, value, j, x, first + i, mine);
        }
    }
    double scales[HEADS];
    EACH_HEAD
    for (int h = 0; h < HEADS; h++) {
        const i64 all = sums[2 * ((i64)(unit * HEADS + h) * (stop - start) + t - start)];
        const i64 seen = all - step_sum(mass[h]);
        scales[h] = seen ? 1.0 / (double)seen : 0.0;
    }
    const double norm = step_sum(moved(now, scales, first));
    if (real && !mine) errors[(i64)job * (n - p) + t - p] = error_of(norm, power[(i64)unit * n + t]);
}
