// Tokens as the kernel `depths` handles them, and what its warps tell each other about them.
//
// Constants:
//   C       configurations of a block
//   PARTS   warps of a configuration, 1 or 2
//   T       threads of a block, C * PARTS * WARP
//   HEADS   heads of a unit
//   ROW     bytes of a row in shared memory
//   STAGES  rows of each head in shared memory
//   SPLIT   of SPLIT lines one belongs to the first of two warps
//   LINES   most lines of a warp; a line is 4 * WARP depths
//   CELLS   tokens that shared memory has room for, a multiple of 8
//   PLAIN   1 if the rank is the only field of state, and never negative
//   EVENTS  1 if evictions at listed budgets are recorded
//   BLOCKS  blocks that a multiprocessor should hold at once
#define SLOTS 4                                  // tokens that the queue holds
#define FIRST(m) ((m) / (SPLIT * 4 * WARP) + 1)  // lines of the first warp, for m tokens
#define GROUPS ((LINES + WARP - 1) / WARP)       // of WARP lines, one for each lane
#define HIGHEST 0xffffffffu
#define NO_KEY ~0ull  // of a depth without a token

// A token that moves down the stack. `key`: the bits of its rank, which order as integers.
struct Token {
    u64 key;
#if !PLAIN
    double state[F];
#endif
    int offset, top;  // top: the least budget that still holds the token, if EVENTS
};
#define TOP(budget) (EVENTS ? (budget) : 0)

// Synchronises the warps of a block: which rows have arrived, and which may be replaced.
struct RowSync {
    u64 ready[STAGES];
    int readers[STAGES];  // warps that have finished with the row of a stage
};
// Synchronises the two warps of a configuration, and holds the queue between them.
struct PairSync {
    Token queue[SLOTS];
    u64 sent[SLOTS], taken[SLOTS], updated, handed;
};
#define SYNC_BYTES ((sizeof(RowSync) + C * sizeof(PairSync) + 15) / 16 * 16)
struct alignas(16) Two {
    double of[2];
};

DEVICE bool evicted_first(const Token &a, const Token &b) {
    return precedes(a.key, a.offset, b.key, b.offset);
}
DEVICE unsigned high_of(u64 key) { return (unsigned)(key >> 32); }

// A copy of the token that lane `from` holds.
DEVICE Token token_of(const Token &own, int from) {
    Token other = own;
    other.key = __shfl_sync(ALL_LANES, own.key, from);
    other.offset = __shfl_sync(ALL_LANES, own.offset, from);
#if !PLAIN
#pragma unroll
    for (int f = 0; f < F; f++) other.state[f] = __shfl_sync(ALL_LANES, own.state[f], from);
#endif
#if EVENTS
    other.top = __shfl_sync(ALL_LANES, own.top, from);
#endif
    return other;
}

// The entry of a token in the rows of HEADS heads: a sum of multiples of 2^-24, so it is exact.
DEVICE double entry_of(const unsigned char *const *row, int offset) {
    double a = half_to_double(*(const u16 *)(row[0] + offset));
#pragma unroll
    for (int h = 1; h < HEADS; h++) a += half_to_double(*(const u16 *)(row[h] + offset));
    return a;
}

// A field of a token's state.
DEVICE double state_of(const Token &it, int f) {
#if PLAIN
    return __longlong_as_double((i64)it.key);
#else
    return it.state[f];
#endif
}

// Copies a token's state from shared memory, and to it. There fields are CELLS numbers apart.
DEVICE void load(double *s, const double *from) {
#pragma unroll
    for (int f = 0; f < F; f++) s[f] = from[f * CELLS];
}
DEVICE void store(const double *s, double *to) {
#pragma unroll
    for (int f = 0; f < F; f++) to[f * CELLS] = s[f];
}

DEVICE void start(RowSync *sync) {
    for (int i = 0; i < STAGES; i++) {
        barrier_start(&sync->ready[i], ARRIVALS);
        sync->readers[i] = 0;
    }
}
DEVICE void start(PairSync *sync) {
    for (int i = 0; i < SLOTS; i++) {
        barrier_start(&sync->sent[i], 1);
        barrier_start(&sync->taken[i], 1);
    }
    barrier_start(&sync->updated, 1);
    barrier_start(&sync->handed, 1);
}

// The first warp of a configuration sends a token to the second, and the second receives it. `slot`
// counts the tokens; the barriers of a slot change their phase every SLOTS tokens.
DEVICE void send(PairSync *pair, unsigned &slot, const Token &it, int lane) {
    barrier_wait(&pair->taken[slot % SLOTS], (slot / SLOTS & 1) ^ 1);
    if (lane == 0) pair->queue[slot % SLOTS] = it;
    __syncwarp();
    if (lane == 0) barrier_arrive(&pair->sent[slot % SLOTS]);
    slot++;
}
DEVICE Token receive(PairSync *pair, unsigned &slot, int lane) {
    Token it = {};
#if PARTS > 1
    barrier_wait(&pair->sent[slot % SLOTS], slot / SLOTS & 1);
    it = pair->queue[slot % SLOTS];
    if (!EVENTS) it.top = 0;
    __syncwarp();
    if (lane == 0) barrier_arrive(&pair->taken[slot % SLOTS]);
    slot++;
#endif
    return it;
}

// Moves a token `carry` through the lanes of a line. `best` is the token of this lane's depths that
// is evicted first, `below` the lanes whose `best` is evicted before `carry`, at least one. Sets `in`
// to the token that reaches this lane and returns the lane whose token falls below the line.
DEVICE int pass_lanes(
    const Token &best, unsigned below, int lane, const Token &carry, Token &in
) {
    in = carry;
    int from = __ffs(below) - 1;
    if (below & (below - 1)) {  // a prefix minimum over the lanes
        u64 key = best.key;
        int who = best.offset * WARP + lane;  // orders as offsets do
#pragma unroll
        for (int far = 1; far < WARP; far *= 2) {
            const u64 other_key = __shfl_up_sync(ALL_LANES, key, far);
            const int other_who = __shfl_up_sync(ALL_LANES, who, far);
            if (lane >= far && precedes(other_key, other_who, key, who))
                key = other_key, who = other_who;
        }
        const u64 key_in = __shfl_up_sync(ALL_LANES, key, 1);
        const int who_in = __shfl_up_sync(ALL_LANES, who, 1);
        const Token other = token_of(best, who_in % WARP);
        if (lane > 0 && precedes(key_in, who_in / WARP, carry.key, carry.offset)) in = other;
        from = __shfl_sync(ALL_LANES, who, WARP - 1) % WARP;
    }
    return from;
}
