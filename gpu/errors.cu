// Outputs of whole rows, and the errors of every budget of an inclusive policy: from a stack's order,
// one walk over a row passes through the missing tokens of each budget (docs/output-error.md).
//
// Compiled after common.cuh. Constants: those of values.cuh, HEADS (heads of a unit), SLICES (blocks
// that share the steps of a head).
#include "lanes.cuh"
#include "values.cuh"
#define SPAN (4 * LANES)  // budgets whose errors are added up over a block's steps at a time

// The output of each new row, the sums of its entries and of their squares, and |o|^2.
extern "C" __global__ void __launch_bounds__(T) outputs(
    const u16 *bits,      // packed rows; row t of a head at bits[bases[head] + tri(t)]
    const i64 *bases,     // [heads of all units]
    const float *values,  // [KV heads of all units, n, WIDTH]
    const int *kv,        // [heads of all units] the KV head of each
    double *out,          // [heads, stop - start, WIDTH]
    i64 *sums,            // [heads, stop - start, 2]
    double *power,        // [heads, n]
    int heads, int n, int start, int stop
) {
    const int mine = threadIdx.x % LANES;
    const i64 at = ((i64)blockIdx.x * T + threadIdx.x) / LANES;
    const bool real = at < (i64)heads * (stop - start);
    const int h = real ? (int)(at / (stop - start)) : 0;
    const int t = real ? start + (int)(at % (stop - start)) : -1;
    const u16 *row = bits + bases[h] + tri(max(0, t));
    const float *value = values + (i64)kv[h] * n * WIDTH;
    double o[OWN], zero[OWN];
    for (int c = 0; c < OWN; c++) o[c] = zero[c] = 0.0;
    i64 mass = 0, squares = 0;
    u16 next = mine <= t ? row[mine] : 0;  // the entry of this lane's next token
    for (int j0 = 0; j0 < stop; j0 += LANES) {
        const int x = fixed_point(next), j = j0 + LANES + mine;
        next = j <= t ? row[j] : 0;  // loaded now for the next turn
        mass += x, squares += (i64)x * x;
        add_values(o, zero, value, min(j - LANES, n - 1), x, mine, [](int) {});
    }
    mass = step_sum(mass), squares = step_sum(squares);
#pragma unroll
    for (int c = 0; c < DIMS; c++) {
        if (mass) o[c] /= (double)mass;
        if (real) out[at * WIDTH + coordinate(mine, c / 4 * 4) + c % 4] = o[c];
    }
    const double norm = step_sum(squared_norm(o));
    if (!real || mine) return;
    sums[2 * at] = mass, sums[2 * at + 1] = squares, power[(i64)h * n + t] = norm;
}

extern "C" __global__ void __launch_bounds__(T) depth_errors(
    const u16 *bits, const i64 *bases, const float *values, const int *kv,
    const double *out, const i64 *sums, const double *power,  // of `outputs`
    const int *units,   // [jobs] the unit of each job
    const int *orders,  // [jobs, stop - start, n] the stack of each row, from 1 on; 0: its length
    double *errors,     // [jobs, HEADS, SLICES, 3, n + 1] squared and plain distance from o, and
                        // attention error, added up over steps, by budget
    int n, int p, int start, int stop
) {
    const int tid = threadIdx.x, lane = tid % WARP, mine = tid % LANES, step = tid / LANES;
    const int slice = blockIdx.x % SLICES, head = blockIdx.x / SLICES % HEADS;
    const int job = blockIdx.x / SLICES / HEADS, h = units[job] * HEADS + head, many = stop - start;
    const float *value = values + (i64)kv[h] * n * WIDTH;
    double *total = errors + (i64)blockIdx.x * 3 * (n + 1);
    __shared__ double parts[2][STEPS][3][SPAN];  // one is added up while the other is filled
    int which = 0;

    for (int t0 = max(start, p) + slice * STEPS; t0 < stop; t0 += SLICES * STEPS) {
        const int t = min(t0 + step, stop - 1);
        const int *order = orders + ((i64)job * many + t - start) * n;
        const int m = t0 + step < stop ? order[0] : 0;
        const u16 *entries = bits + bases[h] + tri(t);
        const Row row = row_of(out, sums, (i64)h * many + t - start, power[(i64)h * n + t], mine);
        double lost[OWN];
        for (int c = 0; c < OWN; c++) lost[c] = 0.0;
        i64 mass = 0, squares = 0;  // of the tokens passed so far
        double norm = 0.0;          // |lost|^2
        const int top = (min(t0 + STEPS, stop) - 1) / SPAN * SPAN;
        // Loads run ahead: tokens by two turns, their entries by one.
        auto token_of = [&](int k) { return k >= 0 && k < m ? order[k + 1] : -1; };
        auto entry_of = [&](int token) { return token < 0 ? (u16)0 : entries[token]; };
        int token = token_of(top + SPAN - 1 - mine), next = token_of(top + SPAN - LANES - 1 - mine);
        u16 entry = entry_of(token);
        for (int low = top; low >= 0; low -= SPAN, which ^= 1) {
            auto part = parts[which];
            for (int d = low + SPAN - LANES; d >= low; d -= LANES) {
                const int now = max(0, token), x = fixed_point(entry);
                token = next, entry = entry_of(next), next = token_of(d - LANES - 1 - mine);
                // A lane has the token at depth d + LANES - mine, the first lane the deepest.
                i64 here = x, squares_here = (i64)x * x;
                for (int far = 1; far < LANES; far *= 2) {
                    const i64 deeper = __shfl_up_sync(ALL_LANES, here, far);
                    const i64 squares_deeper = __shfl_up_sync(ALL_LANES, squares_here, far);
                    if (mine >= far) here += deeper, squares_here += squares_deeper;
                }
                here += mass, squares_here += squares;
                double own[LANES];  // by depth: this lane's share of |lost|^2
                if (add_values(lost, row.o, value, now, x, mine,
                               [&](int i) { own[i] = squared_norm(lost); })) {
                    norm = own_sum(own, mine);
                }
                const Errors one = errors_of(row, here, squares_here, norm);
                const int place = d + LANES - 1 - mine - low;
                part[step][0][place] = one.squared;
                part[step][1][place] = sqrt(one.squared);
                part[step][2][place] = one.attention;
                const int last = lane - mine + LANES - 1;
                mass = __shfl_sync(ALL_LANES, here, last);
                squares = __shfl_sync(ALL_LANES, squares_here, last);
                norm = __shfl_sync(ALL_LANES, norm, last);
            }
            __syncthreads();
            for (int i = tid; i < 3 * SPAN; i += T) {  // the steps one after the other
                const int kind = i / SPAN, budget = low + i % SPAN;
                double sum = 0.0;
                for (int s = 0; s < STEPS; s++) sum += part[s][kind][i % SPAN];
                if (budget <= n) total[(i64)kind * (n + 1) + budget] += sum;
            }
        }
    }
}
