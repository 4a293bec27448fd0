/* The resample operation by its exact laws: expected counts, the schemes' bounds, and the pinned
 * law as the free one weighted by the pinned particle's children. */
#include "../oracle/scripted.h"

#include "../check.h"

static const enum resample_scheme schemes[] = {RESAMPLE_SYSTEMATIC, RESAMPLE_STRATIFIED,
                                               RESAMPLE_MULTINOMIAL, RESAMPLE_RESIDUAL};
enum { N_SCHEMES = 4, MAX_K = 4, BIG = 1000 };

static const struct {
    int k;
    double w[MAX_K]; /* unnormalised; slot 0 is not 0 */
} clouds[] = {
    {1, {1}},          {2, {0.3, 0.7}},         {2, {5, 0.01}},
    {3, {1, 1, 1}},    {3, {0.5, 0.25, 0.25}},  {3, {0.1, 2.3, 0.4}},
    {3, {1, 0, 0}},    {3, {0.2, 0.8, 0}},      {4, {0.1, 0.2, 0.3, 0.4}},
    {4, {3, 0, 1, 0}}, {4, {0.25, 1, 0.02, 2}},
};
enum { N_CLOUDS = sizeof clouds / sizeof *clouds };

/* Buffers of one call. */
struct call {
    struct resample_args args;
    struct resample_out out;
    double log_w[BIG], log_rho[BIG];
    int32_t ancestor[BIG];
    double law[OUTCOMES];
};

static void prepare(struct call *c, int k, const double *w, enum resample_scheme scheme,
                    bool pinned)
{
    for (int i = 0; i < k; i++)
        c->log_w[i] = log(w[i]);
    c->args = (struct resample_args){
        .log_w = c->log_w,
        .ancestor = c->ancestor,
        .log_rho = c->log_rho,
        .k = k,
        .scheme = scheme,
        .ess_threshold = 1,
        .pinned = pinned,
    };
    memset(c->law, 0, sizeof c->law);
}

static void call(struct call *c)
{
    cpu_resample(&c->args, &c->out, 1);
}

static void count_children(const struct call *c, int *count)
{
    memset(count, 0, sizeof *count * (size_t)c->args.k);
    for (int i = 0; i < c->args.k; i++)
        count[c->ancestor[i]]++;
}

/* Survivors stay, the other children fill the gaps in ascending order. */
static void check_arrangement(const struct call *c)
{
    int last = 0;
    for (int i = 0; i < c->args.k; i++) {
        EXPECT(c->ancestor[i] >= 0 && c->ancestor[i] < c->args.k);
        EXPECT_INT(c->ancestor[c->ancestor[i]], c->ancestor[i]);
        if (c->ancestor[i] == i)
            continue;
        EXPECT(c->ancestor[i] >= last);
        last = c->ancestor[i];
    }
}

static void tally(void *ctx, double chance)
{
    struct call *c = ctx;
    call(c);
    check_arrangement(c);
    c->law[outcome_of(c->ancestor, c->args.k)] += chance;
}

static void decode(int code, int k, int32_t *ancestor)
{
    for (int i = k - 1; i >= 0; i--, code /= k)
        ancestor[i] = code % k;
}

/* |N - k W| of the scheme, exclusive. */
static double bound(enum resample_scheme scheme, int k)
{
    return scheme == RESAMPLE_SYSTEMATIC ? 1 : scheme == RESAMPLE_STRATIFIED ? 2 : k + 1;
}

static void check_counts(const struct call *c, const double *share)
{
    int k = c->args.k, count[BIG];
    count_children(c, count);
    for (int i = 0; i < k; i++) {
        double expected = k * share[i];
        EXPECT(fabs(count[i] - expected) < bound(c->args.scheme, k) + 1e-9);
        EXPECT(share[i] > 0 || count[i] == 0);
        EXPECT(c->args.scheme != RESAMPLE_RESIDUAL || count[i] >= floor(expected - 1e-9));
    }
}

static void normalise(const double *w, int k, double *share)
{
    double total = 0;
    for (int i = 0; i < k; i++)
        total += w[i];
    for (int i = 0; i < k; i++)
        share[i] = w[i] / total;
}

static void free_law(const double *w, int k, enum resample_scheme scheme)
{
    static struct call c;
    double share[MAX_K], mean[MAX_K] = {0}, total = 0;
    normalise(w, k, share);
    prepare(&c, k, w, scheme, false);
    every_outcome(&c.args, tally, &c);
    for (int code = 0; code < OUTCOMES; code++) {
        if (c.law[code] == 0)
            continue;
        decode(code, k, c.ancestor);
        check_counts(&c, share);
        total += c.law[code];
        for (int i = 0; i < k; i++)
            mean[c.ancestor[i]] += c.law[code];
    }
    EXPECT_NEAR(total, 1, 1e-12);
    for (int i = 0; i < k; i++)
        EXPECT_NEAR(mean[i], k * share[i], 1e-11);
}

