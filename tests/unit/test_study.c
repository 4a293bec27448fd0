/* Jobs made of jobs, and bounds on log Z in particular, against the enumeration of every text a
 * tiny model can say: E[Ẑ] = Z from below and E[1/Ẑ] = 1/Z from above whatever the scheme, the
 * threshold and the twist, both divergences, exact draws by rejection. And that a study is a good
 * neighbour: it says the same in a crowd, keeps nobody waiting, and leaves nothing behind however
 * it ends. */
#include <pthread.h>

#include "../engine_run.h"
#include "../machine_run.h"

enum { MAX_TOKENS = 3, MAX_TEXTS = 1200, MAX_REPEATS = 4096, TWIST_MEMORY = 1 << 20 };

/* ---- what a job says ---- */

struct record {
    struct waiter waiter; /* first: the sink knows it as that */
    int n_events, n_scores, n_bounds[2];
    int stop_after; /* events, then the sink asks to cancel; 0: never */
    bool done, failed;
    int particles; /* of the start */
    struct err err;
    struct buf bytes; /* bounds and samples, in order */
    double bound[2][MAX_REPEATS];
    struct event last;
    double log_p[MAX_TEXTS], log_phi[MAX_TEXTS], log_q[MAX_TEXTS];
};

static void take(struct record *r, const struct event *e)
{
    switch (e->type) {
    case EVENT_START:
        r->particles = e->start.particles;
        break;
    case EVENT_SCORE:
        r->log_p[r->n_scores] = e->score.log_p;
        r->log_phi[r->n_scores] = e->score.log_phi;
        r->log_q[r->n_scores++] = e->score.log_q;
        break;
    case EVENT_SAMPLE:
        buf_printf(&r->bytes, "%a %d\n", e->sample.log_weight, e->sample.n_tokens);
        break;
    case EVENT_BOUND:
        r->bound[e->bound.upper][r->n_bounds[e->bound.upper]++] = e->bound.log_z;
        buf_printf(&r->bytes, "%d %a\n", e->bound.upper, e->bound.log_z);
        break;
    case EVENT_DONE:
        r->done = true;
        r->last = *e;
        break;
    case EVENT_ERROR:
        EXPECT(!r->failed);
        r->failed = true;
        r->err = e->error;
        break;
    default:
        break;
    }
}

static int record_event(void *user, const struct event *e)
{
    struct record *r = user;
    pthread_mutex_lock(&r->waiter.mutex);
    EXPECT(!r->done && !r->failed);
    int n = ++r->n_events;
    take(r, e);
    bool stop = r->stop_after && n >= r->stop_after;
    pthread_mutex_unlock(&r->waiter.mutex);
    return stop;
}

static struct record *record_new(void)
{
    struct record *r = calloc(1, sizeof *r);
    waiter_init(&r->waiter);
    return r;
}

static void record_free(struct record *r)
{
    buf_free(&r->bytes);
    waiter_free(&r->waiter);
    free(r);
}

static uint64_t submit(struct engine *e, struct job *j, struct record *r)
{
    uint64_t handle = 0;
    struct err err;
    struct sink sink = {record_event, waiter_closed, r};
    if (engine_submit(e, j, sink, &handle, &err) != 0) {
        fprintf(stderr, "%s\n", err.msg);
        EXPECT(!"submitted");
        job_free(j);
        waiter_closed(r);
    }
    return handle;
}

static struct record *run(struct engine *e, struct job *j)
{
    struct record *r = record_new();
    submit(e, j, r);
    waiter_wait(&r->waiter);
    if (r->failed)
        fprintf(stderr, "%s\n", r->err.msg);
    return r;
}

/* ---- jobs ---- */

/* φ = Π exp(shift + bias) over the tokens. */
static void set_lexicon(struct job *j, float shift)
{
    int32_t *ids = ARENA_NEW(&j->arena, int32_t, VOCAB);
    float *bias = ARENA_NEW(&j->arena, float, VOCAB);
    for (int v = 0; v < VOCAB; v++) {
        ids[v] = v;
        bias[v] = shift + (v == 3 ? 1.5f : v == 5 ? -2 : v == 7 ? 0.7f : 0.1f * (float)v);
    }
    j->potentials = ARENA_NEW(&j->arena, struct potential, 2);
    j->potentials[j->n_potentials++] =
        (struct potential){.type = POTENTIAL_LEXICON, .weight = 1, .lexicon = {ids, bias, VOCAB}};
}

