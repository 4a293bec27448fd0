/* Bounds on log Z by bidirectional SMC, and the two divergences between proposal and target (Grosse
 * et al. 2015; Zhao et al. 2024, sections 4 and 5). For repetitions r = 0, 1, …:
 *
 *   lower  SMC as requested: E log Ẑ <= log Z
 *   upper  the same with an exact draw of σ pinned to its first particle: E log Ẑ >= log Z
 *   free   the same without resampling, if the lower runs resample: draws of q itself, whose
 *          log σ~/q has the mean F = log Z - KL(q‖σ)
 *
 * and one pass over the exact draws, whose log σ~/q has the mean G = log Z + KL(σ‖q). All runs'
 * numbers are kept and added up in a fixed order. */
#include <math.h>
#include <stdio.h>

#include "rejection.h"

enum stage { DRAWING, SCORING, RUNNING };
enum run_kind { LOWER, UPPER, FREE };

enum {
    SCORE_RUN = 64,    /* targets of one scoring run */
    LEAST_AT_ONCE = 2, /* runs in flight */
    MOST_AT_ONCE = 32,
};

/* One of the study's runs, for its sink. */
struct part {
    struct bounds *of;
    int number; /* scoring: its first target */
    enum run_kind kind;
};

struct bounds {
    struct run *run;
    enum stage stage;
    struct rejection *rejection; /* NULL: the targets are given */
    struct ids *target;
    int n_targets;
    double *g;                /* (n_targets) log σ~/q */
    const char **excluded_by; /* (n_targets) NULL, or what is 0 that must not be */
    enum run_kind kinds[3];   /* of each repetition */
    enum run_kind draws_of;   /* whose particles are draws of q */
    int n_kinds;
    struct part *part; /* (n_parts) in the order of spawning */
    int n_parts, n_spawned, n_ended, n_said;
    double *log_z[2]; /* (repeats) by LOWER, UPPER; NaN: still unknown */
    double *f;        /* (repeats, particles) log σ~/q */
    int64_t tokens;
};

/* Do the runs from below ever resample? Without a twist all weights are equal until φ is
 * known, which only a threshold of 1 does not mind. */
static bool resamples(const struct run *r)
{
    return r->ess_threshold > 0 && (r->job->twist.type != TWIST_NONE || r->ess_threshold >= 1);
}

/* For runs that only the proposal matters to, which a potential twist has no part in: it would be
 * evaluated for nothing. */
static void forget_twist(struct job *j)
{
    if (j->twist.type == TWIST_POTENTIAL)
        j->twist.type = TWIST_NONE;
}

/* ---- scoring the targets ---- */

static int on_score(void *user, const struct event *e)
{
    const struct part *p = user;
    struct bounds *b = p->of;
    if (e->type == EVENT_SCORE) {
        int i = p->number + e->score.index;
        if (e->score.log_p == -INFINITY)
            b->excluded_by[i] = "prior probability";
        else if (e->score.log_phi == -INFINITY)
            b->excluded_by[i] = "potential";
        else
            b->g[i] = e->score.log_p + e->score.log_phi - e->score.log_q;
    }
    if (e->type == EVENT_ERROR)
        run_fail(b->run, &e->error);
    return 0;
}

static int begin_scores(struct bounds *b, struct err *err)
{
    struct arena *a = &b->run->job->arena;
    int most = b->run->m->max_particles < SCORE_RUN ? b->run->m->max_particles : SCORE_RUN;
    b->stage = SCORING;
    b->g = ARENA_NEW(a, double, b->n_targets);
    b->excluded_by = ARENA_NEW(a, const char *, b->n_targets);
    for (int i = 0; i < b->n_targets; i += most) {
        struct job *j = study_job(b->run, JOB_SCORE, 0);
        struct part *p = ARENA_NEW(a, struct part, 1);
        *p = (struct part){.of = b, .number = i};
        forget_twist(j);
        j->completions = b->target + i;
        j->n_completions = b->n_targets - i < most ? b->n_targets - i : most;
        struct sink sink = {.event = on_score, .user = p};
        if (study_spawn(b->run, j, sink, NULL, err) != 0)
            return -1;
    }
    return 0;
}