/* Counts as a number in base k + 1. */
enum { COUNT_CODES = 625 };
static int count_code(const int *count, int k)
{
    int code = 0;
    for (int i = 0; i < k; i++)
        code = code * (k + 1) + count[i];
    return code;
}

/* Add to want the law of the counts of the free scheme on the particles in this order. */
static void add_ordered(const double *w, const int *order, int k, enum resample_scheme scheme,
                        double factor, double *want)
{
    static struct call c;
    double permuted[MAX_K];
    for (int m = 0; m < k; m++)
        permuted[m] = w[order[m]];
    prepare(&c, k, permuted, scheme, false);
    every_outcome(&c.args, tally, &c);
    for (int code = 0; code < OUTCOMES; code++) {
        int by_place[BIG], count[MAX_K];
        if (c.law[code] == 0)
            continue;
        decode(code, k, c.ancestor);
        count_children(&c, by_place);
        for (int m = 0; m < k; m++)
            count[order[m]] = by_place[m];
        want[count_code(count, k)] += factor * c.law[code] * count[0];
    }
}

static void every_order(const double *w, int *order, int placed, int k, enum resample_scheme scheme,
                        double factor, double *want)
{
    if (placed == k) {
        add_ordered(w, order, k, scheme, factor, want);
        return;
    }
    for (int i = placed; i < k && i < MAX_K; i++) {
        int swapped[MAX_K];
        memcpy(swapped, order, sizeof swapped);
        swapped[placed] = order[i];
        swapped[i] = order[placed];
        every_order(w, swapped, placed + 1, k, scheme, factor / (k - placed), want);
    }
}

/* The most that the law of the counts differs from P(N) N_0 / E[N_0]. */
static double pinned_error(const struct call *c, const double *w)
{
    int k = c->args.k, order[MAX_K] = {0, 1, 2, 3};
    double share[MAX_K] = {1}, got[COUNT_CODES] = {0}, want[COUNT_CODES] = {0}, error = 0;
    normalise(w, k, share);
    every_order(w, order, 0, k, c->args.scheme, 1 / (k * share[0]), want);
    for (int code = 0; code < OUTCOMES; code++) {
        struct call decoded = {.args.k = k};
        int count[BIG];
        decode(code, k, decoded.ancestor);
        count_children(&decoded, count);
        got[count_code(count, k)] += c->law[code];
    }
    for (int code = 0; code < COUNT_CODES; code++)
        error = fmax(error, fabs(got[code] - want[code]));
    return error;
}

static void keeps_slot_0(void *ctx, double chance)
{
    tally(ctx, chance);
    EXPECT_INT(((struct call *)ctx)->ancestor[0], 0);
}

static void pinned_law(const double *w, int k, enum resample_scheme scheme)
{
    static struct call c;
    prepare(&c, k, w, scheme, true);
    every_outcome(&c.args, keeps_slot_0, &c);
    EXPECT_NEAR(pinned_error(&c, w), 0, 1e-11);
}

/* The tempting wrong way: resample freely, then overwrite slot 0. */
static void overwrite(void *ctx, double chance)
{
    struct call *c = ctx;
    call(c);
    c->ancestor[0] = 0;
    c->law[outcome_of(c->ancestor, c->args.k)] += chance;
}

static void wrong_pinning_is_caught(void)
{
    static struct call c;
    const double w[] = {0.1, 2.3, 0.4};
    prepare(&c, 3, w, RESAMPLE_SYSTEMATIC, false);
    every_outcome(&c.args, overwrite, &c);
    EXPECT(pinned_error(&c, w) > 0.01);
}

/* A uniform on the edge of two intervals belongs to the upper one: never to a weight of 0. */
static void edges(enum resample_scheme scheme)
{
    static struct call c;
    const double top = 1 - 0x1p-53;
    scripted = true;
    for (int lane = 0; lane < SCRIPT_LANES; lane++)
        script[lane][0] = 0;
    prepare(&c, 3, (double[]){0, 2, 1}, scheme, false);
    call(&c);
    check_arrangement(&c);
    EXPECT(c.ancestor[0] != 0);
    for (int lane = 0; lane < SCRIPT_LANES; lane++)
        script[lane][0] = top;
    prepare(&c, 3, (double[]){2, 1, 0}, scheme, false);
    call(&c);
    check_arrangement(&c);
    EXPECT(c.ancestor[2] != 2);
    scripted = false;
}

