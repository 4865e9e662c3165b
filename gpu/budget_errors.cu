// The errors of each step of replays at one budget each, from the evictions that `direct` has found.
//
// Compiled after common.cuh and a policy's rules. Constants: those of values.cuh, HEADS.
#include "arguments.cuh"
#include "lanes.cuh"
#include "values.cuh"

extern "C" __global__ void __launch_bounds__(T) budget_errors(
    const u16 *bits, const i64 *bases, const float *values, const int *kv,
    const double *out, const i64 *sums, const double *power,  // of `outputs`
    const int *units,       // [jobs] the unit of each job
    const int *budgets,     // [jobs]
    PARAMETERS,
    const int *evicted_at,  // [jobs, n] step of each token's eviction; later or n: not yet
    double *errors,         // [3, jobs, HEADS, n - p] squared and plain distance from o, and
                            // attention error
    int jobs, int n, int p, int start, int stop
) {
    const int mine = threadIdx.x % LANES, begin = max(start, p), many = stop - begin;
    const i64 at = ((i64)blockIdx.x * T + threadIdx.x) / LANES;
    const bool real = at < (i64)jobs * HEADS * many;
    const int job = real ? (int)(at / many / HEADS) : 0, head = real ? (int)(at / many % HEADS) : 0;
    const int t = begin + (real ? (int)(at % many) : 0), h = units[job] * HEADS + head;
    const int k = budgets[job];
    const int *evicted = evicted_at + (i64)job * n;
    const u16 *entries = bits + bases[h] + tri(t);
    const float *value = values + (i64)kv[h] * n * WIDTH;
    const Parameters params = parameters_of(ints, floats, inputs, inputs_at, job);
    const Row row = row_of(out, sums, (i64)h * (stop - start) + t - start, power[(i64)h * n + t], mine);
    const int oldest = LINGERS ? t - rule_linger(params.ip, params.fp, t, k, p, n, HEADS) : t;
    double lost[OWN];
    for (int c = 0; c < OWN; c++) lost[c] = 0.0;
    i64 mass = 0, squares = 0;
    for (int j0 = 0; j0 < stop; j0 += LANES) {
        const int j = min(j0 + mine, t);
        int x = j0 + mine <= t ? fixed_point(entries[j]) : 0;
        if (evicted[j] < t) {
            if (LINGERS && j >= oldest) x = 0;
        } else if (!HIDES || rule_visible(params.ip, params.fp, j, t, k, p, n, HEADS)) {
            x = 0;  // it is attended
        }
        mass += x, squares += (i64)x * x;
        add_values(lost, row.o, value, j, x, mine, [](int) {});
    }
    mass = step_sum(mass), squares = step_sum(squares);
    const Errors one = errors_of(row, mass, squares, step_sum(squared_norm(lost)));
    if (!real || mine) return;
    const i64 each = (i64)jobs * HEADS * (n - p);
    double *error = errors + ((i64)job * HEADS + head) * (n - p) + t - p;
    error[0] = one.squared, error[each] = sqrt(one.squared), error[2 * each] = one.attention;
}
