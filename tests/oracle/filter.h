/* A particle filter over a toy: what the engine does to a population, without an engine. */
#pragma once
#include "population.h"
#include "toy.h"

enum { FILTER_K_MAX = 16 };

/* A toy with a twist, and a proposal as tables to draw from. */
struct plan {
    const struct toy *toy;
    double *const *psi;        /* [step] (base^step) log ψ, from step 1 */
    double *log_q[TOY_STEPS];  /* [step] (base^step, base) normalised; -inf rows where nothing is */
    double *lambda[TOY_STEPS]; /* [step] (base^step) log Σ p0 ψ */
};

enum proposal { PROPOSE_TWIST, PROPOSE_PRIOR, PROPOSE_ODD };

/* What one may do wrong. */
enum mutant { CORRECT, NO_CORRECTION, UNNORMALISED, FREEZE_FINISHED };

struct filter {
    const struct plan *plan;
    int k;
    enum resample_scheme scheme;
    double threshold;
    bool resample_first; /* before the draw, by Λ; else after it, by ψ */
    bool settle_at_end;  /* a finished particle keeps its ψ; else it takes φ at once */
    bool odd_priority;   /* a priority that is no twist, but some function of the whole cloud */
    int text;            /* slot 0 is pinned to it; -1: free */
    enum mutant mutant;
};

/* How a run ended. */
struct run {
    double log_z, ess;
    double log_w[FILTER_K_MAX], weight[FILTER_K_MAX];
    int prefix[FILTER_K_MAX], length[FILTER_K_MAX];
    double standard_log_z; /* by the textbook's bookkeeping: twisted weights, a running product */
    int resamplings;
};

static inline void plan_row(struct plan *p, int step, int prefix, enum proposal proposal)
{
    const struct toy *toy = p->toy;
    double joint[8], *log_q = p->log_q[step] + (size_t)prefix * toy->base;
    for (int v = 0; v < toy->base; v++) {
        int next = prefix * toy->base + v;
        joint[v] = toy->log_p[step][next] + p->psi[step + 1][next];
        log_q[v] = proposal == PROPOSE_TWIST ? joint[v] : toy->log_p[step][next];
        log_q[v] += proposal == PROPOSE_ODD ? 1.5 * toy_signed(13, step + 1, next) : 0;
    }
    p->lambda[step][prefix] = toy_lse(joint, toy->base);
    double total = toy_lse(log_q, toy->base);
    for (int v = 0; v < toy->base && total > -INFINITY; v++)
        log_q[v] -= total;
}

static inline void plan_open(struct plan *p, const struct toy *toy, double *const *psi,
                             enum proposal proposal)
{
    *p = (struct plan){.toy = toy, .psi = psi};
    for (int step = 0; step < toy->t; step++) {
        size_t n = (size_t)toy_power(toy, step);
        p->log_q[step] = malloc(sizeof(double) * n * (size_t)toy->base);
        p->lambda[step] = malloc(sizeof(double) * n);
        for (int prefix = 0; prefix < (int)n; prefix++)
            plan_row(p, step, prefix, proposal);
    }
}

static inline void plan_close(struct plan *p)
{
    for (int step = 0; step < p->toy->t; step++) {
        free(p->log_q[step]);
        free(p->lambda[step]);
    }
}

static inline double filter_uniform(uint64_t seed, int step, int particle)
{
    struct philox p = philox4x32(seed, (uint32_t)step, (uint32_t)particle, PHILOX_DRAW, 0);
    return philox_u01(p.v[0], p.v[1]);
}

/* -1 if nothing is possible. */
static inline int draw_token(const double *log_q, int n, double u)
{
    int last = -1;
    for (int v = 0; v < n && u >= 0; v++) {
        if (log_q[v] == -INFINITY)
            continue;
        last = v;
        u -= exp(log_q[v]);
    }
    return last;
}

/* log φ of a text that may have ended early. */
static inline double filter_phi(const struct toy *toy, int prefix, int length)
{
    for (; length < toy->t; length++)
        prefix = prefix * toy->base + toy->v; /* padding */
    return toy->log_phi[prefix];
}

static inline void filter_draw(const struct filter *f, struct population *p, struct run *r, int t,
                               int i)
{
    const struct toy *toy = f->plan->toy;
    const double *log_q = f->plan->log_q[t] + (size_t)r->prefix[i] * toy->base;
    int v = draw_token(log_q, toy->base, filter_uniform(p->seed, t, i));
    if (i == 0 && f->text >= 0)
        v = f->text / toy_power(toy, toy->t - 1 - t) % toy->base;
    if (v < 0) {
        smc_extend(p, i, -INFINITY, -INFINITY, 0);
        return;
    }
    int next = r->prefix[i] * toy->base + v;
    double unnormalised = f->mutant == UNNORMALISED ? f->plan->lambda[t][r->prefix[i]] : 0;
    smc_extend(p, i, toy->log_p[t][next], log_q[v] + unnormalised, f->plan->psi[t + 1][next]);
    r->prefix[i] = next;
    r->length[i] = t + 1;
    if (!toy_ended(toy, next, t + 1))
        return;
    p->status[i] = PARTICLE_DONE;
    if (!f->settle_at_end)
        p->lpsi[i] = filter_phi(toy, next, t + 1);
}

