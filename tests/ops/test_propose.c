/* The propose operation and its gradient against float64: every kind of row with every setting of
 * the prior and the twist, at every instruction level. Forced tokens show the logs, within 1e-5
 * max(1, |log|); draws must be the token whose interval of the cumulative distribution holds their
 * uniform. The rows of a case go through once together and once alone, on other numbers of threads,
 * and the bytes must be the same. */
#include <stdio.h>

#include "../../kernels/philox.h"
#include "ops.h"
#include "report.h"

enum {
    ROWS = 3,
    FORCED_MAX = 150,
    DRAWN_MAX = 100,
    DRAWS_MAX = FORCED_MAX + DRAWN_MAX,
    PLACES = 24
};

enum kind { SMOOTH, TIES, FLAT, PEAKED, HUGE_SPREAD, HOLES, KINDS };

struct setting {
    const char *name;
    float temperature;
    int top_k; /* < 0: vocab + top_k */
    float top_p;
    float bias, psi; /* their sizes; 0: none. Every third of them is -inf */
    bool dense, base_proposal, ban_eos, ban_all;
};

static const struct setting settings[] = {
    {"plain", 1, 0, 1, 0, 0, 0, 0, 0, 0},
    {"cool", 0.3f, 0, 1, 0, 0, 0, 0, 0, 0},
    {"cold", 0.01f, 0, 1, 0, 0, 0, 0, 0, 0},
    {"hot", 7, 0, 1, 0, 0, 0, 0, 0, 0},
    {"bias", 0.8f, 0, 1, 3, 0, 0, 0, 1, 0},
    {"nothing left", 1, 0, 1, 0, 0, 0, 0, 0, 1},
    {"nothing left, twisted", 1, 2, 0.5f, 0, 1, 1, 0, 0, 1},
    {"top-k 1", 1, 1, 1, 0, 0, 0, 0, 0, 0},
    {"top-k 2", 1.3f, 2, 1, 0, 0, 0, 0, 1, 0},
    {"top-k 40", 1, 40, 1, 0, 0, 0, 0, 0, 0},
    {"top-k 1000", 1, 1000, 1, 2, 0, 0, 0, 0, 0},
    {"top-k vocab - 1", 1, -1, 1, 0, 0, 0, 0, 0, 0},
    {"top-k beyond", 1, 1 << 21, 1, 0, 0, 0, 0, 0, 0},
    {"top-p 0.9", 1, 0, 0.9f, 0, 0, 0, 0, 0, 0},
    {"top-p 0.5", 2, 0, 0.5f, 0, 0, 0, 0, 0, 0},
    {"top-p tiny", 1, 0, 1e-9f, 0, 0, 0, 0, 0, 0},
    {"top-p high", 1, 0, 0.99999f, 0, 0, 0, 0, 0, 0},
    {"top-k, top-p", 0.9f, 50, 0.8f, 2, 0, 0, 0, 1, 0},
    {"psi", 1, 0, 1, 0, 4, 0, 0, 0, 0},
    {"dense", 1.2f, 0, 1, 0, 0, 1, 0, 0, 0},
    {"psi, dense, bias", 0.9f, 0, 1, 2, 4, 1, 0, 1, 0},
    {"psi, dense, top-k, top-p", 0.9f, 30, 0.9f, 2, 4, 1, 0, 0, 0},
    {"base proposal", 1, 0, 1, 0, 4, 1, 1, 0, 0},
};
enum { N_SETTINGS = sizeof settings / sizeof *settings };

/* One case: a prior, ROWS rows of logits and their draws, all on the host. */
struct fixture {
    const struct setting *setting;
    enum kind kind;
    int vocab;
    float *logits, *twist; /* (ROWS, vocab) */
    int32_t place[PLACES]; /* distinct ascending ids that bias and psi speak of */
    int n_places;
    float bias[PLACES], psi[PLACES];
    int32_t *every_id; /* (vocab) */
    float *ban;        /* (vocab) -inf */
    int n_draws; /* a row's: forced tokens, all of those of a small vocabulary, and then drawn ones
                  */
    struct propose_draw draws[ROWS * DRAWS_MAX];
};

