// How a kernel with rows in shared memory names tokens, and which of two tokens is evicted first.
//
// A token is identified by its place: the byte offset of its entry in the staged row, counted from
// the zeros before the row. Place 0 means no token; the entry there is 0.
//
// Constants: HEADS, PLAIN (ranks are never negative).
#define ZEROS 16
#define PLACE(pos) (2 * (pos) + ZEROS)
#define POSITION(place) ((place) / 2 - ZEROS / 2)
#define FLUSH (255 / HEADS)  // rows whose entries at one place add up to less than 2^32

// A rank's bits, arranged so that they order like the numbers do.
DEVICE u64 key_of(double rank) {
#if PLAIN  // it is never negative
    return (u64)__double_as_longlong(rank);
#else
    const i64 bits = __double_as_longlong(rank + 0.0);  // no -0.0
    return (u64)bits ^ ((u64)(bits >> 63) | 1ull << 63);
#endif
}

// Whether a token is the first of two to be evicted: the least key, the oldest among equals.
DEVICE bool before(u64 key, int place, u64 other_key, int other_place) {
#ifdef H2OSIM_SHIM
    return key < other_key || (key == other_key && place < other_place);
#else  // one subtraction of 96 bits: compilers make five comparisons of it, this three
    int borrow;
    asm("{ .reg .u32 rest;\n"
        "sub.cc.u32 rest, %1, %2;\n"
        "subc.cc.u32 rest, %3, %4;\n"
        "subc.cc.u32 rest, %5, %6;\n"
        "subc.u32 %0, 0, 0; }"
        : "=r"(borrow)
        : "r"(place), "r"(other_place), "r"((unsigned)key), "r"((unsigned)other_key),
          "r"((unsigned)(key >> 32)), "r"((unsigned)(other_key >> 32)));
    return borrow != 0;
#endif
}

// A sum of float16 entries in units of 2^-24: the low bits of a sum that has no room for less.
DEVICE unsigned units_of(double a) {
    return (unsigned)(u64)__double_as_longlong(a + 268435456.0);
}
