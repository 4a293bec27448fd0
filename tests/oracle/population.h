/* A population whose device is nothing but the resample operation, in the test's hand. */
#pragma once
#include <stdlib.h>

#include "scripted.h"

#include "../../core/smc.h"

static int alloc_op(struct backend *b, void **out, size_t bytes)
{
    (void)b;
    *out = calloc(1, bytes);
    return 0;
}

static void release_op(struct backend *b, void *dev)
{
    (void)b;
    free(dev);
}

static int copy_op(struct backend *b, void *to, const void *from, size_t bytes)
{
    (void)b;
    memcpy(to, from, bytes);
    return 0;
}

static int resample_op(struct backend *b, const struct resample_args *args,
                       struct resample_out *out, int n)
{
    (void)b;
    cpu_resample(args, out, n);
    return 0;
}

static const struct backend_ops only_resample = {.alloc = alloc_op,
                                                 .release = release_op,
                                                 .upload = copy_op,
                                                 .download = copy_op,
                                                 .resample = resample_op};
static struct backend test_backend = {.ops = &only_resample};

/* smc_weigh of one population on the test's backend; no failure is possible. */
static inline struct smc_stats weigh(struct population *p, enum smc_priority by, uint32_t step)
{
    struct smc_weighing w = {.population = p, .by = by, .may_resample = true, .step = step};
    struct smc_device weigher;
    struct err err;
    smc_device_open(&weigher, &test_backend, p->k, 1, &err);
    smc_weigh(&weigher, &(struct smc_weighing *){&w}, 1, &err);
    smc_device_close(&weigher);
    return w.stats;
}
