/* The losses against exact objectives. A toy whose laws are dyadic can be put into a population
 * whole; then each method's gradient must be that of its objective, a sum over all texts written
 * down here from its definition, which finite differences differentiate. */
#include "../oracle/learner.h"

#include "../check.h"

enum { WIDEST = 64 }; /* prefixes of a step, at most */

static const enum twist_method methods[] = {TWIST_CTL, TWIST_RL, TWIST_SIXO, TWIST_FUDGE,
                                            TWIST_DPG};

/* ---- the objectives, over padded texts */

/* x_t: log ψ of the first t tokens, or of all of a text that ended before. */
static double x_of(const struct toy *toy, int text, int t)
{
    int n = toy_length(toy, text);
    n = t < n ? t : n;
    return toy->log_psi[n][toy_prefix(toy, text, n)];
}

static bool is_text(const struct toy *toy, int text)
{
    return toy_log_p(toy, text) > -INFINITY;
}

static double sigma_of(const struct toy *toy, int text)
{
    return exp(toy_log_p(toy, text) + toy->log_phi[text] - toy->log_z);
}

static int n_texts(const struct toy *toy)
{
    return toy_power(toy, toy->t);
}

static double log_sigmoid(double z)
{
    return -log1p(exp(-z));
}

/* Σ_t KL(σ(s_1:t) || π_t), up to a constant. */
static double ctl_objective(const struct toy *toy, const struct toy *frozen)
{
    (void)frozen;
    double sum = 0, joint[256];
    for (int t = 1; t <= toy->t; t++) {
        for (int s = 0; s < n_texts(toy); s++) {
            joint[s] = is_text(toy, s) ? toy_log_p(toy, s) + x_of(toy, s, t) : -INFINITY;
            sum -= is_text(toy, s) ? sigma_of(toy, s) * x_of(toy, s, t) : 0;
        }
        sum += toy_lse(joint, n_texts(toy));
    }
    return sum / toy->t;
}

/* Under the proposal or σ, with the targets of the frozen twist. */
static double rl_under(const struct toy *toy, const struct toy *frozen, bool posterior)
{
    double sum = 0;
    for (int s = 0; s < n_texts(toy); s++) {
        if (!is_text(toy, s))
            continue;
        double p = posterior ? sigma_of(toy, s) : exp(text_log_dyadic(toy, SEED_PROPOSAL, s));
        int n = toy_length(toy, s);
        for (int t = 1; t <= n; t++) {
            double y = t == n ? toy->log_phi[s] : toy_lambda(frozen, t, toy_prefix(toy, s, t));
            sum += p * pow(x_of(toy, s, t) - y, 2);
        }
    }
    return sum / toy->t;
}

static double rl_objective(const struct toy *toy, const struct toy *frozen)
{
    return rl_under(toy, frozen, false);
}

static double rl_exact_objective(const struct toy *toy, const struct toy *frozen)
{
    return rl_under(toy, frozen, false) + rl_under(toy, frozen, true);
}

static double sixo_objective(const struct toy *toy, const struct toy *frozen)
{
    (void)frozen;
    double sum = 0;
    for (int s = 0; s < n_texts(toy); s++)
        for (int t = 1; t <= toy->t && is_text(toy, s); t++)
            sum -= sigma_of(toy, s) * log_sigmoid(x_of(toy, s, t)) +
                   exp(toy_log_p(toy, s)) * log_sigmoid(-x_of(toy, s, t));
    return sum / toy->t;
}

static double fudge_objective(const struct toy *toy, const struct toy *frozen)
{
    (void)frozen;
    double sum = 0;
    for (int s = 0; s < n_texts(toy); s++)
        for (int t = 1; t <= toy->t && is_text(toy, s); t++) {
            double x = x_of(toy, s, t), y = exp(toy->log_phi[s]);
            sum -= exp(toy_log_p(toy, s)) * (y * x + (1 - y) * log1p(-exp(x)));
        }
    return sum / toy->t;
}

