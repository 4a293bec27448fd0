/* What a twist's learner sees of a toy: traces of populations, drawn or enumerated. Priors,
 * proposals and posteriors are "dyadic", each row the probabilities 1/2, 1/4, 1/4 in an order of
 * its own, so that 4^T particles of equal weight are such a law exactly. */
#pragma once
#include <string.h>

#include "../../core/losses.h"
#include "../../kernels/philox.h"
#include "toy.h"

enum { SEED_PRIOR = 1, SEED_POSTERIOR = 2, SEED_PROPOSAL = 3, DYADIC_STEPS = 3, DYADIC_TEXTS = 64 };

/* Quarter `digit` of a row's probability mass belongs to this token. */
static inline int dyadic_token(uint64_t seed, int step, int prefix, int digit)
{
    int first = (int)(3 * toy_uniform(seed, (uint64_t)step, (uint64_t)prefix, 0));
    return digit < 2 ? first : (first + digit - 1) % 3;
}

static inline double dyadic_log_p(uint64_t seed, int step, int prefix, int token)
{
    int quarters = 0;
    for (int digit = 0; digit < 4; digit++)
        quarters += dyadic_token(seed, step, prefix, digit) == token;
    return log(quarters / 4.0);
}

static inline int toy_prefix(const struct toy *toy, int text, int length)
{
    return text / toy_power(toy, toy->t - length);
}

/* Tokens of a padded text, its end included. */
static inline int toy_length(const struct toy *toy, int text)
{
    for (int n = 1; n < toy->t; n++)
        if (toy_ended(toy, toy_prefix(toy, text, n), n))
            return n;
    return toy->t;
}

/* log probability of a padded text under p0; -inf for what is no text. */
static inline double toy_log_p(const struct toy *toy, int text)
{
    double sum = 0;
    for (int t = 0; t < toy->t; t++)
        sum += toy->log_p[t][toy_prefix(toy, text, t + 1)];
    return sum;
}

static inline double text_log_dyadic(const struct toy *toy, uint64_t seed, int text)
{
    double sum = 0;
    for (int t = 0; t < toy_length(toy, text); t++)
        sum += dyadic_log_p(seed, t, toy_prefix(toy, text, t),
                            toy_prefix(toy, text, t + 1) % toy->base);
    return sum;
}

/* p0 and σ dyadic, φ <= 1, Z = 1/16; with eos, token 2 ends a text. */
static inline void toy_dyadic(struct toy *toy, bool eos)
{
    toy_open(toy, 1, 3, DYADIC_STEPS, 0, eos, 0);
    for (int t = 0; t < toy->t; t++)
        for (int prefix = 0; prefix < toy_power(toy, t); prefix++)
            for (int v = 0; v < 3 && !toy_ended(toy, prefix, t); v++)
                toy->log_p[t][prefix * toy->base + v] = dyadic_log_p(SEED_PRIOR, t, prefix, v);
    for (int text = 0; text < toy_power(toy, toy->t); text++) {
        double log_p = toy_log_p(toy, text);
        toy->log_phi[text] = log_p == -INFINITY
                                 ? -INFINITY
                                 : text_log_dyadic(toy, SEED_POSTERIOR, text) - log_p - log(16);
    }
    toy_solve(toy);
    toy_learn(toy, 0.5, 11, 1.0);
}

/* Λ of the row after a prefix of t tokens. */
static inline double toy_lambda(const struct toy *toy, int t, int prefix)
{
    double joint[16];
    for (int v = 0; v < toy->v; v++)
        joint[v] =
            toy->log_p[t][prefix * toy->base + v] + toy->log_psi[t + 1][prefix * toy->base + v];
    return toy_lse(joint, toy->v);
}

/* log q(v | prefix) of the twist-induced proposal. */
static inline double toy_log_q(const struct toy *toy, int t, int prefix, int v)
{
    int next = prefix * toy->base + v;
    return toy->log_p[t][next] + toy->log_psi[t + 1][next] - toy_lambda(toy, t, prefix);
}

/* ---- traces */

/* A particle on its way. */
struct walker {
    int prefix, length; /* padded prefix after `length` tokens; it has ended if that stays behind */
    int history[DYADIC_STEPS];
    double L;
    bool ended;
};

/* Particle i of a trace takes its token t, q having given it log probability log_q. Particles that
 * share a prefix share the entry, the first one's. */
static inline void walk(const struct toy *toy, struct trace *tr, struct walker *all, int i, int t,
                        int token, double log_q)
{
    struct walker *w = &all[i];
    int before = w->prefix, e = t * tr->k + i;
    w->prefix = before * toy->base + token;
    w->length++;
    w->ended = w->length == toy->t || toy_ended(toy, w->prefix, w->length);
    double log_p = toy->log_p[t][w->prefix];
    w->L += log_p - log_q;
    for (int j = 0; j < i; j++)
        if (all[j].length == w->length && all[j].prefix == w->prefix)
            e = all[j].history[t];
    w->history[t] = e;
    tr->entry[e] = (struct trace_entry){.token = token,
                                        .ended = w->ended,
                                        .log_p0 = log_p,
                                        .log_q = toy_log_q(toy, t, before, token),
                                        .log_psi = toy->log_psi[w->length][w->prefix],
                                        .lambda = toy_lambda(toy, t, before)};
}

