// What kernels are told of the replays they do, as the engine's `job_arrays` and `Tally` give it.
//
// Constants: C, and those of the policy's rules, where they are translated.

// Of each configuration, or of each job of a kernel without C.
#define NUMBERS                                                                                 \
    const int *ints,        /* [blocks, C, NI] its whole parameters */                          \
    const double *floats,   /* [blocks, C, NF] its fractional ones */                           \
    const double *inputs,   /* [*, NIN, n] */                                                   \
    const i64 *inputs_at    /* [blocks, C] where its inputs start */

// Of the budgets whose evictions are recorded, and where the results of every budget go.
#define RESULTS                                                                                 \
    const int *budgets,     /* [nb] ascending */                                                \
    const int *following,   /* [n + 2] index of the first budget of at least d */               \
    int *evicted,           /* [blocks, C, nb, n] */                                            \
    i64 *hits               /* [blocks, C, n + 1] mass by depth, zeros; depth 0: all budgets */

#ifdef NI
struct Numbers {  // by the names that the rules have for them
    int ip[NI + 1];
    double fp[NF + 1];
    const double *in;
};

DEVICE Numbers numbers_of(NUMBERS, int which) {
    Numbers told;
#pragma unroll
    for (int i = 0; i < NI; i++) told.ip[i] = ints[which * NI + i];
#pragma unroll
    for (int i = 0; i < NF; i++) told.fp[i] = floats[which * NF + i];
    told.in = inputs + inputs_at[which];
    return told;
}
#endif