static int check_scores(const struct bounds *b, struct err *err)
{
    for (int i = 0; i < b->n_targets; i++) {
        if (!b->excluded_by[i])
            continue;
        char param[32];
        snprintf(param, sizeof param, "targets[%d]", i);
        return err_field(err, param, "has %s 0, so it is no draw of the target", b->excluded_by[i]);
    }
    return 0;
}

/* ---- the runs ---- */

/* As many at once as fill the steps: more would only keep others waiting. */
static int at_once(const struct bounds *b)
{
    int n = 2 * b->run->m->info.batch_rows / b->run->job->particles + 1;
    return n < LEAST_AT_ONCE ? LEAST_AT_ONCE : n > MOST_AT_ONCE ? MOST_AT_ONCE : n;
}

static int on_event(void *user, const struct event *e);

static int spawn_part(struct bounds *b, struct err *err)
{
    int r = b->n_spawned / b->n_kinds;
    struct part *p = &b->part[b->n_spawned++];
    *p = (struct part){.of = b, .number = r, .kind = b->kinds[(p - b->part) % b->n_kinds]};
    struct job *j = study_job(b->run, JOB_SAMPLE, (uint64_t)(p->kind + 1) << 32 | (uint32_t)r);
    if (p->kind == UPPER)
        j->pinned = &b->target[r % b->n_targets];
    if (p->kind == FREE) {
        j->ess_threshold = 0;
        forget_twist(j);
    }
    j->ev_sample = p->kind == b->draws_of;
    struct sink sink = {.event = on_event, .user = p};
    return study_spawn(b->run, j, sink, NULL, err);
}

static int fill(struct bounds *b, struct err *err)
{
    while (b->n_spawned < b->n_parts && b->n_spawned - b->n_ended < at_once(b))
        if (spawn_part(b, err) != 0)
            return -1;
    return 0;
}

/* lower 0, upper 0, lower 1, …: whichever of them is known first, they are said in this order. */
static void say_bounds(struct bounds *b)
{
    int n = b->n_targets ? 2 : 1, repeats = b->run->job->repeats;
    for (; b->n_said < n * repeats; b->n_said++) {
        enum run_kind kind = b->n_said % n == 0 ? LOWER : UPPER;
        double log_z = b->log_z[kind][b->n_said / n];
        if (isnan(log_z))
            return;
        run_say(b->run, &(struct event){.type = EVENT_BOUND,
                                        .bound = {.upper = kind == UPPER, .log_z = log_z}});
    }
}

static void part_done(struct part *p, double log_z, int64_t tokens)
{
    struct bounds *b = p->of;
    struct err err;
    b->n_ended++;
    b->tokens += tokens;
    if (p->kind != FREE)
        b->log_z[p->kind][p->number] = log_z;
    say_bounds(b);
    if (fill(b, &err) != 0)
        run_fail(b->run, &err);
}

static int on_event(void *user, const struct event *e)
{
    struct part *p = user;
    struct bounds *b = p->of;
    if (e->type == EVENT_SAMPLE)
        b->f[(size_t)p->number * (size_t)b->run->job->particles + (size_t)e->sample.index] =
            e->sample.log_weight;
    if (e->type == EVENT_DONE)
        part_done(p, e->done.log_z, e->done.completion_tokens);
    if (e->type == EVENT_ERROR)
        run_fail(b->run, &e->error);
    return 0;
}

static int begin_runs(struct bounds *b, struct err *err)
{
    const struct job *j = b->run->job;
    struct arena *a = &b->run->job->arena;
    b->stage = RUNNING;
    b->draws_of = resamples(b->run) ? FREE : LOWER;
    b->kinds[b->n_kinds++] = LOWER;
    if (b->n_targets)
        b->kinds[b->n_kinds++] = UPPER;
    if (b->draws_of == FREE)
        b->kinds[b->n_kinds++] = FREE;
    b->n_parts = b->n_kinds * j->repeats;
    b->part = ARENA_NEW(a, struct part, b->n_parts);
    b->f = ARENA_NEW(a, double, (size_t)j->repeats *(size_t)j->particles);
    for (int kind = LOWER; kind <= UPPER; kind++) {
        b->log_z[kind] = ARENA_NEW(a, double, j->repeats);
        for (int r = 0; r < j->repeats; r++)
            b->log_z[kind][r] = NAN;
    }
    return fill(b, err);
}

/* ---- what it all comes to ---- */

static const struct event_mean UNKNOWN = {NAN, NAN, 0};

