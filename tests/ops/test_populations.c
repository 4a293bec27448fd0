/* The resample operation on a device: thousands of populations, many in one call, against float64
 * arithmetic, the schemes' bounds and the CPU backend. Ancestors must be the CPU's, unless a random
 * number lies so close to an edge that rounding decides. test_resample.c has the exact laws. */
#include "ops.h"
#include "report.h"

static const int sizes[] = {1, 2, 3, 31, 32, 33, 64, 1000, 2048, 2049, 4096};
static const enum resample_scheme schemes[] = {RESAMPLE_SYSTEMATIC, RESAMPLE_STRATIFIED,
                                               RESAMPLE_MULTINOMIAL, RESAMPLE_RESIDUAL};
enum weights { ROUGH, HOLES, TIES, EQUAL, WIDE, NARROW, ONE_LIVES, FRINGES, FIRST_DEAD, ALL_DEAD };
enum {
    N_SIZES = sizeof sizes / sizeof *sizes,
    N_SCHEMES = 4,
    N_WEIGHTS = ALL_DEAD + 1,
    SOME = 40, /* populations of a call: more than one launch */
};

/* Populations of one call, their particles one behind the other. */
struct call {
    struct resample_args args[SOME]; /* pointers into host arrays below */
    struct resample_out out[SOME];
    int n, particles;
    double *log_w, *log_rho;
    int32_t *ancestor;
};

/* In [0, 1). */
static double random_of(uint64_t name, int i)
{
    return ((double)noise((uint32_t)name, (size_t)i) + 1) / 2;
}

static double log_weight(enum weights kind, int k, uint64_t seed, int i)
{
    const double u = random_of(seed, i);
    switch (kind) {
    case ROUGH:
        return 4 * u;
    case HOLES:
        return u < 0.3 ? -INFINITY : 3 * u - 700;
    case TIES:
        return (int)(4 * u);
    case EQUAL:
        return -1234.567;
    case WIDE:
        return 3000 * u * u * u;
    case NARROW:
        return 5000 + 1e-5 * u;
    case ONE_LIVES:
        return i == (int)(seed % (uint64_t)k) ? 2 : -INFINITY;
    case FRINGES:
        return i < k / 3 || i >= k - k / 4 ? -INFINITY : u;
    case FIRST_DEAD:
        return i == 0 ? -INFINITY : u;
    case ALL_DEAD:
        break;
    }
    return -INFINITY;
}

static void call_open(struct call *c, int particles)
{
    *c = (struct call){.log_w = calloc((size_t)particles, sizeof(double)),
                       .log_rho = calloc((size_t)particles, sizeof(double)),
                       .ancestor = calloc((size_t)particles, sizeof(int32_t))};
}

static void call_close(struct call *c)
{
    free(c->log_w);
    free(c->log_rho);
    free(c->ancestor);
}

static void add(struct call *c, const struct resample_args *like, const double *log_w)
{
    struct resample_args *a = &c->args[c->n++];
    double *at = c->log_w + c->particles;
    memcpy(at, log_w, (size_t)like->k * sizeof *at);
    *a = *like;
    a->log_w = at;
    a->log_rho = c->log_rho + c->particles;
    a->ancestor = c->ancestor + c->particles;
    c->particles += a->k;
}

static void run(struct backend *b, struct call *c)
{
    struct buffers mem = {.b = b};
    struct resample_args args[SOME];
    const size_t n = (size_t)c->particles, doubles = n * sizeof(double), ints = n * sizeof(int32_t);
    const double *log_w = dev_new(&mem, c->log_w, doubles);
    double *log_rho = dev_new(&mem, NULL, doubles);
    int32_t *ancestor = dev_new(&mem, NULL, ints);
    struct resample_out *out = dev_new(&mem, NULL, sizeof *out * (size_t)c->n);
    for (int i = 0; i < c->n; i++) {
        const ptrdiff_t at = c->args[i].log_w - c->log_w;
        args[i] = c->args[i];
        args[i].log_w = log_w + at;
        args[i].log_rho = log_rho + at;
        args[i].ancestor = ancestor + at;
    }
    EXPECT_INT(b->ops->resample(b, args, out, c->n), 0);
    EXPECT_INT(b->ops->download(b, c->log_rho, log_rho, doubles), 0);
    EXPECT_INT(b->ops->download(b, c->ancestor, ancestor, ints), 0);
    EXPECT_INT(b->ops->download(b, c->out, out, sizeof *out * (size_t)c->n), 0);
    dev_free_all(&mem);
}