/* What float64 says of one row. */
struct reference {
    double *log_p, *log_q, *psi; /* (vocab) */
    double *below;               /* (vocab) q of the lower ids */
    double lambda;
    bool ambiguous; /* rounding may decide what top-p keeps */
};

static float logit(enum kind kind, int row, int v)
{
    float x = noise(1 + (uint32_t)kind, (size_t)row << 20 | (size_t)v);
    switch (kind) {
    case TIES:
        return roundf(3 * x);
    case FLAT:
        return 2.5f;
    case PEAKED:
        return v == 1 + row ? 25 : 6 * x;
    case HUGE_SPREAD:
        return 20000 * x;
    case HOLES:
        return x < 0.5f && v != 2 ? -INFINITY : 5 * x;
    default:
        return 8 * x;
    }
}

/* One of `thin` possible draws. */
static void fixture_open(struct fixture *f, enum kind kind, const struct setting *s, int vocab,
                         int thin)
{
    *f = (struct fixture){.setting = s, .kind = kind, .vocab = vocab};
    size_t n = ROWS * (size_t)vocab;
    f->logits = malloc(n * sizeof *f->logits);
    f->twist = malloc(n * sizeof *f->twist);
    f->every_id = malloc((size_t)vocab * sizeof *f->every_id);
    f->ban = malloc((size_t)vocab * sizeof *f->ban);
    for (int row = 0; row < ROWS; row++)
        for (int v = 0; v < vocab; v++) {
            float t = noise(40, (size_t)row << 20 | (size_t)v);
            f->logits[row * vocab + v] = logit(kind, row, v);
            f->twist[row * vocab + v] = t < -0.95f ? -INFINITY : 3 * t;
        }
    for (int v = 0; v < vocab; v++) {
        f->every_id[v] = v;
        f->ban[v] = -INFINITY;
    }
    for (int i = 0, v = 0; i < PLACES && v < vocab; i++, v += 1 + vocab / PLACES) {
        f->place[f->n_places] = v;
        f->bias[i] = i % 3 == 2 ? -INFINITY : s->bias * noise(50, (size_t)i);
        f->psi[i] = i % 3 == 1 ? -INFINITY : s->psi * noise(60, (size_t)i);
        f->n_places++;
    }
    const int forced = FORCED_MAX / thin, drawn = DRAWN_MAX / thin;
    f->n_draws = forced + drawn;
    for (int i = 0; i < ROWS * f->n_draws; i++) {
        int j = i % f->n_draws,
            v = vocab <= forced ? j : (int)((float)vocab * fabsf(noise(70, (size_t)i)));
        f->draws[i] = (struct propose_draw){.seed = 99, .step = 5, .particle = (uint32_t)i};
        f->draws[i].forced = j < forced ? v % vocab : -1;
    }
}

static void fixture_close(struct fixture *f)
{
    free(f->logits);
    free(f->twist);
    free(f->every_id);
    free(f->ban);
}

/* ---- the reference ---- */

static const float *by_logit; /* of qsort */

static int descending(const void *a, const void *b)
{
    int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    if (by_logit[i] != by_logit[j])
        return by_logit[i] > by_logit[j] ? -1 : 1;
    return i - j;
}

/* log Σ exp over log_x, subtracted from it; returned. */
static double normalise(double *log_x, int n)
{
    double max = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++)
        max = fmax(max, log_x[i]);
    if (max == -INFINITY)
        return max;
    for (int i = 0; i < n; i++)
        sum += exp(log_x[i] - max);
    for (int i = 0; i < n; i++)
        log_x[i] -= max + log(sum);
    return max + log(sum);
}

static void keep_first(struct reference *ref, const int32_t *order, int vocab, int kept)
{
    for (int i = kept; i < vocab; i++)
        ref->log_p[order[i]] = -INFINITY;
    normalise(ref->log_p, vocab);
}

