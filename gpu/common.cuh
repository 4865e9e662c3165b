// Definitions for every kernel: CUDA keywords, float16 bits as integers, Python's arithmetic.
//
// Tests without a GPU compile the same text as C++. H2OSIM_SHIM is defined then, and
// tests/cuda_shim.h supplies the parts of CUDA that are used here.
#ifndef H2OSIM_SHIM
#define DEVICE __device__ __forceinline__
#define WARP 32
#define ALL_LANES 0xffffffffu
#define INF __longlong_as_double(0x7ff0000000000000LL)
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

typedef unsigned short u16;
typedef unsigned long long u64;
typedef long long i64;

#define NOT_A_RANK (-(1LL << 62))  // stands for the mass that every budget has: a rank was NaN
#define UNIT (1.0 / 16777216.0)  // 2^-24: every float16 probability is a multiple of it

// Index of row t in a packed lower triangle.
DEVICE i64 tri(i64 t) { return t * (t + 1) / 2; }

// A float16 in [0, 1], given by its bits, as an integer multiple of 2^-24.
DEVICE int fixed_point(u16 bits) {
    int exponent = bits >> 10;
    int normal = exponent > 0;
    return ((normal << 10) | (bits & 1023)) << (exponent - normal);
}

// Whether a token is evicted before another: the lower rank, among equals the older token.
DEVICE bool below(double rank, int pos, double other_rank, int other_pos) {
    return rank < other_rank || (rank == other_rank && pos < other_pos);
}

DEVICE void add(i64 *sum, i64 x) { atomicAdd((u64 *)sum, (u64)x); }

// Records, if EVENTS, that the listed budgets in top … bottom - 1 evict token j after step t.
// following[d]: index of the first listed budget of at least d.
DEVICE void record_evictions(
    int j, int top, int bottom, int t, int n, const int *budgets, const int *following, int nb,
    int *evicted
) {
#if EVENTS
    for (int b = following[top]; b < nb && budgets[b] < bottom; b++) evicted[(i64)b * n + j] = t;
#endif
}

// Python's //, %, min, max and abs, which differ from C++ in signs and in the order of equals.
DEVICE i64 py_floordiv(i64 a, i64 b) {
    i64 q = a / b;
    return q - (a % b != 0 && (a < 0) != (b < 0));
}
DEVICE i64 py_mod(i64 a, i64 b) {
    i64 r = a % b;
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
DEVICE int py_floordiv(int a, int b) {
    int q = a / b;
    return q - (a % b != 0 && (a < 0) != (b < 0));
}
DEVICE int py_mod(int a, int b) {
    int r = a % b;
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
DEVICE double py_mod(double a, double b) {
    double r = fmod(a, b);
    if (r != 0.0) return (b < 0.0) != (r < 0.0) ? r + b : r;
    return copysign(0.0, b);
}
DEVICE double py_floordiv(double a, double b) {
    double r = fmod(a, b);
    double q = (a - r) / b;
    if (r != 0.0 && (b < 0.0) != (r < 0.0)) q -= 1.0;
    if (q == 0.0) return copysign(0.0, a / b);
    double whole = floor(q);
    return q - whole > 0.5 ? whole + 1.0 : whole;
}
template <class X> DEVICE X py_min(X a, X b) { return b < a ? b : a; }
template <class X> DEVICE X py_max(X a, X b) { return b > a ? b : a; }
template <class X> DEVICE X py_abs(X a) { return a < 0 ? -a : a; }