/* ---- what must hold of any population ---- */

static void near(double got, double want, double bound)
{
    note_error("resample", ACT_F32, got, want, bound);
    EXPECT_NEAR(got, want, bound);
}

static void check_weighing(const struct resample_args *a, const struct resample_out *o)
{
    long double sum = 0, sum2 = 0;
    double max = -INFINITY;
    for (int i = 0; i < a->k; i++)
        max = fmax(max, a->log_w[i]);
    for (int i = 0; i < a->k && max > -INFINITY; i++) {
        sum += expl((long double)a->log_w[i] - (long double)max);
        sum2 += expl(2 * ((long double)a->log_w[i] - (long double)max));
    }
    const double tiny = 1e-14 * (a->k + fabs(max));
    near(o->log_mean, max + (double)logl(sum / a->k), tiny);
    near(o->ess, sum > 0 ? (double)(sum / sum2 * sum) : 0, 1e-14 * a->k * a->k);
    for (int i = 0; i < a->k; i++)
        near(a->log_rho[i],
             a->log_w[i] == -INFINITY ? -INFINITY : a->log_w[i] - max - (double)logl(sum), tiny);
}

static bool should_resample(const struct resample_args *a, const struct resample_out *o)
{
    if (o->ess == 0 || (a->pinned && a->log_w[0] == -INFINITY))
        return false;
    return a->ess_threshold == 1 || o->ess < a->ess_threshold * a->k * (1 - 1e-12);
}

/* Survivors stay, the other children fill the gaps in ascending order. */
static void check_arrangement(const struct resample_args *a, const struct resample_out *o)
{
    int last = 0, wrong = 0;
    for (int i = 0; i < a->k; i++) {
        const int32_t from = a->ancestor[i];
        wrong += from < 0 || from >= a->k || a->ancestor[from] != from;
        wrong += !o->resampled && from != i;
        wrong += from != i && from < last;
        last = from != i ? from : last;
    }
    EXPECT_INT(wrong, 0);
    EXPECT(!a->pinned || a->ancestor[0] == 0);
}

/* |N - k W| of the scheme without a pinned particle, exclusive. */
static void check_counts(const struct resample_args *a)
{
    int *count = calloc((size_t)a->k, sizeof *count), wrong = 0;
    for (int i = 0; i < a->k; i++)
        count[a->ancestor[i]]++;
    for (int i = 0; i < a->k; i++) {
        const double expected = a->k * exp(a->log_rho[i]), error = fabs(count[i] - expected);
        wrong += expected == 0 && count[i] > (i == 0 && a->pinned);
        wrong += a->scheme == RESAMPLE_SYSTEMATIC && !a->pinned && error > 1 + 1e-9;
        wrong += a->scheme == RESAMPLE_STRATIFIED && !a->pinned && error > 2 + 1e-9;
        wrong += a->scheme == RESAMPLE_RESIDUAL && count[i] < floor(expected - 1e-9);
    }
    EXPECT_INT(wrong, 0);
    free(count);
}

static void check(const struct resample_args *a, const struct resample_out *o)
{
    check_weighing(a, o);
    EXPECT_INT(o->resampled, should_resample(a, o));
    check_arrangement(a, o);
    if (o->resampled)
        check_counts(a);
}

static bool same_choice(const struct call *x, int i, const struct call *y, int j)
{
    return x->out[i].resampled == y->out[j].resampled &&
           memcmp(x->args[i].ancestor, y->args[j].ancestor,
                  (size_t)x->args[i].k * sizeof(int32_t)) == 0;
}

