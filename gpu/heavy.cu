// The stack kernel of accumulated scores: H2O with recorded rows, a fixed window and no sinks, from
// the first row on (prompt of one token); every budget in one pass, no policy text needed.
//
// Follows common.cuh. One block replays one unit; gpu/README.md explains the steps. A token below
// the window is one double, its *key*: 2^52 + score * 2^SHIFT + 2 * pos, score in fixed point. Keys
// are exact integers below 2^53, so they order by score and then by age in one comparison, adding to
// one is exact, and its low bits are the address of the token's entry in a row.
//
// Warp w holds the depths of its range in registers and is w steps behind warp 0, which hands its
// carried token down. The last warp, whose depths fill last, also fetches rows and keeps the window,
// a step ahead of warp 0. Constants: T threads, GROUPS of G keys a lane, SHIFT, HEADS, ROW (bytes of
// a staged row), BLOCKS that a multiprocessor should hold.
#define WARPS (T / WARP)
#define SPAN (WARP * G)               // depths of a group: G lines of WARP
#define RANGE (SPAN * GROUPS)         // depths of a warp
#define STAGES (WARPS + 2)
#define FEW 3                         // so many tokens of a line that fall go one by one

// Copies of 16-byte pieces from device memory that run beside the computation: one instruction a row
// where there is the bulk copy engine (compute capability 9.0), else one a piece.
#ifdef H2OSIM_SHIM
#define COPY(to, from, pieces, ready)                                                           \
    if (lane == 0) std::memcpy(to, from, (pieces) * 16)
#define COPY_START(ready, bytes)
#define COPY_WAIT(ready, phase)
#define COPY_READY(ready)
#else
DEVICE double half_value(u16 bits) {
    double value;
    asm("cvt.f64.f16 %0, %1;" : "=d"(value) : "h"(bits));
    return value;
}
DEVICE unsigned address(const void *place) { return (unsigned)__cvta_generic_to_shared(place); }
#if __CUDA_ARCH__ >= 900
#define COPY_READY(ready)                                                                       \
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address(ready)) : "memory")
#define COPY_START(ready, bytes)                                                                \
    if (lane == 0)                                                                              \
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(                \
                     address(ready)), "r"(bytes) : "memory")
#define COPY(to, from, pieces, ready)                                                           \
    if (lane == 0)                                                                              \
    asm volatile(                                                                               \
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" \
        ::"r"(address(to)), "l"(from), "r"((pieces) * 16), "r"(address(ready)) : "memory")
#define COPY_WAIT(ready, phase)                                                                 \
    {                                                                                           \
        unsigned done = 0;                                                                      \
        while (!done)                                                                           \
            asm volatile(                                                                       \
                "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;"          \
                " selp.u32 %0, 1, 0, p; }" : "=r"(done) : "r"(address(ready)), "r"(phase)        \
                : "memory");                                                                    \
    }
#else
#define COPY_READY(ready)
#define COPY_START(ready, bytes)
#define COPY(to, from, pieces, ready)                                                           \
    for (int i = lane; i < (pieces); i += WARP)                                                 \
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address(to) + i * 16),       \
                 "l"((const char *)(from) + i * 16) : "memory")
