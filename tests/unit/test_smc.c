/* The properties that a particle filter must show, by Monte Carlo over toys whose Z is known: for
 * every scheme, schedule and proposal Ẑ is unbiased within five standard errors, exact twists have
 * no variance, and known mistakes are seen. Seeds are fixed: the test does not flicker. */
#include "../oracle/filter.h"

#include "../check.h"
#include "../mean.h"
#include "../oracle/vectors.h"

static const enum resample_scheme schemes[] = {RESAMPLE_SYSTEMATIC, RESAMPLE_STRATIFIED,
                                               RESAMPLE_MULTINOMIAL, RESAMPLE_RESIDUAL};
static const double thresholds[] = {0, 0.5, 1};
enum { N_SCHEMES = 4, N_THRESHOLDS = 3, RUNS = 15000, MARGINALS = 25 };

/* A text drawn from σ; the optimal twists' proposal is σ itself. */
static int exact_draw(const struct plan *optimal, uint64_t seed)
{
    const struct toy *toy = optimal->toy;
    int prefix = 0;
    for (int t = 0; t < toy->t; t++) {
        const double *log_q = optimal->log_q[t] + (size_t)prefix * toy->base;
        prefix = prefix * toy->base + draw_token(log_q, toy->base, filter_uniform(~seed, t, 0));
    }
    return prefix;
}

/* Ẑ / Z over many runs; its inverse if the runs are pinned by draws of `optimal`. */
static struct mean estimates(struct filter f, const struct plan *optimal, int runs)
{
    struct mean m = {0};
    for (int i = 0; i < runs; i++) {
        f.text = optimal ? exact_draw(optimal, (uint64_t)i) : -1;
        struct run r = filter_run(&f, (uint64_t)i);
        EXPECT(r.log_z < INFINITY); /* neither inf nor NaN */
        double log_ratio = r.log_z - f.plan->toy->log_z;
        mean_add(&m, exp(optimal ? -log_ratio : log_ratio));
    }
    return m;
}

static void expect_unbiased(const struct filter *f, const struct plan *optimal, int runs)
{
    struct mean m = estimates(*f, optimal, runs);
    double z = mean_z(&m, 1);
    if (fabs(z) < 5)
        return;
    check_failures++;
    fprintf(stderr,
            "scheme %d, threshold %g, k %d, resample first %d, pinned %d: mean %g, %.1f standard "
            "errors from 1\n",
            f->scheme, f->threshold, f->k, f->resample_first, optimal != NULL, m.sum / m.n, z);
}

static struct filter filter_of(const struct plan *plan, int k, enum resample_scheme scheme,
                               double threshold)
{
    return (struct filter){
        .plan = plan, .k = k, .scheme = scheme, .threshold = threshold, .text = -1};
}

static void small_functions(void)
{
    const double none[] = {-INFINITY, -INFINITY}, some[] = {-1000, -INFINITY, -1000 + log(3)};
    EXPECT_NEAR(smc_lse(none, 2), -INFINITY, 0);
    EXPECT_NEAR(smc_lse(none, 0), -INFINITY, 0);
    EXPECT_NEAR(smc_ess(none, 2), 0, 0);
    EXPECT_NEAR(smc_lse(some, 3), -1000 + log(4), 1e-12);
    EXPECT_NEAR(smc_ess(some, 3), 1.6, 1e-12);
    for (int k = 1; k <= FILTER_K_MAX; k++) {
        double equal[FILTER_K_MAX];
        for (int i = 0; i < k; i++)
            equal[i] = 5000.123;
        EXPECT_NEAR(smc_ess(equal, k), k, 1e-12);
    }
}

