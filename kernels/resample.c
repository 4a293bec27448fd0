/* Weigh populations and choose ancestors. Scalar code in double: a population has at most some
 * thousand particles, and a resampling that favours a particle by a rounding error is a bias.
 *
 * A scheme first says how many children each particle gets, counted in `ancestor`; `settle` then
 * turns the counts into ancestors in place. Where a child lives carries no meaning, so a survivor
 * keeps its slot and only the extra children move. Until the ancestors are final, log_rho serves as
 * scratch: nothing is allocated here.
 *
 * Pinned (conditional SMC, the upper bound on Z): slot 0 holds the exact sample and one child of it
 * stays there. The others follow the scheme's law given that event, which in terms of the counts is
 * P(N) N_0 / E[N_0]. Merely overwriting slot 0 would bias Ẑ.
 * - multinomial: the other k-1 children are drawn as always.
 * - systematic, stratified: drop the kept child's point uniformly on the particle's interval; the
 *   stratum that it hits and the place within it are that child's stratum and uniform. The counts
 *   depend on the order of the particles, so the kept child is like any other child only if that
 *   order is random.
 * - residual: the kept child is one of the certain copies, or one of the random ones, in proportion
 *   to their expected numbers; in the latter case one random child fewer is left to draw. */
#include <math.h>
#include <string.h>

#include "cpu_ops.h"
#include "philox.h"

/* exp(log_w - max): sums of these neither overflow nor lose the largest. */
static double weight(const struct resample_args *a, int i, double max)
{
    return exp(a->log_w[i] - max);
}

/* The call's random numbers: uniform(n, 0) places child n, uniform(k, 0) the kept child, and
 * uniform(i, 1) shuffles. */
static double uniform(const struct resample_args *a, int lane, int pair)
{
    struct philox p = philox4x32(a->seed, a->step, 0, PHILOX_RESAMPLE, (uint32_t)lane);
    return philox_u01(p.v[2 * pair], p.v[2 * pair + 1]);
}

/* Shares to their inclusive sums, normalised. The last is exactly 1 by construction, and trailing
 * zeros repeat it, so that no u < 1 picks them. */
static void cumulate(double *share, int k)
{
    double total = 0;
    for (int i = 0; i < k; i++)
        share[i] = total += share[i];
    for (int i = 0; i < k; i++)
        share[i] /= total;
}

/* The smallest i with u < cdf[i]. */
static int owner(const double *cdf, int k, double u)
{
    int lo = 0, hi = k - 1;
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        if (u < cdf[mid])
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo;
}

static void scatter(const struct resample_args *a, const double *cdf, int children)
{
    for (int n = 0; n < children; n++)
        a->ancestor[owner(cdf, a->k, uniform(a, n, 0))]++;
}

static void count_multinomial(const struct resample_args *a, double max)
{
    double *cdf = a->log_rho;
    for (int i = 0; i < a->k; i++)
        cdf[i] = weight(a, i, max);
    cumulate(cdf, a->k);
    a->ancestor[0] += a->pinned;
    scatter(a, cdf, a->k - a->pinned);
}

static void count_residual(const struct resample_args *a, double max, double sum)
{
    double *rest = a->log_rho;
    int random = a->k;
    for (int i = 0; i < a->k; i++) {
        double expected = a->k * weight(a, i, max) / sum;
        int copies = (int)expected;
        rest[i] = expected - copies;
        a->ancestor[i] = copies;
        random -= copies;
    }
    if (a->pinned && uniform(a, a->k, 0) * (a->ancestor[0] + rest[0]) >= a->ancestor[0]) {
        a->ancestor[0]++;
        random--;
    }
    if (random <= 0)
        return;
    cumulate(rest, a->k);
    scatter(a, rest, random);
}

/* Fisher and Yates. Indices up to 2^53 are exact in a double. */
static void shuffle(const struct resample_args *a, double *order)
{
    for (int i = a->k - 1; i > 0; i--) {
        int j = (int)(uniform(a, i, 1) * (i + 1));
        double other = order[j];
        order[j] = order[i];
        order[i] = other;
    }
}