static void reference_top(const struct fixture *f, const float *x, struct reference *ref)
{
    const struct setting *s = f->setting;
    if (s->top_k == 0 && s->top_p == 1)
        return;
    int32_t *order = malloc((size_t)f->vocab * sizeof *order);
    memcpy(order, f->every_id, (size_t)f->vocab * sizeof *order);
    by_logit = x;
    qsort(order, (size_t)f->vocab, sizeof *order, descending);
    int k = s->top_k < 0 ? f->vocab + s->top_k : s->top_k;
    if (k > 0 && k < f->vocab)
        keep_first(ref, order, f->vocab, k);
    int kept = 0;
    double mass = 0;
    while (s->top_p < 1 && kept < f->vocab && mass < s->top_p) {
        mass += exp(ref->log_p[order[kept++]]);
        ref->ambiguous |= fabs(mass - s->top_p) < 1e-6;
    }
    if (s->top_p < 1)
        keep_first(ref, order, f->vocab, kept);
    free(order);
}

static void reference_open(struct reference *ref, const struct fixture *f, int row)
{
    const struct setting *s = f->setting;
    size_t bytes = (size_t)f->vocab * sizeof(double);
    float *x = malloc((size_t)f->vocab * sizeof *x);
    *ref =
        (struct reference){malloc(bytes), malloc(bytes), calloc(1, bytes), malloc(bytes), 0, false};
    memcpy(x, f->logits + (size_t)row * (size_t)f->vocab, (size_t)f->vocab * sizeof *x);
    for (int i = 0; i < f->n_places; i++) {
        x[f->place[i]] += s->bias != 0 ? f->bias[i] : 0;
        ref->psi[f->place[i]] += s->psi != 0 ? f->psi[i] : 0;
    }
    if (s->ban_eos && row == 1)
        x[1] = -INFINITY;
    for (int v = 0; v < f->vocab; v++) {
        x[v] = s->ban_all ? -INFINITY : x[v];
        ref->psi[v] += s->dense ? f->twist[row * f->vocab + v] : 0;
        ref->log_p[v] = (double)x[v] / (double)s->temperature;
    }
    if (normalise(ref->log_p, f->vocab) > -INFINITY)
        reference_top(f, x, ref);
    for (int v = 0; v < f->vocab; v++)
        ref->log_q[v] = ref->log_p[v] + ref->psi[v];
    ref->lambda = normalise(ref->log_q, f->vocab);
    if (s->psi == 0 && !s->dense && ref->lambda > -INFINITY)
        ref->lambda = 0;
    if (s->base_proposal)
        memcpy(ref->log_q, ref->log_p, bytes);
    double sum = 0;
    for (int v = 0; v < f->vocab; v++) {
        ref->below[v] = sum;
        sum += exp(ref->log_q[v]);
    }
    free(x);
}

static void reference_close(struct reference *ref)
{
    free(ref->log_p);
    free(ref->log_q);
    free(ref->psi);
    free(ref->below);
}

/* ---- the operation ---- */

/* What multiplies each row's gradient. */
static const float coef[ROWS] = {0.5f, -20, 0};

/* Of rows first .. first + n: out (n, n_draws), their results, or dy (n, vocab), the gradient of
 * each row's first draw; the other is NULL. */