/* A particle that dies has weight 0, no children, and makes no NaN; so does a population. */
static void death(void)
{
    struct arena arena = {NULL};
    struct population p;
    double log_w[3], weight[3], ess, log_phi[3] = {0, 0, NAN};
    smc_init(&p, &arena, 3, RESAMPLE_SYSTEMATIC, 0.9, 1);
    smc_extend(&p, 0, -1, -2, 0.5);
    smc_extend(&p, 1, -1, -1, 0.5);
    smc_extend(&p, 2, -INFINITY, -1, 0.5);
    EXPECT(p.status[2] == PARTICLE_DEAD && p.L[2] == -INFINITY);
    EXPECT_NEAR(smc_finish(&p, log_phi, log_w, weight, &ess), log((exp(1) + 1) / 3), 1e-12);
    EXPECT(weight[2] == 0 && log_w[2] == -INFINITY);
    struct smc_stats stats = weigh(&p, SMC_BY_TWIST, 1);
    EXPECT(stats.resampled);
    EXPECT_NEAR(stats.log_mean, 0.5 + log((exp(1) + 1) / 3), 1e-12);
    EXPECT(p.status[2] == PARTICLE_LIVE && p.ancestor[2] == 0);
    EXPECT_NEAR(p.L[0], log((exp(1) + 1) / 3), 1e-12);
    for (int i = 0; i < 3; i++)
        smc_extend(&p, i, -1, -INFINITY, 0); /* forced where the proposal has nothing */
    stats = weigh(&p, SMC_BY_TWIST, 2);
    EXPECT(!stats.resampled && stats.ess == 0 && stats.log_mean == -INFINITY);
    EXPECT_NEAR(smc_finish(&p, log_phi, log_w, weight, &ess), -INFINITY, 0);
    EXPECT(ess == 0 && weight[0] == 0 && weight[1] == 0 && weight[2] == 0);
    arena_free(&arena);
}

/* Living particles are weighed by Λ, finished ones by ψ, and all of a lineage moves with it. */
static void lineage(void)
{
    struct arena arena = {NULL};
    struct population p;
    smc_init(&p, &arena, 2, RESAMPLE_SYSTEMATIC, 0.9, 1);
    p.lambda[0] = log(1e-9);
    p.status[1] = PARTICLE_DONE;
    p.L[1] = -1;
    p.lpsi[1] = 1 + log(3);
    p.lambda[1] = 77; /* stale: it takes no more tokens */
    struct smc_stats stats = weigh(&p, SMC_BY_LAMBDA, 1);
    EXPECT(stats.resampled && p.ancestor[0] == 1 && p.ancestor[1] == 1);
    EXPECT_NEAR(stats.log_mean, log(1.5), 1e-8);
    for (int i = 0; i < 2; i++) {
        EXPECT(p.status[i] == PARTICLE_DONE && p.lambda[i] == 77);
        EXPECT_NEAR(p.lpsi[i], 1 + log(3), 0);
        EXPECT_NEAR(p.L[i], -1 - log(2), 1e-8);
    }
    arena_free(&arena);
}

/* Every run of the optimal twists gives Z, whatever the schedule; constants per step only matter to
 * the priorities. */
static void exact_twists(const struct toy *toy)
{
    double *shifted[TOY_STEPS + 1] = {NULL};
    for (int t = 1; t <= toy->t; t++) {
        int n = toy_power(toy, t);
        shifted[t] = malloc(sizeof(double) * (size_t)n);
        for (int i = 0; i < n; i++)
            shifted[t][i] = toy->optimal[t][i] + 3 * toy_signed(9, t, 0);
    }
    double *const *twists[] = {toy->optimal, shifted};
    for (int twist = 0; twist < 2; twist++) {
        struct plan plan;
        plan_open(&plan, toy, twists[twist], PROPOSE_TWIST);
        for (int s = 0; s < N_SCHEMES; s++)
            for (int i = 0; i < 2 * N_THRESHOLDS; i++) {
                struct filter f = filter_of(&plan, 8, schemes[s], thresholds[i / 2]);
                f.resample_first = i % 2;
                for (uint64_t seed = 0; seed < 20; seed++)
                    EXPECT_NEAR(filter_run(&f, seed).log_z, toy->log_z, 1e-11);
            }
        plan_close(&plan);
    }
    for (int t = 1; t <= toy->t; t++)
        free(shifted[t]);
}