static bool same_bits(const struct call *x, int i, const struct call *y, int j)
{
    const size_t bytes = (size_t)x->args[i].k * sizeof(double);
    return same_choice(x, i, y, j) && x->out[i].log_mean == y->out[j].log_mean &&
           x->out[i].ess == y->out[j].ess &&
           memcmp(x->args[i].log_rho, y->args[j].log_rho, bytes) == 0;
}

/* Does the choice change when the weights change by a little? */
static bool on_edge(struct backend *cpu, const struct call *c, int i)
{
    const int k = c->args[i].k;
    double *shaken = calloc((size_t)k, sizeof *shaken);
    bool differs = false;
    struct call again;
    for (int try = 0; try < 16 && !differs; try++) {
        for (int j = 0; j < k; j++)
            shaken[j] = c->args[i].log_w[j] + 1e-11 * (double)noise(77 + (uint32_t)try, (size_t)j);
        call_open(&again, k);
        add(&again, &c->args[i], shaken);
        run(cpu, &again);
        differs = !same_choice(c, i, &again, 0);
        call_close(&again);
    }
    free(shaken);
    return differs;
}

/* ---- populations ---- */

struct tally {
    int compared, excused;
};

static void compare(struct backend *b, struct backend *cpu, const struct call *c, struct tally *t)
{
    struct call want;
    call_open(&want, c->particles);
    for (int i = 0; i < c->n; i++)
        add(&want, &c->args[i], c->args[i].log_w);
    run(cpu, &want);
    for (int i = 0; i < c->n; i++) {
        t->compared++;
        if (same_choice(c, i, &want, i))
            continue;
        t->excused++;
        if (on_edge(cpu, &want, i))
            continue;
        EXPECT(!"the ancestors are those of the CPU");
        fprintf(stderr, "  k %d, scheme %d, pinned %d, on %s\n", c->args[i].k, c->args[i].scheme,
                c->args[i].pinned, b->device);
    }
    call_close(&want);
}

/* In another order, and one alone: the same bits. */
static void check_company(struct backend *b, const struct call *c)
{
    struct call other;
    call_open(&other, c->particles);
    for (int i = c->n - 1; i >= 0; i--)
        add(&other, &c->args[i], c->args[i].log_w);
    run(b, &other);
    for (int i = 0; i < c->n; i++)
        EXPECT(same_bits(c, i, &other, c->n - 1 - i));
    const int alone = c->particles % c->n;
    other.n = other.particles = 0;
    add(&other, &c->args[alone], c->args[alone].log_w);
    run(b, &other);
    EXPECT(same_bits(c, alone, &other, 0));
    call_close(&other);
}

/* Weights, schemes, thresholds and sizes that go on with `number`. */
static void add_population(struct call *c, uint64_t number, int k)
{
    static const double thresholds[] = {1, 0.5, 1, 0, 1, 0.99};
    double *log_w = calloc((size_t)k, sizeof *log_w);
    const struct resample_args like = {
        .k = k,
        .scheme = schemes[number % N_SCHEMES],
        .pinned = number / 4 % 2,
        .ess_threshold = thresholds[number / 8 % 6],
        .seed = number * 0x9E3779B97F4A7C15u,
        .step = (uint32_t)number % 7,
    };
    for (int i = 0; i < k; i++)
        log_w[i] = log_weight((enum weights)(number / 8 % N_WEIGHTS), k, number, i);
    add(c, &like, log_w);
    free(log_w);
}

/* A call of populations of about one size, and one of any. */
static void call_of(struct backend *b, struct backend *cpu, uint64_t *number, int size,
                    struct tally *t)
{
    struct call c;
    call_open(&c, SOME * 4096);
    for (int i = 0; i < SOME; i++, ++*number)
        add_population(&c, *number, i % 8 == 7 ? sizes[*number / 8 % N_SIZES] : sizes[size]);
    run(b, &c);
    for (int i = 0; i < c.n; i++)
        check(&c.args[i], &c.out[i]);
    compare(b, cpu, &c, t);
    check_company(b, &c);
    call_close(&c);
}

