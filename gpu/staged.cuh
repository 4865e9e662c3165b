// Copies rows from device memory to shared memory while other rows are computed, and the barriers
// that warps wait at for a copy or for one another.
//
// Copies have a granularity of 16 bytes, but a packed row starts at any multiple of 2 bytes. So the
// aligned 16-byte pieces that cover the row are copied, and the row begins up to 14 bytes after the
// start of its stage. One warp starts the copy; readers wait at the barrier of the stage. From
// compute capability 9.0 on the bulk copy engine copies a row by one instruction, before that each
// piece takes one. The phases of a barrier end one after the other; a warp that waits names the
// phase by its parity.
//
// Constants: HEADS, ROW (bytes of shared memory for a row of one head).
#ifdef H2OSIM_SHIM
#define OPAQUE(pointer)
#define ARRIVALS 1
// bits 0-15: arrivals in this phase; 16-31: arrivals that end it; 32-63: phases that have ended
DEVICE void barrier_start(u64 *barrier, int arrivals) { *barrier = (u64)arrivals << 16; }
DEVICE void barrier_arrive(u64 *barrier) {
    if ((u16)++*barrier == (u16)(*barrier >> 16)) *barrier += (1ull << 32) - (u16)*barrier;
}
DEVICE void barrier_wait(u64 *barrier, unsigned phase) {
    while ((*barrier >> 32 & 1) == phase) shim::pause();
}
DEVICE void stage_expect(u64 *ready, int bytes, int lane) {}
DEVICE void stage_copy(void *to, const void *from, int pieces, u64 *ready, int lane) {
    for (int i = lane; i < pieces; i += WARP)
        std::memcpy((char *)to + i * 16, (const char *)from + i * 16, 16);
}
DEVICE void stage_asked(u64 *ready, int lane) {
    __syncwarp();
    if (lane == 0) barrier_arrive(ready);
}
DEVICE double half_to_double(u16 bits) { return fixed_point(bits) * UNIT; }
#else
// Keeps a pointer to shared memory in a register; compilers would compute it again at every use.
#define OPAQUE(pointer)                                                                         \
    asm volatile("" : "+l"(pointer));                                                           \
    __builtin_assume(__isShared(pointer))
DEVICE double half_to_double(u16 bits) {
    double value;
    asm("cvt.f64.f16 %0, %1;" : "=d"(value) : "h"(bits));
    return value;
}
DEVICE unsigned address(const void *pointer) { return (unsigned)__cvta_generic_to_shared(pointer); }
#if __CUDA_ARCH__ >= 900
#define ARRIVALS 1
#define WAIT_FOR "mbarrier.try_wait.parity"
DEVICE void stage_expect(u64 *ready, int bytes, int lane) {
    if (lane == 0)
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                         address(ready)), "r"(bytes) : "memory");
}
DEVICE void stage_copy(void *to, const void *from, int pieces, u64 *ready, int lane) {
    if (lane == 0)
        asm volatile(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
            ::"r"(address(to)), "l"(from), "r"(pieces * 16), "r"(address(ready)) : "memory");
}
DEVICE void stage_asked(u64 *ready, int lane) {}
#else
#define ARRIVALS WARP
#define WAIT_FOR "mbarrier.test_wait.parity"
DEVICE void stage_expect(u64 *ready, int bytes, int lane) {}
DEVICE void stage_copy(void *to, const void *from, int pieces, u64 *ready, int lane) {
    for (int i = lane; i < pieces; i += WARP)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address(to) + i * 16),
                     "l"((const char *)from + i * 16) : "memory");
}
DEVICE void stage_asked(u64 *ready, int lane) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(address(ready)) : "memory");
}
#endif
DEVICE void barrier_start(u64 *barrier, int arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(address(barrier)), "r"(arrivals)
                 : "memory");
#if __CUDA_ARCH__ >= 900  // makes it visible to the copy engine
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
DEVICE void barrier_arrive(u64 *barrier) {
    u64 state;
    asm volatile("mbarrier.arrive.shared.b64 %0, [%1];"
                 : "=l"(state) : "r"(address(barrier)) : "memory");
}
DEVICE void barrier_wait(u64 *barrier, unsigned phase) {
    unsigned done = 0;
    while (!done)
        asm volatile(
            "{ .reg .pred p; " WAIT_FOR ".shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
            : "=r"(done) : "r"(address(barrier)), "r"(phase) : "memory");
}
#endif

// A warp starts the copy of row t of each head of a unit. The t + 1 entries of head h go to
// `stage` + h * `each` bytes.
DEVICE void stage_row(
    const u16 *bits, const i64 *base, int t, unsigned char *stage, int each, u64 *ready, int lane
) {
    int bytes = 0;
#pragma unroll
    for (int h = 0; h < HEADS; h++)
        bytes += (((int)(base[h] + tri(t)) & 7) * 2 + 2 * t + 17) & ~15;
    stage_expect(ready, bytes, lane);
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        const i64 at = base[h] + tri(t);
        const int pieces = ((int)(at & 7) * 2 + 2 * t + 17) / 16;
        stage_copy(stage + h * each, bits + (at & ~7LL), pieces, ready, lane);
    }
    stage_asked(ready, lane);
}
