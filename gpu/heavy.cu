// The stack kernel of accumulated scores: H2O with recorded rows, a fixed window and no sinks, from
// the first row on (prompt of one token); every budget in one pass, no policy text needed.
//
// Follows common.cuh. One block replays one unit; gpu/README.md explains the steps. A token below
// the window is one double, its *key*: 2^52 + score * 2^SHIFT + 2 * pos, score in fixed point. Keys
// are exact integers below 2^53, so they order by score and then by age in one comparison, adding to
// one is exact, and its low bits are the address of the token's entry in a row.
//
// Warp w holds the depths of its range in registers; warp 0 runs ahead and hands the carried token of
// each step down. Constants: T threads, GROUPS of G keys a lane, SHIFT, HEADS, STAGES of ROW bytes
// for rows, BLOCKS that a multiprocessor should hold.
#define WARPS (T / WARP)
#define SPAN (WARP * G)               // depths of a group: G lines of WARP
#define RANGE (SPAN * GROUPS)         // depths of a warp
#define AHEAD 2                       // rows are asked for so many steps before
#define HANDED 8                      // at least STAGES: no warp is further behind than that
#define FEW 3                         // so many tokens of a line that fall go one by one

// Rows are copied in 16-byte pieces beside the computation: one instruction a row where there is the
// bulk copy engine (compute capability 9.0), else one a piece; warp 0 then says what has arrived.
#ifdef H2OSIM_SHIM
#define SPIN() shim::pause()
#define FENCE()
#define COPY(to, from, pieces) \
    if (lane == 0) std::memcpy(to, from, (pieces) * 16)
#define COPY_END()
#define COPY_PAST(many)
#else
DEVICE double half_value(u16 bits) {
    double value;
    asm("cvt.f64.f16 %0, %1;" : "=d"(value) : "h"(bits));
    return value;
}
DEVICE unsigned address(const void *place) { return (unsigned)__cvta_generic_to_shared(place); }
#define SPIN()
#define FENCE() __threadfence_block()
#if __CUDA_ARCH__ >= 900
#define BULK
DEVICE void bulk_init(u64 *ready) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address(ready)) : "memory");
}
DEVICE void bulk_expect(u64 *ready, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(ready)),
                 "r"(bytes) : "memory");
}
DEVICE void bulk_copy(void *to, const void *from, int bytes, u64 *ready) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
        ::"r"(address(to)), "l"(from), "r"(bytes), "r"(address(ready)) : "memory");
}
DEVICE void bulk_wait(u64 *ready, unsigned phase) {
    asm volatile(
        "{\n.reg .pred p;\nagain:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra again;\n}"
        ::"r"(address(ready)), "r"(phase) : "memory");
}
#else
#define COPY(to, from, pieces)                                                            \
    for (int i = lane; i < (pieces); i += WARP)                                           \
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address(to) + i * 16), \
                 "l"((const char *)(from) + i * 16) : "memory")
#define COPY_END() asm volatile("cp.async.commit_group;" ::: "memory")
#define COPY_PAST(many) asm volatile("cp.async.wait_group %0;" ::"n"(many) : "memory")
#endif
#endif

#define BASE 4503599627370496.0                    // 2^52
#define UNIT ((double)(1LL << (24 + SHIFT)))       // a probability of 1, in a key

DEVICE i64 score_of(double key) {
    return (__double_as_longlong(key) & 0xfffffffffffffLL) >> SHIFT;
}

// Waits until a step count that another warp publishes exceeds t.
DEVICE void wait_past(volatile int *count, int t) {
    while (*count <= t) SPIN();
    FENCE();
}

// A line of WARP depths that several tokens fall through: each lane's token and the carried one, to
// which the least of the line is added. Out of line, since it is rare and long.
struct Line {
    double key, carry;
};
// Moves mass between depths: token `out` leaves depth d, token `in` enters it.
DEVICE void move(i64 *hit, int d, double out, double in) { add(&hit[d], score_of(out) - score_of(in)); }

#ifdef H2OSIM_SHIM
static
#else
static __device__ __noinline__
#endif
Line fall(double key, double carry, i64 *hit, int lane) {
    double least = key;
#pragma unroll
    for (int far = 1; far < WARP; far *= 2) {
        const double other = __shfl_up_sync(ALL_LANES, least, far);
        least = lane >= far && other < least ? other : least;
    }
    double in = __shfl_up_sync(ALL_LANES, least, 1);
    in = lane > 0 && in < carry ? in : carry;
    if (key < in) {
        move(hit, 0, key, in);
        key = in;
    }
    least = __shfl_sync(ALL_LANES, least, WARP - 1);
    return Line{key, least < carry ? least : carry};
}

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
    __shared__ double handed[WARPS][HANDED];  // what each warp gives to the one below
    __shared__ volatile int done[WARPS];     // steps that each warp has finished
    i64 *hit = hits + (i64)blockIdx.x * (n + 1);
    i64 placed[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++) placed[h] = place[h];
#ifdef BULK
    __shared__ u64 ready[STAGES];
    if (tid == 0)
        for (int i = 0; i < STAGES; i++) bulk_init(&ready[i]);
#else
    __shared__ volatile int arrived;
    if (tid == 0) arrived = 0;
