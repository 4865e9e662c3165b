// The stack kernel of accumulated scores: H2O with recorded rows, a fixed window and no sinks, from
// the first row on (prompt of one token); every budget in one pass, no policy text needed.
//
// Follows common.cuh. One block replays one unit; gpu/README.md explains the steps. A token below
// the window is one double, its *key*: 2^52 + score * 2^SHIFT + 2 * pos, score in fixed point. Keys
// are exact integers below 2^53, so they order by score and then by age in one comparison, adding to
// one is exact, and its low bits are the address of the token's entry in a row.
//
// Warp w holds the depths of its range in registers and is w steps behind warp 0, which hands its
// carried token down. Constants: T threads, GROUPS of G keys a lane, SHIFT, HEADS, ROW (bytes of a
// staged row), BLOCKS that a multiprocessor should hold.
#define WARPS (T / WARP)
#define SPAN (WARP * G)               // depths of a group: G lines of WARP
#define RANGE (SPAN * GROUPS)         // depths of a warp
#define STAGES (WARPS + 1)
#define FEW 3                         // so many tokens of a line that fall go one by one

#ifdef H2OSIM_SHIM
#define COPY16(to, from) std::memcpy(to, from, 16)
#define COPY_COMMIT()
#define COPY_WAIT()
#else
#define COPY16(to, from)                                                                        \
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(                             \
                     (unsigned)__cvta_generic_to_shared(to)), "l"(from) : "memory")
#define COPY_COMMIT() asm volatile("cp.async.commit_group;" ::: "memory")
#define COPY_WAIT() asm volatile("cp.async.wait_group 0;" ::: "memory")
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

// Moves mass between depths: token `out` leaves depth d, token `in` enters it.
DEVICE void move(i64 *hit, int d, double out, double in) { add(&hit[d], score_of(out) - score_of(in)); }