/* The same times p0("ca" | text)^0.5, and a twist with it. */
static void set_target(struct job *j, enum twist_type twist, float shift)
{
    static const int32_t text[] = {4, 2};
    set_lexicon(j, shift);
    j->potentials[j->n_potentials++] = (struct potential){
        .type = POTENTIAL_CONTINUATION, .weight = 0.5, .continuation = {text, 2}};
    j->twist = (struct twist_choice){.type = twist, .every = 1, .power = 0.5};
    j->base_proposal = twist != TWIST_FACTOR;
}

/* φ = 1 where "h" is said, else 0. */
static void set_rare_target(struct job *j)
{
    j->potentials = ARENA_NEW(&j->arena, struct potential, 1);
    j->potentials[j->n_potentials++] = (struct potential){
        .type = POTENTIAL_CONTAINS, .weight = 1, .contains = {"h", 1, -INFINITY}};
}

/* ---- all texts ---- */

struct texts {
    int n;
    int32_t token[MAX_TEXTS][MAX_TOKENS];
    struct ids ids[MAX_TEXTS];
    double log_p[MAX_TEXTS], log_phi[MAX_TEXTS], log_q[MAX_TEXTS];
    double log_z;
};

static void add_texts(struct texts *t, int32_t *token, int n, int max_tokens)
{
    bool whole = n >= max_tokens || n == MAX_TOKENS || (n && token[n - 1] == 1);
    for (int v = 0; v < VOCAB && !whole; v++) {
        token[n] = v;
        add_texts(t, token, n + 1, max_tokens);
    }
    if (!whole)
        return;
    memcpy(t->token[t->n], token, (size_t)n * sizeof *token);
    t->ids[t->n] = (struct ids){t->token[t->n], n};
    t->n++;
}

/* Every text of up to max_tokens with its numbers under a target, as /v1/score says them. */
static struct texts *enumerate(struct engine *e, void (*set)(struct job *), int max_tokens)
{
    struct texts *t = calloc(1, sizeof *t);
    int32_t token[MAX_TOKENS];
    double p = 0, z = 0;
    add_texts(t, token, 0, max_tokens);
    for (int from = 0; from < t->n; from += 400) {
        struct job *j = new_job(JOB_SCORE, 0, 0, 0);
        set(j);
        j->completions = t->ids + from;
        j->n_completions = t->n - from < 400 ? t->n - from : 400;
        struct record *r = run(e, j);
        memcpy(t->log_p + from, r->log_p, (size_t)r->n_scores * sizeof(double));
        memcpy(t->log_phi + from, r->log_phi, (size_t)r->n_scores * sizeof(double));
        memcpy(t->log_q + from, r->log_q, (size_t)r->n_scores * sizeof(double));
        record_free(r);
    }
    for (int i = 0; i < t->n; i++) {
        p += exp(t->log_p[i]);
        z += exp(t->log_p[i] + t->log_phi[i]);
    }
    EXPECT_NEAR(p, 1, 1e-5);
    t->log_z = log(z);
    return t;
}

/* n exact draws of σ. */
static void give_targets(struct job *j, const struct texts *t, int n, uint32_t seed)
{
    j->targets.given = ARENA_NEW(&j->arena, struct ids, n);
    for (int d = 0; d < n; d++) {
        struct philox random = philox4x32(seed, (uint32_t)d, 0, 0, 0);
        double u = philox_u01(random.v[0], random.v[1]);
        int i = 0;
        while (i + 1 < t->n && (u -= exp(t->log_p[i] + t->log_phi[i] - t->log_z)) >= 0)
            i++;
        j->targets.given[j->targets.n++] = t->ids[i];
    }
}

/* ---- the numbers ---- */

