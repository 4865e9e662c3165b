// Replays every budget of an inclusive policy (proofs/14-inclusion.md) in one pass over stored rows.
// The policy keeps state for each token and evicts in every step.
//
// Compiled after common.cuh and a policy's rules. Tokens and their state lie in shared memory in the
// order of the stack, so each thread updates the depths that it will compare. PARTS warps replay one
// configuration of one unit. Each warp has a range of depths. A token that falls below the first
// warp's range reaches the second through a queue, so the first warp runs one step ahead. The C
// configurations of a block replay the same unit and share its rows, but do not wait for each other.
// gpu/README.md describes the algorithm, depths.cuh lists the constants.
#include "staged.cuh"
#include "tokens.cuh"
#include "arguments.cuh"
#include "depths.cuh"

extern "C" __global__ void __launch_bounds__(T, BLOCKS) depths(
    const u16 *bits,         // packed rows; row t of head h at bits[bases[unit, h] + tri(t)]
    const i64 *bases,        // [units, HEADS]
    const int *units,        // [blocks] the unit of each block
    const int *windows,      // [blocks, C] newest tokens, which stay; -1: no configuration
    PARAMETERS,
    RESULTS,
    int nb, int n, int p
) {
    const int tid = threadIdx.x, lane = tid % WARP, block = blockIdx.x;
    const int c = tid / WARP / PARTS, part = tid / WARP % PARTS;
    const int recent = windows[block * C + c];
    DYNAMIC_SHARED(shared);
    unsigned char *memory = shared;
    OPAQUE(memory);
    RowSync *row_sync = (RowSync *)memory;
    PairSync *pair = (PairSync *)(row_sync + 1) + c;
    unsigned char *stages = memory + SYNC_BYTES;  // [STAGES, HEADS, ZEROS + ROW]
    const int each = ZEROS + ROW;
    double *states = (double *)(stages + STAGES * HEADS * each);  // [C, F, CELLS]
    u16 *tokens = (u16 *)(states + C * F * CELLS) + c * CELLS;    // [C, CELLS]
    states += c * F * CELLS;
    double *ring = states + (CELLS - recent);  // state of the window's tokens, in the last cells

    i64 base[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++) base[h] = bases[(i64)units[block] * HEADS + h];
    const Parameters params = parameters_of(ints, floats, inputs, inputs_at, block * C + c);
    i64 *hit = hits + ((i64)block * C + c) * (n + 1);
    int *lost = evicted + ((i64)block * C + c) * nb * n;

    for (int i = tid; i < STAGES * HEADS * ZEROS / 2; i += T)
        ((u16 *)(stages + i / (ZEROS / 2) * each))[i % (ZEROS / 2)] = 0;
    int running = 0;
    for (int i = 0; i < C; i++) running += windows[block * C + i] >= 0;
    if (tid == 0) start(row_sync);
    if (PARTS > 1 && part == 0 && lane == 0) start(pair);
    for (int d = lane; part == 0 && d < CELLS; d += WARP) {
        tokens[d] = 0;
#if PLAIN
        states[d] = INF;
#else
        double s[F];
        rule_init(s, params.in, params.ip, params.fp, 0, 0, n, p, n, HEADS);
        for (int f = 0; f < F; f++) states[f * CELLS + d] = s[f];
#endif
    }
    __syncthreads();
    if (tid < WARP)
        for (int t = 0; t < STAGES && t < n; t++)
            stage_row(bits, base, t, stages + t * HEADS * each + ZEROS, each, &row_sync->ready[t],
                      lane);
    if (recent < 0) return;

    int t = 0, stage = 0;
    unsigned phase = 0;
    const unsigned char *row[HEADS];
    int shift[HEADS];  // entries between a 16-byte boundary and the row's start
#pragma unroll
    for (int h = 0; h < HEADS; h++) shift[h] = (int)base[h] & 7;
    auto entry = [&](int offset) { return entry_of(row, offset); };
    // The last warp that finishes with a row starts the copy of the row that replaces it.
    auto release = [&]() {
        int others = 0;
        __syncwarp();
#if T > WARP
        __threadfence_block();
        if (lane == 0) others = atomicAdd(&row_sync->readers[stage], 1);
        others = __shfl_sync(ALL_LANES, others, 0);
#endif
        if (others == running * PARTS - 1 && t + STAGES < n) {
            if (lane == 0) {
                row_sync->readers[stage] = 0;
                __threadfence_block();  // visible before the next row is
            }
            __syncwarp();
            stage_row(bits, base, t + STAGES, stages + stage * HEADS * each + ZEROS, each,
                      &row_sync->ready[stage], lane);
        }
    };
    auto key = [&](const double *s, int offset) {
#if PLAIN
        return key_of(s[0]);
#else
        if (offset == 0) return NO_KEY;
        const int pos = POSITION(offset);
        double r = rule_rank(s, params.in, params.ip, params.fp, pos, t, n, p, n, HEADS);
        if (r != r) hit[0] = NOT_A_RANK, r = -INF;
        return key_of(r);
#endif
    };
    auto update = [&](double *s, double a, int offset) {
        const int pos = max(0, POSITION(offset));
        rule_update(s, a, 0.0, params.in, params.ip, params.fp, pos, t, n, p, n, HEADS);
    };
    // This warp's depths start at `first`; residents(all): how many of the stack's tokens it holds.
    int split = FIRST(max(0, p - recent)), first = part ? split * 4 * WARP : 0;
    int capacity = part + 1 < PARTS ? split * 4 * WARP : CELLS;
    auto residents = [&](int all) { return min(max(all - first, 0), capacity); };
    // A lane has four consecutive depths of each line of 4 * WARP. In memory the first two depths of
    // every lane come before the last two, so that neighbouring lanes read neighbouring addresses.
    auto cell_of = [&](int d) {
        const unsigned line = d / (4 * WARP), mine = d / 4 % WARP, i = d % 4;
        return states + (line * 4 + i / 2 * 2) * WARP + mine * 2 + i % 2;
    };
    double *cells = states + first + lane * 2;  // this lane's part of the warp's state
    u16 *part_offsets = tokens + first + lane * 4;
    auto cell = [&](int line, int i) { return cells + (line * 4 + i) * WARP; };  // i is 0 or 2
    auto line_offsets = [&](int line) { return (u64 *)(part_offsets + line * 4 * WARP); };
    auto token = [&](const double *from, int offset, int top) {
        Token it;
#if PLAIN
        it.key = key(from, offset);
#else
        load(it.state, from);
        it.key = key(it.state, offset);
#endif
        it.offset = offset, it.top = TOP(top);
        return it;
    };

    unsigned sum[4 * LINES];      // mass of this lane's depths since the last flush
    unsigned young = 0, older = 0;  // mass of the window's ages `lane` and WARP + `lane`
    unsigned least[GROUPS];       // [b]: a lower bound on high_of the keys of line b * WARP + lane
#pragma unroll
    for (int l = 0; l < 4 * LINES; l++) sum[l] = 0;
#pragma unroll
    for (int b = 0; b < GROUPS; b++) least[b] = HIGHEST;

    auto record = [&](const Token &it, int depth) {
        record_evictions(POSITION(it.offset), it.top, depth, t, n, budgets, following, nb, lost);
    };

    // Moves a token through a line. `carry` becomes the token that falls below the line: the one that
    // is evicted first among the carried token and the line's. True if it is one of the line's.
    auto pass = [&](Token &carry, int line) {
        const int depth = recent + 1 + first + (line * WARP + lane) * 4;
        u64 offsets = *line_offsets(line);
        Token own[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            own[i].offset = (u16)(offsets >> 16 * i), own[i].top = TOP(depth + i);
#if !PLAIN
#pragma unroll
            for (int f = 0; f < F; f++) own[i].state[f] = cell(line, i / 2 * 2)[f * CELLS + i % 2];
            own[i].key = key(own[i].state, own[i].offset);
#else
            own[i].key = key(cell(line, i / 2 * 2) + i % 2, own[i].offset);
            if (t < p && own[i].offset == 0) own[i].key = NO_KEY;  // not in the stack yet
#endif
        }
        Token best = own[0];
#pragma unroll
        for (int i = 1; i < 4; i++)
            if (evicted_first(own[i], best)) best = own[i];
        const unsigned below = __ballot_sync(ALL_LANES, evicted_first(best, carry));
        if (!below) return false;
        Token in;  // the token that reaches this lane
        const int from = pass_lanes(best, below, lane, carry, in);
        carry = token_of(best, from);
        if (evicted_first(best, in)) {
            offsets = 0;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (evicted_first(own[i], in)) {
                    record(in, depth + i);
                    const Token out = own[i];
                    own[i] = in, in = out;
                }
                offsets |= (u64)own[i].offset << 16 * i;
            }
            *line_offsets(line) = offsets;
#pragma unroll
            for (int f = 0; f < F; f++) {
#pragma unroll
                for (int i = 0; i < 4; i += 2) {
                    Two two = {{state_of(own[i], f), state_of(own[i + 1], f)}};
                    Two *to = (Two *)(cell(line, i) + f * CELLS);
                    if (t < p) {  // keep the state of tokens that are not in the stack yet
                        if (own[i].offset == 0) two.of[0] = to->of[0];
                        if (own[i + 1].offset == 0) two.of[1] = to->of[1];
                    }
                    *to = two;
                }
            }
        }
        return true;
    };

    // Moves a token down through the m tokens of this warp's range. The token that falls below all of
    // them is placed under them, or, if the range is full, sent to the second warp.
    unsigned slot = 0;  // tokens that the warps of this configuration have handed over
    auto percolate = [&](Token carry, int m) {
#pragma unroll
        for (int b = 0; b < GROUPS; b++) {
            auto open = [&]() { return __ballot_sync(ALL_LANES, least[b] <= high_of(carry.key)); };
            unsigned todo = open();
            while (todo) {
                const int line = b * WARP + __ffs(todo) - 1;
                todo &= todo - 1;
                if (pass(carry, line)) todo &= open();
            }
        }
#if PARTS > 1
        if (m == capacity) {
            send(pair, slot, carry, lane);
            return;
        }
#endif
        const unsigned its = high_of(carry.key);
#pragma unroll
        for (int b = 0; b < GROUPS; b++)
            if (m / (4 * WARP) == b * WARP + lane) least[b] = min(least[b], its);
        if (lane == m / 4 % WARP) {
#pragma unroll
            for (int f = 0; f < F; f++) cell_of(first + m)[f * CELLS] = state_of(carry, f);
            tokens[first + m] = (u16)carry.offset;
            record(carry, recent + 1 + first + m);
        }
    };

    auto flush = [&]() {
#pragma unroll
        for (int l = 0; l < 4 * LINES; l++) {
            if (sum[l]) add(&hit[recent + 1 + first + (l / 4 * WARP + lane) * 4 + l % 4], sum[l]);
            sum[l] = 0;
        }
        if (young) add(&hit[lane], young);
        if (older) add(&hit[WARP + lane], older);
        young = older = 0;
    };

    int head = recent > 0 ? p % recent : 0;  // index of the window's oldest token in the ring
    int unflushed = 0;
    unsigned handover_phase = 0;  // of the barrier for the next handover
    (void)handover_phase;
    for (; t < n; t++) {
        barrier_wait(&row_sync->ready[stage], phase);
#pragma unroll
        for (int h = 0; h < HEADS; h++)
            row[h] = stages + (stage * HEADS + h) * each + shift[h] * 2;

        if (t < p) {
            // During the prompt the tokens lie in the order of their positions.
            for (int j = part * WARP + lane; j <= t; j += PARTS * WARP) {
                double *at = j < p - recent ? cell_of(j) : ring + j % recent;
                double s[F];
                if (j == t) rule_init(s, params.in, params.ip, params.fp, j, t, n, p, n, HEADS);
                else load(s, at);
                update(s, entry(OFFSET(j)), OFFSET(j));
                store(s, at);
            }
            release();
            if (t == p - 1) {
                // The tokens enter the stack one after the other: a sort in place.
#if PARTS > 1
                if (part == 1 && lane == 0) barrier_arrive(&pair->updated);
                if (part == 0) barrier_wait(&pair->updated, 0);
#endif
                for (int j = first; j < p - recent; j++) {
                    const Token carry =
                        part ? receive(pair, slot, lane) : token(cell_of(j), OFFSET(j), 1);
                    __syncwarp();
                    percolate(carry, residents(j));
                    __syncwarp();
                }
                for (int j = max(0, p - recent) + lane; part == 0 && j < p; j += WARP)
                    record_evictions(j, 1, p - j, t, n, budgets, following, nb, lost);
            }
        } else {
            Token carry;
            if (part == 0) {
                // In the window depth is age; a row's own token counts at depth 0.
                const int oldest = min(recent, t);
                if (lane <= oldest) young += units_of(entry(OFFSET(t - lane)));
                if (WARP + lane <= oldest) older += units_of(entry(OFFSET(t - WARP - lane)));
#pragma unroll 1
                for (int age = 2 * WARP + lane; age <= oldest; age += WARP)
                    add(&hit[age], units_of(entry(OFFSET(t - age))));
#pragma unroll 1
                for (int i = lane; i < recent; i += WARP) {
                    const int j = i < head ? t - head + i : t - head + i - recent;
                    if (j < 0) continue;
                    double s[F];
                    load(s, ring + i);
                    update(s, entry(OFFSET(j)), OFFSET(j));
                    store(s, ring + i);
                }
                double fresh[F];
                rule_init(fresh, params.in, params.ip, params.fp, t, t, n, p, n, HEADS);
                update(fresh, entry(OFFSET(t)), OFFSET(t));
                if (recent > 0) {
                    __syncwarp();
                    carry = token(ring + head, OFFSET(max(0, t - recent)), recent);
                    __syncwarp();
                    if (lane == head % WARP) store(fresh, ring + head);
                    if (++head == recent) head = 0;
                } else {
                    carry.key = key(fresh, OFFSET(t));
                    carry.offset = OFFSET(t), carry.top = TOP(1);
#if !PLAIN
#pragma unroll
                    for (int f = 0; f < F; f++) carry.state[f] = fresh[f];
#endif
                }
            }

#if PARTS > 1
            if (const int now = FIRST(max(0, t - recent)); now != split) {
                // The second warp hands lines over after it has finished the previous step.
                if (part) {
                    flush();
                    __syncwarp();
                    if (lane == 0) barrier_arrive(&pair->handed);
                    cells += (now - split) * 4 * WARP, part_offsets += (now - split) * 4 * WARP;
                    first = now * 4 * WARP;
#pragma unroll
                    for (int b = 0; b < GROUPS; b++) least[b] = HIGHEST;  // the lines have moved
                } else {
                    barrier_wait(&pair->handed, handover_phase);
                    handover_phase ^= 1;
                    capacity = now * 4 * WARP;
                }
                split = now;
            }
#endif

            // For each line: update the state, add the mass of each depth, find the least key.
            const int m = residents(t - recent);
#pragma unroll
            for (int l = 0; l < LINES; l++) {
                if (l * 4 * WARP >= m) break;
                const u64 offsets = *line_offsets(l);
                double s[4][F], a[4];
                unsigned low = HIGHEST;
#pragma unroll
                for (int f = 0; f < F; f++) {
#pragma unroll
                    for (int i = 0; i < 4; i += 2) {
                        const Two two = *(const Two *)(cell(l, i) + f * CELLS);
                        s[i][f] = two.of[0], s[i + 1][f] = two.of[1];
                    }
                }
#pragma unroll
                for (int i = 0; i < 4; i++) a[i] = entry((u16)(offsets >> 16 * i));
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int offset = (u16)(offsets >> 16 * i);
                    sum[4 * l + i] += units_of(a[i]);
                    update(s[i], a[i], offset);
                    low = min(low, high_of(key(s[i], offset)));
                }
#pragma unroll
                for (int f = 0; f < F; f++) {
#pragma unroll
                    for (int i = 0; i < 4; i += 2)
                        *(Two *)(cell(l, i) + f * CELLS) = {{s[i][f], s[i + 1][f]}};
                }
                low = __reduce_min_sync(ALL_LANES, low);
                if (lane == l % WARP) least[l / WARP] = low;
            }
            release();
#if EVENTS  // budgets below the window's size evict its tokens by age
            for (int b = lane; part == 0 && b < nb && budgets[b] < recent; b += WARP)
                if (budgets[b] <= t) lost[(i64)b * n + t - budgets[b]] = t;
#endif
            if (t - recent >= first) {
                if (part) carry = receive(pair, slot, lane);
                percolate(carry, m);
            }
            if (++unflushed == FLUSH) flush(), unflushed = 0;
        }
        if (++stage == STAGES) stage = 0, phase ^= 1;
#pragma unroll
        for (int h = 0; h < HEADS; h++) shift[h] = (shift[h] + t + 1) & 7;
    }
    flush();
}
