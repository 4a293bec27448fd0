/* The resampling operation with its random numbers in the test's hand. It takes uniforms and is
 * piecewise constant in each of them, so its exact law is a finite sum: cut every uniform where the
 * outcome may change, run the operation once in the middle of each cell. With no script the numbers
 * are Philox's own. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "../../kernels/philox.h"

enum { SCRIPT_LANES = 8, MAX_CELLS = 64 };

static double script[SCRIPT_LANES][2]; /* [lane][pair] */
static bool scripted;

static void script_words(double u, uint32_t *hi, uint32_t *lo)
{
    uint64_t x = (uint64_t)(u * 0x1p53) << 11;
    *hi = (uint32_t)(x >> 32);
    *lo = (uint32_t)x;
}

static struct philox scripted_philox(uint64_t seed, uint32_t step, uint32_t particle,
                                     uint32_t purpose, uint32_t lane)
{
    if (!scripted)
        return philox4x32(seed, step, particle, purpose, lane);
    struct philox p;
    for (int pair = 0; pair < 2; pair++)
        script_words(script[lane][pair], &p.v[2 * pair], &p.v[2 * pair + 1]);
    return p;
}

#define philox4x32 scripted_philox
#include "../../kernels/resample.c"
#undef philox4x32

/* One uniform, cut into cells: a value within each, and its probability. */
struct axis {
    int lane, pair, n;
    double value[MAX_CELLS], chance[MAX_CELLS];
};

/* Cells between the cuts in (0, 1). Narrower ones than rounding errors are none. */
static struct axis axis_of_cuts(int lane, int pair, double *cut, int n_cuts)
{
    struct axis axis = {.lane = lane, .pair = pair};
    double from = 0;
    while (from < 1) {
        double to = 1;
        for (int i = 0; i < n_cuts; i++)
            if (cut[i] > from + 1e-13 && cut[i] < to - 1e-13)
                to = cut[i];
        axis.value[axis.n] = (from + to) / 2;
        axis.chance[axis.n++] = to - from;
        from = to;
    }
    return axis;
}

struct cells {
    const struct resample_args *args;
    struct axis axis[2 * SCRIPT_LANES];
    int n_axes;
    void (*visit)(void *ctx, double chance);
    void *ctx;
};

static void visit_cells(struct cells *c, int depth, double chance)
{
    if (depth == c->n_axes) {
        c->visit(c->ctx, chance);
        return;
    }
    struct axis *axis = &c->axis[depth];
    for (int i = 0; i < axis->n; i++) {
        script[axis->lane][axis->pair] = axis->value[i];
        visit_cells(c, depth + 1, chance * axis->chance[i]);
    }
}

/* Inclusive sums of the weights in this order, the last being 1. */
static void ordered_cdf(const double *log_w, const int *order, int k, double *cdf)
{
    double total = 0;
    for (int m = 0; m < k; m++)
        cdf[m] = total += exp(log_w[order[m]]);
    for (int m = 0; m < k; m++)
        cdf[m] /= total;
}

static void cut_residual(struct cells *c, const double *cdf)
{
    const struct resample_args *a = c->args;
    int k = a->k, left = k;
    double rest[SCRIPT_LANES], sum = 0, certain_0 = 0, expected_0 = k * cdf[0];
    for (int i = 0; i < k; i++) {
        double expected = k * (cdf[i] - (i ? cdf[i - 1] : 0));
        double copies = floor(expected + 1e-12); /* whole up to rounding: no cell */
        certain_0 = i ? certain_0 : copies;
        left -= (int)copies;
        rest[i] = sum += fmax(expected - copies, 0);
    }
    if (a->pinned)
        c->axis[c->n_axes++] = axis_of_cuts(k, 0, (double[]){certain_0 / expected_0}, 1);
    for (int i = 0; i < k; i++)
        rest[i] /= sum;
    for (int n = 0; n < left; n++)
        c->axis[c->n_axes++] = axis_of_cuts(n, 0, rest, k);
}

static void cut_strata(struct cells *c, const int *order, const double *cdf)
{
    const struct resample_args *a = c->args;
    int k = a->k, n_cuts = 0;
    double cut[SCRIPT_LANES], kept_cut[MAX_CELLS];
    for (int m = 0; m < k; m++)
        cut[m] = k * cdf[m] - floor(k * cdf[m]);
    for (int m = 0; a->pinned && m < k; m++) {
        if (order[m] != 0)
            continue;
        double begin = m ? cdf[m - 1] : 0, length = cdf[m] - begin;
        for (int n = 0; n < k; n++) {
            kept_cut[n_cuts++] = ((double)n / k - begin) / length;
            for (int i = 0; i < k; i++)
                kept_cut[n_cuts++] = ((n + cut[i]) / k - begin) / length;
        }
        c->axis[c->n_axes++] = axis_of_cuts(k, 0, kept_cut, n_cuts);
    }
    int lanes = a->scheme == RESAMPLE_STRATIFIED ? k : !a->pinned;
    for (int n = 0; n < lanes; n++)
        c->axis[c->n_axes++] = axis_of_cuts(n, 0, cut, k);
}

/* All orders that the shuffle may bring about: position i swaps with one of 0..i. */
static void visit_orders(struct cells *c, int i, int *order, double chance)
{
    if (i == 0) {
        double cdf[SCRIPT_LANES];
        ordered_cdf(c->args->log_w, order, c->args->k, cdf);
        c->n_axes = 0;
        cut_strata(c, order, cdf);
        visit_cells(c, 0, chance);
        return;
    }
    for (int j = 0; j <= i; j++) {
        int swapped[SCRIPT_LANES];
        memcpy(swapped, order, sizeof swapped);
        swapped[i] = order[j];
        swapped[j] = order[i];
        script[i][1] = (j + 0.5) / (i + 1);
        visit_orders(c, i - 1, swapped, chance / (i + 1));
    }
}

/* Call visit once for every cell of the call's random numbers, the script set to that cell. The
 * weights' scale must be such that their exponentials are in range. */
static inline void every_outcome(const struct resample_args *a,
                                 void (*visit)(void *ctx, double chance), void *ctx)
{
    struct cells c = {.args = a, .visit = visit, .ctx = ctx};
    int order[SCRIPT_LANES];
    double cdf[SCRIPT_LANES];
    for (int i = 0; i < SCRIPT_LANES; i++)
        order[i] = i;
    ordered_cdf(a->log_w, order, a->k, cdf);
    scripted = true;
    if (a->scheme == RESAMPLE_SYSTEMATIC || a->scheme == RESAMPLE_STRATIFIED) {
        if (a->pinned)
            visit_orders(&c, a->k - 1, order, 1);
        else {
            cut_strata(&c, order, cdf);
            visit_cells(&c, 0, 1);
        }
    } else if (a->scheme == RESAMPLE_RESIDUAL) {
        cut_residual(&c, cdf);
        visit_cells(&c, 0, 1);
    } else {
        for (int n = 0; n < a->k - a->pinned; n++)
            c.axis[c.n_axes++] = axis_of_cuts(n, 0, cdf, a->k);
        visit_cells(&c, 0, 1);
    }
    scripted = false;
}

/* Ancestors as a number in base k, for tables of outcomes (k <= 4). */
enum { OUTCOMES = 256 };
static inline int outcome_of(const int32_t *ancestor, int k)
{
    int code = 0;
    for (int i = 0; i < k; i++)
        code = code * k + ancestor[i];
    return code;
}