static void run(struct backend *b, const struct fixture *f, int first, int n,
                struct propose_out *out, float *dy)
{
    const struct setting *s = f->setting;
    const int n_draws = n * f->n_draws;
    struct buffers m = {.b = b};
    struct propose_row rows[ROWS];
    size_t row_bytes = (size_t)f->vocab * sizeof(float), place_bytes = sizeof(float) * PLACES;
    for (int i = 0; i < n; i++)
        rows[i] = (struct propose_row){.prior = 1,
                                       .twist = s->dense ? i : -1,
                                       .ban_eos = s->ban_eos && first + i == 1,
                                       .first_draw = i * f->n_draws,
                                       .n_draws = f->n_draws};
    struct prior priors[2] = {{.temperature = 1, .top_p = 1},
                              {
                                  .temperature = s->temperature,
                                  .top_k = s->top_k < 0 ? f->vocab + s->top_k : s->top_k,
                                  .top_p = s->top_p,
                                  .bias_id = dev_new(&m, f->place, sizeof f->place),
                                  .bias = dev_new(&m, f->bias, place_bytes),
                                  .n_bias = s->bias != 0 ? f->n_places : 0,
                                  .eos_id = dev_new(&m, &(int32_t){1}, sizeof(int32_t)),
                                  .n_eos = 1,
                                  .psi_id = dev_new(&m, f->place, sizeof f->place),
                                  .psi = dev_new(&m, f->psi, place_bytes),
                                  .n_psi = s->psi != 0 ? f->n_places : 0,
                                  .base_proposal = s->base_proposal,
                              }};
    if (s->ban_all) {
        priors[1].bias_id = dev_new(&m, f->every_id, row_bytes);
        priors[1].bias = dev_new(&m, f->ban, row_bytes);
        priors[1].n_bias = f->vocab;
    }
    size_t start = (size_t)first * (size_t)f->vocab;
    struct propose_args args = {
        .logits = dev_new(&m, f->logits + start, (size_t)n * row_bytes),
        .twist = s->dense ? dev_new(&m, f->twist + start, (size_t)n * row_bytes) : NULL,
        .vocab = f->vocab,
        .priors = dev_new(&m, priors, sizeof priors),
        .rows = dev_new(&m, rows, sizeof rows[0] * (size_t)n),
        .draws = dev_new(&m, f->draws + first * f->n_draws, sizeof f->draws[0] * (size_t)n_draws),
        .n_draws = n_draws,
    };
    if (out) {
        args.out = dev_new(&m, NULL, sizeof *out * (size_t)n_draws);
        EXPECT_INT(b->ops->propose(b, &args, n), 0);
        b->ops->download(b, out, args.out, sizeof *out * (size_t)n_draws);
    } else {
        float *grad = dev_new(&m, NULL, (size_t)n * row_bytes);
        const float *c = dev_new(&m, coef + first, sizeof *c * (size_t)n);
        EXPECT_INT(b->ops->propose_grad(b, &args, c, grad, n), 0);
        b->ops->download(b, dy, grad, (size_t)n * row_bytes);
    }
    dev_free_all(&m);
}

static bool near(double got, double want)
{
    const double bound = 1e-5 * fmax(1, fmin(fabs(got), fabs(want)));
    note_error("propose", ACT_F32, got, want, bound);
    return got == want || fabs(got - want) <= bound;
}

/* The uniform lies in the token's interval of the cumulative distribution, up to the rounding of
 * float sums. */
static bool drawn_right(const struct reference *ref, const struct propose_draw *d, int token)
{
    struct philox p = philox4x32(d->seed, d->step, d->particle, PHILOX_DRAW, 0);
    double u = philox_u01(p.v[0], p.v[1]);
    if (token < 0)
        return ref->lambda == -INFINITY;
    double share = exp(ref->log_q[token]), past = u - ref->below[token];
    return share > 0 && past > -1e-6 && past < share + 1e-6;
}

static bool right(const struct reference *ref, const struct fixture *f,
                  const struct propose_draw *d, const struct propose_out *o)
{
    bool twisted = f->setting->psi != 0 || f->setting->dense;
    if (!near(o->lambda, ref->lambda))
        return false;
    if (d->forced < 0 && !drawn_right(ref, d, o->token))
        return false;
    if (o->token < 0)
        return o->log_p0 == -INFINITY && o->log_q == -INFINITY;
    if (d->forced >= 0 && o->token != d->forced)
        return false;
    return near(o->log_p0, ref->log_p[o->token]) && near(o->log_q, ref->log_q[o->token]) &&
           near(o->log_psi, twisted ? ref->psi[o->token] : 0);
}

