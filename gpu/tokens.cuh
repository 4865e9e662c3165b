// How a kernel with rows in shared memory identifies tokens, and which of two is evicted first.
//
// A token is identified by the byte offset of its entry in the staged row. ZEROS bytes of zeros come
// before the row; offset 0 lies there, so it means no token, and its entry is 0.
//
// Constants: HEADS, PLAIN (ranks are never negative).
#define ZEROS 16
#define OFFSET(pos) (2 * (pos) + ZEROS)
#define POSITION(offset) ((offset) / 2 - ZEROS / 2)
#define FLUSH (255 / HEADS)  // rows whose entries for one token add up to less than 2^32

// The bits of a rank, changed so that they order as unsigned integers like the ranks do.
DEVICE u64 key_of(double rank) {
#if PLAIN  // it is never negative
    return (u64)__double_as_longlong(rank);
#else
    const i64 bits = __double_as_longlong(rank + 0.0);  // no -0.0
    return (u64)bits ^ ((u64)(bits >> 63) | 1ull << 63);
#endif
}

// Whether a token is evicted before another: the lower key, among equals the older token.
DEVICE bool precedes(u64 key, int offset, u64 other_key, int other_offset) {
#ifdef H2OSIM_SHIM
    return key < other_key || (key == other_key && offset < other_offset);
#else  // one 96-bit subtraction: four instructions, where compilers emit five comparisons
    int borrow;
    asm("{ .reg .u32 rest;\n"
        "sub.cc.u32 rest, %1, %2;\n"
        "subc.cc.u32 rest, %3, %4;\n"
        "subc.cc.u32 rest, %5, %6;\n"
        "subc.u32 %0, 0, 0; }"
        : "=r"(borrow)
        : "r"(offset), "r"(other_offset), "r"((unsigned)key), "r"((unsigned)other_key),
          "r"((unsigned)(key >> 32)), "r"((unsigned)(other_key >> 32)));
    return borrow != 0;
#endif
}

// A sum of float16 entries in units of 2^-24. 2^28 + a has a last bit of 2^-24, so the low bits of
// the sum are the integer.
DEVICE unsigned units_of(double a) {
    return (unsigned)(u64)__double_as_longlong(a + 268435456.0);
}