/* KL(σ || q), up to a constant. */
static double dpg_objective(const struct toy *toy, const struct toy *frozen)
{
    (void)frozen;
    double sum = 0;
    for (int s = 0; s < n_texts(toy); s++)
        for (int t = 1; is_text(toy, s) && t <= toy_length(toy, s); t++)
            sum -= sigma_of(toy, s) * toy_log_q(toy, t - 1, toy_prefix(toy, s, t - 1),
                                                toy_prefix(toy, s, t) % toy->base);
    return sum / toy->t;
}

static double objective(enum twist_method method, bool exact, const struct toy *toy,
                        const struct toy *frozen)
{
    double (*const of[])(const struct toy *, const struct toy *) = {
        [TWIST_CTL] = ctl_objective,     [TWIST_RL] = rl_objective,   [TWIST_SIXO] = sixo_objective,
        [TWIST_FUDGE] = fudge_objective, [TWIST_DPG] = dpg_objective,
    };
    return (method == TWIST_RL && exact ? rl_exact_objective : of[method])(toy, frozen);
}

/* ---- gradients as tables over prefixes */

struct table {
    double at[DYADIC_STEPS + 1][WIDEST];
};

static int last_step_of(const struct trace *tr, int e)
{
    return e / tr->k;
}

/* Add a trace's gradients to the table. Each distinct entry once; dpg's rows whole. */
static void tabulate(enum twist_method method, const struct toy *toy, const struct trace *tr,
                     const double *grad, struct table *out)
{
    bool *seen = calloc((size_t)(tr->t_max * tr->k), sizeof *seen);
    for (int i = 0; i < tr->k; i++) {
        int prefix = 0;
        for (int t = 0; t < tr->n_history[i]; t++) {
            int e = tr->history[i * tr->t_max + t], before = prefix, token = tr->entry[e].token;
            EXPECT_INT(last_step_of(tr, e), t);
            prefix = before * toy->base + token;
            if (seen[e])
                continue;
            seen[e] = true;
            if (method != TWIST_DPG)
                out->at[t + 1][prefix] += grad[e];
            for (int v = 0; v < toy->v && method == TWIST_DPG; v++)
                out->at[t + 1][before * toy->base + v] +=
                    grad[e] * (exp(toy_log_q(toy, t, before, v)) - (v == token));
        }
    }
    free(seen);
}

struct traces {
    struct trace q, base, exact;
    struct loss_grad grad;
};

/* Room for the gradients of what there is: traces of k > 0. */
static double gradient(enum twist_method method, struct traces *s, struct arena *a)
{
    size_t n = (size_t)(s->q.t_max * s->q.k), n_base = (size_t)(s->base.t_max * s->base.k);
    s->grad = (struct loss_grad){
        .q = s->q.k ? ARENA_NEW(a, double, n) : NULL,
        .base = s->base.k ? ARENA_NEW(a, double, n_base) : NULL,
        .exact = s->exact.k ? ARENA_NEW(a, double, s->exact.t_max * s->exact.k) : NULL};
    return loss_gradient(method, s->q.k ? &s->q : NULL, s->base.k ? &s->base : NULL,
                         s->exact.k ? &s->exact : NULL, &s->grad);
}

static struct table table_of(enum twist_method method, const struct toy *toy,
                             const struct traces *s)
{
    struct table out = {0};
    if (s->q.k)
        tabulate(method, toy, &s->q, s->grad.q, &out);
    if (s->base.k)
        tabulate(method, toy, &s->base, s->grad.base, &out);
    if (s->exact.k)
        tabulate(method, toy, &s->exact, s->grad.exact, &out);
    return out;
}

static void enumerate(enum twist_method method, bool exact, const struct toy *toy, struct traces *s,
                      struct arena *a)
{
    struct loss_needs needs = loss_needs(method, exact);
    *s = (struct traces){0};
    if (needs.q)
        enumerate_texts(toy, SEED_PROPOSAL, &s->q, a);
    if (needs.base)
        enumerate_texts(toy, SEED_PRIOR, &s->base, a);
    if (exact && method != TWIST_FUDGE)
        enumerate_texts(toy, SEED_POSTERIOR, &s->exact, a);
}

/* Move the head's output at one prefix: log ψ, or z of log ψ = log sigmoid(z). */
static void move(enum twist_method method, double *x, double by)
{
    *x = method == TWIST_FUDGE ? log_sigmoid(log(1 / expm1(-*x)) + by) : *x + by;
}