/* How many standard errors the mean of exp(sign x - want) is from 1. */
static double z_score(const double *x, int n, double sign, double log_want)
{
    double sum = 0, squares = 0;
    for (int i = 0; i < n; i++) {
        double y = exp(sign * (x[i] - log_want));
        sum += y;
        squares += y * y;
    }
    double mean = sum / n, variance = (squares / n - mean * mean) / n;
    return fabs(mean - 1) < 1e-5 ? 0 : (mean - 1) / sqrt(variance);
}

static void set_none(struct job *j)
{
    set_target(j, TWIST_NONE, 0);
}

static void set_factor(struct job *j)
{
    set_target(j, TWIST_FACTOR, 0);
}

static void set_potential(struct job *j)
{
    set_target(j, TWIST_POTENTIAL, 0);
}

static void set_learned(struct job *j)
{
    set_target(j, TWIST_LEARNED, 0);
    j->twist.name = "random";
    j->base_proposal = false;
}

static void set_proposer(struct job *j) /* a twist that must not be resampled on */
{
    set_learned(j);
    j->twist.name = "proposer";
}

enum { TWISTS = 5 };
static void (*const set_twist[TWISTS])(struct job *) = {set_none, set_factor, set_potential,
                                                        set_learned, set_proposer};
static const char *const twist_name[TWISTS] = {"none", "factor", "potential", "learned",
                                               "proposer"};

/* E[Ẑ] = Z from below, E[1/Ẑ] = 1/Z from above. */
static void test_unbiased(struct engine *e)
{
    static const enum resample_scheme schemes[] = {RESAMPLE_SYSTEMATIC, RESAMPLE_STRATIFIED,
                                                   RESAMPLE_MULTINOMIAL, RESAMPLE_RESIDUAL};
    static const double thresholds[] = {0, 0.7, 1};
    const int repeats = test_is_slow() ? 120 : 500;
    struct texts *t = enumerate(e, set_none, MAX_TOKENS); /* the target of all */
    for (int twist = 0; twist < TWISTS; twist++) {
        for (int c = 0; c < 12; c++) {
            if (test_is_slow() && c % TWISTS != twist) /* each scheme with each threshold */
                continue;
            struct job *j = new_job(JOB_BOUNDS, 3, MAX_TOKENS, (uint64_t)(100 * twist + c));
            set_twist[twist](j);
            j->scheme = schemes[c / 3];
            j->ess_threshold = thresholds[c % 3];
            j->repeats = repeats;
            give_targets(j, t, repeats, (uint32_t)(7 + c));
            struct record *r = run(e, j);
            EXPECT(r->done);
            EXPECT_INT(r->n_bounds[0], repeats);
            EXPECT_INT(r->n_bounds[1], repeats);
            double below = z_score(r->bound[0], repeats, 1, t->log_z);
            double above = z_score(r->bound[1], repeats, -1, t->log_z);
            if (fabs(below) > 4.5 || fabs(above) > 4.5)
                fprintf(stderr, "twist %s, scheme %d, threshold %g:\n", twist_name[twist], c / 3,
                        thresholds[c % 3]);
            EXPECT_NEAR(below, 0, 4.5);
            EXPECT_NEAR(above, 0, 4.5);
            record_free(r);
        }
    }
    free(t);
}

static void expect_within(const char *what, const struct event_mean *got, double want, double more)
{
    if (fabs(got->mean - want) > 4.5 * got->se + more)
        fprintf(stderr, "%s: %g +- %g, not %g\n", what, got->mean, got->se, want);
    EXPECT(fabs(got->mean - want) <= 4.5 * got->se + more);
}

/* The means lie on both sides of log Z, the closer the more particles there are; so do the
 * divergences where the enumeration has them. */