static void complain(const struct backend *b, const struct fixture *f, const struct reference *ref,
                     int i, const struct propose_out *o)
{
    int v = o->token < 0 ? 0 : o->token;
    check_failures++;
    fprintf(stderr,
            "%s: kind %d, vocab %d, %s, draw %d (forced %d): token %d, log p %.9g (%.9g), log q "
            "%.9g (%.9g), log psi %.9g (%.9g), lambda %.9g (%.9g)\n",
            b->device, f->kind, f->vocab, f->setting->name, i, f->draws[i].forced, o->token,
            o->log_p0, ref->log_p[v], o->log_q, ref->log_q[v], o->log_psi, ref->psi[v], o->lambda,
            ref->lambda);
}

/* dy = coef (q - [v is the forced token]); log q is as good as a forced token's. */
static void check_grad(struct backend *b, const struct fixture *f, const struct reference *ref)
{
    const size_t vocab = (size_t)f->vocab;
    float *dy = malloc(sizeof *dy * ROWS * vocab), *alone = malloc(sizeof *dy * vocab);
    int failures = check_failures;
    run(b, f, 0, ROWS, NULL, dy);
    for (int row = 0; row < ROWS; row++) {
        const float *got = dy + (size_t)row * vocab;
        run(b, f, row, 1, NULL, alone);
        EXPECT(memcmp(got, alone, sizeof *dy * vocab) == 0);
        for (int v = 0; v < f->vocab && !ref[row].ambiguous && check_failures == failures; v++) {
            const double c = (double)coef[row], log_q = ref[row].log_q[v], q = exp(log_q);
            const bool forced = f->draws[row * f->n_draws].forced == v;
            const double off = q > 0 ? 1e-5 * fmax(1, -log_q) * q : 0, want = c * (q - forced);
            note_error("propose_grad", ACT_F32, (double)got[v], want, fabs(c) * (off + 1e-7));
            EXPECT_NEAR((double)got[v], want, fabs(c) * (off + 1e-7));
        }
    }
    if (check_failures > failures)
        fprintf(stderr, "  %s: kind %d, vocab %d, %s\n", b->device, f->kind, f->vocab,
                f->setting->name);
    free(dy);
    free(alone);
}

/* ---- the likeliest tokens ---- */

static void run_top(struct backend *b, const struct fixture *f, int first, int n, int k,
                    struct top_token *out)
{
    struct buffers mem = {.b = b};
    struct propose_row rows[ROWS];
    const size_t row = (size_t)f->vocab;
    for (int i = 0; i < n; i++)
        rows[i] = (struct propose_row){.first_draw = (first + i) * f->n_draws, .n_draws = 1};
    size_t bytes = sizeof *out * (size_t)(n * (1 + k));
    const struct top_args a = {
        .logits =
            dev_new(&mem, f->logits + (size_t)first * row, sizeof *f->logits * (size_t)n * row),
        .vocab = f->vocab,
        .k = k,
        .rows = dev_new(&mem, rows, sizeof *rows * (size_t)n),
        .draws = dev_new(&mem, f->draws, sizeof *f->draws * (size_t)(ROWS * f->n_draws)),
        .out = dev_new(&mem, NULL, bytes),
    };
    EXPECT_INT(b->ops->top(b, &a, n), 0);
    EXPECT_INT(b->ops->download(b, out, a.out, bytes), 0);
    dev_free_all(&mem);
}

/* By sorting; rows alone are the rows among others. */
static void check_top(struct backend *b, const struct fixture *f, int k)
{
    struct top_token out[ROWS * (1 + TOP_MAX)], alone[1 + TOP_MAX];
    int32_t *order = malloc((size_t)f->vocab * sizeof *order);
    bool good = true;
    run_top(b, f, 0, ROWS, k, out);
    for (int row = 0; row < ROWS; row++) {
        const struct top_token *got = out + row * (1 + k);
        const float *x = f->logits + (size_t)row * (size_t)f->vocab;
        const int forced = f->draws[row * f->n_draws].forced;
        run_top(b, f, row, 1, k, alone);
        good = good && !memcmp(alone, got, sizeof *got * (size_t)(1 + k));
        good = good && got[0].id == forced && got[0].logit == x[forced];
        memcpy(order, f->every_id, (size_t)f->vocab * sizeof *order);
        by_logit = x;
        qsort(order, (size_t)f->vocab, sizeof *order, descending);
        for (int i = 0; i < k; i++)
            good =
                good && (i < f->vocab ? got[1 + i].id == order[i] && got[1 + i].logit == x[order[i]]
                                      : got[1 + i].id == -1);
    }
    EXPECT(good && "the likeliest tokens");
    if (!good)
        fprintf(stderr, "  top %d of %d, kind %d, on %s\n", k, f->vocab, f->kind, b->device);
    free(order);
}