extern "C" __global__ void __launch_bounds__(T, BLOCKS) heavy(
    const u16 *bits,     // packed rows; row t of head h at bits[places[unit, h] + tri(t)]
    const i64 *places,   // [units, HEADS]
    const int *units,    // [blocks]
    const int *windows,  // [blocks] newest tokens that stay
    i64 *hits,           // [blocks, n + 1] mass by depth, zeros; depth 0: every budget sees it
    int n
) {
    const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP;
    const i64 *place = places + (i64)units[blockIdx.x] * HEADS;
    const int recent = windows[blockIdx.x];
    DYNAMIC_SHARED(shared);
    unsigned char *rows = shared;                              // [STAGES, HEADS, ROW]
    double *ring = (double *)(rows + STAGES * HEADS * ROW);    // [recent + 1] keys by pos
    __shared__ double handed[2][WARPS + 1];                    // what each warp gets from above
    i64 *hit = hits + (i64)blockIdx.x * (n + 1);

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
    COPY_WAIT();
    block_barrier();

    double key[GROUPS][G];  // [g][s]: depth recent + 1 + warp * RANGE + g * SPAN + s * WARP + lane
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
#pragma unroll
        for (int s = 0; s < G; s++) key[g][s] = INF;
    const int above = warp * RANGE;  // depths below the window that belong to warps before
    double last = INF;               // what fell to the bottom of this warp's range in its last step
    int bottom = -1;                 // where it fell to, counted below the window
    i64 near = 0, own = 0;  // mass at this lane's age in the window; tokens' attention to themselves

    for (int turn = 0; turn < n + WARPS - 1; turn++) {
        fetch(turn + 1);
        const int t = turn - warp;
        if (t >= 0 && t < n) {
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
            const int outside = t - recent;  // tokens below the window before the step
            double carry;  // the token that leaves the window, or the new one if there is none
            if (warp == 0) {
                const double fresh = BASE + entry(2u * t) * UNIT + 2.0 * t;
                if (t > 0) own += score_of(fresh);
                carry = fresh;
                if (recent > 0) {
                    for (int age = 1 + lane; age <= recent && age <= t; age += WARP) {
                        const double a = entry(2u * (t - age));
                        const i64 x = (i64)(a * 16777216.0);
                        if (age <= WARP)
                            near += x;
                        else
                            add(&hit[age], x);
                        double *k = ring + (t - age) % (recent + 1);
                        *k = __fma_rn(a, UNIT, *k);
                    }
                    if (lane == 0) ring[t % (recent + 1)] = fresh;
                    __syncwarp();
                    if (outside >= 0) carry = ring[outside % (recent + 1)];
                    __syncwarp();
                }
            } else {
                carry = handed[(turn + 1) & 1][warp];
            }

            // The tokens below the window, by depth: each gets its entry; the carried one falls.
#pragma unroll
            for (int g = 0; g < GROUPS; g++) {
                const int at = above + g * SPAN;
                if (at < outside) {
                    const int slot = bottom - at - lane;  // where the last one fell to
                    if (bottom >= at && bottom < at + SPAN) {
#pragma unroll
                        for (int s = 0; s < G; s++) key[g][s] = slot == s * WARP ? last : key[g][s];
                    }
                    bool less = false;
#pragma unroll
                    for (int s = 0; s < G; s++) {
                        const unsigned twice =
                            (unsigned)__double_as_longlong(key[g][s]) & ((1u << SHIFT) - 1u);
                        key[g][s] = __fma_rn(entry(twice), UNIT, key[g][s]);
                        less |= key[g][s] < carry;
                    }
                    if (__any_sync(ALL_LANES, less)) {
#pragma unroll
                        for (int s = 0; s < G; s++) {
                            unsigned lanes = __ballot_sync(ALL_LANES, key[g][s] < carry);
                            if (lanes) {
                                const int depth = recent + 1 + at + s * WARP + lane;
                                if (__popc(lanes) <= FEW) {
                                    do {
                                        const int first = __ffs(lanes) - 1;
                                        const double next =
                                            __shfl_sync(ALL_LANES, key[g][s], first);
                                        if (lane == first) {
                                            move(hit, depth, next, carry);
                                            key[g][s] = carry;
                                        }
                                        carry = next;
                                        lanes = __ballot_sync(ALL_LANES, key[g][s] < carry);
                                    } while (lanes);
                                } else {
                                    double least = key[g][s];
#pragma unroll
                                    for (int far = 1; far < WARP; far *= 2) {
                                        const double other = __shfl_up_sync(ALL_LANES, least, far);
                                        least = lane >= far && other < least ? other : least;
                                    }
                                    double in = __shfl_up_sync(ALL_LANES, least, 1);
                                    in = lane > 0 && in < carry ? in : carry;
                                    if (key[g][s] < in) {
                                        move(hit, depth, key[g][s], in);
                                        key[g][s] = in;
                                    }
                                    carry = __shfl_sync(ALL_LANES, least, WARP - 1);
                                }
                            }
                        }
                    }
                }
            }
            if (outside >= 0) {
                if (outside >= above && outside < above + RANGE) {
                    last = carry;
                    bottom = outside;
                    if (lane == 0) add(&hit[t + 1], -score_of(carry));
                }
                if (lane == 0) handed[turn & 1][warp + 1] = carry;
            }
        }
        COPY_WAIT();
        block_barrier();
    }

    // What still lies in the stack has given its mass at its depth; the last one lies there too.
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
#pragma unroll
        for (int s = 0; s < G; s++) {
            const int at = above + g * SPAN + s * WARP + lane;
            if (at < n - 1 - recent) add(&hit[recent + 1 + at], score_of(key[g][s]));
        }
    }
    if (lane == 0 && bottom == n - 1 - recent) add(&hit[n], score_of(last));
    if (warp == 0) {
        if (lane < recent) add(&hit[1 + lane], near);
        if (lane == 0) add(&hit[0], own);
    }
}