static double slope(enum twist_method method, bool exact, struct toy *toy, const struct toy *frozen,
                    double *x)
{
    const double h = 1e-5, before = *x;
    double value[2];
    for (int side = 0; side < 2; side++) {
        *x = before;
        move(method, x, side ? h : -h);
        value[side] = objective(method, exact, toy, frozen);
    }
    *x = before;
    return (value[1] - value[0]) / (2 * h);
}

static bool is_prefix(const struct toy *toy, int t, int prefix)
{
    int last = prefix % toy->base, before = prefix / toy->base;
    return t == 0 ||
           (last < toy->v && !toy_ended(toy, before, t - 1) && is_prefix(toy, t - 1, before));
}

static void negative_twists(struct toy *toy)
{
    for (int t = 1; t <= toy->t; t++)
        for (int prefix = 0; prefix < toy_power(toy, t); prefix++)
            toy->log_psi[t][prefix] = -fabs(toy->log_psi[t][prefix]) - 0.05;
}

/* Every entry of the table is the objective's slope, and the loss is the objective where it is its
 * estimate (ctl's is not: it lacks log Z of π_t). */
static void test_objective(enum twist_method method, bool exact, bool eos)
{
    struct toy toy, frozen;
    struct arena arena = {0};
    struct traces s;
    toy_dyadic(&toy, eos);
    toy_dyadic(&frozen, eos);
    if (method == TWIST_FUDGE) {
        negative_twists(&toy);
        negative_twists(&frozen);
    }
    enumerate(method, exact, &toy, &s, &arena);
    double loss = gradient(method, &s, &arena);
    if (method != TWIST_CTL)
        EXPECT_NEAR(loss, objective(method, exact, &toy, &frozen), 1e-12);
    struct table got = table_of(method, &toy, &s);
    for (int t = 1; t <= toy.t; t++)
        for (int prefix = 0; prefix < toy_power(&toy, t); prefix++) {
            if (!is_prefix(&toy, t, prefix))
                continue;
            double want = slope(method, exact, &toy, &frozen, &toy.log_psi[t][prefix]);
            EXPECT_NEAR(got.at[t][prefix], want, 1e-9);
        }
    arena_free(&arena);
    toy_close(&toy);
    toy_close(&frozen);
}

/* ---- fixed points */

/* The optimal twists; sixo's are on the scale 1/Z. */
static void set_optimal(enum twist_method method, struct toy *toy)
{
    double shift = method == TWIST_SIXO ? toy->log_z : 0;
    for (int t = 1; t <= toy->t; t++)
        for (int prefix = 0; prefix < toy_power(toy, t); prefix++)
            toy->log_psi[t][prefix] = toy->optimal[t][prefix] - shift;
}

static void test_exact_fixed_point(enum twist_method method, bool exact, bool eos)
{
    struct toy toy;
    struct arena arena = {0};
    struct traces s;
    toy_dyadic(&toy, eos);
    set_optimal(method, &toy);
    enumerate(method, exact, &toy, &s, &arena);
    gradient(method, &s, &arena);
    struct table got = table_of(method, &toy, &s);
    for (int t = 1; t <= toy.t; t++)
        for (int prefix = 0; prefix < toy_power(&toy, t); prefix++)
            EXPECT_NEAR(got.at[t][prefix], 0, 1e-14);
    arena_free(&arena);
    toy_close(&toy);
}

/* Tables of many runs, and whether their mean is a number. */
struct moments {
    struct table sum, squares;
    int n;
};

static void add_run(struct moments *m, const struct table *now)
{
    for (int t = 1; t <= DYADIC_STEPS; t++)
        for (int prefix = 0; prefix < WIDEST; prefix++) {
            m->sum.at[t][prefix] += now->at[t][prefix];
            m->squares.at[t][prefix] += now->at[t][prefix] * now->at[t][prefix];
        }
    m->n++;
}

