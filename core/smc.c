#include "smc.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../kernels/philox.h"

void smc_init(struct population *p, struct arena *arena, int k, enum resample_scheme scheme,
              double ess_threshold, uint64_t seed)
{
    *p = (struct population){
        .k = k,
        .L = ARENA_NEW(arena, double, k),
        .lpsi = ARENA_NEW(arena, double, k),
        .lambda = ARENA_NEW(arena, double, k),
        .status = ARENA_NEW(arena, uint8_t, k),
        .ancestor = ARENA_NEW(arena, int32_t, k),
        .log_rho = ARENA_NEW(arena, double, k),
        .scheme = scheme,
        .ess_threshold = ess_threshold,
        .seed = seed,
    };
}

/* What particle i is weighed by. The dead are skipped rather than added up: -inf + inf is NaN. */
static double priority(const struct population *p, int i, enum smc_priority by)
{
    if (p->status[i] == PARTICLE_DEAD)
        return -INFINITY;
    bool ahead = by == SMC_BY_LAMBDA && p->status[i] == PARTICLE_LIVE;
    return p->L[i] + (ahead ? p->lambda[i] : p->lpsi[i]);
}

/* All that belongs to a lineage follows its ancestor. In place: an ancestor keeps its own slot, so
 * it is never overwritten before it is read. L is corrected for what the resampling favoured. */
static void inherit(struct population *p)
{
    for (int j = 0; j < p->k; j++) {
        int a = p->ancestor[j];
        p->L[j] = p->L[a];
        p->lpsi[j] = p->lpsi[a];
        p->lambda[j] = p->lambda[a];
        p->status[j] = p->status[a];
    }
    for (int j = 0; j < p->k; j++)
        p->L[j] -= log(p->k) + p->log_rho[p->ancestor[j]];
}

/* ---- on the device ---- */

/* A population's arrays in one piece of memory: what goes there, then what comes back. */
struct block {
    double *log_w;            /* (k) */
    struct resample_out *out; /* one */
    double *log_rho;          /* (k) */
    int32_t *ancestor;        /* (k) */
};

static struct block block_at(char *base, int k)
{
    struct block at = {.log_w = (void *)base};
    at.out = (void *)(at.log_w + k);
    at.log_rho = (void *)(at.out + 1);
    at.ancestor = (void *)(at.log_rho + k);
    return at;
}

static size_t bytes_there(int k)
{
    return (size_t)k * sizeof(double);
}

static size_t bytes_back(int k)
{
    return sizeof(struct resample_out) + (size_t)k * (sizeof(double) + sizeof(int32_t));
}

int smc_device_open(struct smc_device *d, struct backend *b, int max_k, struct err *err)
{
    const size_t bytes = bytes_there(max_k) + bytes_back(max_k);
    void *dev;
    *d = (struct smc_device){.b = b, .max_k = max_k};
    d->host = calloc(1, bytes);
    CHECK(d->host && "out of memory");
    if (b->ops->alloc(b, &dev, bytes) != 0)
        return err_set(err, ERR_INTERNAL, "%s", b->why);
    d->dev = dev;
    return 0;
}

void smc_device_close(struct smc_device *d)
{
    if (d->dev)
        d->b->ops->release(d->b, d->dev);
    free(d->host);
}

int smc_resample(struct population *p, struct smc_device *d, enum smc_priority by, uint32_t step,
                 struct smc_stats *stats, struct err *err)
{
    struct backend *b = d->b;
    CHECK(p->k <= d->max_k);
    const struct block dev = block_at(d->dev, p->k), host = block_at(d->host, p->k);
    const struct resample_args args = {
        .log_w = dev.log_w,
        .ancestor = dev.ancestor,
        .log_rho = dev.log_rho,
        .k = p->k,
        .scheme = p->scheme,
        .ess_threshold = p->ess_threshold,
        .pinned = p->pinned,
        .seed = p->seed,
        .step = step,
    };
    for (int i = 0; i < p->k; i++)
        host.log_w[i] = priority(p, i, by);
    if (b->ops->upload(b, dev.log_w, host.log_w, bytes_there(p->k)) ||
        b->ops->resample(b, &args, dev.out, 1) ||
        b->ops->download(b, host.out, dev.out, bytes_back(p->k)))
        return err_set(err, ERR_INTERNAL, "%s", b->why);
    memcpy(p->log_rho, host.log_rho, (size_t)p->k * sizeof *p->log_rho);
    memcpy(p->ancestor, host.ancestor, (size_t)p->k * sizeof *p->ancestor);
    if (host.out->resampled)
        inherit(p);
    *stats = (struct smc_stats){host.out->log_mean, host.out->ess, host.out->resampled != 0};
    return 0;
}