static inline void write_cloud(const struct toy *toy, struct trace *tr, const struct walker *all,
                               int t)
{
    (void)toy;
    for (int i = 0; i < tr->k; i++) {
        int cell = t * tr->k + i, e = all[i].history[all[i].length - 1];
        tr->cloud[cell] = e;
        tr->cloud_L[cell] = all[i].L;
        tr->cloud_log_w[cell] = all[i].L + tr->entry[e].log_psi;
    }
    tr->n_steps = t + 1;
}

static inline bool all_ended(const struct trace *tr, const struct walker *all)
{
    for (int i = 0; i < tr->k; i++)
        if (!all[i].ended)
            return false;
    return true;
}

/* The padded text that a walker came to. */
static inline int walker_text(const struct toy *toy, const struct walker *w)
{
    int text = w->prefix;
    for (int n = w->length; n < toy->t; n++)
        text = text * toy->base + toy->v;
    return text;
}

static inline void write_texts(const struct toy *toy, struct trace *tr, const struct walker *all)
{
    for (int i = 0; i < tr->k; i++) {
        tr->n_history[i] = all[i].length;
        for (int t = 0; t < all[i].length; t++)
            tr->history[i * tr->t_max + t] = all[i].history[t];
        tr->log_phi[i] = toy->log_phi[walker_text(toy, &all[i])];
        tr->log_w[i] = all[i].L + tr->log_phi[i];
    }
}

/* All texts of a dyadic law as one population. */
static inline void enumerate_texts(const struct toy *toy, uint64_t seed, struct trace *tr,
                                   struct arena *arena)
{
    struct walker all[DYADIC_TEXTS] = {0};
    trace_init(tr, arena, DYADIC_TEXTS, toy->t);
    for (int t = 0; t < toy->t; t++) {
        for (int i = 0; i < tr->k; i++) {
            if (all[i].ended)
                continue;
            int prefix = all[i].prefix, token = dyadic_token(seed, t, prefix, i >> 2 * t & 3);
            walk(toy, tr, all, i, t, token, dyadic_log_p(seed, t, prefix, token));
        }
        write_cloud(toy, tr, all, t);
    }
    write_texts(toy, tr, all);
}

enum law { LAW_PRIOR, LAW_TWIST, LAW_POSTERIOR };

static inline double law_log_p(const struct toy *toy, enum law law, int t, int prefix, int v)
{
    int next = prefix * toy->base + v;
    double now = t == 0 ? toy->log_z : toy->optimal[t][prefix];
    switch (law) {
    case LAW_PRIOR:
        return toy->log_p[t][next];
    case LAW_TWIST:
        return toy_log_q(toy, t, prefix, v);
    case LAW_POSTERIOR:
        return toy->log_p[t][next] + toy->optimal[t + 1][next] - now;
    }
    return 0;
}

static inline double learner_uniform(uint64_t seed, int step, int particle)
{
    struct philox p = philox4x32(seed, (uint32_t)step, (uint32_t)particle, 77, 0);
    return philox_u01(p.v[0], p.v[1]);
}

/* Multinomial, by the weights under π_t. */
static inline void resample_walkers(const struct trace *tr, struct walker *all, int t,
                                    uint64_t seed)
{
    const double *log_w = tr->cloud_log_w + (size_t)t * (size_t)tr->k;
    struct walker *old = malloc(sizeof *old * (size_t)tr->k);
    double total = toy_lse(log_w, tr->k);
    memcpy(old, all, sizeof *old * (size_t)tr->k);
    for (int i = 0; i < tr->k; i++) {
        double u = learner_uniform(seed, 100 + t, i);
        int a = 0;
        for (double sum = exp(log_w[0] - total); sum < u && a + 1 < tr->k;)
            sum += exp(log_w[++a] - total);
        all[i] = old[a];
        all[i].L -= log(tr->k) + log_w[a] - total;
    }
    free(old);
}

/* k particles drawn from a law, resampled after every draw or never. */
static inline void draw_texts(const struct toy *toy, enum law law, bool resample, uint64_t seed,
                              int k, struct trace *tr, struct arena *arena)
{
    struct walker *all = calloc((size_t)k, sizeof *all);
    trace_init(tr, arena, k, toy->t);
    for (int t = 0; t < toy->t && !all_ended(tr, all); t++) {
        for (int i = 0; i < k; i++) {
            if (all[i].ended)
                continue;
            int v = 0;
            double u = learner_uniform(seed, t, i), sum = 0;
            for (; v < toy->v - 1; v++)
                if ((sum += exp(law_log_p(toy, law, t, all[i].prefix, v))) > u)
                    break;
            walk(toy, tr, all, i, t, v, law_log_p(toy, law, t, all[i].prefix, v));
        }
        write_cloud(toy, tr, all, t);
        if (resample && t + 1 < toy->t && !all_ended(tr, all))
            resample_walkers(tr, all, t, seed);
    }
    write_texts(toy, tr, all);
    free(all);
}