/* Within five standard errors, and a known bias. */
static void expect_mean(const struct moments *m, int t, int prefix, double want, double bias)
{
    double mean = m->sum.at[t][prefix] / m->n;
    double variance = m->squares.at[t][prefix] / m->n - mean * mean;
    EXPECT_NEAR(mean, want, 5 * sqrt(fmax(variance, 0) / m->n) + bias);
}

/* What learning draws for an update. */
static void draw_traces(enum twist_method method, bool exact, const struct toy *toy, uint64_t seed,
                        int k, bool resample, struct traces *s, struct arena *a)
{
    struct loss_needs needs = loss_needs(method, exact);
    *s = (struct traces){0};
    if (needs.q)
        draw_texts(toy, LAW_TWIST, resample, seed, k, &s->q, a);
    if (needs.base)
        draw_texts(toy, LAW_PRIOR, false, seed + 1, k, &s->base, a);
    if (exact && method != TWIST_FUDGE)
        draw_texts(toy, LAW_POSTERIOR, false, seed + 2, k, &s->exact, a);
}

static void test_drawn_fixed_point(enum twist_method method, bool exact, bool eos)
{
    struct toy toy;
    struct moments m = {0};
    toy_dyadic(&toy, eos);
    set_optimal(method, &toy);
    for (uint64_t run = 0; run < 4000; run++) {
        struct arena arena = {0};
        struct traces s;
        draw_traces(method, exact, &toy, 3 * run, 8, false, &s, &arena);
        gradient(method, &s, &arena);
        struct table now = table_of(method, &toy, &s);
        add_run(&m, &now);
        arena_free(&arena);
    }
    for (int t = 1; t <= toy.t; t++)
        for (int prefix = 0; prefix < toy_power(&toy, t); prefix++)
            expect_mean(&m, t, prefix, 0, 1e-15);
    toy_close(&toy);
}

/* Elsewhere resampled draws find the objective's gradient, up to the 1/K of normalised weights: the
 * way from a run's weights to W and ω loses nothing, and shared entries count as often as they are
 * shared. */
static void test_resampled_gradient(enum twist_method method)
{
    enum { RUNS = 200, K = 400 };
    struct toy toy;
    struct moments m = {0};
    toy_dyadic(&toy, true);
    for (uint64_t run = 0; run < RUNS; run++) {
        struct arena arena = {0};
        struct traces s;
        draw_traces(method, false, &toy, run, K, true, &s, &arena);
        gradient(method, &s, &arena);
        struct table now = table_of(method, &toy, &s);
        add_run(&m, &now);
        arena_free(&arena);
    }
    for (int t = 1; t <= toy.t; t++)
        for (int prefix = 0; prefix < toy_power(&toy, t); prefix++)
            if (is_prefix(&toy, t, prefix)) {
                double want = slope(method, false, &toy, NULL, &toy.log_psi[t][prefix]);
                expect_mean(&m, t, prefix, want, 0.2 / K);
            }
    toy_close(&toy);
}

/* ---- the sample's own loss: weights, targets and clouds stay, one entry's output moves */

static void test_sample(enum twist_method method, bool exact, bool resample)
{
    struct toy toy;
    struct arena arena = {0};
    struct traces s;
    toy_dyadic(&toy, true);
    negative_twists(&toy);
    draw_traces(method, exact, &toy, 5, 6, resample, &s, &arena);
    gradient(method, &s, &arena);
    struct traces moved = s;
    struct {
        struct trace *t;
        const double *grad;
    } all[] = {{&moved.q, s.grad.q}, {&moved.base, s.grad.base}, {&moved.exact, s.grad.exact}};
    for (int i = 0; i < 3; i++)
        for (int e = 0; e < all[i].t->k * all[i].t->t_max; e++) {
            const double h = 1e-5;
            double *x = &all[i].t->entry[e].log_psi, before = *x, value[2];
            for (int side = 0; side < 2 && before < 0; side++) {
                *x = before;
                move(method, x, side ? h : -h);
                value[side] = gradient(method, &moved, &arena);
            }
            *x = before;
            if (before < 0)
                EXPECT_NEAR(all[i].grad[e], (value[1] - value[0]) / (2 * h), 1e-8);
        }
    arena_free(&arena);
    toy_close(&toy);
}

/* ---- calibration */