/* ---- on the host ---- */

void smc_extend(struct population *p, int i, double log_p0, double log_q, double lpsi)
{
    if (log_p0 == -INFINITY || log_q == -INFINITY) {
        p->L[i] = -INFINITY;
        p->status[i] = PARTICLE_DEAD;
        return;
    }
    p->L[i] += log_p0 - log_q;
    p->lpsi[i] = lpsi;
}

double smc_finish(const struct population *p, const double *log_phi, double *log_w, double *weight,
                  double *ess)
{
    for (int i = 0; i < p->k; i++)
        log_w[i] = p->status[i] == PARTICLE_DEAD ? -INFINITY : p->L[i] + log_phi[i];
    double total = smc_lse(log_w, p->k);
    for (int i = 0; i < p->k; i++)
        weight[i] = total == -INFINITY ? 0 : exp(log_w[i] - total);
    *ess = smc_ess(log_w, p->k);
    return total - log(p->k);
}

/* Σ exp(scale (x - max)); the caller knows that max is finite. */
static double sum_exp(const double *x, int n, double scale, double max)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += exp(scale * (x[i] - max));
    return sum;
}

static double maximum(const double *x, int n)
{
    double max = -INFINITY;
    for (int i = 0; i < n; i++)
        max = fmax(max, x[i]);
    return max;
}

double smc_lse(const double *x, int n)
{
    double max = maximum(x, n);
    return max == -INFINITY ? -INFINITY : max + log(sum_exp(x, n, 1, max));
}

double smc_ess(const double *x, int n)
{
    double max = maximum(x, n);
    if (max == -INFINITY)
        return 0;
    double sum = sum_exp(x, n, 1, max);
    return sum * sum / sum_exp(x, n, 2, max);
}

/* Certain copies among n draws of a particle with this weight. */
static int copies(double weight, int n)
{
    return (int)(n * weight);
}

/* The particle whose interval holds point, when the intervals are as long as the particles'
 * expected numbers among n draws, less their certain copies if `residual`. A point that rounding
 * puts beyond the last interval belongs to that one. */
static int owner(const double *weight, int k, int n, bool residual, double point)
{
    double sum = 0;
    int last = 0;
    for (int i = 0; i < k && sum <= point; i++) {
        double share = n * weight[i] - (residual ? copies(weight[i], n) : 0);
        if (share <= 0)
            continue;
        sum += share;
        last = i;
    }
    return last;
}

void smc_choose(const double *weight, int k, enum resample_scheme scheme, uint64_t seed, int n,
                int32_t *index)
{
    bool residual = scheme == RESAMPLE_RESIDUAL;
    bool strata = scheme == RESAMPLE_SYSTEMATIC || scheme == RESAMPLE_STRATIFIED;
    int certain = 0;
    for (int i = 0; residual && i < k; i++)
        for (int c = copies(weight[i], n); c > 0 && certain < n; c--)
            index[certain++] = i;
    for (int m = certain; m < n; m++) {
        uint32_t lane = scheme == RESAMPLE_SYSTEMATIC ? 0 : (uint32_t)m;
        struct philox random = philox4x32(seed, 0, 0, PHILOX_CHOICE, lane);
        double u = philox_u01(random.v[0], random.v[1]);
        double point = strata ? m + u : u * (n - certain);
        index[m] = owner(weight, k, n, residual, point);
    }
}
