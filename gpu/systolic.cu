// The stack kernel as a systolic array: scores that start at nothing and are never negative (decay,
// H2O), recorded rows, every budget in one pass, for several configurations of one unit.
//
// Follows common.cuh and a policy's rules. A warp replays a configuration. Lane q has `width` depths
// of the stack in its registers and is q steps behind lane 0: it takes the token that lane q - 1
// carried to it in the turn before through its depths and hands on the one that falls from them. No
// lane waits for another one's choice, and a turn costs the same whatever moves. The price is that
// the rows of WARP steps must lie in shared memory; all configurations of a block read them.
// gpu/README.md explains the steps.
//
// Constants: C configurations, T = C * WARP threads, HEADS, ROW (bytes of a staged row), STAGES (rows,
// at least WARP + LAG), LAG (steps before a row is replaced), W (most depths of a lane), GROWTH (depths
// that a lane gets at a time), EVENTS (evictions of listed budgets are recorded), BLOCKS that a
// multiprocessor should hold.
#define PLAIN 1  // a token's key is its score
#include "staged.cuh"
#include "places.cuh"
#include "told.cuh"
#define PITCH(width) ((width) + 4)  // words from one lane's sums to the next one's: no bank conflicts

// A token on its way down.
struct Token {
    u64 key;
    int place, top;  // top: the least budget that has not lost it yet, where EVENTS asks
};

// What the warps of a block tell one another: the row in a stage is there, they are done with it.
struct Desk {
    u64 ready[STAGES], done[STAGES];
    i64 placed[HEADS];
};
#define DESK ((sizeof(Desk) + 15) / 16 * 16)
struct alignas(16) Four {
    unsigned of[4];
};

extern "C" __global__ void __launch_bounds__(T, BLOCKS) systolic(
    const u16 *bits,         // packed rows; row t of head h at bits[places[unit, h] + tri(t)]
    const i64 *places,       // [units, HEADS]
    const int *units,        // [blocks] the unit each block replays
    const int *windows,      // [blocks, C] newest tokens that stay, by age; -1: no configuration
    NUMBERS,
    RESULTS,
    int nb, int n, int p,
    int shortest             // of all windows
) {
    const unsigned tid = threadIdx.x;
    const int lane = tid % WARP, block = blockIdx.x, c = tid / WARP;
    const int recent = windows[block * C + c];
    DYNAMIC_SHARED(shared);
    unsigned char *base = shared;
    OPAQUE(base);
    Desk *desk = (Desk *)base;
    unsigned char *stages = base + DESK;  // [STAGES, HEADS, ZEROS + ROW]
    const int each = ZEROS + ROW;
    unsigned *sums = (unsigned *)(stages + STAGES * HEADS * each) + c * WARP * PITCH(W);

    int shift[HEADS];  // where in its first piece row 0 starts
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        const i64 placed = places[(i64)units[block] * HEADS + h];
        if (tid == 0) desk->placed[h] = placed;
        shift[h] = (int)placed & 7;
    }
    const Numbers told = numbers_of(ints, floats, inputs, inputs_at, block * C + c);
    i64 *hit = hits + ((i64)block * C + c) * (n + 1);
    int *lost = evicted + ((i64)block * C + c) * nb * n;
    (void)lost;

    int running = 0;
    for (int i = 0; i < C; i++) running += windows[block * C + i] >= 0;
    for (unsigned i = tid; i < STAGES * HEADS * ZEROS / 2; i += T)
        ((u16 *)(stages + i / (ZEROS / 2) * each))[i % (ZEROS / 2)] = 0;
    if (tid == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_start(&desk->ready[i], ARRIVALS);
            barrier_start(&desk->done[i], running);
        }
    }
    __syncthreads();
    auto fetch = [&](int t) {
        const int stage = t % STAGES;
        stage_row(bits, desk->placed, t, stages + stage * HEADS * each + ZEROS, each,
                  &desk->ready[stage], lane);
    };
    if (tid < WARP)
        for (int t = 0; t < STAGES && t < n; t++) fetch(t);
    if (recent < 0) return;

    // This warp is done with row t. In turn the warps ask for the rows that take the place of those that
    // all are done with, some steps later, when one need not wait for the others.
    int fetching = LAG + c;
    auto release = [&](int t, int stage) {
        __syncwarp();
        if (lane == 0) barrier_arrive(&desk->done[stage]);
        if (t == fetching) {
            const int before = t - LAG;
            if (before + STAGES < n) {
                barrier_wait(&desk->done[before % STAGES], before / STAGES & 1);
                fetch(before + STAGES);
            }
            fetching += running;
        }
    };
    // Where the rows of step t lie in a stage, one a head.
    struct Places {
        unsigned of[HEADS];
    };
    auto rows_in = [&](int stage, int t) {
        Places rows;
#pragma unroll
        for (int h = 0; h < HEADS; h++)
            rows.of[h] = (stage * HEADS + h) * each + (shift[h] + t * (t + 1) / 2 & 7) * 2;
        return rows;
    };
    auto entry = [&](const Places &rows, int place) {  // a sum of multiples of 2^-24: exact
        double a = half_to_double(*(const u16 *)(stages + (rows.of[0] + place)));
#pragma unroll
        for (int h = 1; h < HEADS; h++)
            a += half_to_double(*(const u16 *)(stages + (rows.of[h] + place)));
        return a;
    };
    auto update = [&](double &score, double a, int place, int t) {
        const int pos = max(0, POSITION(place));
        rule_update(&score, a, 0.0, told.in, told.ip, told.fp, pos, t, n, p, n, HEADS);
    };
    // Nobody comes before everybody, so a token takes nobody's depth and nobody takes a token's.
    const Token nobody = {};

    // This lane's depths; depth i of lane q is depth recent + 1 + q * width + i of the stack.
    double scores[W];
    int names[W];  // places of the tokens there
    int width = 0;