/* All lineages' own data follow the ancestors. */
static inline void filter_gather(struct run *r, const struct population *p)
{
    for (int i = 0; i < p->k; i++) { /* an ancestor keeps its slot: in place */
        r->prefix[i] = r->prefix[p->ancestor[i]];
        r->length[i] = r->length[p->ancestor[i]];
    }
}

static inline double odd_priority(const struct population *p, const struct run *r, int i)
{
    double mean = 0;
    for (int j = 0; j < p->k; j++)
        mean += p->lpsi[j] / p->k;
    return fmax(0.5 * (p->lpsi[i] - mean) - 0.1 * (r->prefix[i] % 3), -2);
}

/* The mutant that keeps finished particles out of the resampling. */
static inline void freeze_finished(struct population *p, const struct population *old)
{
    for (int i = 0; i < p->k; i++) {
        if (old->status[i] != PARTICLE_DONE)
            continue;
        p->status[i] = PARTICLE_DONE;
        p->L[i] = old->L[i];
        p->lpsi[i] = old->lpsi[i];
        p->ancestor[i] = i;
    }
}

static inline struct smc_stats filter_weigh(const struct filter *f, struct population *p,
                                            struct run *r, int t)
{
    double L[FILTER_K_MAX], lpsi[FILTER_K_MAX], odd[FILTER_K_MAX];
    uint8_t status[FILTER_K_MAX];
    struct population old = {.L = L, .lpsi = lpsi, .status = status};
    memcpy(L, p->L, sizeof *L * (size_t)p->k);
    memcpy(status, p->status, (size_t)p->k);
    for (int i = 0; i < p->k; i++) {
        if (f->mutant == FREEZE_FINISHED && p->status[i] == PARTICLE_DONE)
            p->status[i] = PARTICLE_DEAD;
        lpsi[i] = p->lpsi[i];
        p->lambda[i] = f->resample_first && t < f->plan->toy->t && p->status[i] == PARTICLE_LIVE
                           ? f->plan->lambda[t][r->prefix[i]]
                           : 0;
        odd[i] = odd_priority(p, r, i);
    }
    if (f->odd_priority)
        memcpy(p->lpsi, odd, sizeof *odd * (size_t)p->k);
    struct smc_stats stats =
        weigh(p, f->resample_first ? SMC_BY_LAMBDA : SMC_BY_TWIST, (uint32_t)t);
    for (int i = 0; f->mutant == NO_CORRECTION && stats.resampled && i < p->k; i++)
        p->L[i] = L[p->ancestor[i]];
    if (f->mutant == FREEZE_FINISHED)
        freeze_finished(p, &old);
    r->resamplings += stats.resampled;
    filter_gather(r, p);
    return stats;
}

/* The textbook's weights beside the module's: w includes the twist, and log_z takes their mean when
 * they are reset. */
struct standard {
    double w[FILTER_K_MAX], lpsi[FILTER_K_MAX], L[FILTER_K_MAX];
    double log_z;
};

static inline void standard_step(struct standard *s, const struct population *p)
{
    for (int i = 0; i < p->k; i++) {
        s->w[i] += p->L[i] - s->L[i] + p->lpsi[i] - s->lpsi[i];
        s->L[i] = p->L[i];
        s->lpsi[i] = p->lpsi[i];
    }
}

static inline void standard_reset(struct standard *s, const struct population *p)
{
    s->log_z += smc_lse(s->w, p->k) - log(p->k);
    for (int i = 0; i < p->k; i++) {
        s->w[i] = 0;
        s->L[i] = p->L[i];
        s->lpsi[i] = p->lpsi[i];
    }
}

static inline struct run filter_run(const struct filter *f, uint64_t seed)
{
    const struct toy *toy = f->plan->toy;
    struct arena arena = {NULL};
    struct population p;
    struct run r = {0};
    struct standard s = {0};
    double log_phi[FILTER_K_MAX];
    smc_init(&p, &arena, f->k, f->scheme, f->threshold, seed);
    p.pinned = f->text >= 0;
    for (int t = 0; t < toy->t; t++) {
        if (f->resample_first && t > 0)
            filter_weigh(f, &p, &r, t);
        for (int i = 0; i < f->k; i++)
            if (p.status[i] == PARTICLE_LIVE)
                filter_draw(f, &p, &r, t, i);
        if (f->resample_first || t == toy->t - 1)
            continue;
        standard_step(&s, &p);
        if (filter_weigh(f, &p, &r, t + 1).resampled)
            standard_reset(&s, &p);
    }
    standard_step(&s, &p);
    for (int i = 0; i < f->k; i++) {
        log_phi[i] = filter_phi(toy, r.prefix[i], r.length[i]);
        s.w[i] += log_phi[i] - p.lpsi[i];
    }
    r.log_z = smc_finish(&p, log_phi, r.log_w, r.weight, &r.ess);
    r.standard_log_z = s.log_z + smc_lse(s.w, f->k) - log(f->k);
    arena_free(&arena);
    return r;
}