/* A last twist that is not φ leaves Ẑ unbiased and takes its exactness. */
static void wrong_last_twist(const struct toy *toy)
{
    double *psi[TOY_STEPS + 1];
    struct plan plan;
    memcpy(psi, toy->optimal, sizeof psi);
    psi[toy->t] = calloc((size_t)toy_power(toy, toy->t), sizeof(double));
    plan_open(&plan, toy, psi, PROPOSE_TWIST);
    struct filter f = filter_of(&plan, 8, RESAMPLE_SYSTEMATIC, 1);
    struct mean m = estimates(f, NULL, RUNS);
    EXPECT(fabs(mean_z(&m, 1)) < 5);
    EXPECT(mean_variance(&m) > 1e-5);
    plan_close(&plan);
    free(psi[toy->t]);
}

static void every_combination(const struct toy *toy)
{
    for (enum proposal proposal = PROPOSE_TWIST; proposal <= PROPOSE_ODD; proposal++) {
        struct plan plan;
        plan_open(&plan, toy, toy->log_psi, proposal);
        for (int s = 0; s < N_SCHEMES; s++)
            for (int i = 0; i < N_THRESHOLDS; i++) {
                struct filter f = filter_of(&plan, 4, schemes[s], thresholds[i]);
                expect_unbiased(&f, NULL, RUNS);
            }
        plan_close(&plan);
    }
}

static void other_forms(const struct toy *toy)
{
    struct plan plan;
    plan_open(&plan, toy, toy->log_psi, PROPOSE_TWIST);
    struct filter f = filter_of(&plan, 8, RESAMPLE_SYSTEMATIC, 0.6);
    int resamplings = 0;
    for (uint64_t seed = 0; seed < 2000; seed++) {
        struct run r = filter_run(&f, seed);
        EXPECT_NEAR(r.log_z, r.standard_log_z, 1e-10);
        resamplings += r.resamplings;
    }
    EXPECT(resamplings > 2000);

    f.odd_priority = true;
    expect_unbiased(&f, NULL, RUNS);
    f = filter_of(&plan, 1, RESAMPLE_SYSTEMATIC, 1);
    expect_unbiased(&f, NULL, 4 * RUNS);
    plan_close(&plan);
}

/* With a twist over the whole vocabulary the weight is known before the draw. */
static void resample_before_draw(const struct toy *toy)
{
    struct plan plan;
    plan_open(&plan, toy, toy->log_psi, PROPOSE_TWIST);
    for (int s = 0; s < N_SCHEMES; s++) {
        struct filter f = filter_of(&plan, 8, schemes[s], 1);
        struct mean after = estimates(f, NULL, RUNS);
        f.resample_first = true;
        struct mean before = estimates(f, NULL, RUNS);
        EXPECT(fabs(mean_z(&after, 1)) < 5);
        EXPECT(fabs(mean_z(&before, 1)) < 5);
        EXPECT(mean_variance(&before) < 0.8 * mean_variance(&after));
    }
    plan_close(&plan);
}

static void conditional(const struct toy *toy)
{
    struct plan plan, optimal;
    plan_open(&plan, toy, toy->log_psi, PROPOSE_TWIST);
    plan_open(&optimal, toy, toy->optimal, PROPOSE_TWIST);
    for (int s = 0; s < N_SCHEMES; s++)
        for (int i = 0; i < 4; i++) {
            struct filter f = filter_of(&plan, 4, schemes[s], i / 2 ? 1 : 0.6);
            f.resample_first = i % 2;
            expect_unbiased(&f, &optimal, RUNS);
        }
    plan_close(&plan);
    plan_close(&optimal);
}

static int digit(const struct toy *toy, int text, int t)
{
    return text / toy_power(toy, toy->t - 1 - t) % toy->base;
}

