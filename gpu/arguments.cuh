// Argument lists that the kernels of replays share. `job_arrays` and `Tally` of h2osim/cuda/kernels
// fill them.
//
// Constants: C (configurations of a block), and those of the policy's translated rules.

// The parameters of each configuration, or of each job in a kernel without C.
#define PARAMETERS                                                                              \
    const int *ints,        /* [blocks, C, NI] its integer parameters */                        \
    const double *floats,   /* [blocks, C, NF] its fractional parameters */                     \
    const double *inputs,   /* [*, NIN, n] */                                                   \
    const i64 *inputs_at    /* [blocks, C] index of its first input */

// The nb budgets whose evictions are recorded, and the results of every budget.
#define RESULTS                                                                                 \
    const int *budgets,     /* [nb] ascending */                                                \
    const int *following,   /* [n + 2] index of the first budget of at least d */               \
    int *evicted,           /* [blocks, C, nb, n] step of each eviction */                      \
    i64 *hits               /* [blocks, C, n + 1] mass by depth, 0 at first; depth 0: every budget */

#ifdef NI
struct Parameters {  // the names are those of the translated rules
    int ip[NI + 1];
    double fp[NF + 1];
    const double *in;
};

DEVICE Parameters parameters_of(PARAMETERS, int which) {
    Parameters params;
#pragma unroll
    for (int i = 0; i < NI; i++) params.ip[i] = ints[which * NI + i];
#pragma unroll
    for (int i = 0; i < NF; i++) params.fp[i] = floats[which * NF + i];
    params.in = inputs + inputs_at[which];
    return params;
}
#endif
