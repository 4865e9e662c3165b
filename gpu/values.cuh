// What the kernels of output and attention error share (docs/output-error.md).
//
// LANES lanes work on a step. Each has DIMS coordinates of the values, in fours: the lanes of a step
// read the first coordinates of a value side by side, then the next ones. Values are padded to
// LANES * DIMS coordinates. All sums over values are float64; masses are integers, so exact.
//
// Compiled after lanes.cuh. Constants: its own, and DIMS (a multiple of 4; 0: there are no values).
#define WIDTH (LANES * DIMS)
#define OWN (DIMS > 0 ? DIMS : 4)
#define BATCH (LANES < 4 ? LANES : 4)

struct alignas(16) Four {
    float of[4];
};

// Index in a vector of a lane's coordinate c, which is a multiple of 4; `mine`: the lane in its step.
DEVICE int coordinate(int mine, int c) { return c * LANES + 4 * mine; }

// Adds a (v - o) for a token of each lane of the step, one after the other; `added(i)` follows the
// i-th. The values of BATCH tokens are loaded together: a load takes longer than the sums of a token.
// If none of the warp's tokens has mass, nothing happens. True if something did.
template <class Added> DEVICE bool add_values(
    double *sum, const double *o, const float *values, int token, int x, int mine, Added added
) {
    if (DIMS == 0 || !__any_sync(ALL_LANES, x)) return false;
    const int first = (int)threadIdx.x % WARP - mine;
#pragma unroll
    for (int i = 0; i < LANES; i += BATCH) {
        Four v[BATCH][OWN / 4];
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            const float *value = values + (i64)__shfl_sync(ALL_LANES, token, first + i + b) * WIDTH;
#pragma unroll
            for (int c = 0; c < DIMS; c += 4)
                v[b][c / 4] = *(const Four *)(value + coordinate(mine, c));
        }
        __syncwarp();  // keeps the loads before it
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            const double a = __shfl_sync(ALL_LANES, (double)x, first + i + b);
#pragma unroll
            for (int c = 0; c < DIMS; c++) sum[c] = fma(a, v[b][c / 4].of[c % 4] - o[c], sum[c]);
            added(i + b);
        }
    }
    return true;
}

DEVICE double squared_norm(const double *own) {
    double sum = 0.0;
#pragma unroll
    for (int c = 0; c < DIMS; c++) sum = fma(own[c], own[c], sum);
    return sum;
}

// A row: its output o, its mass, the sum of its squares, and |o|^2.
struct Row {
    double o[OWN], power;
    i64 mass, squares;
};

// Row `at` of the new rows of all heads.
DEVICE Row row_of(const double *out, const i64 *sums, i64 at, double power, int mine) {
    Row row;
    row.mass = sums[2 * at], row.squares = sums[2 * at + 1], row.power = power;
#pragma unroll
    for (int c = 0; c < DIMS; c++)
        row.o[c] = out[at * WIDTH + coordinate(mine, c / 4 * 4) + c % 4];
    return row;
}

struct Errors {
    double squared, attention;  // |o - o_S|^2 and the sum of (a - a_S)^2
};

// The errors of a row that lacks `mass`, whose squares add up to `squares`. lost: |sum a (v - o)|^2.
DEVICE Errors errors_of(const Row &row, i64 mass, i64 squares, double lost) {
    const i64 seen = row.mass - mass;
    const double whole = (double)row.mass;
    if (mass == 0) return {0.0, 0.0};
    if (seen == 0) return {row.power, (double)row.squares / (whole * whole)};  // o_S and a_S are 0
    const double more = (double)mass / (whole * (double)seen);  // an attended weight grows by it
    return {lost / ((double)seen * (double)seen),
            (double)squares / (whole * whole) + (double)(row.squares - squares) * (more * more)};
}