/* E[Ẑ Σ_k W_k f(s_k)] = Z E_σ[f] at any k, for the 25 indicators of a token at a place. */
static void proper_weights(const struct toy *toy)
{
    struct plan plan;
    struct mean m[MARGINALS] = {0};
    double want[MARGINALS] = {0};
    plan_open(&plan, toy, toy->log_psi, PROPOSE_TWIST);
    for (int text = 0; text < toy_power(toy, toy->t); text++) {
        double log_sigma = toy->log_phi[text] - toy->log_z;
        for (int t = 0; t < toy->t; t++)
            log_sigma += toy->log_p[t][text / toy_power(toy, toy->t - 1 - t)];
        for (int t = 0; t < toy->t; t++)
            want[t * toy->v + digit(toy, text, t)] += exp(log_sigma);
    }
    struct filter f = filter_of(&plan, 8, RESAMPLE_SYSTEMATIC, 0.5);
    for (uint64_t seed = 0; seed < RUNS; seed++) {
        struct run r = filter_run(&f, seed);
        double share[MARGINALS] = {0};
        for (int i = 0; i < f.k; i++)
            for (int t = 0; t < toy->t; t++)
                share[t * toy->v + digit(toy, r.prefix[i], t)] += r.weight[i];
        for (int i = 0; i < MARGINALS; i++)
            mean_add(&m[i], exp(r.log_z - toy->log_z) * share[i]);
    }
    for (int i = 0; i < MARGINALS; i++)
        EXPECT(fabs(mean_z(&m[i], want[i])) < 5);
    plan_close(&plan);
}

/* φ is 1 on few texts and 0 on the others: nearly every run dies, and a dead run counts as Ẑ = 0.
 */
static void hard_constraint(void)
{
    struct toy toy;
    struct plan plan, optimal;
    toy_a(&toy);
    for (int text = 0; text < toy_power(&toy, toy.t); text++) {
        bool has_4 = false;
        for (int t = 0; t < toy.t; t++)
            has_4 |= digit(&toy, text, t) == 4;
        bool rare = has_4 && text % 5 == 2 && toy_uniform(23, 0, (uint64_t)text, 0) < 0.05;
        toy.log_phi[text] = rare ? 0 : -INFINITY;
    }
    double *psi[TOY_STEPS + 1] = {NULL}, noise[3125];
    for (int i = 0; i < 3125; i++)
        noise[i] = toy_signed(11, 5, (uint64_t)i);
    for (int t = 1; t <= toy.t; t++)
        psi[t] = t == toy.t ? noise : toy.log_psi[t];
    toy_solve(&toy);
    plan_open(&plan, &toy, psi, PROPOSE_TWIST);
    plan_open(&optimal, &toy, toy.optimal, PROPOSE_TWIST);

    struct filter f = filter_of(&plan, 4, RESAMPLE_SYSTEMATIC, 0.5);
    expect_unbiased(&f, NULL, 10 * RUNS);
    f.text = -1;
    int dead = 0;
    for (uint64_t seed = 0; seed < 1000; seed++)
        dead += filter_run(&f, seed).log_z == -INFINITY;
    EXPECT(dead > 500 && dead < 1000);
    for (uint64_t seed = 0; seed < 1000; seed++) {
        f.text = exact_draw(&optimal, seed);
        EXPECT(isfinite(filter_run(&f, seed).log_z)); /* a pinned run never dies */
    }
    f = filter_of(&optimal, 4, RESAMPLE_SYSTEMATIC, 1); /* its twists are -inf off the support */
    for (uint64_t seed = 0; seed < 100; seed++)
        EXPECT_NEAR(filter_run(&f, seed).log_z, toy.log_z, 1e-11);
    plan_close(&plan);
    plan_close(&optimal);
    toy_close(&toy);
}

/* Finished particles stay: their twist settled at the end, or φ taken at once, which costs dearly
 * when the twists of the living are off the scale of φ. */
