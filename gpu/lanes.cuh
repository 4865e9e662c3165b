// Sums over the LANES lanes of a warp that work on a step. Constants: T threads of a block, LANES.
#define STEPS (T / LANES)  // steps that a block works on at a time

// The sum over the lanes of a step, to each of them.
template <class X> DEVICE X step_sum(X x) {
    for (int far = 1; far < LANES; far *= 2) x += __shfl_xor_sync(ALL_LANES, x, far);
    return x;
}

// As many sums as a step has lanes, to each lane its own. Halves are exchanged until each has it.
DEVICE double own_sum(double (&shares)[LANES], int mine) {
#pragma unroll
    for (int half = LANES / 2; half; half /= 2) {
#pragma unroll
        for (int i = 0; i < LANES / 2; i++) {
            if (i >= half) break;
            const bool upper = mine & half;
            const double kept = upper ? shares[i + half] : shares[i];
            const double given = upper ? shares[i] : shares[i + half];
            shares[i] = kept + __shfl_xor_sync(ALL_LANES, given, half);
        }
    }
    return shares[0];
}