static void weighing(void)
{
    static struct call c;
    prepare(&c, 4, (double[]){1, 2, 3, 4}, RESAMPLE_SYSTEMATIC, false);
    for (int i = 0; i < 4; i++)
        c.log_w[i] += 5000; /* their exponentials are out of range */
    call(&c);
    EXPECT_NEAR(c.out.log_mean, 5000 + log(2.5), 1e-12);
    EXPECT_NEAR(c.out.ess, 100.0 / 30, 1e-12);
    for (int i = 0; i < 4; i++)
        EXPECT_NEAR(c.log_rho[i], log((i + 1) / 10.0), 1e-11);
}

static int resamples(double threshold, int k, const double *w)
{
    static struct call c;
    prepare(&c, k, w, RESAMPLE_MULTINOMIAL, false);
    c.args.ess_threshold = threshold;
    call(&c);
    return c.out.resampled;
}

static void decision(void)
{
    const double level[] = {0.1, 0.1, 0.1}, steep[] = {1, 0, 0}, dead[] = {0, 0, 0};
    const double nearly[] = {1, 1 + 1.5e-6, 1}; /* ESS is 3 (1 - 5e-13) */
    EXPECT_INT(resamples(1, 3, level), 1);
    EXPECT_INT(resamples(nextafter(1, 0), 3, level), 0);
    EXPECT_INT(resamples(nextafter(1, 0), 3, nearly), 0);
    EXPECT_INT(resamples(0, 3, steep), 0);
    EXPECT_INT(resamples(0.3, 3, steep), 0); /* ESS 1, wanted below 0.9 */
    EXPECT_INT(resamples(0.34, 3, steep), 1);
    EXPECT_INT(resamples(1, 3, dead), 0);
}

static void the_dead(void)
{
    static struct call c;
    prepare(&c, 3, (double[]){0, 0, 0}, RESAMPLE_SYSTEMATIC, false);
    call(&c);
    EXPECT(c.out.log_mean == -INFINITY && c.out.ess == 0 && !c.out.resampled);
    for (int i = 0; i < 3; i++)
        EXPECT(c.ancestor[i] == i && c.log_rho[i] == -INFINITY);

    prepare(&c, 3, (double[]){0, 1, 2}, RESAMPLE_SYSTEMATIC, true); /* the pinned one is dead */
    call(&c);
    EXPECT(!c.out.resampled && c.ancestor[0] == 0);
    EXPECT(c.log_rho[0] == -INFINITY && fabs(c.log_rho[2] - log(2.0 / 3)) < 1e-12);
}

/* Philox's own numbers: bounds in a large population, and means over many calls. */
static void large(enum resample_scheme scheme)
{
    static struct call c;
    static double w[BIG], share[BIG], sum[BIG];
    enum { CALLS = 2000 };
    uint64_t x = 1;
    memset(sum, 0, sizeof sum);
    for (int i = 0; i < BIG; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        w[i] = i % 7 == 3 || i > 990 ? 0 : exp(4 * (double)(x >> 33) * 0x1p-31);
    }
    normalise(w, BIG, share);
    prepare(&c, BIG, w, scheme, false);
    for (uint32_t step = 0; step < CALLS; step++) {
        int count[BIG];
        c.args.step = step;
        call(&c);
        check_arrangement(&c);
        check_counts(&c, share);
        count_children(&c, count);
        for (int i = 0; i < BIG; i++)
            sum[i] += count[i];
    }
    for (int i = 0; i < BIG; i++) {
        double expected = BIG * share[i];
        EXPECT_NEAR(sum[i] / CALLS, expected, 6 * sqrt(expected / CALLS)); /* at most binomial */
    }
}

static void many_at_once(void)
{
    static struct call c[3];
    struct resample_args args[3];
    struct resample_out out[3];
    int32_t alone[3][3];
    for (int i = 0; i < 3; i++) {
        prepare(&c[i], 3, (double[]){0.5, 1 + i, 0.2}, schemes[i], false);
        c[i].args.seed = 11 + (uint64_t)i;
        call(&c[i]);
        memcpy(alone[i], c[i].ancestor, sizeof alone[i]);
        args[i] = c[i].args;
    }
    cpu_resample(args, out, 3);
    for (int i = 0; i < 3; i++) {
        EXPECT(memcmp(alone[i], c[i].ancestor, sizeof alone[i]) == 0);
        EXPECT(memcmp(&out[i], &c[i].out, sizeof out[i]) == 0);
    }
}

int main(void)
{
    for (int s = 0; s < N_SCHEMES; s++) {
        for (int i = 0; i < N_CLOUDS; i++) {
            free_law(clouds[i].w, clouds[i].k, schemes[s]);
            pinned_law(clouds[i].w, clouds[i].k, schemes[s]);
        }
        edges(schemes[s]);
        large(schemes[s]);
    }
    wrong_pinning_is_caught();
    weighing();
    decision();
    the_dead();
    many_at_once();
    return test_failures();
}
