#include "losses.h"

#include <math.h>
#include <string.h>

#include "smc.h"

/* The final texts of a run, with weights that add up to 1. */
struct texts {
    const struct trace *t;
    double *grad; /* their entries' */
    bool weighted;
    double log_total; /* of the weights */
};

static struct texts equal_texts(const struct trace *t, double *grad)
{
    return (struct texts){.t = t, .grad = grad};
}

static struct texts weighted_texts(const struct trace *t, double *grad)
{
    return (struct texts){t, grad, true, smc_lse(t->log_w, t->k)};
}

/* Those that stand for σ. */
static struct texts positives(const struct trace *q, const struct trace *exact,
                              const struct loss_grad *g)
{
    return exact ? equal_texts(exact, g->exact) : weighted_texts(q, g->q);
}

static bool all_dead(const struct texts *s)
{
    return s->weighted && s->log_total == -INFINITY;
}

static double text_weight(const struct texts *s, int i)
{
    return s->weighted ? exp(s->t->log_w[i] - s->log_total) : 1.0 / s->t->k;
}

/* The entry of a text's token t; behind its end, of its last one. -1: it has none. */
static int entry_at(const struct trace *tr, int i, int t)
{
    int n = tr->n_history[i], at = t < n ? t : n - 1;
    return n > 0 ? tr->history[(size_t)i * (size_t)tr->t_max + (size_t)at] : -1;
}

static double softplus(double x)
{
    return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x));
}

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

/* Σ over texts, by their weight, of the mean over t of a term in x_t and the text's log φ, which
 * puts its derivative by the output into *grad. */
static double mean_over_texts(const struct texts *s,
                              double (*term)(double x, double log_phi, double *grad))
{
    const struct trace *tr = s->t;
    double sum = 0;
    for (int i = 0; i < tr->k; i++) {
        double w = text_weight(s, i) / tr->t_max;
        for (int t = 0; t < tr->t_max && w > 0; t++) {
            int e = entry_at(tr, i, t);
            if (e < 0)
                continue;
            double grad;
            sum += w * term(tr->entry[e].log_psi, tr->log_phi[i], &grad);
            s->grad[e] += w * grad;
        }
    }
    return sum;
}

/* ---- contrastive twist learning */

static double positive(double x, double log_phi, double *grad)
{
    (void)log_phi;
    *grad = -1;
    return -x;
}

/* Σ_t Σ_k ω_t^k x_t^k / T. After the last draw the population stands still. */
static double negatives(const struct trace *q, double *grad)
{
    double sum = 0;
    for (int t = 0; t < q->t_max && q->n_steps > 0; t++) {
        size_t row = (size_t)(t < q->n_steps ? t : q->n_steps - 1) * (size_t)q->k;
        const double *log_w = q->cloud_log_w + row;
        double total = smc_lse(log_w, q->k);
        for (int i = 0; i < q->k; i++) {
            int e = q->cloud[row + (size_t)i];
            if (e < 0 || log_w[i] == -INFINITY)
                continue;
            double w = exp(log_w[i] - total) / q->t_max;
            sum += w * q->entry[e].log_psi;
            grad[e] += w;
        }
    }
    return sum;
}

static double ctl(const struct trace *q, const struct trace *exact, const struct loss_grad *g)
{
    struct texts s = positives(q, exact, g);
    if (all_dead(&s))
        return 0;
    return mean_over_texts(&s, positive) + negatives(q, g->q);
}

/* ---- path consistency */

static double finite_target(double y)
{
    return y == -INFINITY ? LOG_PHI_FLOOR : y;
}

/* Behind an early end the target is ψ itself: nothing to be learned. */
static double squares(const struct texts *s)
{
    const struct trace *tr = s->t;
    double sum = 0;
    for (int i = 0; i < tr->k; i++) {
        double w = text_weight(s, i) / tr->t_max;
        int n = tr->n_history[i];
        for (int t = 0; t < n; t++) {
            int e = entry_at(tr, i, t);
            bool last = t + 1 == n;
            double y = last ? tr->log_phi[i] : tr->entry[entry_at(tr, i, t + 1)].lambda;
            double d = tr->entry[e].log_psi - finite_target(y);
            sum += w * d * d;
            s->grad[e] += w * 2 * d;
        }
    }
    return sum;
}

static double rl(const struct trace *q, const struct trace *exact, const struct loss_grad *g)
{
    struct texts draws = equal_texts(q, g->q), more = equal_texts(exact, g->exact);
    return squares(&draws) + (exact ? squares(&more) : 0);
}

/* ---- density ratios */

