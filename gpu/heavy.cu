// The stack kernel of accumulated scores: H2O with recorded rows, a fixed window and no sinks, from
// the first row on (prompt of one token); every budget in one pass, no policy text needed.
//
// Follows common.cuh. One block replays one unit; gpu/README.md explains the steps. A token outside
// the window is one double, its *key*: 2^52 + score * 2^SHIFT + 2 * pos, score in fixed point. Keys
// are exact integers below 2^53, so they order by score and then by age in one comparison, adding to
// one is exact, and its low bits are the address of the token's entry in a row.
//
// Constants: T threads, GROUPS of WARP * G keys a warp, SHIFT, HEADS, ROW (bytes of a staged row),
// BLOCKS that a multiprocessor should hold.
#define WARPS (T / WARP)
#define SPAN (WARP * G)
#define STAGES 3

#ifdef H2OSIM_SHIM
#define COPY16(to, from) std::memcpy(to, from, 16)
#define COPY_COMMIT()
#define COPY_WAIT()
#else
#define COPY16(to, from)                                                                        \
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(                             \
                     (unsigned)__cvta_generic_to_shared(to)), "l"(from) : "memory")
#define COPY_COMMIT() asm volatile("cp.async.commit_group;" ::: "memory")
#define COPY_WAIT() asm volatile("cp.async.wait_group 1;" ::: "memory")
DEVICE float half_value(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
#endif

#define BASE 4503599627370496.0                    // 2^52
#define UNIT ((double)(1LL << (24 + SHIFT)))       // a probability of 1, in a key

DEVICE i64 score_of(double key) {
    return (__double_as_longlong(key) & 0xfffffffffffffLL) >> SHIFT;
}

DEVICE void block_barrier() {
    if (WARPS > 1)
        __syncthreads();
    else
        __syncwarp();
}

extern "C" __global__ void __launch_bounds__(T, BLOCKS) heavy(
    const u16 *bits,    // packed rows; row t of head h at bits[places[unit, h] + tri(t)]
    const i64 *places,  // [units, HEADS]
    const int *units,   // [blocks]
    const int *windows, // [blocks] newest tokens that stay
    i64 *hits,          // [blocks, n + 1] mass by depth; depth 0: every budget sees it
    int n
) {
    const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP;
    const i64 *place = places + (i64)units[blockIdx.x] * HEADS;
    const int recent = windows[blockIdx.x];
    DYNAMIC_SHARED(shared);
    unsigned char *rows = shared;                                // [STAGES, HEADS, ROW]
    i64 *hit = (i64 *)(rows + STAGES * HEADS * ROW);             // [n + 1]
    double *ring = (double *)(hit + n + 1);                      // [recent + 1] keys by pos
    __shared__ double group_least[2][32];
    __shared__ unsigned warp_mask[2][WARPS];

    for (int d = tid; d <= n; d += T) hit[d] = 0;

    // Rows come in whole 16-byte pieces, so a row starts up to 14 bytes after its stage does.
    auto shift_of = [&](int h, int t) { return (int)((place[h] + tri(t)) & 7) * 2; };
    auto fetch = [&](int t) {
        if (t < n) {
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                const i64 at = (place[h] + tri(t)) & ~7LL;
                const int pieces = (shift_of(h, t) + 2 * (t + 1) + 15) / 16;
                unsigned char *to = rows + ((t % STAGES) * HEADS + h) * ROW;
                for (int i = tid; i < pieces; i += T) COPY16(to + i * 16, bits + at + i * 8);
            }
        }
        COPY_COMMIT();
    };
    fetch(0);
    fetch(1);
    COPY_WAIT();
    block_barrier();

    double key[GROUPS][G];
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
#pragma unroll
        for (int s = 0; s < G; s++) key[g][s] = INF;
    double last = INF;  // what fell to the bottom in the step before
    i64 own = 0;        // the tokens' attention to themselves

    for (int t = 0; t < n; t++) {
        const unsigned char *row = rows + (t % STAGES) * HEADS * ROW + shift_of(0, t);
        // Heads' rows start at different places in their stages.
        auto entry = [&](unsigned twice_pos) {
            double a = (double)half_value(*(const u16 *)(row + twice_pos));
#pragma unroll
            for (int h = 1; h < HEADS; h++)
                a += (double)half_value(*(const u16 *)(
                    row + h * ROW + shift_of(h, t) - shift_of(0, t) + twice_pos));
            return a;
        };
        fetch(t + 2);
        const int parity = t & 1, outside = t - recent;  // tokens below the window before the step
        const double fresh = BASE + entry(2u * t) * UNIT + 2.0 * t;

        // The window: depth = age; its keys lie in a ring.
        if (tid == 0 && t > 0) own += score_of(fresh);
        for (int age = 1 + tid; age <= recent && age <= t; age += T) {
            const double a = entry(2u * (t - age));
            hit[age] += (i64)(a * 16777216.0);
            if (age < recent) {
                double *k = ring + (t - age) % (recent + 1);
                *k = __fma_rn(a, UNIT, *k);
            }
        }
        double carry = fresh;  // the token that leaves the window, or the new one if there is none
        if (recent > 0 && outside >= 0)
            carry = __fma_rn(entry(2u * outside), UNIT, ring[outside % (recent + 1)]);
        if (tid == 0 && recent > 0) ring[t % (recent + 1)] = fresh;

        // Keys below the window, by depth: each gets its entry; is one less than the carry?
        unsigned mine = 0;
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            const int at = (g * WARPS + warp) * SPAN;
            if (at < outside) {
                if (outside - 1 - at < SPAN) {  // where the last one fell to
                    const int slot = outside - 1 - at - lane * G;
#pragma unroll
                    for (int s = 0; s < G; s++) key[g][s] = s == slot ? last : key[g][s];
                }
                bool less = false;
#pragma unroll
                for (int s = 0; s < G; s++) {
                    const unsigned twice =
                        (unsigned)__double_as_longlong(key[g][s]) & ((1u << SHIFT) - 1u);
                    key[g][s] = __fma_rn(entry(twice), UNIT, key[g][s]);
                    less |= key[g][s] < carry;
                }
                if (less) mine |= 1u << g;
            }
        }
        const unsigned some = __reduce_or_sync(ALL_LANES, mine);

        // The least key of each group that has one below the carry.
        unsigned spread = 0;
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            if (some >> g & 1) {
                double least = key[g][0];
#pragma unroll
                for (int s = 1; s < G; s++) least = key[g][s] < least ? key[g][s] : least;
                const unsigned lanes = __ballot_sync(ALL_LANES, least < carry);
                if (lanes & (lanes - 1)) {
#pragma unroll
                    for (int far = WARP / 2; far; far /= 2) {
                        const double other = __shfl_xor_sync(ALL_LANES, least, far);
                        least = other < least ? other : least;
                    }
                } else {
                    least = __shfl_sync(ALL_LANES, least, __ffs(lanes) - 1);
                }
                if (lane == 0) group_least[parity][g * WARPS + warp] = least;
                spread |= 1u << (g * WARPS + warp);
            }
        }
        if (lane == 0) warp_mask[parity][warp] = spread;
        COPY_WAIT();
        block_barrier();

        // Each group takes the carry that comes from above and passes on the least it has met.
        unsigned waiting = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) waiting |= warp_mask[parity][w];
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            if (some >> g & 1) {
                const int whole = g * WARPS + warp;
                for (; waiting & ((1u << whole) - 1u); waiting &= waiting - 1) {
                    const double other = group_least[parity][__ffs(waiting) - 1];
                    carry = other < carry ? other : carry;
                }
                waiting &= ~(1u << whole);
                const double group = group_least[parity][whole];
                if (group < carry) {
                    double least = key[g][0];
#pragma unroll
                    for (int s = 1; s < G; s++) least = key[g][s] < least ? key[g][s] : least;
                    double it_in = carry;
                    const unsigned lanes = __ballot_sync(ALL_LANES, least < carry);
                    if (lanes & (lanes - 1)) {
                        double before = least;
#pragma unroll
                        for (int far = 1; far < WARP; far *= 2) {
                            const double other = __shfl_up_sync(ALL_LANES, before, far);
                            if (lane >= far && other < before) before = other;
                        }
                        before = __shfl_up_sync(ALL_LANES, before, 1);
                        if (lane > 0 && before < it_in) it_in = before;
                    }
                    if (least < it_in) {
                        i64 *mass = hit + recent + whole * SPAN + lane * G + 1;
#pragma unroll
                        for (int s = 0; s < G; s++) {
                            const double it = key[g][s];
                            if (it < it_in) mass[s] += score_of(it) - score_of(it_in);
                            key[g][s] = it < it_in ? it_in : it;
                            it_in = it < it_in ? it : it_in;
                        }
                    }
                    carry = group;
                }
            }
        }
        while (waiting) {
            const double other = group_least[parity][__ffs(waiting) - 1];
            carry = other < carry ? other : carry;
            waiting &= waiting - 1;
        }
        last = carry;
        if (tid == 0 && outside >= 0) hit[t + 1] -= score_of(carry);
    }

    // What still lies in the stack has given its mass at its depth.
    block_barrier();
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
#pragma unroll
        for (int s = 0; s < G; s++) {
            const int at = (g * WARPS + warp) * SPAN + lane * G + s;
            if (at < n - 1 - recent) hit[recent + at + 1] += score_of(key[g][s]);
        }
    }
    block_barrier();
    if (tid == 0) {
        if (n > recent) hit[n] += score_of(last);
        hit[0] = own;
    }
    block_barrier();
    for (int d = tid; d <= n; d += T) hits[(i64)blockIdx.x * (n + 1) + d] = hit[d];
}