static void test_bracket(struct engine *e)
{
    const int repeats = test_is_slow() ? 64 : 400, targets = test_is_slow() ? 96 : 600;
    for (int twist = 0; twist < TWISTS; twist++) {
        if (test_is_slow() && set_twist[twist] != set_learned)
            continue;
        struct texts *t = enumerate(e, set_twist[twist], MAX_TOKENS);
        double kl_q = 0, kl_sigma = 0, gap[3];
        for (int i = 0; i < t->n; i++) {
            double log_sigma = t->log_p[i] + t->log_phi[i] - t->log_z;
            kl_q += exp(t->log_q[i]) * (t->log_q[i] - log_sigma);
            kl_sigma += exp(log_sigma) * (log_sigma - t->log_q[i]);
        }
        for (int i = 0; i < 3; i++) {
            struct job *j = new_job(JOB_BOUNDS, 2 << 2 * i, MAX_TOKENS, (uint64_t)i);
            set_twist[twist](j);
            j->repeats = repeats;
            give_targets(j, t, targets, 3);
            struct record *r = run(e, j);
            const struct event *d = &r->last;
            EXPECT(r->done);
            EXPECT_INT(d->done.kind, JOB_BOUNDS);
            EXPECT_INT(d->done.lower.n, repeats);
            EXPECT_INT(d->done.upper.n, repeats);
            EXPECT_INT(d->done.kl_q_sigma.n, repeats * (2 << 2 * i));
            EXPECT_INT(d->done.kl_sigma_q.n, targets);
            EXPECT(d->done.lower.mean < t->log_z + 4.5 * d->done.lower.se);
            EXPECT(d->done.upper.mean > t->log_z - 4.5 * d->done.upper.se);
            EXPECT_NEAR(d->done.gap, d->done.upper.mean - d->done.lower.mean, 1e-12);
            EXPECT_NEAR(d->done.log_z, (d->done.upper.mean + d->done.lower.mean) / 2, 1e-12);
            EXPECT_INT(d->done.prompt_tokens, 6);
            EXPECT(d->done.completion_tokens > repeats * 2 * (2 << 2 * i));
            gap[i] = d->done.gap;
            expect_within("KL(q|sigma)", &d->done.kl_q_sigma, kl_q, d->done.gap / 2);
            expect_within("KL(sigma|q)", &d->done.kl_sigma_q, kl_sigma, d->done.gap / 2);
            record_free(r);
        }
        EXPECT(gap[0] > 0 && gap[1] < 0.5 * gap[0] && gap[2] < 0.5 * gap[1]);
        free(t);
    }
}

static void set_shifted(struct job *j)
{
    set_lexicon(j, -1.6f);
    j->temperature = 2; /* so that more texts are likely */
}

/* The probability under σ of all texts with the log φ of text i; 0 if an earlier one has it too. */
static double share_of(const struct texts *t, int i)
{
    double sum = 0;
    for (int k = 0; k < t->n; k++) {
        if (fabs(t->log_phi[k] - t->log_phi[i]) >= 1e-6)
            continue;
        if (k < i)
            return 0;
        sum += exp(t->log_p[k] + t->log_phi[k] - t->log_z);
    }
    return sum;
}

/* Draws by rejection are draws of σ. With one particle an upper bound is its target's log σ~/q,
 * which with the base proposal is log φ, by which most texts can be told apart. */
static void test_rejection(struct engine *e)
{
    enum { LENGTH = 2 };
    const int repeats = test_is_slow() ? 1000 : 3000;
    struct texts *t = enumerate(e, set_shifted, LENGTH);
    struct job *j = new_job(JOB_BOUNDS, 1, LENGTH, 77);
    set_shifted(j);
    j->repeats = repeats;
    j->targets.max_draws = 1000000;
    struct record *r = run(e, j);
    EXPECT_INT(r->n_bounds[1], repeats);
    EXPECT(repeats < 0.9 * 1000000 * exp(t->log_z)); /* they are all different draws */
    double chi2 = 0, rest_want = 0, rest_got = repeats;
    int cells = 0;
    for (int i = 0; i < t->n; i++) {
        double want = repeats * share_of(t, i), got = 0;
        for (int d = 0; d < repeats; d++)
            got += fabs(r->bound[1][d] - t->log_phi[i]) < 1e-6;
        if (want < 8) {
            rest_want += want;
            continue;
        }
        chi2 += (got - want) * (got - want) / want;
        rest_got -= got;
        cells++;
    }
    chi2 += (rest_got - rest_want) * (rest_got - rest_want) / rest_want;
    EXPECT(cells > (test_is_slow() ? 10 : 20));
    EXPECT(chi2 < cells + 4.5 * sqrt(2.0 * cells));
    record_free(r);
    free(t);
}

