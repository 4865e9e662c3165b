// Softmax rows from queries and keys, equal in every bit to those of h2osim/attention/softmax.py: the
// same float32 operations in the same order, none fused.
//
// Compiled after common.cuh. Constants: T threads of a block of `softmax` (a multiple of 16); a block
// of `logits` has SIDE * SIDE threads and computes TILE rows times TILE keys.
#define EACH (TILE / SIDE)  // a thread computes EACH rows times EACH keys

// Logits of the unit's query heads: logits[h, t - first, j] = scale * <q[h, t], k[g, j]>, summed
// coordinate by coordinate.
extern "C" __global__ void __launch_bounds__(SIDE * SIDE) logits(
    const float *queries,  // [heads, n, size], all units' one after the other
    const float *keys,     // [KV heads, n, size]
    const int *kv,         // [heads] the KV head of each
    float *out,            // [heads, stop - first, stop]
    float scale, float cap, int window, int heads, int size, int n, int first, int stop
) {
    const int tid = threadIdx.x, x = tid % SIDE, y = tid / SIDE;
    const int down = (stop - first + TILE - 1) / TILE, along = (stop + TILE - 1) / TILE;
    const int h = blockIdx.x / (down * along), rest = blockIdx.x % (down * along);
    const int t0 = first + rest / along * TILE, j0 = rest % along * TILE;
    if (j0 > min(t0 + TILE, stop) - 1) return;  // above the diagonal
    if (window > 0 && j0 + TILE <= t0 + 1 - window) return;
    const float *query = queries + (i64)h * n * size, *key = keys + (i64)kv[h] * n * size;
    __shared__ float some_q[SIDE][TILE + 1], some_k[SIDE][TILE + 1];
    float sum[EACH][EACH];
    for (int a = 0; a < EACH; a++)
        for (int b = 0; b < EACH; b++) sum[a][b] = 0.0f;
    for (int c0 = 0; c0 < size; c0 += SIDE) {
        __syncthreads();
        for (int i = tid; i < TILE * SIDE; i += SIDE * SIDE) {
            const int c = c0 + i % SIDE, r = i / SIDE;
            some_q[i % SIDE][r] = c < size && t0 + r < stop ? query[(i64)(t0 + r) * size + c] : 0.0f;
            some_k[i % SIDE][r] = c < size && j0 + r < stop ? key[(i64)(j0 + r) * size + c] : 0.0f;
        }
        __syncthreads();
        const int many = min(SIDE, size - c0);
        for (int c = 0; c < many; c++) {
            float q[EACH], k[EACH];
#pragma unroll
            for (int a = 0; a < EACH; a++) q[a] = some_q[c][y + a * SIDE];
#pragma unroll
            for (int b = 0; b < EACH; b++) k[b] = some_k[c][x + b * SIDE];
#pragma unroll
            for (int a = 0; a < EACH; a++)
#pragma unroll
                for (int b = 0; b < EACH; b++) sum[a][b] += q[a] * k[b];
        }
    }
    for (int a = 0; a < EACH; a++) {
        const int t = t0 + y + a * SIDE;
        if (t >= stop) continue;
        for (int b = 0; b < EACH; b++) {
            const int j = j0 + x + b * SIDE;
            if (j <= t) out[((i64)h * (stop - first) + t - first) * stop + j] = sum[a][b] * scale;
        }
    }
}

// exp(x) for x <= 0 as in h2osim/attention, by additions and multiplications only.
DEVICE float row_exp(float x) {
    const float whole = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
    const float r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
    const float c3 = (float)(1.0 / 6), c4 = (float)(1.0 / 24), c5 = (float)(1.0 / 120);
    const float c6 = (float)(1.0 / 720);
    const float p = 1.0f + r * (1.0f + r * (0.5f + r * (c3 + r * (c4 + r * (c5 + r * c6)))));
    const float kept = whole > -126.0f ? whole : -126.0f;
    union {
        int bits;
        float value;
    } power;
    power.bits = ((int)kept + 127) << 23;
    return (x < -87.0f ? 0.0f : p) * power.value;
}

DEVICE float capped(float x, float cap) {
    const float e = row_exp(-2.0f * fabsf(x / cap));
    const float squashed = cap * ((1.0f - e) / (1.0f + e));
    return x < 0.0f ? -squashed : squashed;
}

// The bits of a float32 in [0, 1] rounded to float16, to nearest, ties to even.
DEVICE u16 half_bits(float x) {
    union {
        float value;
        int bits;
    } number, small;
    number.value = x;
    small.value = x * 16777216.0f + 8388608.0f;
    const int last = (number.bits >> 13) & 1;
    const int normal = ((number.bits + 0xFFF + last) >> 13) - 0x1C000;
    return (u16)(number.bits >= 0x38800000 ? normal : small.bits - 0x4B000000);
}

// Softmax of each row in place, then its float16 bits. 16 lanes compute a row, because the CPU adds
// it up in 16 sums, each of every 16th number.
extern "C" __global__ void __launch_bounds__(T) softmax(
    float *logits,  // [heads, stop - first, stop]
    u16 *out,       // row t of head h at out[bases[h] + tri(t)]
    const i64 *bases, int *wrong, float cap, int window, int heads, int first, int stop
) {
    const int group = (blockIdx.x * T + threadIdx.x) / 16, lane = threadIdx.x % 16;
    __shared__ double sums[T];
    __shared__ float tops[T];
    const bool real = group < heads * (stop - first);
    const int h = real ? group / (stop - first) : 0;
    const int t = first + (real ? group % (stop - first) : 0);
    const int low = window > 0 ? max(0, t + 1 - window) : 0;
    float *row = logits + ((i64)h * (stop - first) + t - first) * stop;
    float top = -INF;
    if (real) {
        for (int j = low + lane; j <= t; j += 16) {
            if (cap > 0.0f) row[j] = capped(row[j], cap);
            if (!(row[j] <= 3.4028235e38f)) *wrong = 1;  // not a number, or infinite
            top = row[j] > top ? row[j] : top;
        }
    }
    tops[threadIdx.x] = top;
    __syncthreads();
    for (int i = 0; i < 16; i++) {
        const float other = tops[threadIdx.x / 16 * 16 + i];
        top = other > top ? other : top;
    }
    double sum = 0.0;
    if (real) {
        for (int j = low + lane; j <= t; j += 16) {
            row[j] = row_exp(row[j] - top);
            sum += (double)row[j];
        }
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    double total = 0.0;
    for (int i = 0; i < 16; i++) total += sums[threadIdx.x / 16 * 16 + i];
    const float divisor = (float)total;
    if (!real) return;
    u16 *bits = out + bases[h] + tri(t);
    for (int j = lane; j < low; j += 16) bits[j] = 0;
    for (int j = low + lane; j <= t; j += 16) bits[j] = half_bits(row[j] / divisor);
}
