/* The SMC module by exact enumeration: every draw and every cell of the resampling's uniforms is
 * run and summed, and E[log Ẑ] of free and of pinned SMC compared with the golden numbers, which
 * another program computed from another form of the same laws. E[Ẑ] = Z and, pinned, E[1/Ẑ] = 1/Z
 * hold to rounding. Such a sum sees errors that a Monte Carlo test of any affordable length misses.
 */
#include "../oracle/population.h"

#include "../oracle/toy.h"
#include "../oracle/vectors.h"

#include "../check.h"

enum { MAX_K = 4 };

/* A population by value, so that the enumeration can branch. */
struct cloud {
    double L[MAX_K], lpsi[MAX_K], lambda[MAX_K], log_rho[MAX_K];
    uint8_t status[MAX_K];
    int32_t ancestor[MAX_K];
    int prefix[MAX_K];
};

struct enumeration {
    const struct toy *toy;
    struct population setting; /* k, scheme, threshold, pinned; no arrays */
    bool twisted;              /* proposal */
    int text;                  /* the pinned particle's, or -1 */
    double z, log_z, inverse_z;
};

static struct population view(const struct enumeration *e, struct cloud *c)
{
    struct population p = e->setting;
    p.L = c->L;
    p.lpsi = c->lpsi;
    p.lambda = c->lambda;
    p.log_rho = c->log_rho;
    p.status = c->status;
    p.ancestor = c->ancestor;
    return p;
}

static void finish(struct enumeration *e, struct cloud c, double chance)
{
    double log_phi[MAX_K], log_w[MAX_K], weight[MAX_K], ess;
    struct population p = view(e, &c);
    for (int i = 0; i < p.k; i++)
        log_phi[i] = e->toy->log_phi[c.prefix[i]];
    double log_z = smc_finish(&p, log_phi, log_w, weight, &ess);
    e->z += chance * exp(log_z);
    e->log_z += chance * log_z;
    e->inverse_z += chance * exp(-log_z);
}

/* The outcomes of one resampling. */
struct outcomes {
    const struct enumeration *e;
    const struct cloud *before;
    double chance[OUTCOMES];
    struct cloud after[OUTCOMES];
};

static void try_outcome(void *ctx, double chance)
{
    struct outcomes *o = ctx;
    struct cloud c = *o->before;
    struct population p = view(o->e, &c);
    weigh(&p, SMC_BY_TWIST, 0);
    int code = outcome_of(c.ancestor, p.k);
    o->chance[code] += chance;
    for (int i = 0; i < p.k; i++)
        c.prefix[i] = o->before->prefix[c.ancestor[i]];
    o->after[code] = c;
}

static void draw(struct enumeration *e, int t, int i, const struct cloud *before, double chance);

static void resample(struct enumeration *e, int t, const struct cloud *before, double chance)
{
    struct outcomes *o = calloc(1, sizeof *o);
    double log_w[MAX_K];
    o->e = e;
    o->before = before;
    for (int i = 0; i < e->setting.k; i++)
        log_w[i] = before->L[i] + before->lpsi[i];
    struct resample_args args = {.log_w = log_w,
                                 .k = e->setting.k,
                                 .scheme = e->setting.scheme,
                                 .pinned = e->setting.pinned};
    every_outcome(&args, try_outcome, o);
    double total = 0;
    for (int code = 0; code < OUTCOMES; code++) {
        total += o->chance[code];
        if (o->chance[code] > 0)
            draw(e, t, 0, &o->after[code], chance * o->chance[code]);
    }
    EXPECT_NEAR(total, 1, 1e-11);
    free(o);
}

static void proposal(const struct enumeration *e, int t, int prefix, double *log_q)
{
    const struct toy *toy = e->toy;
    for (int v = 0; v < toy->base; v++) {
        log_q[v] = toy->log_p[t][prefix * toy->base + v];
        log_q[v] += e->twisted ? toy->log_psi[t + 1][prefix * toy->base + v] : 0;
    }
    double total = toy_lse(log_q, toy->base);
    for (int v = 0; v < toy->base; v++)
        log_q[v] -= total;
}

