/* A population whose backend is nothing but the resample operation, in the test's hand. */
#pragma once
#include "scripted.h"

#include "../../core/smc.h"

static int resample_op(struct backend *b, const struct resample_args *args,
                       struct resample_out *out, int n)
{
    (void)b;
    cpu_resample(args, out, n);
    return 0;
}

static const struct backend_ops only_resample = {.resample = resample_op};
static struct backend test_backend = {.ops = &only_resample};

/* smc_resample on the test's backend; no failure is possible. */
static inline struct smc_stats weigh(struct population *p, enum smc_priority by, uint32_t step)
{
    struct smc_stats stats;
    struct err err;
    smc_resample(p, &test_backend, by, step, &stats, &err);
    return stats;
}
