// What the kernels of residual error share (docs/output-error.md).
//
// LANES lanes work on a step, behind the output projection: W = Q R, R triangular. There a head has
// the coordinates of the heads before it and its own, in parts of LANES * PART, the size of a head
// padded. A lane has OWN(HEADS) coordinates of all heads, the first head's first.
//
// Compiled after lanes.cuh. Constants: its own, HEADS of a unit, PART (even).
#define OWN(h) ((h) * ((h) + 1) / 2 * PART)  // coordinates of a lane in the first h heads
#define ROW (OWN(HEADS) * LANES)
#if HEADS <= 4  // sums are in registers if loops are unrolled
#define EACH_HEAD _Pragma("unroll")
#else
#define EACH_HEAD _Pragma("unroll 1")
#endif

struct alignas(16) Two {
    double of[2];
};

// Index in the vector of all heads of a lane's coordinate c, which is even; `mine`: the lane in its step.
DEVICE int coordinate(int mine, int c) { return c * LANES + 2 * mine; }

// What a step has lost, the sum of a (v - o) of each head over the tokens passed, and its outputs o.
struct Step {
    double lost[OWN(HEADS)], o[OWN(HEADS)];
};

DEVICE Step step_of(const double *out, int mine) {
    Step step;
    EACH_HEAD
    for (int c = 0; c < OWN(HEADS); c++) {
        step.lost[c] = 0.0;
        step.o[c] = out[coordinate(mine, c / 2 * 2) + c % 2];
    }
    return step;
}

// Adds a (v - o) of a token: `entries` of each head, and the vector, of the lane that has the token.
DEVICE void add_token(Step &step, const double *values, int token, const double *entries, int lane, int mine) {
    const double *value = values + (i64)__shfl_sync(ALL_LANES, token, lane) * ROW;
    EACH_HEAD
    for (int h = 0; h < HEADS; h++) {
        const double a = __shfl_sync(ALL_LANES, entries[h], lane);
    EACH_HEAD
        for (int c = OWN(h); c < OWN(h + 1); c += 2) {
            const Two v = *(const Two *)(value + coordinate(mine, c));
            step.lost[c] = fma(a, v.of[0] - step.o[c], step.lost[c]);
            step.lost[c + 1] = fma(a, v.of[1] - step.o[c + 1], step.lost[c + 1]);
        }
    }
}

// A lane's share of |sum over heads of (o_S - o)|^2. scales: 1 / the mass that each head attends, of
// some lane; 0: it attends nothing, so o_S is 0.
DEVICE double moved(const Step &step, const double *scales, int lane) {
    double sum[HEADS * PART];
    EACH_HEAD
    for (int c = 0; c < HEADS * PART; c++) sum[c] = 0.0;
    EACH_HEAD
    for (int h = 0; h < HEADS; h++) {
        const double scale = __shfl_sync(ALL_LANES, scales[h], lane);
    EACH_HEAD
        for (int c = 0; c < (h + 1) * PART; c++) sum[c] = fma(scale, step.lost[OWN(h) + c], sum[c]);
        if (scale == 0.0) {
    EACH_HEAD
            for (int c = 0; c < (h + 1) * PART; c++) sum[c] += step.o[OWN(h) + c];
        }
    }
    double norm = 0.0;
    EACH_HEAD
    for (int c = 0; c < HEADS * PART; c++) norm = fma(sum[c], sum[c], norm);
    return norm;
}

// The error of a step in which the stream x, `power` = |x|^2, is off by `norm`, squared.
DEVICE double error_of(double norm, double power) {
    return norm == 0.0 ? 0.0 : power == 0.0 ? INF - INF : norm / power;
}