#define COPY_WAIT(ready, phase) asm volatile("cp.async.wait_all;" ::: "memory")
#endif
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
    return {key, least < carry ? least : carry};
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
    __shared__ double handed[2][WARPS + 1];                    // what each warp gets from above
    __shared__ u64 ready[STAGES];
    i64 *hit = hits + (i64)blockIdx.x * (n + 1);
    i64 placed[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++) placed[h] = place[h];
    const bool leads = warp == WARPS - 1;  // fetches, and keeps the window

    // Rows come in whole 16-byte pieces, so a row starts up to 14 bytes after its stage does.
    auto shift_of = [&](int h, int t) { return (((int)placed[h] + t * (t + 1) / 2) & 7) * 2; };
    auto fetch = [&](int t, int stage) {
        int bytes = 0;
#pragma unroll
        for (int h = 0; h < HEADS; h++) bytes += (shift_of(h, t) + 2 * t + 17) & ~15;
        COPY_START(&ready[stage], bytes);
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            const int pieces = (shift_of(h, t) + 2 * t + 17) / 16;
            const u16 *from = bits + ((placed[h] + tri(t)) & ~7LL);
            unsigned char *to = rows + (stage * HEADS + h) * ROW;
            COPY(to, from, pieces, &ready[stage]);
        }
    };
    // An entry of the row in a stage. Heads' rows start at different places in theirs.
    auto entry = [&](int stage, int t, unsigned twice_pos) {
        const unsigned char *row = rows + stage * HEADS * ROW + twice_pos;
        double a = half_value(*(const u16 *)(row + shift_of(0, t)));
#pragma unroll
        for (int h = 1; h < HEADS; h++)
            a += half_value(*(const u16 *)(row + h * ROW + shift_of(h, t)));
        return a;
    };

    double key[GROUPS][G];  // [g][s]: depth recent + 1 + warp * RANGE + g * SPAN + s * WARP + lane
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
#pragma unroll
        for (int s = 0; s < G; s++) key[g][s] = INF;
    const int above = warp * RANGE;  // depths below the window that belong to warps before
    double last = INF;               // what fell to the bottom of this warp's range in its last step
    int bottom = -1;                 // where it fell to, counted below the window
    double near = 0.0, own = 0.0;  // mass at this lane's age; tokens' attention to themselves

    // The window in step t: depth = age. Gives the token that leaves it, or the new one if it holds
    // none.
    int slot = 0;  // of the newest token in the ring
    auto window = [&](int stage, int t) {
        const double self = entry(stage, t, 2u * t);
        if (t > 0) own += self;
        double carry = __fma_rn(self, UNIT, BASE + 2.0 * t);
        if (recent == 0) return carry;
        double leaves = carry;
        auto attend = [&](int age) {
            const double a = entry(stage, t, 2u * (t - age));
            double *k = ring + (slot >= age ? slot - age : slot - age + recent + 1);
            const double its = __fma_rn(a, UNIT, *k);
            *k = its;
            if (age == recent) leaves = its;
            return a;
        };
        const int limit = min(recent, t);
        if (lane < limit) near += attend(1 + lane);
        for (int age = 1 + WARP + lane; age <= limit; age += WARP)
            add(&hit[age], (i64)(attend(age) * 16777216.0));
        if (lane == 0) ring[slot] = carry;
        if (t >= recent) carry = __shfl_sync(ALL_LANES, leaves, (recent - 1) % WARP);
        slot = slot == recent ? 0 : slot + 1;
        __syncwarp();
        return carry;
    };

    // Rows arrive two turns ahead: row t is in stage t % STAGES, and its window is done a turn ahead.
    if (leads && lane == 0)
        for (int i = 0; i < STAGES; i++) COPY_READY(&ready[i]);
    block_barrier();
    if (leads) {
        fetch(0, 0);
        if (n > 1) fetch(1, 1);
    }
    COPY_WAIT(&ready[0], 0u);
    if (n > 1) COPY_WAIT(&ready[1], 0u);
    block_barrier();
    if (leads) {
        const double carry = window(0, 0);
        if (lane == 0) handed[1][0] = carry;
    }
    block_barrier();

    int stage = 0;          // of row `turn`
    unsigned phases = 3u;   // bit i: the parity of stage i's next arrival
    for (int turn = 0; turn < n + WARPS - 1; turn++) {
        const int one = stage + 1 < STAGES ? stage + 1 : 0, two = one + 1 < STAGES ? one + 1 : 0;
        const int t = turn - warp;
        if (leads) {
            if (turn + 2 < n) fetch(turn + 2, two);
            if (turn + 1 < n) {
                const double carry = window(one, turn + 1);
                if (lane == 0) handed[turn & 1][0] = carry;
            }
        }
        if (t >= 0 && t < n) {
            const int its = stage >= warp ? stage - warp : stage - warp + STAGES;
            const int outside = t - recent;  // tokens below the window before the step
            double carry = handed[(turn + 1) & 1][warp];

            // The tokens below the window, by depth: each gets its entry; the carried one falls.
            const unsigned char *row = rows + its * HEADS * ROW + shift_of(0, t);
            (void)row;
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
                    bool even = false, odd = false;
#pragma unroll
                    for (int s = 0; s < G; s++) {
                        const unsigned twice =
                            (unsigned)__double_as_longlong(key[g][s]) & ((1u << SHIFT) - 1u);
#if HEADS == 1
                        const double a = half_value(*(const u16 *)(row + twice));
#else
                        const double a = entry(its, t, twice);
#endif
                        key[g][s] = __fma_rn(a, UNIT, key[g][s]);
                        if (s % 2)
                            odd |= key[g][s] < carry;
                        else
                            even |= key[g][s] < carry;
                    }
                    if (__any_sync(ALL_LANES, even | odd)) {
                        unsigned some[G];  // lanes below the carry that comes in: no fewer than fall
#pragma unroll
                        for (int s = 0; s < G; s++)
                            some[s] = __ballot_sync(ALL_LANES, key[g][s] < carry);
#pragma unroll
                        for (int s = 0; s < G; s++) {
                            if (some[s]) {
                                i64 *mass = hit + recent + 1 + at + s * WARP + lane;
                                unsigned lanes = __ballot_sync(ALL_LANES, key[g][s] < carry);
                                if (__popc(lanes) > FEW) {
                                    const Line line = fall(key[g][s], carry, mass, lane);
                                    key[g][s] = line.key;
                                    carry = line.carry;
                                    lanes = 0;
                                }
                                while (lanes) {
                                    const int first = __ffs(lanes) - 1;
                                    const double next = __shfl_sync(ALL_LANES, key[g][s], first);
                                    if (lane == first) {
                                        move(mass, 0, next, carry);
                                        key[g][s] = carry;
                                    }
                                    carry = next;
                                    lanes = __ballot_sync(ALL_LANES, key[g][s] < carry);
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
                if (lane == 0 && !leads) handed[turn & 1][warp + 1] = carry;
            }
        }
        if (turn + 2 < n) COPY_WAIT(&ready[two], phases >> two & 1u);
        phases ^= 1u << two;
        block_barrier();
        stage = one;
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
    if (leads) {
        if (lane < recent) add(&hit[1 + lane], (i64)(near * 16777216.0));
        if (lane == 0) add(&hit[0], (i64)(own * 16777216.0));
    }
}