static void random_populations(struct backend *b, struct backend *cpu)
{
    struct tally t = {0};
    uint64_t number = 0;
    for (int size = 0; size < N_SIZES; size++)
        for (int calls = sizes[size] < 100 ? 16 : 3; calls > 0; calls--)
            call_of(b, cpu, &number, size, &t);
    EXPECT(t.compared > 4000);
    EXPECT(t.excused < t.compared / 50);
}

/* k equal weights, but for rounding perhaps, are resampled only on demand, and where all have one
 * child they stay as they are. */
static void equal_weights(struct backend *b)
{
    enum { NEARLY, BELOW_1, DEMANDED, KINDS };
    for (int k = 1; k <= 700; k = 2 * k + 3) {
        struct call c;
        double *log_w = calloc((size_t)k, sizeof *log_w);
        call_open(&c, KINDS * N_SCHEMES * k);
        for (int i = 0; i < KINDS * N_SCHEMES; i++) {
            for (int j = 0; j < k; j++)
                log_w[j] = log(0.1) + (i % KINDS == NEARLY ? 1e-6 * (j % 2) : 0);
            add(&c,
                &(struct resample_args){.k = k,
                                        .scheme = schemes[i / KINDS],
                                        .ess_threshold =
                                            i % KINDS == DEMANDED ? 1 : nextafter(1, 0),
                                        .seed = (uint64_t)k},
                log_w);
        }
        run(b, &c);
        for (int i = 0; i < c.n; i++) {
            EXPECT_INT(c.out[i].resampled, i % KINDS == DEMANDED);
            check_arrangement(&c.args[i], &c.out[i]);
            for (int j = 0; j < k && c.args[i].scheme != RESAMPLE_MULTINOMIAL; j++)
                EXPECT_INT(c.args[i].ancestor[j], j);
        }
        call_close(&c);
        free(log_w);
    }
}

/* Over many steps the mean numbers of children are the expected ones. */
static void unbiased(struct backend *b, enum resample_scheme scheme)
{
    enum { K = 33, CALLS = 100 };
    double log_w[K], mean[K] = {0};
    struct resample_args like = {.k = K, .scheme = scheme, .ess_threshold = 1, .seed = 5};
    struct call c;
    for (int i = 0; i < K; i++)
        log_w[i] = i % 5 == 2 ? -INFINITY : 3 * random_of(91, i);
    call_open(&c, SOME * K);
    for (int call = 0; call < CALLS; call++) {
        c.n = c.particles = 0;
        for (int i = 0; i < SOME; i++, like.step++)
            add(&c, &like, log_w);
        run(b, &c);
        for (int i = 0; i < c.particles; i++)
            mean[c.args[i / K].ancestor[i % K]] += 1.0 / (SOME * CALLS);
    }
    for (int i = 0; i < K; i++) {
        const double expected = K * exp(c.args[0].log_rho[i]);
        EXPECT_NEAR(mean[i], expected, 5 * sqrt(expected / (SOME * CALLS))); /* at most binomial */
    }
    call_close(&c);
}

int main(int argc, char **argv)
{
    struct backend *b = NULL, *cpu = NULL;
    char why[256];
    if (backend_open(&b,
                     &(struct backend_opts){
                         .kind = argc > 1 ? argv[1] : "cpu", .dtype = "f32", .threads = 1},
                     why, sizeof why) ||
        backend_open(&cpu, &(struct backend_opts){.kind = "cpu", .dtype = "f32", .threads = 1}, why,
                     sizeof why)) {
        fprintf(stderr, "%s\n", why);
        return 1;
    }
    random_populations(b, cpu);
    equal_weights(b);
    for (int s = 0; s < N_SCHEMES; s++)
        unbiased(b, schemes[s]);
    backend_close(b);
    backend_close(cpu);
    print_errors();
    return test_failures();
}