/* A proposal that misses σ's support: -∞ and +∞ are said as such. */
static void test_infinities(struct engine *e)
{
    struct job *j = new_job(JOB_BOUNDS, 1, 2, 5);
    set_rare_target(j);
    j->repeats = 30;
    j->targets.max_draws = 100000;
    struct record *r = run(e, j);
    const struct event *d = &r->last;
    EXPECT(r->done);
    EXPECT(d->done.lower.mean == -INFINITY && isnan(d->done.lower.se));
    EXPECT(isfinite(d->done.upper.mean));
    EXPECT(d->done.gap == INFINITY);
    EXPECT(d->done.kl_q_sigma.mean == INFINITY);
    EXPECT(isnan(d->done.kl_sigma_q.mean)); /* log Z is not known well enough */
    record_free(r);
    j = new_job(JOB_BOUNDS, 64, 2, 5); /* with more particles it is */
    set_rare_target(j);
    j->targets.max_draws = 100000;
    r = run(e, j);
    EXPECT(isfinite(r->last.done.log_z) && r->last.done.kl_q_sigma.mean == INFINITY);
    EXPECT(fabs(r->last.done.kl_sigma_q.mean + r->last.done.log_z) < 1e-12);
    record_free(r);
}

/* Without targets there is nothing from above. */
static void test_lower_alone(struct engine *e)
{
    struct texts *t = enumerate(e, set_factor, MAX_TOKENS);
    struct job *j = new_job(JOB_BOUNDS, 4, MAX_TOKENS, 8);
    set_factor(j);
    j->repeats = 100;
    struct record *r = run(e, j);
    EXPECT_INT(r->particles, 4);
    EXPECT_INT(r->n_bounds[0], 100);
    EXPECT_INT(r->n_bounds[1], 0);
    EXPECT_INT(r->last.done.upper.n, 0);
    EXPECT(isnan(r->last.done.upper.mean) && isnan(r->last.done.gap));
    EXPECT(isnan(r->last.done.kl_sigma_q.mean));
    EXPECT(r->last.done.log_z == r->last.done.lower.mean);
    EXPECT(r->last.done.lower.mean < t->log_z + 4.5 * r->last.done.lower.se);
    record_free(r);
    j = new_job(JOB_BOUNDS, 4, MAX_TOKENS, 8); /* nothing is ever accepted */
    set_target(j, TWIST_NONE, -50);
    j->targets.max_draws = 1000;
    r = run(e, j);
    EXPECT(r->done);
    EXPECT_INT(r->n_bounds[0], 4);
    EXPECT_INT(r->last.done.upper.n, 0);
    record_free(r);
    free(t);
}

/* ---- refusals and failures ---- */

static void expect_refused(struct engine *e, struct job *j, const char *param)
{
    struct err err = {0};
    uint64_t handle;
    EXPECT_INT(engine_submit(e, j, (struct sink){0}, &handle, &err), -1);
    EXPECT_INT(err.code, ERR_INVALID);
    EXPECT_STR(err.param, param);
    job_free(j);
}

static struct job *job_with_targets(const struct ids *given, int n)
{
    struct job *j = new_job(JOB_BOUNDS, 2, MAX_TOKENS, 1);
    set_rare_target(j);
    j->targets.given = ARENA_NEW(&j->arena, struct ids, n);
    memcpy(j->targets.given, given, (size_t)n * sizeof *given);
    j->targets.n = n;
    return j;
}

static void test_refusals(struct engine *e)
{
    static const int32_t id[] = {9, 2, 1, 4, 9};
    const struct ids full = {id + 2, 3}, ended = {id, 3}, part = {id, 2}, beyond = {id, 4},
                     longer = {id + 1, 4}, without = {id + 1, 2};
    expect_refused(e, job_with_targets((struct ids[]){ended, part}, 2), "targets[1]");
    expect_refused(e, job_with_targets((struct ids[]){beyond}, 1), "targets[0]");
    expect_refused(e, job_with_targets((struct ids[]){longer}, 1), "targets[0]");
    expect_refused(e, job_with_targets((struct ids[]){full}, 1), "targets[0]");
    expect_refused(e, job_with_targets((struct ids[]){ended, without}, 2), "targets[1]");
    struct job *j = job_with_targets((struct ids[]){part}, 1);
    j->segments[0].n_stop = 1;
    j->segments[0].stop = (const char *[]){"ha"};
    j->segments[0].stop_len = (size_t[]){2};
    struct record *r = run(e, j); /* a stop string makes it whole */
    EXPECT(r->done);
    record_free(r);
    j = job_with_targets((struct ids[]){ended}, 1);
    j->n_segments = 0;
    expect_refused(e, j, "segments");
    j = new_job(JOB_BOUNDS, 2, 1000, 1);
    expect_refused(e, j, "max_tokens");
}

