/* The toys of make_vectors.py in C: language models over full histories, small enough to enumerate,
 * with potentials, optimal twists and the twists of an imperfect learner. A prefix of t tokens is
 * the integer of its tokens in base `base`, the first the most significant. A toy with eos has
 * tokens 0..v-1, of which v-1 ends a text, and v is the padding after it (base v+1). */
#pragma once
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

enum { TOY_STEPS = 6 };

struct toy {
    int v, base, t;
    bool eos;
    double *log_p[TOY_STEPS];       /* [step] (base^step, base) */
    double *log_phi;                /* (base^t) */
    double *optimal[TOY_STEPS + 1]; /* [step] (base^step) optimal log ψ, from step 1 */
    double *log_psi[TOY_STEPS + 1]; /* [step] (base^step) the learner's, from step 1 */
    double log_z;
};

static inline double toy_uniform(uint64_t seed, uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t x = seed * 0x9E3779B97F4A7C15u + a * 0xBF58476D1CE4E5B9u + b * 0x94D049BB133111EBu +
                 c * 0xD6E8FEB86659FD93u;
    x ^= x >> 30;
    x *= 0xBF58476D1CE4E5B9u;
    x ^= x >> 27;
    x *= 0x94D049BB133111EBu;
    x ^= x >> 31;
    return (double)(x >> 11) * 0x1p-53;
}

static inline double toy_signed(uint64_t seed, uint64_t a, uint64_t b)
{
    return 2 * toy_uniform(seed, a, b, 0) - 1;
}

static inline int toy_power(const struct toy *toy, int step)
{
    int n = 1;
    while (step-- > 0)
        n *= toy->base;
    return n;
}

static inline bool toy_ended(const struct toy *toy, int prefix, int step)
{
    return toy->eos && step > 0 && prefix % toy->base >= toy->v - 1;
}

static inline double toy_lse(const double *x, int n)
{
    double max = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++)
        max = fmax(max, x[i]);
    if (max == -INFINITY)
        return max;
    for (int i = 0; i < n; i++)
        sum += exp(x[i] - max);
    return max + log(sum);
}

static inline void toy_row(const struct toy *toy, uint64_t seed, int step, int prefix, double scale,
                           double eos_bias)
{
    double *row = toy->log_p[step] + (size_t)prefix * toy->base;
    bool ended = toy_ended(toy, prefix, step);
    for (int token = 0; token < toy->base; token++) {
        row[token] = -INFINITY;
        if (!ended && token < toy->v)
            row[token] = scale * (2 * toy_uniform(seed, step, prefix, token) - 1);
        if (!ended && token == toy->v - 1)
            row[token] += eos_bias;
    }
    if (ended)
        row[toy->v] = 0;
    double total = toy_lse(row, toy->base);
    for (int token = 0; token < toy->base; token++)
        row[token] -= total;
}

static inline void toy_open(struct toy *toy, uint64_t seed, int v, int t, double scale, bool eos,
                            double eos_bias)
{
    *toy = (struct toy){.v = v, .base = v + eos, .t = t, .eos = eos};
    for (int step = 0; step < t; step++) {
        int n = toy_power(toy, step);
        toy->log_p[step] = malloc(sizeof(double) * (size_t)(n * toy->base));
        for (int prefix = 0; prefix < n; prefix++)
            toy_row(toy, seed, step, prefix, scale, eos_bias);
    }
    for (int step = 1; step <= t; step++) {
        toy->optimal[step] = malloc(sizeof(double) * (size_t)toy_power(toy, step));
        toy->log_psi[step] = malloc(sizeof(double) * (size_t)toy_power(toy, step));
    }
    toy->log_phi = toy->optimal[t];
}

static inline void toy_close(struct toy *toy)
{
    for (int step = 0; step < toy->t; step++) {
        free(toy->log_p[step]);
        free(toy->optimal[step + 1]);
        free(toy->log_psi[step + 1]);
    }
}

/* From log_phi: the optimal twists, backwards, and log Z. */
static inline void toy_solve(struct toy *toy)
{
    double joint[16];
    for (int step = toy->t - 1; step >= 0; step--) {
        for (int prefix = 0; prefix < toy_power(toy, step); prefix++) {
            for (int token = 0; token < toy->base; token++) {
                int next = prefix * toy->base + token;
                joint[token] = toy->log_p[step][next] + toy->optimal[step + 1][next];
            }
            double total = toy_lse(joint, toy->base);
            if (step == 0)
                toy->log_z = total;
            else
                toy->optimal[step][prefix] = total;
        }
    }
}

/* log ψ = share × the optimal one + noise. */
static inline void toy_learn(struct toy *toy, double share, uint64_t seed, double width)
{
    for (int step = 1; step <= toy->t; step++)
        for (int prefix = 0; prefix < toy_power(toy, step); prefix++)
            toy->log_psi[step][prefix] =
                share * toy->optimal[step][prefix] + width * toy_signed(seed, step, prefix);
}

static inline void toy_simple(struct toy *toy, uint64_t seed, int v, int t, uint64_t phi_seed,
                              double phi_width)
{
    toy_open(toy, seed, v, t, 2.0, false, 0);
    for (int text = 0; text < toy_power(toy, t); text++)
        toy->log_phi[text] = phi_width * toy_signed(phi_seed, 0, text);
    toy_solve(toy);
}

static inline void toy_a(struct toy *toy)
{
    toy_simple(toy, 1, 5, 5, 7, 3.0);
    toy_learn(toy, 0.5, 11, 2.0);
}

static inline void toy_s(struct toy *toy)
{
    toy_simple(toy, 3, 3, 3, 17, 2.0);
    toy_learn(toy, 0.4, 19, 4.0);
}

static inline void toy_s2(struct toy *toy)
{
    toy_simple(toy, 5, 2, 3, 21, 2.0);
    toy_learn(toy, 0.4, 25, 1.5);
}

/* log φ of a text that has ended after `length` tokens, prefix being those. */
static inline double toy_eos_phi(int prefix, int length)
{
    return 2.5 * toy_signed(31, length, prefix) - 0.4 * length;
}

/* Ended texts count, others do not. The learner's twist carries an ended prefix's value along, and
 * `drift` per step puts it off the scale of φ. */
static inline void toy_eos(struct toy *toy, double drift)
{
    toy_open(toy, 29, 4, 6, 1.5, true, 0.3);
    for (int text = 0; text < toy_power(toy, 6); text++) {
        toy->log_phi[text] = -INFINITY;
        for (int length = 6; length > 0; length--) {
            int prefix = text / toy_power(toy, 6 - length);
            if (toy_ended(toy, prefix, length)) /* the earliest end wins, as the last one found */
                toy->log_phi[text] = toy_eos_phi(prefix, length);
        }
    }
    toy_solve(toy);
    for (int step = 1; step <= toy->t; step++)
        for (int prefix = 0; prefix < toy_power(toy, step); prefix++) {
            double best = toy->optimal[step][prefix];
            bool carried = toy_ended(toy, prefix / toy->base, step - 1);
            toy->log_psi[step][prefix] =
                carried ? toy->log_psi[step - 1][prefix / toy->base]
                        : fmax(best, -4) + 0.8 * toy_signed(37, step, prefix) + drift;
        }
}