static int ambiguous_rows;

static void check_case(struct backend **backends, int n_backends, enum kind kind,
                       const struct setting *s, int vocab, int thin)
{
    static struct fixture f;
    struct reference ref[ROWS];
    static struct propose_out out[ROWS * DRAWS_MAX], alone[ROWS * DRAWS_MAX];
    fixture_open(&f, kind, s, vocab, thin);
    for (int row = 0; row < ROWS; row++) {
        reference_open(&ref[row], &f, row);
        ambiguous_rows += ref[row].ambiguous;
    }
    for (int b = 0; b < n_backends; b++) {
        run(backends[b], &f, 0, ROWS, out, NULL);
        for (int row = 0; row < ROWS; row++)
            run(backends[b], &f, row, 1, alone + row * f.n_draws, NULL);
        EXPECT(memcmp(out, alone, sizeof *out * ROWS * (size_t)f.n_draws) == 0);
        for (int i = 0; i < ROWS * f.n_draws; i++) {
            const struct reference *r = &ref[i / f.n_draws];
            if (r->ambiguous || right(r, &f, &f.draws[i], &out[i]))
                continue;
            complain(backends[b], &f, r, i, &out[i]);
            break;
        }
        check_grad(backends[b], &f, ref);
        if (s == settings) /* no setting matters to it */
            check_top(backends[b], &f, kind == TIES ? 3 : TOP_MAX);
    }
    for (int row = 0; row < ROWS; row++)
        reference_close(&ref[row]);
    fixture_close(&f);
}

/* Large ones take their time: one of so many cases, and on a slow device. The largest is beyond
 * what a CUDA kernel has of shared memory without asking for it. */
static const struct {
    int vocab, of, slow;
} vocabs[] = {{3, 1, 1},    {5, 1, 1},      {257, 1, 1},     {513, 1, 1},
              {4099, 1, 2}, {49152, 3, 12}, {400003, 23, 23}};
enum { N_VOCABS = sizeof vocabs / sizeof *vocabs };

/* The CPU's levels, or what the CUDA plug-in finds when the argument is "cuda". */
int main(int argc, char **argv)
{
    static const char *const levels[] = {"base", "v3", "v4"};
    const char *kind = argc > 1 ? argv[1] : "cpu";
    const int n_backends = strcmp(kind, "cpu") == 0 ? 3 : 1;
    const bool slow = n_backends == 1 && !test_size_is("large");
    const int n_vocabs = test_size_is("small") ? 4 : N_VOCABS;
    struct backend *backends[3];
    for (int i = 0; i < n_backends; i++) {
        char why[256];
        setenv("CLOTHO_CPU_LEVEL", levels[i], 1);
        if (backend_open(&backends[i], &(struct backend_opts){kind, "f32", 2, false}, why,
                         sizeof why)) {
            fprintf(stderr, "%s\n", why);
            return 1;
        }
    }
    for (int v = 0; v < n_vocabs; v++)
        for (int s = 0; s < N_SETTINGS; s++)
            for (int k = 0; k < KINDS; k++)
                if ((s + k) % (slow ? vocabs[v].slow : vocabs[v].of) == 0)
                    check_case(backends, n_backends, (enum kind)k, &settings[s], vocabs[v].vocab,
                               slow ? 5 : 1);
    EXPECT(ambiguous_rows < 60);
    for (int i = 0; i < n_backends; i++)
        backend_close(backends[i]);
    print_errors();
    return test_failures();
}