static double is_posterior(double x, double log_phi, double *grad)
{
    (void)log_phi;
    *grad = -sigmoid(-x);
    return softplus(-x);
}

static double is_prior(double x, double log_phi, double *grad)
{
    (void)log_phi;
    *grad = sigmoid(x);
    return softplus(x);
}

static double sixo(const struct trace *q, const struct trace *base, const struct trace *exact,
                   const struct loss_grad *g)
{
    struct texts s = positives(q, exact, g), p0 = equal_texts(base, g->base);
    if (all_dead(&s))
        return 0;
    return mean_over_texts(&s, is_posterior) + mean_over_texts(&p0, is_prior);
}

/* ---- future discriminators */

/* Cross-entropy of ψ = sigmoid(z) with φ <= 1, up to rounding. log(1 - ψ) has a floor that only the
 * rounding of log ψ to 0 gets to: a float z beyond 104. */
static double cross_entropy(double x, double log_phi, double *grad)
{
    double y = fmin(exp(log_phi), 1);
    *grad = exp(x) - y;
    return -y * x - (1 - y) * fmax(log(-expm1(x)), -104);
}

/* ---- distributional policy gradient */

/* Padding is certain: no term. */
static double likelihood(const struct texts *s)
{
    const struct trace *tr = s->t;
    double sum = 0;
    for (int i = 0; i < tr->k; i++) {
        double w = text_weight(s, i) / tr->t_max;
        for (int t = 0; t < tr->n_history[i] && w > 0; t++) {
            int e = entry_at(tr, i, t);
            sum -= w * tr->entry[e].log_q;
            s->grad[e] += w;
        }
    }
    return sum;
}

static double dpg(const struct trace *q, const struct trace *exact, const struct loss_grad *g)
{
    struct texts s = positives(q, exact, g);
    return all_dead(&s) ? 0 : likelihood(&s);
}

/* ---- */

static void clear(const struct trace *t, double *grad)
{
    if (t)
        memset(grad, 0, (size_t)t->t_max * (size_t)t->k * sizeof *grad);
}

double loss_gradient(enum twist_method method, const struct trace *q, const struct trace *base,
                     const struct trace *exact, struct loss_grad *g)
{
    clear(q, g->q);
    clear(base, g->base);
    clear(exact, g->exact);
    switch (method) {
    case TWIST_CTL:
        return ctl(q, exact, g);
    case TWIST_RL:
        return rl(q, exact, g);
    case TWIST_SIXO:
        return sixo(q, base, exact, g);
    case TWIST_FUDGE:
        return mean_over_texts(&(struct texts){.t = base, .grad = g->base}, cross_entropy);
    case TWIST_DPG:
        return dpg(q, exact, g);
    }
    return 0;
}

struct loss_needs loss_needs(enum twist_method method, bool has_exact)
{
    bool base = method == TWIST_SIXO || method == TWIST_FUDGE;
    bool draws = method == TWIST_CTL || method == TWIST_RL;
    return (struct loss_needs){.q = draws || (!has_exact && method != TWIST_FUDGE), .base = base};
}

/* ---- calibration */

static double log_add(double a, double b)
{
    return smc_lse((const double[]){a, b}, 2);
}

void loss_scales(const struct trace *tr, struct loss_scales *out)
{
    int last = tr->t_max - 1;
    for (int t = 0; t < tr->t_max; t++) {
        out->live[t] = out->longer[t] = -INFINITY;
        for (int i = 0; i < tr->k; i++) {
            size_t cell = (size_t)t * (size_t)tr->k + (size_t)i;
            int e = t < tr->n_steps ? tr->cloud[cell] : -1;
            bool drawn_now = e >= 0 && e / tr->k == t;
            if (drawn_now && (t == last || !tr->entry[e].ended))
                out->live[t] = log_add(out->live[t], tr->cloud_log_w[cell]);
            if (tr->n_history[i] > (t < last ? t + 1 : last))
                out->longer[t] = log_add(out->longer[t], tr->log_w[i]);
        }
        out->live[t] -= log(tr->k);
        out->longer[t] -= log(tr->k);
    }
}

void loss_calibration(const struct loss_scales *s, int n, int t_max, float *out)
{
    float next = 0;
    for (int t = t_max - 1; t >= 0; t--) {
        double live = -INFINITY, longer = -INFINITY;
        for (int i = 0; i < n; i++) {
            live = log_add(live, s[i].live[t]);
            longer = log_add(longer, s[i].longer[t]);
        }
        if (isfinite(live) && isfinite(longer))
            next = (float)(longer - live);
        out[t] = next;
    }
}