static struct loss_scales scales_of(const struct trace *tr, struct arena *a)
{
    struct loss_scales s = {ARENA_NEW(a, double, tr->t_max), ARENA_NEW(a, double, tr->t_max)};
    loss_scales(tr, &s);
    return s;
}

/* log Σ p0 ψ over what lives after t tokens, and Σ p0 φ over what has ended: Z_t^ψ. At T, where all
 * has ended, ψ stands for φ over the texts that got there. */
static double normaliser(const struct toy *toy, int t, double calibration)
{
    double joint[256];
    for (int s = 0; s < n_texts(toy); s++) {
        int n = toy_length(toy, s);
        bool by_psi = n > t || (t == toy->t && n == t);
        joint[s] = is_text(toy, s) ? toy_log_p(toy, s) : -INFINITY;
        joint[s] += by_psi ? x_of(toy, s, t) + calibration : toy->log_phi[s];
        if (!is_text(toy, s))
            joint[s] = -INFINITY;
    }
    return toy_lse(joint, n_texts(toy));
}

static void test_calibration(bool eos)
{
    struct toy toy;
    struct arena arena = {0};
    struct trace all, drawn;
    float out[DYADIC_STEPS];
    struct loss_scales many[40];
    toy_dyadic(&toy, eos);
    enumerate_texts(&toy, SEED_PROPOSAL, &all, &arena);
    struct loss_scales s = scales_of(&all, &arena);
    loss_calibration(&s, 1, toy.t, out);
    for (int t = 1; t <= toy.t; t++)
        EXPECT_NEAR(normaliser(&toy, t, out[t - 1]), toy.log_z, 1e-6);
    for (int i = 0; i < 40; i++) {
        draw_texts(&toy, LAW_TWIST, i % 2, (uint64_t)i, 500, &drawn, &arena);
        many[i] = scales_of(&drawn, &arena);
    }
    loss_calibration(many, 40, toy.t, out);
    for (int t = 1; t <= toy.t; t++)
        EXPECT_NEAR(normaliser(&toy, t, out[t - 1]), toy.log_z, 0.06);
    arena_free(&arena);
    toy_close(&toy);
}

/* ---- by hand: one text of two tokens, one that ends at once, one dead */

struct hand {
    struct trace t;
    double grad[9];
    struct arena arena;
};

static void hand_open(struct hand *h, double log_phi_0, double log_phi_1)
{
    struct trace *t = &h->t;
    *h = (struct hand){0};
    trace_init(t, &h->arena, 3, 3);
    t->entry[0] = (struct trace_entry){.log_psi = 0.5, .log_q = -1, .lambda = 0.1};
    t->entry[1] = (struct trace_entry){.log_psi = -0.5, .log_q = -2, .lambda = 0.1, .ended = true};
    t->entry[3] = (struct trace_entry){.log_psi = 2, .log_q = -3, .lambda = 0.7, .ended = true};
    t->n_steps = 2;
    int32_t cloud[6] = {0, 1, -1, 3, 1, -1};
    memcpy(t->cloud, cloud, sizeof cloud);
    for (int cell = 0; cell < 6; cell++) {
        t->cloud_L[cell] = cloud[cell] < 0 ? -INFINITY : 0;
        t->cloud_log_w[cell] = cloud[cell] < 0 ? -INFINITY : t->entry[cloud[cell]].log_psi;
    }
    memcpy(t->history, (int32_t[]){0, 3, 0, 1, 0, 0}, 6 * sizeof *t->history);
    memcpy(t->n_history, (int[]){2, 1, 0}, 3 * sizeof *t->n_history);
    memcpy(t->log_phi, (double[]){log_phi_0, log_phi_1, -INFINITY}, 3 * sizeof *t->log_phi);
    memcpy(t->log_w, t->log_phi, 3 * sizeof *t->log_w);
}