static void expect_failed(struct engine *e, struct job *j, const char *param)
{
    struct record *r = record_new();
    submit(e, j, r);
    waiter_wait(&r->waiter);
    EXPECT(r->failed && !r->done);
    EXPECT_STR(r->err.param, param);
    EXPECT_INT(r->n_bounds[0], 0);
    record_free(r);
}

static void test_failures_of(struct engine *e)
{
    static const int32_t h[] = {9, 9, 9};
    struct job *j = job_with_targets((struct ids[]){{h, 3}}, 1);
    j->n_bias = 1;
    j->bias_id = h;
    j->bias = (float[]){-INFINITY};
    expect_failed(e, j, "targets[0]");
    j = new_job(JOB_BOUNDS, 2, MAX_TOKENS, 1);
    set_target(j, TWIST_NONE, 1);
    j->targets.max_draws = 1000;
    expect_failed(e, j, "targets");
}

/* ---- among others ---- */

static void expect_nothing_left(struct engine *e)
{
    struct engine_stats s;
    while (engine_jobs(e) > 0) /* the last is taken off the list right after its sink is closed */
        usleep(1000);
    do /* gauges are published at the end of a step */
        engine_stats(e, &s);
    while (s.jobs_running > 0 && usleep(1000) == 0);
    EXPECT_INT(s.particles, 0);
    EXPECT_INT(s.kv_pages_used, 0);
    EXPECT_INT(s.jobs_waiting, 0);
}

static void save_twist(const struct engine *e, const char *name, bool resample, uint64_t seed)
{
    struct machine m = {.info = *engine_info(e)};
    struct twist_spec s = random_spec(&m, name, 3, false);
    s.resample = resample;
    save_random(&s, seed);
}

/* Whatever becomes of the file, a study goes on with the twist it began with. */
static void test_twist_replaced(struct engine *e)
{
    struct record *r[3];
    for (int i = 0; i < 3; i++) {
        struct job *j = new_job(JOB_BOUNDS, 8, MAX_TOKENS, 3);
        set_learned(j);
        j->repeats = test_is_slow() ? 256 : MAX_REPEATS;
        submit(e, j, r[i] = record_new());
        for (bool begun = i != 1; !begun;) {
            pthread_mutex_lock(&r[i]->waiter.mutex);
            begun = r[i]->n_bounds[0] > 0 || r[i]->waiter.closed;
            EXPECT(!r[i]->done);
            pthread_mutex_unlock(&r[i]->waiter.mutex);
        }
        if (i == 1)
            save_twist(e, "random", true, 99);
        waiter_wait(&r[i]->waiter);
        EXPECT(r[i]->done);
    }
    EXPECT(memcmp(r[0]->bound[0], r[1]->bound[0], sizeof r[0]->bound[0]) == 0);
    EXPECT(memcmp(r[0]->bound[0], r[2]->bound[0], sizeof r[0]->bound[0]) != 0);
    for (int i = 0; i < 3; i++)
        record_free(r[i]);
    save_twist(e, "random", true, 1);
}

static struct job *crowd_job(int i)
{
    struct job *j = new_job(JOB_BOUNDS, 8, MAX_TOKENS, (uint64_t)i % 5);
    set_target(j, (enum twist_type)(i % 3), -1.6f);
    j->repeats = 6;
    j->targets.max_draws = 3000;
    return j;
}

static struct job *live_job(uint64_t seed)
{
    struct job *j = new_job(JOB_SAMPLE, 8, 8, seed);
    set_target(j, TWIST_FACTOR, 0);
    return j;
}

/* More studies than can run at once, amid live requests: all come through, and nobody says
 * anything but what he says alone. */