#pragma unroll
    for (int i = 0; i < W; i++) scores[i] = 0.0, names[i] = 0;

    // Step t of this lane: its depths get their entries, a token goes through them.
    auto walk = [&](Token &carry, int t, const Places &rows) {
        unsigned *mine = sums + lane * PITCH(width);
        auto receive = [&](int i, unsigned &got) {
            const double a = entry(rows, names[i]);
            got += units_of(a);
            update(scores[i], a, names[i], t);
        };
        auto pass = [&](int i) {
            const u64 key = key_of(scores[i]);
            const int place = names[i];
            const bool sinks = before(key, place, carry.key, carry.place);
#if EVENTS
            const int depth = recent + 1 + lane * width + i;
            if (sinks && carry.place)
                book(POSITION(carry.place), carry.top, depth, t, n, budgets, following, nb, lost);
            if (sinks) carry.top = depth;
#endif
            names[i] = sinks ? carry.place : place;
            carry.place = sinks ? place : carry.place;
            scores[i] = sinks ? __longlong_as_double((i64)carry.key) : scores[i];
            carry.key = sinks ? key : carry.key;
        };
        // The token goes through a depth while one further down gets its entry.
        Four got = *(const Four *)mine;
#pragma unroll
        for (int i = 0; i < 4; i++) receive(i, got.of[i]);
        *(Four *)mine = got;
#pragma unroll
        for (int some = 0; some < W; some += GROWTH) {
            if (some >= width) break;
            const bool more = some + GROWTH < width;  // else what is ahead is nobody's and has no sums
#pragma unroll
            for (int i = 0; i < GROWTH; i++) {
                pass(some + i);
                const int ahead = some + i + 4;
                if (ahead >= W) continue;
                const bool counts = i + 4 < GROWTH || more;
                if (i % 4 == 0 && counts) got = *(const Four *)(mine + ahead);
                receive(ahead, got.of[i % 4]);
                if (i % 4 == 3 && counts) *(Four *)(mine + ahead - 3) = got;
            }
        }
    };
    // What each lane carries to the next one; the first one gets a new token.
    auto hand_on = [&](Token &carry, const Token &fresh) {
        const u64 key = __shfl_up_sync(ALL_LANES, carry.key, 1);
        const int place = __shfl_up_sync(ALL_LANES, carry.place, 1);
        carry.key = lane ? key : fresh.key, carry.place = lane ? place : fresh.place;
#if EVENTS
        const int top = __shfl_up_sync(ALL_LANES, carry.top, 1);
        carry.top = lane ? top : fresh.top;
#endif
    };

    unsigned self = 0, near = 0;  // what ages 0 and `lane` + 1 of the window got
    auto flush = [&]() {
        __syncwarp();
        for (int q = 0; q < WARP; q++) {
            for (int i = lane; i < width; i += WARP) {
                const int depth = recent + 1 + q * width + i;
                unsigned &sum = sums[q * PITCH(width) + i];
                if (sum) add(&hit[depth], sum);
                sum = 0;
            }
        }
        if (lane == 0) add(&hit[0], self);
        if (near) add(&hit[lane + 1], near);
        self = near = 0;
        __syncwarp();
    };
    auto clear = [&]() {
        for (int i = lane; i < WARP * PITCH(width); i += WARP) sums[i] = 0;
        __syncwarp();
    };
    // More depths for each lane: what lies in registers goes by way of the sums' memory, the lower half
    // of the lanes first. What a lane gets comes from itself and lanes beyond it.
    auto widen = [&](int wider) {
        const int half = WARP / 2, first = lane * wider / width, rest = lane * wider % width;
        auto move = [&](auto *passing, int upper, auto &of) {
            if (lane / half == upper) {
#pragma unroll
                for (int i = 0; i < W; i++) {
                    if (i / GROWTH * GROWTH >= width) continue;
                    passing[i * half + lane % half] = of[i];
                }
            }
            __syncwarp();
            int q = first, from = rest;
#pragma unroll
            for (int i = 0; i < W; i++) {
                if (i / GROWTH * GROWTH >= wider) continue;
                if (q / half == upper) of[i] = passing[from * half + q % half];
                else if (upper && q >= WARP) of[i] = 0;
                if (++from == width) from = 0, q++;
            }
            __syncwarp();
        };
        for (int upper = 0; upper < 2; upper++) {
            move((int *)sums, upper, names);
            move((double *)sums, upper, scores);
        }
        width = wider;
        clear();
    };

    // While prompt rows come the tokens' scores lie in order of their positions.
    double *early = (double *)sums;  // [p]
    for (int t = 0; t < p; t++) {
        const int stage = t % STAGES;
        barrier_wait(&desk->ready[stage], t / STAGES & 1);
        const Places rows = rows_in(stage, t);
        for (int j = lane; j <= t; j += WARP) {
            double score = j == t ? 0.0 : early[j];
            update(score, entry(rows, PLACE(j)), PLACE(j), t);
            early[j] = score;
        }
        release(t, stage);
    }
    auto widest = [&](int tokens) {  // what so many tokens take of each lane
        return (tokens + WARP * GROWTH - 1) / (WARP * GROWTH) * GROWTH;
    };
    // The stack at the prompt's end: above each token are those that come after it.
    width = widest(max(1, p - shortest));
    const int old = max(0, p - recent);
    int *order = (int *)(early + p);  // [old]
    for (int j = lane; j < old; j += WARP) {
        int above = 0;
        for (int i = 0; i < old; i++)
            above += before(key_of(early[j]), PLACE(j), key_of(early[i]), PLACE(i));
        order[above] = PLACE(j);
        book(j, 1, recent + 1 + above, p - 1, n, budgets, following, nb, lost);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < W; i++) {
        if (i / GROWTH * GROWTH >= width || lane * width + i >= old) continue;
        names[i] = order[lane * width + i];
        scores[i] = early[POSITION(names[i])];
    }
    // The window: lane q has the token of age q + 1, and all have the newest one, of age 0.
    double aged = lane + 2 <= p ? early[p - 2 - lane] : 0.0, newest = early[p - 1];
    for (int j = old + lane; j < p; j += WARP)
        book(j, 1, p - j, p - 1, n, budgets, following, nb, lost);
    __syncwarp();
    clear();

    // Step t of the window, where depth = age. Gives the token that leaves it.
    auto age = [&](int t, const Places &rows) {
        const int old = lane + 1, place = old <= min(recent, t) ? PLACE(t - old) : 0;
        const double a = entry(rows, place), own = entry(rows, PLACE(t));
        near += units_of(a), self += units_of(own);
        aged = __shfl_up_sync(ALL_LANES, aged, 1);
        if (lane == 0) aged = newest;
        update(aged, a, place, t);
        newest = 0.0;
        update(newest, own, PLACE(t), t);
#if EVENTS  // budgets smaller than the window lose its tokens by age
        for (int b = lane; b < nb && budgets[b] < recent; b += WARP)
            if (budgets[b] <= t) lost[(i64)b * n + t - budgets[b]] = t;
#endif
        Token leaving = nobody;
        const double score = recent ? __shfl_sync(ALL_LANES, aged, recent - 1) : newest;
        if (t >= recent) leaving.key = key_of(score), leaving.place = PLACE(t - recent);
        leaving.top = max(1, recent);
        return leaving;
    };

    for (int start = p; start < n;) {
        // The tokens of steps up to `stop` fit the lanes' depths.
        int stop = min(n, WARP * width + shortest);
        KEEP(stop);
        const int end = stop + WARP - 1;
        int stage = start % STAGES;
        unsigned phase = start / STAGES & 1;
        Token carry = nobody;
        for (int turn = start; turn < end;) {
            for (const int pause = min(end, turn + FLUSH); turn < pause; turn++) {
                Token fresh = nobody;
                if (turn < stop) {
                    barrier_wait(&desk->ready[stage], phase);
                    fresh = age(turn, rows_in(stage, turn));
                }
                hand_on(carry, fresh);
                const int t = turn - lane, mine = stage - lane;
                if (t >= start && t < stop)
                    walk(carry, t, rows_in(mine < 0 ? mine + STAGES : mine, t));
                const int last = stage - (WARP - 1);
                if (turn - (WARP - 1) >= start)
                    release(turn - (WARP - 1), last < 0 ? last + STAGES : last);
                if (++stage == STAGES) stage = 0, phase ^= 1;
            }
            flush();
        }
        start = stop;
        if (start < n) widen(width + GROWTH);
    }
}