/* k points u_n = (n + U_n) / k in ascending order against the inclusive sums, walked together. */
static void count_strata(const struct resample_args *a, double max)
{
    double *order = a->log_rho;
    for (int m = 0; m < a->k; m++)
        order[m] = m;
    if (a->pinned)
        shuffle(a, order);

    double total = 0, begin = 0; /* of slot 0's interval */
    for (int m = 0; m < a->k; m++) {
        if (order[m] == 0)
            begin = total;
        total += weight(a, (int)order[m], max);
    }

    int kept = -1; /* the kept child's stratum */
    double place = uniform(a, 0, 0);
    if (a->pinned) {
        double v = a->k * (begin + uniform(a, a->k, 0) * weight(a, 0, max)) / total;
        kept = v < a->k ? (int)v : a->k - 1;
        place = v - kept;
        a->ancestor[0] = 1;
    }

    double sum = 0;
    for (int m = 0, n = 0; m < a->k; m++) {
        int i = (int)order[m];
        sum += weight(a, i, max);
        for (; n < a->k; n++) {
            if (n == kept)
                continue;
            double own = a->scheme == RESAMPLE_SYSTEMATIC ? place : uniform(a, n, 0);
            if (fmin((n + own) / a->k, 1 - 0x1p-53) >= sum / total)
                break;
            a->ancestor[i]++;
        }
    }
}

/* Counts to ancestors: a particle with children keeps its slot, its further children fill the
 * childless slots in ascending order. A settled slot is marked by ~ancestor < 0 meanwhile. A
 * surplus child (rounding may leave one beside a pinned particle) finds no slot. */
static void settle(int32_t *ancestor, int k)
{
    int parent = 0;
    for (int slot = 0; slot < k; slot++) {
        if (ancestor[slot] != 0)
            continue;
        while (ancestor[parent] <= 1)
            parent++;
        ancestor[parent]--;
        ancestor[slot] = ~parent;
    }
    for (int slot = 0; slot < k; slot++)
        ancestor[slot] = ancestor[slot] < 0 ? ~ancestor[slot] : slot;
}

static void choose_ancestors(const struct resample_args *a, double max, double sum)
{
    memset(a->ancestor, 0, sizeof a->ancestor[0] * (size_t)a->k);
    if (a->scheme == RESAMPLE_MULTINOMIAL)
        count_multinomial(a, max);
    else if (a->scheme == RESAMPLE_RESIDUAL)
        count_residual(a, max, sum);
    else
        count_strata(a, max);
    settle(a->ancestor, a->k);
}

/* Strictly below, with a slack: k equal weights have an ESS of k up to rounding and must not
 * trigger. */
static bool wants_resampling(const struct resample_args *a, double ess)
{
    if (a->ess_threshold == 0 || (a->pinned && a->log_w[0] == -INFINITY))
        return false;
    return a->ess_threshold == 1 || ess < a->ess_threshold * a->k * (1 - 1e-12);
}

static void resample_one(const struct resample_args *a, struct resample_out *out)
{
    double max = -INFINITY, sum = 0, sum2 = 0;
    for (int i = 0; i < a->k; i++) {
        max = fmax(max, a->log_w[i]);
        a->ancestor[i] = i;
        a->log_rho[i] = -INFINITY;
    }
    *out = (struct resample_out){.log_mean = -INFINITY};
    if (max == -INFINITY)
        return;
    for (int i = 0; i < a->k; i++) {
        double w = weight(a, i, max);
        sum += w;
        sum2 += w * w;
    }
    out->log_mean = max + log(sum / a->k);
    out->ess = sum / sum2 * sum;
    out->resampled = wants_resampling(a, out->ess);
    if (out->resampled)
        choose_ancestors(a, max, sum);
    for (int i = 0; i < a->k; i++)
        a->log_rho[i] = a->log_w[i] - max - log(sum);
}

void cpu_resample(const struct resample_args *args, struct resample_out *out, int n)
{
    for (int i = 0; i < n; i++)
        resample_one(&args[i], &out[i]);
}
