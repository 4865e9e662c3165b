// The argument lists that the kernels of replays share, as `job_arrays` and `Tally` fill them.
//
// Constants: C (configurations of a block), and those of the policy's rules, where translated.

// The numbers of each configuration, or of each job in a kernel without C.
#define NUMBERS                                                                                 \
    const int *ints,        /* [blocks, C, NI] its integer parameters */                          \
    const double *floats,   /* [blocks, C, NF] its fractional parameters */                           \
    const double *inputs,   /* [*, NIN, n] */                                                   \
    const i64 *inputs_at    /* [blocks, C] where its inputs start */

// The budgets whose evictions are recorded, and the arrays for the results of every budget.
#define RESULTS                                                                                 \
    const int *budgets,     /* [nb] ascending */                                                \
    const int *following,   /* [n + 2] index of the first budget of at least d */               \
    int *evicted,           /* [blocks, C, nb, n] */                                            \
    i64 *hits               /* [blocks, C, n + 1] mass by depth, zeros; depth 0: all budgets */

#ifdef NI
struct Numbers {  // under the names that the translated rules use
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
