// Runs CUDA text as C++ on one CPU thread: a block's threads are fibers that take turns at barriers.
//
// Blocks run one after the other, so __shared__ is a static variable. Warps have WARP lanes (4), so
// that a block of 8 threads has two of them. A fiber runs until it must wait, so a missing barrier
// shows as a wrong result rather than as luck; in what order fibers go on is set by `order`.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <utility>

#define H2OSIM_SHIM
#define DEVICE static inline
#define WARP 4
#define ALL_LANES 0xfu
#define INF __builtin_inf()
#define __global__
#define __shared__ static
#define __launch_bounds__(...)
#define __restrict__
#define DYNAMIC_SHARED(name) unsigned char *name = shim::shared
using std::copysign;
using std::fabs;
using std::floor;
using std::fmod;
using std::sqrt;

struct Index {
    int x;
};
static Index threadIdx, blockIdx, blockDim;

namespace shim {
const int MOST = 64, STACK = 1 << 18;
alignas(16) static unsigned char shared[1 << 20];
static ucontext_t home, fibers[MOST];
static bool done[MOST];
static int threads, alive, waiting, turn;
static int warp_waiting[MOST], warp_turn[MOST];
static uint64_t slots[MOST];
static unsigned char *stacks;

static void pause() {
    int me = threadIdx.x;
    swapcontext(&fibers[me], &home);
    threadIdx.x = me;
}

static void barrier(int &count, int &generation, int all) {
    int mine = generation;
    if (++count == all) {
        count = 0;
        generation++;
    } else {
        while (generation == mine) pause();
    }
}

static void warp_barrier() {
    int w = threadIdx.x / WARP;
    barrier(warp_waiting[w], warp_turn[w], WARP);
}

template <class X> static X exchange(X value, int lane) {
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    slots[threadIdx.x] = bits;
    warp_barrier();
    bits = slots[threadIdx.x / WARP * WARP + lane];
    warp_barrier();
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

template <class... A, size_t... I>
static void invoke(void (*f)(A...), void **args, std::index_sequence<I...>) {
    f(*(A *)args[I]...);
}

struct Call {
    void (*go)(void *, void **);
    void *kernel;
    void **args;
};
static Call call;

static void fiber() {
    call.go(call.kernel, call.args);
    int me = threadIdx.x;
    done[me] = true;
    alive--;
    swapcontext(&fibers[me], &home);
}

// order: 0 first thread first, 1 last thread first. Gives how many bytes beyond the `bytes` of shared
// memory that were asked for some block has written to.
template <class... A>
static int launch(void (*f)(A...), int grid, int width, int bytes, void **args, int order) {
    int beyond = 0;
    if (!stacks) stacks = (unsigned char *)std::malloc((size_t)MOST * STACK);
    typedef void (*Kernel)(A...);
    call.go = [](void *kernel, void **given) {
        invoke((Kernel)kernel, given, std::index_sequence_for<A...>{});
    };
    call.kernel = (void *)f;
    call.args = args;
    threads = width;
    blockDim.x = width;
    for (int b = 0; b < grid; b++) {
        blockIdx.x = b;
        alive = width;
        waiting = turn = 0;
        std::memset(shared, 0xa5, sizeof shared);
        for (int i = 0; i < width; i++) {
            done[i] = false;
            warp_waiting[i] = warp_turn[i] = 0;
            getcontext(&fibers[i]);
            fibers[i].uc_stack.ss_sp = stacks + (size_t)i * STACK;
            fibers[i].uc_stack.ss_size = STACK;
            fibers[i].uc_link = &home;
            makecontext(&fibers[i], fiber, 0);
        }
        while (alive) {
            for (int i = 0; i < width; i++) {
                int who = order ? width - 1 - i : i;
                if (done[who]) continue;
                threadIdx.x = who;
                swapcontext(&home, &fibers[who]);
            }
        }
        for (int i = bytes; i < (int)sizeof shared; i++) beyond += shared[i] != 0xa5;
    }
    return beyond;
}
}  // namespace shim

static void __syncthreads() { shim::barrier(shim::waiting, shim::turn, shim::threads); }
static void __syncwarp() { shim::warp_barrier(); }
static void __threadfence_block() {}
template <class X> static X __shfl_up_sync(unsigned, X x, int far) {
    int lane = threadIdx.x % WARP;
    return shim::exchange(x, lane >= far ? lane - far : lane);
}
template <class X> static X __shfl_xor_sync(unsigned, X x, int with) {
    return shim::exchange(x, (threadIdx.x % WARP) ^ with);
}
template <class X> static X __shfl_sync(unsigned, X x, int from) {
    return shim::exchange(x, from % WARP);
}
static unsigned __ballot_sync(unsigned, int yes) {
    unsigned found = 0;
    for (int lane = 0; lane < WARP; lane++) found |= (unsigned)!!shim::exchange(yes, lane) << lane;
    return found;
}
static unsigned __reduce_or_sync(unsigned, unsigned x) {
    unsigned found = 0;
    for (int lane = 0; lane < WARP; lane++) found |= shim::exchange(x, lane);
    return found;
}
static unsigned __reduce_min_sync(unsigned, unsigned x) {
    unsigned least = x;
    for (int lane = 0; lane < WARP; lane++) {
        const unsigned other = shim::exchange(x, lane);
        least = other < least ? other : least;
    }
    return least;
}
static int __popc(unsigned x) { return __builtin_popcount(x); }
static int __ffs(unsigned x) { return __builtin_ffs((int)x); }
static double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
static long long __double_as_longlong(double x) {
    long long bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
static double __longlong_as_double(long long bits) {
    double x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
static double half_value(unsigned short bits) {
    int exponent = bits >> 10, fraction = bits & 1023;
    return std::ldexp((double)(exponent ? fraction | 1024 : fraction), (exponent ? exponent : 1) - 25);
}
static int __any_sync(unsigned mask, int yes) { return __ballot_sync(mask, yes) != 0; }
static unsigned long long atomicAdd(unsigned long long *to, unsigned long long x) {
    unsigned long long old = *to;
    *to = old + x;
    return old;
}
static int atomicAdd(int *to, int x) {
    int old = *to;
    *to = old + x;
    return old;
}
template <class X> static X min(X a, X b) { return b < a ? b : a; }
template <class X> static X max(X a, X b) { return a < b ? b : a; }