/* Every token for particle i, then for the next; then weigh. A pinned text gives slot 0's. */
static void draw(struct enumeration *e, int t, int i, const struct cloud *before, double chance)
{
    const struct toy *toy = e->toy;
    if (i == e->setting.k) {
        if (t == toy->t - 1)
            finish(e, *before, chance);
        else
            resample(e, t + 1, before, chance);
        return;
    }
    double log_q[8];
    int prefix = before->prefix[i];
    proposal(e, t, prefix, log_q);
    bool given = i == 0 && e->text >= 0;
    for (int v = 0; v < toy->base; v++) {
        if (given && v != e->text / toy_power(toy, toy->t - 1 - t) % toy->base)
            continue;
        struct cloud c = *before;
        struct population p = view(e, &c);
        c.prefix[i] = prefix * toy->base + v;
        smc_extend(&p, i, toy->log_p[t][c.prefix[i]], log_q[v], toy->log_psi[t + 1][c.prefix[i]]);
        draw(e, t, i + 1, &c, given ? chance : chance * exp(log_q[v]));
    }
}

static void enumerate_free(struct enumeration *e)
{
    e->z = e->log_z = e->inverse_z = 0;
    e->text = -1;
    e->setting.pinned = false;
    draw(e, 0, 0, &(struct cloud){0}, 1);
}

/* Slot 0 is an exact draw of σ. */
static void enumerate_pinned(struct enumeration *e)
{
    const struct toy *toy = e->toy;
    e->z = e->log_z = e->inverse_z = 0;
    e->setting.pinned = true;
    for (e->text = 0; e->text < toy_power(toy, toy->t); e->text++) {
        double log_sigma = toy->log_phi[e->text] - toy->log_z;
        for (int t = 0; t < toy->t; t++)
            log_sigma += toy->log_p[t][e->text / toy_power(toy, toy->t - 1 - t)];
        draw(e, 0, 0, &(struct cloud){0}, exp(log_sigma));
    }
}

static struct enumeration enumeration(const struct toy *toy, int k, enum resample_scheme scheme,
                                      double threshold, bool twisted)
{
    return (struct enumeration){
        .toy = toy,
        .setting = {.k = k, .scheme = scheme, .ess_threshold = threshold},
        .twisted = twisted,
    };
}

static void golden(const struct toy *toy, const struct golden_bounds *g)
{
    struct enumeration e = enumeration(toy, g->k, g->scheme, g->threshold, g->twisted);
    enumerate_free(&e);
    EXPECT_NEAR(e.z, exp(toy->log_z), 1e-10);
    EXPECT_NEAR(e.log_z, g->free, 1e-10);
    enumerate_pinned(&e);
    EXPECT_NEAR(e.inverse_z, exp(-toy->log_z), 1e-10);
    EXPECT_NEAR(e.log_z, g->pinned, 1e-10);
}

/* From four particles on the order matters to the systematic scheme as well, and so does where the
 * children are put: the case that a pinned scheme without a random order fails. */
static void four_particles(const struct toy *toy)
{
    struct enumeration e = enumeration(toy, 4, RESAMPLE_SYSTEMATIC, 0.95, false);
    enumerate_free(&e);
    EXPECT_NEAR(e.z, exp(toy->log_z), 1e-10);
    enumerate_pinned(&e);
    EXPECT_NEAR(e.inverse_z, exp(-toy->log_z), 1e-10);
}

int main(void)
{
    struct toy s, s2;
    toy_s(&s);
    toy_s2(&s2);
    EXPECT_NEAR(s.log_z, golden_toys[1].log_z, 1e-13);
    EXPECT_NEAR(s2.log_z, golden_toys[2].log_z, 1e-13);
    for (size_t i = 0; i < sizeof golden_bounds / sizeof *golden_bounds; i++)
        golden(strcmp(golden_bounds[i].toy, "S") == 0 ? &s : &s2, &golden_bounds[i]);
    four_particles(&s2);
    toy_close(&s);
    toy_close(&s2);
    return test_failures();
}
