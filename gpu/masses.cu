// The sum of each row of each head, in units of 2^-24. One warp adds up one row.
//
// Compiled after common.cuh. Constant: T threads of a block.
extern "C" __global__ void __launch_bounds__(T) masses(
    const u16 *bits,    // packed rows; row t of a head at bits[bases[head] + tri(t)]
    const i64 *bases,   // [heads of all units]
    i64 *sums,          // [heads of all units, stop - start]
    int heads, int start, int stop
) {
    const int lane = threadIdx.x % WARP;
    const i64 row = ((i64)blockIdx.x * T + threadIdx.x) / WARP;
    if (row >= (i64)heads * (stop - start)) return;
    const int t = start + (int)(row % (stop - start));
    const u16 *source = bits + bases[row / (stop - start)] + tri(t);
    i64 sum = 0;
    for (int j = lane; j <= t; j += WARP) sum += fixed_point(source[j]);
    for (int far = WARP / 2; far; far /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, far);
    if (lane == 0) sums[row] = sum;
}
