// Random attention rows for measurements: softmax of independent normal logits, float16, packed.
//
// Compiled after common.cuh. One warp makes one row; row t of unit u starts at
// out[u * tri(n) + tri(t)]. Constant: T threads of a block.
DEVICE unsigned mixed(u64 z) {
    z += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return (unsigned)((z ^ (z >> 31)) >> 32);
}

DEVICE float weight(u64 seed, i64 at, float sharpness) {
    const float u = (mixed(seed + 2 * at) + 0.5f) * 0x1p-32f;
    const float v = mixed(seed + 2 * at + 1) * 0x1p-32f;
    return expf(sharpness * sqrtf(-2.0f * logf(u)) * cosf(6.2831853f * v));
}

DEVICE u16 half_bits(float x) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

extern "C" __global__ void __launch_bounds__(T) random_rows(
    u16 *out, u64 seed, float sharpness, i64 rows, int n
) {
    const int lane = threadIdx.x % WARP;
    const i64 row = ((i64)blockIdx.x * T + threadIdx.x) / WARP;
    if (row >= rows) return;
    const int t = (int)(row % n);
    const i64 at = row / n * tri(n) + tri(t);
    float sum = 0.0f;
    for (int j = lane; j <= t; j += WARP) sum += weight(seed, at + j, sharpness);
    for (int far = WARP / 2; far; far /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, far);
    for (int j = lane; j <= t; j += WARP)
        out[at + j] = half_bits(weight(seed, at + j, sharpness) / sum * 0.9999f);
}
