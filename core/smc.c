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

/* The arrays of all populations of a call, one population behind the other, in one piece of memory:
 * what goes there, then what comes back. */
struct block {
    double *log_w;            /* (particles) */
    double *log_rho;          /* (particles) */
    struct resample_out *out; /* (populations) */
    int32_t *ancestor;        /* (particles) */
    char *end;
};

static struct block block_at(void *base, int particles, int populations)
{
    struct block at = {.log_w = base};
    at.log_rho = at.log_w + particles;
    at.out = (void *)(at.log_rho + particles);
    at.ancestor = (void *)(at.out + populations);
    at.end = (void *)(at.ancestor + particles);
    return at;
}

static size_t block_bytes(int particles, int populations)
{
    const size_t particle = 2 * sizeof(double) + sizeof(int32_t);
    return (size_t)particles * particle + (size_t)populations * sizeof(struct resample_out);
}

int smc_device_open(struct smc_device *d, struct backend *b, int max_particles, int max_populations,
                    struct err *err)
{
    const size_t bytes = block_bytes(max_particles, max_populations);
    *d = (struct smc_device){
        .b = b, .max_particles = max_particles, .max_populations = max_populations};
    d->host = calloc(1, bytes);
    d->args = calloc((size_t)max_populations, sizeof *d->args);
    CHECK(d->host && d->args && "out of memory");
    return b->ops->alloc(b, &d->dev, bytes) ? err_set(err, ERR_INTERNAL, "%s", b->why) : 0;
}

void smc_device_close(struct smc_device *d)
{
    if (d->dev)
        d->b->ops->release(d->b, d->dev);
    free(d->host);
    free(d->args);
}

/* Priorities into the host's block; arguments that point into the device's. */
static void stage(struct smc_device *d, struct smc_weighing *const *w, int n,
                  const struct block *host, const struct block *dev)
{
    for (int i = 0, at = 0; i < n; i++) {
        const struct population *p = w[i]->population;
        d->args[i] = (struct resample_args){
            .log_w = dev->log_w + at,
            .ancestor = dev->ancestor + at,
            .log_rho = dev->log_rho + at,
            .k = p->k,
            .scheme = p->scheme,
            .ess_threshold = w[i]->may_resample ? p->ess_threshold : 0,
            .pinned = p->pinned,
            .seed = p->seed,
            .step = w[i]->step,
        };
        for (int k = 0; k < p->k; k++)
            host->log_w[at++] = priority(p, k, w[i]->by);
    }
}

/* There, and back: the one wait for the device. */
static int weigh_on_device(struct smc_device *d, int n, const struct block *host,
                           const struct block *dev)
{
    struct backend *b = d->b;
    const size_t there = (size_t)((char *)host->log_rho - (char *)host->log_w);
    const size_t back = (size_t)(host->end - (char *)host->log_rho);
    return b->ops->upload(b, dev->log_w, host->log_w, there) ||
           b->ops->resample(b, d->args, dev->out, n) ||
           b->ops->download(b, host->log_rho, dev->log_rho, back);
}

static void take(struct smc_weighing *w, const struct resample_out *out, const double *log_rho,
                 const int32_t *ancestor)
{
    struct population *p = w->population;
    memcpy(p->log_rho, log_rho, (size_t)p->k * sizeof *log_rho);
    memcpy(p->ancestor, ancestor, (size_t)p->k * sizeof *ancestor);
    if (out->resampled)
        inherit(p);
    w->stats = (struct smc_stats){out->log_mean, out->ess, out->resampled != 0};
}

int smc_weigh(struct smc_device *d, struct smc_weighing *const *w, int n, struct err *err)
{
    int particles = 0;
    for (int i = 0; i < n; i++)
        particles += w[i]->population->k;
    if (n == 0)
        return 0;
    CHECK(n <= d->max_populations && particles <= d->max_particles);
    const struct block host = block_at(d->host, particles, n), dev = block_at(d->dev, particles, n);
    stage(d, w, n, &host, &dev);
    if (weigh_on_device(d, n, &host, &dev) != 0)
        return err_set(err, ERR_INTERNAL, "%s", d->b->why);
    for (int i = 0, at = 0; i < n; at += w[i++]->population->k)
        take(w[i], &host.out[i], host.log_rho + at, host.ancestor + at);
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