/* The short text's token counts at every t, also at the third, which nobody drew. */
static void test_padding(void)
{
    struct hand h;
    hand_open(&h, log(0.75), log(0.25));
    h.t.history[3] = 1;
    struct loss_grad g = {.q = h.grad};
    loss_gradient(TWIST_CTL, &h.t, NULL, NULL, &g);
    double w1 = 1 / (1 + exp(-0.5 - 0.5)), w2 = 1 / (1 + exp(-0.5 - 2));
    EXPECT_NEAR(g.q[0], (w1 - 0.75) / 3, 1e-15);
    EXPECT_NEAR(g.q[3], 2 * (w2 - 0.75) / 3, 1e-15);
    EXPECT_NEAR(g.q[1], ((1 - w1) + 2 * (1 - w2) - 3 * 0.25) / 3, 1e-15);
    EXPECT_NEAR(g.q[2], 0, 0);
    loss_gradient(TWIST_DPG, &h.t, NULL, NULL, &g);
    EXPECT_NEAR(g.q[0], 0.25, 1e-15);
    EXPECT_NEAR(g.q[1], 0.25 / 3, 1e-15);
    arena_free(&h.arena);
}

/* φ = 0: a floor to regress to, a label 0, no positive. */
static void test_dead(void)
{
    struct hand h;
    hand_open(&h, -INFINITY, -INFINITY);
    h.t.history[3] = 1;
    struct loss_grad g = {.q = h.grad, .base = h.grad};
    double loss = loss_gradient(TWIST_RL, &h.t, NULL, NULL, &g);
    double ends = pow(2 - LOG_PHI_FLOOR, 2) + pow(-0.5 - LOG_PHI_FLOOR, 2);
    EXPECT_NEAR(loss, (pow(0.5 - 0.7, 2) + ends) / 9, 1e-12);
    EXPECT_NEAR(g.q[3], 2 * (2 - LOG_PHI_FLOOR) / 9, 1e-14);
    for (int i = 0; i < 3; i++) {
        enum twist_method method = (enum twist_method[]){TWIST_CTL, TWIST_SIXO, TWIST_DPG}[i];
        h.grad[1] = NAN;
        EXPECT_NEAR(loss_gradient(method, &h.t, &h.t, NULL, &g), 0, 0);
        for (int e = 0; e < 9; e++)
            EXPECT_NEAR(h.grad[e], 0, 0);
    }
    h.t.entry[0].log_psi = h.t.entry[3].log_psi = log(0.25);
    loss = loss_gradient(TWIST_FUDGE, NULL, &h.t, NULL, &g);
    EXPECT_NEAR(loss, -(log(0.75) + log1p(-exp(-0.5))) / 3, 1e-15);
    EXPECT_NEAR(g.base[3], 2 * 0.25 / 9, 1e-15);
    h.t.entry[3].log_psi = 0; /* rounded */
    EXPECT(isfinite(loss_gradient(TWIST_FUDGE, NULL, &h.t, NULL, &g)));
    arena_free(&h.arena);
}

/* What no population has seen takes its successor's value; at the very end 0. */
static void test_unknown_scales(void)
{
    struct loss_scales s = {(double[]){-1, -INFINITY, -2, -3}, (double[]){-1.5, -1, -1, -INFINITY}};
    float out[4];
    loss_calibration(&s, 1, 4, out);
    EXPECT_NEAR(out[3], 0, 0);
    EXPECT_NEAR(out[2], 1, 1e-6);
    EXPECT_NEAR(out[1], 1, 1e-6);
    EXPECT_NEAR(out[0], -0.5, 1e-6);
    loss_calibration(NULL, 0, 4, out);
    EXPECT_NEAR(out[0], 0, 0);
}

int main(void)
{
    for (size_t m = 0; m < sizeof methods / sizeof *methods; m++)
        for (int variant = 0; variant < 4; variant++) {
            bool exact = variant & 1, eos = variant & 2;
            test_objective(methods[m], exact, eos);
            if (methods[m] != TWIST_DPG) /* its rows are differentiated by the objective's test */
                test_sample(methods[m], exact, variant & 2);
            test_exact_fixed_point(methods[m], exact, eos);
            test_drawn_fixed_point(methods[m], exact, eos);
        }
    test_resampled_gradient(TWIST_CTL);
    test_resampled_gradient(TWIST_DPG);
    test_calibration(false);
    test_calibration(true);
    test_padding();
    test_dead();
    test_unknown_scales();
    return test_failures();
}
