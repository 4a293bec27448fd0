/* A population whose device is nothing but the resample operation, in the test's hand. */
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

static int copy_op(struct backend *b, void *to, const void *from, size_t bytes)
{
    (void)b;
    memcpy(to, from, bytes);
    return 0;
}

/* smc_resample on the test's device; no failure is possible. */
static inline struct smc_stats weigh(struct population *p, enum smc_priority by, uint32_t step)
{
    enum { MAX_K = 4096 };
    static double dev[3 * MAX_K], host[3 * MAX_K];
    static const struct backend_ops ops = {
        .resample = resample_op, .upload = copy_op, .download = copy_op};
    struct backend b = {.ops = &ops};
    struct smc_device d = {&b, (char *)dev, (char *)host, MAX_K};
    struct smc_stats stats;
    struct err err;
    smc_resample(p, &d, by, step, &stats, &err);
    return stats;
}