static void early_ends(void)
{
    double variance[2][2];
    for (int off_scale = 0; off_scale < 2; off_scale++) {
        struct toy toy;
        struct plan plan, optimal;
        toy_eos(&toy, off_scale ? 6 : 0);
        EXPECT_NEAR(toy.log_z, golden_toys[3].log_z, 1e-12);
        plan_open(&plan, &toy, toy.log_psi, PROPOSE_TWIST);
        plan_open(&optimal, &toy, toy.optimal, PROPOSE_TWIST);
        for (int settle = 0; settle < 2; settle++) {
            struct filter f = filter_of(&plan, 8, RESAMPLE_SYSTEMATIC, 0.5);
            f.settle_at_end = settle;
            struct mean m = estimates(f, NULL, off_scale ? 4 * RUNS : RUNS);
            EXPECT(fabs(mean_z(&m, 1)) < 5);
            variance[off_scale][settle] = mean_variance(&m);
            f.resample_first = true;
            expect_unbiased(&f, NULL, RUNS);
            expect_unbiased(&f, &optimal, off_scale ? 100 : RUNS);
        }
        struct filter f = filter_of(&optimal, 8, RESAMPLE_SYSTEMATIC, 1);
        for (uint64_t seed = 0; seed < 50; seed++)
            EXPECT_NEAR(filter_run(&f, seed).log_z, toy.log_z, 1e-11);
        plan_close(&plan);
        plan_close(&optimal);
        toy_close(&toy);
    }
    EXPECT(variance[1][0] > 10 * variance[1][1]);
    EXPECT(variance[0][0] < 2 * variance[0][1]);
}

static void expect_caught(struct filter f, enum mutant mutant)
{
    f.mutant = mutant;
    struct mean m = estimates(f, NULL, 4 * RUNS);
    EXPECT(fabs(mean_z(&m, 1)) > 8);
}

/* The tests above have the power to see these. */
static void mistakes(const struct toy *toy)
{
    struct toy eos;
    struct plan plan, eos_plan;
    plan_open(&plan, toy, toy->log_psi, PROPOSE_TWIST);
    toy_eos(&eos, 0);
    plan_open(&eos_plan, &eos, eos.log_psi, PROPOSE_TWIST);
    struct filter f = filter_of(&plan, 4, RESAMPLE_SYSTEMATIC, 0.9);
    struct filter g = filter_of(&eos_plan, 4, RESAMPLE_SYSTEMATIC, 0.9);
    g.settle_at_end = true;
    expect_caught(f, NO_CORRECTION);
    expect_caught(f, UNNORMALISED);
    expect_caught(g, FREEZE_FINISHED);
    plan_close(&plan);
    plan_close(&eos_plan);
    toy_close(&eos);
}

static void choices(enum resample_scheme scheme)
{
    enum { K = 5, DRAWS = 7, SEEDS = 20000 };
    const double weight[K] = {0.1, 0, 0.45, 0.3, 0.15};
    double count[K] = {0};
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        int32_t index[DRAWS];
        double own[K] = {0};
        smc_choose(weight, K, scheme, seed, DRAWS, index);
        for (int i = 0; i < DRAWS; i++) {
            own[index[i]]++;
            count[index[i]]++;
        }
        for (int i = 0; i < K; i++) {
            EXPECT(scheme != RESAMPLE_SYSTEMATIC || fabs(own[i] - DRAWS * weight[i]) < 1);
            EXPECT(scheme != RESAMPLE_STRATIFIED || fabs(own[i] - DRAWS * weight[i]) < 2);
            EXPECT(scheme != RESAMPLE_RESIDUAL || own[i] >= floor(DRAWS * weight[i]));
            EXPECT(weight[i] > 0 || own[i] == 0);
        }
    }
    for (int i = 0; i < K; i++)
        EXPECT_NEAR(count[i] / SEEDS, DRAWS * weight[i], 5 * sqrt(DRAWS * weight[i] / SEEDS));
}

int main(void)
{
    struct toy a;
    toy_a(&a);
    EXPECT_NEAR(a.log_z, golden_toys[0].log_z, 1e-12);
    for (int v = 0; v < a.v; v++)
        EXPECT_NEAR(a.optimal[1][v], golden_toys[0].log_psi_1[v], 1e-12);
    small_functions();
    death();
    lineage();
    exact_twists(&a);
    wrong_last_twist(&a);
    every_combination(&a);
    other_forms(&a);
    resample_before_draw(&a);
    conditional(&a);
    proper_weights(&a);
    hard_constraint();
    early_ends();
    mistakes(&a);
    for (int s = 0; s < N_SCHEMES; s++)
        choices(schemes[s]);
    toy_close(&a);
    return test_failures();
}