static void test_crowd(struct engine *e)
{
    enum { MOST = 15 };
    const int kinds = test_is_slow() ? 3 : MOST;
    struct record *alone[MOST], *crowd[2 * MOST], *live[MOST], *live_alone;
    for (int i = 0; i < kinds; i++)
        alone[i] = run(e, crowd_job(i));
    live_alone = run(e, live_job(3));
    for (int i = 0; i < 2 * kinds; i++)
        submit(e, crowd_job(i % kinds), crowd[i] = record_new());
    for (int i = 0; i < kinds; i++)
        submit(e, live_job(3), live[i] = record_new());
    for (int i = 0; i < 2 * kinds; i++) {
        const struct buf *want = &alone[i % kinds]->bytes;
        waiter_wait(&crowd[i]->waiter);
        EXPECT(crowd[i]->done);
        EXPECT(crowd[i]->bytes.len == want->len &&
               memcmp(crowd[i]->bytes.data, want->data, want->len) == 0);
        record_free(crowd[i]);
    }
    for (int i = 0; i < kinds; i++) {
        waiter_wait(&live[i]->waiter);
        EXPECT(live[i]->done && live[i]->bytes.len == live_alone->bytes.len);
        EXPECT(memcmp(live[i]->bytes.data, live_alone->bytes.data, live_alone->bytes.len) == 0);
        record_free(live[i]);
    }
    for (int i = 0; i < kinds; i++)
        record_free(alone[i]);
    record_free(live_alone);
    expect_nothing_left(e);
}

static struct job *long_job(void)
{
    struct job *j = new_job(JOB_BOUNDS, 64, 40, 1);
    set_target(j, TWIST_FACTOR, 0);
    j->repeats = MAX_REPEATS;
    return j;
}

/* A request that comes while a long study runs does not wait for its end. */
static void test_nobody_waits(struct engine *e)
{
    struct record *study = record_new();
    submit(e, long_job(), study);
    for (int i = 0; i < 5; i++) {
        struct record *live = run(e, live_job((uint64_t)i));
        EXPECT(live->done);
        record_free(live);
    }
    pthread_mutex_lock(&study->waiter.mutex);
    EXPECT(!study->done && study->n_bounds[0] < MAX_REPEATS);
    study->stop_after = 1; /* at its next word */
    pthread_mutex_unlock(&study->waiter.mutex);
    waiter_wait(&study->waiter);
    EXPECT(!study->done && !study->failed);
    record_free(study);
    expect_nothing_left(e);
}

/* Cancelled by its sink after some word, by the caller at some moment, or by closing the engine. */
static void test_cancelled(struct engine *e)
{
    for (int i = 1; i < 60; i += test_is_slow() ? 5 : 1) {
        struct record *r = record_new();
        struct job *j = i % 2 ? crowd_job(i) : long_job();
        r->stop_after = i % 3 ? 0 : 1 + i / 6;
        uint64_t handle = submit(e, j, r);
        usleep((unsigned)(i * 137 % 9000));
        engine_cancel(e, handle);
        waiter_wait(&r->waiter);
        EXPECT(!r->failed);
        record_free(r);
    }
    expect_nothing_left(e);
}

static void test_closed(void)
{
    enum { N = 24 };
    struct engine *e = open_engine(64, 0, TWIST_MEMORY);
    struct record *r[N];
    for (int i = 0; i < N; i++)
        submit(e, i % 2 ? crowd_job(i) : long_job(), r[i] = record_new());
    usleep(20000);
    engine_drain(e);
    engine_close(e);
    for (int i = 0; i < N; i++) {
        EXPECT(!r[i]->failed);
        record_free(r[i]);
    }
}

int main(void)
{
    files_open();
    struct engine *e = open_engine(256, 0, TWIST_MEMORY);
    save_twist(e, "random", true, 1);
    save_twist(e, "proposer", false, 2);
    test_unbiased(e);
    test_bracket(e);
    test_rejection(e);
    test_infinities(e);
    test_lower_alone(e);
    test_refusals(e);
    test_failures_of(e);
    test_twist_replaced(e);
    test_crowd(e);
    test_nobody_waits(e);
    test_cancelled(e);
    engine_close(e);
    test_closed();
    files_close();
    return test_failures();
}