/* An infinite number makes the mean infinite, and its error unknown. */
static struct event_mean mean_of(const double *x, size_t n)
{
    double sum = 0, squares = 0;
    if (n == 0)
        return UNKNOWN;
    for (size_t i = 0; i < n; i++)
        sum += x[i];
    double mean = sum / (double)n;
    if (n < 2 || !isfinite(mean))
        return (struct event_mean){mean, NAN, (int)n};
    for (size_t i = 0; i < n; i++)
        squares += (x[i] - mean) * (x[i] - mean);
    return (struct event_mean){mean, sqrt(squares / (double)(n - 1) / (double)n), (int)n};
}

/* KL = |log Z - mean|, where the mean is finite or +-∞ as the divergence is; unknown as long as log
 * Z is. */
static struct event_mean divergence(double sign, const struct event_mean *log_z,
                                    const struct event_mean *mean)
{
    if (mean->n == 0 || isinf(mean->mean))
        return (struct event_mean){mean->n ? INFINITY : NAN, NAN, mean->n};
    if (!isfinite(log_z->mean))
        return UNKNOWN;
    return (struct event_mean){sign * (log_z->mean - mean->mean), hypot(log_z->se, mean->se),
                               mean->n};
}

static void finish(struct bounds *b)
{
    struct run *r = b->run;
    size_t n = (size_t)r->job->repeats;
    struct event_mean lower = mean_of(b->log_z[LOWER], n);
    struct event_mean upper = mean_of(b->log_z[UPPER], b->n_targets ? n : 0);
    struct event_mean f = mean_of(b->f, n * (size_t)r->job->particles);
    struct event_mean g = mean_of(b->g, (size_t)b->n_targets);
    struct event_mean log_z = lower; /* the midpoint, if there are two ends */
    if (upper.n)
        log_z = (struct event_mean){(lower.mean + upper.mean) / 2, hypot(lower.se, upper.se) / 2,
                                    lower.n};
    run_say(r, &(struct event){
                   .type = EVENT_DONE,
                   .done = {.kind = JOB_BOUNDS,
                            .log_z = log_z.mean,
                            .lower = lower,
                            .upper = upper,
                            .gap = upper.mean - lower.mean,
                            .kl_q_sigma = divergence(1, &log_z, &f),
                            .kl_sigma_q = divergence(-1, &log_z, &g),
                            .prompt_tokens = r->n_prompt,
                            .completion_tokens = b->tokens,
                            .queue_seconds = r->admitted - r->submitted,
                            .sample_seconds = seconds_now() - r->admitted},
               });
    r->phase = RUN_ENDED;
}

/* ---- the study ---- */

static int plan(struct run *r, struct err *err)
{
    const struct job *j = r->job;
    size_t draws = (size_t)j->repeats * (size_t)j->particles;
    if (draws > JOB_BYTES / sizeof(double))
        return err_field(err, "repeats", "%d runs of %d particles are more than there is room for",
                         j->repeats, j->particles);
    if (study_check_targets(r, err) != 0)
        return -1;
    return study_check(r, study_job(r, JOB_SAMPLE, 0), err);
}

static int begin(struct run *r, struct err *err)
{
    struct bounds *b = ARENA_NEW(&r->job->arena, struct bounds, 1);
    const struct targets *t = &r->job->targets;
    r->study = b;
    b->run = r;
    if (t->max_draws > 0) {
        b->rejection = rejection_new(r, r->job->repeats);
        return 0;
    }
    b->target = t->given;
    b->n_targets = t->n;
    return begin_scores(b, err);
}

/* Draw the targets, score them, run: each when what comes before it has ended. */
static int advance(struct run *r, struct err *err)
{
    struct bounds *b = r->study;
    int more;
    switch (b->stage) {
    case DRAWING:
        more = rejection_advance(b->rejection, err);
        if (more != 0)
            return more < 0 ? -1 : 0;
        b->target = rejection_found(b->rejection, &b->n_targets);
        b->tokens = rejection_tokens(b->rejection);
        return begin_scores(b, err);
    case SCORING:
        return check_scores(b, err) == 0 ? begin_runs(b, err) : -1;
    case RUNNING:
        finish(b);
    }
    return 0;
}

static void close(struct run *r)
{
    (void)r; /* all is in its arena */
}

const struct study_ops bounds_ops = {plan, begin, advance, close};