#endif
    if (lane == 0) done[warp] = 0;
    __syncthreads();

    // Rows come in whole 16-byte pieces, so a row starts up to 14 bytes after its stage does.
    auto shift_of = [&](int h, int t) { return (((int)placed[h] + t * (t + 1) / 2) & 7) * 2; };
    auto fetch = [&](int t, int stage) {
#ifdef BULK
        if (lane == 0) {
            int bytes = 0;
#pragma unroll
            for (int h = 0; h < HEADS; h++) bytes += (shift_of(h, t) + 2 * t + 17) & ~15;
            bulk_expect(&ready[stage], bytes);
#pragma unroll
            for (int h = 0; h < HEADS; h++)
                bulk_copy(
                    rows + (stage * HEADS + h) * ROW, bits + ((placed[h] + tri(t)) & ~7LL),
                    (shift_of(h, t) + 2 * t + 17) & ~15, &ready[stage]
                );
        }
#else
        for (int h = 0; h < HEADS; h++) {
            const int pieces = (shift_of(h, t) + 2 * t + 17) / 16;
            const u16 *from = bits + ((placed[h] + tri(t)) & ~7LL);
            unsigned char *to = rows + (stage * HEADS + h) * ROW;
            COPY(to, from, pieces);
        }
#endif
    };
    if (warp == 0) {
        for (int t = 0; t < AHEAD; t++) {
            if (t < n) fetch(t, t);
#ifndef BULK
            COPY_END();
#endif
        }
    }

    double key[GROUPS][G];  // [g][s]: depth recent + 1 + warp * RANGE + g * SPAN + s * WARP + lane
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
#pragma unroll
        for (int s = 0; s < G; s++) key[g][s] = INF;
    const int above = warp * RANGE;  // depths below the window that belong to warps before
    double last = INF;               // what fell to the bottom of this warp's range in its last step
    int bottom = -1;                 // where it fell to, counted below the window
    double near = 0.0, own = 0.0;  // mass at this lane's age; tokens' attention to themselves
    int stage = 0, later = AHEAD;  // where row t is, and where row t + AHEAD goes
    int slot = 0;                  // of the window's newest token in the ring
    unsigned phase = 0;

    for (int t = 0; t < n; t++) {
        if (warp == 0) {
            if (t + AHEAD < n) {
                if (WARPS > 1 && t + AHEAD >= STAGES) wait_past(&done[WARPS - 1], t + AHEAD - STAGES);
                fetch(t + AHEAD, later);
            }
            later = later + 1 == STAGES ? 0 : later + 1;
        }
#ifdef BULK
        bulk_wait(&ready[stage], phase);
#else
        if (warp == 0) {
            COPY_END();
            COPY_PAST(AHEAD);
            __syncwarp();
            FENCE();
            if (lane == 0) arrived = t + 1;
        }
        wait_past(&arrived, t);
#endif
        {
            const unsigned char *row = rows + stage * HEADS * ROW + shift_of(0, t);
            // Heads' rows start at different places in their stages.
            auto entry = [&](unsigned twice_pos) {
                double a = half_value(*(const u16 *)(row + twice_pos));
#pragma unroll
                for (int h = 1; h < HEADS; h++)
                    a += half_value(*(const u16 *)(
                        row + h * ROW + shift_of(h, t) - shift_of(0, t) + twice_pos));
                return a;
            };
            const int outside = t - recent;  // tokens below the window before the step
            double carry;  // the token that leaves the window, or the new one if there is none
            if (warp == 0) {
                const double self = entry(2u * t);
                if (t > 0) own += self;
                carry = __fma_rn(self, UNIT, BASE + 2.0 * t);
                if (recent > 0) {
                    double leaves = carry;
                    auto window = [&](int age) {
                        const double a = entry(2u * (t - age));
                        double *k = ring + (slot >= age ? slot - age : slot - age + recent + 1);
                        const double its_key = __fma_rn(a, UNIT, *k);
                        *k = its_key;
                        if (age == recent) leaves = its_key;
                        return a;
                    };
                    const int limit = min(recent, t);
                    if (lane < limit) near += window(1 + lane);
                    for (int age = 1 + WARP + lane; age <= limit; age += WARP)
                        add(&hit[age], (i64)(window(age) * 16777216.0));
                    if (lane == 0) ring[slot] = carry;
                    if (outside >= 0) carry = __shfl_sync(ALL_LANES, leaves, (recent - 1) % WARP);
                    slot = slot == recent ? 0 : slot + 1;
                }
            } else {
                wait_past(&done[warp - 1], t);
                carry = handed[warp - 1][t % HANDED];
            }

            // The tokens below the window, by depth: each gets its entry; the carried one falls.
#pragma unroll
            for (int g = 0; g < GROUPS; g++) {
                const int at = above + g * SPAN;
                if (at < outside) {
                    if (bottom >= at && bottom < at + SPAN) {  // where the last one fell to
                        const int place_of = bottom - at - lane;
#pragma unroll
                        for (int s = 0; s < G; s++)
                            key[g][s] = place_of == s * WARP ? last : key[g][s];
                        bottom = -1;
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
                                    const Line line = fall(key[g][s], carry, hit + depth, lane);
                                    key[g][s] = line.key;
                                    carry = line.carry;
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
                if (lane == 0) handed[warp][t % HANDED] = carry;
            }
        }
        __syncwarp();
        if (WARPS > 1 && lane == 0) {
            FENCE();
            done[warp] = t + 1;
        }
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        phase ^= stage == 0;
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
    if (lane == 0 && bottom >= 0) add(&hit[n], score_of(last));
    if (warp == 0) {
        if (lane < recent) add(&hit[1 + lane], (i64)(near * 16777216.0));
        if (lane == 0) add(&hit[0], (i64)(own * 16777216.0));
    }
}
