/* The runs of an update: what is asked of them, and what they say. */
#include <math.h>
#include <string.h>

#include "learner.h"

/* Seeds of an update's runs: (update, number). */
enum { NUMBER_BITS = 20, CONDITIONS = 0, FIRST_DRAWS = 1, FIRST_BOUNDS = 1 << (NUMBER_BITS - 1) };

/* Bounds are of the last update's prompt or conditions, and of the twist as it will be used:
 * resampled by, unless the request says how. */
static const double BOUNDS_THRESHOLD = 0.5;

static struct ids copy_ids(struct arena *a, const struct ids *ids)
{
    int32_t *id = ARENA_NEW(a, int32_t, ids->n + 1);
    if (ids->n)
        memcpy(id, ids->id, (size_t)ids->n * sizeof *id);
    return (struct ids){id, ids->n};
}

/* A job of prompt p, by the prior alone and without a potential. */
static struct job *prior_job(const struct run *r, int p, enum job_kind kind, uint64_t number)
{
    const struct learn *learn = &r->job->learn;
    struct job *j = study_job(r, kind, number);
    j->prompt_ids = learn->prompts[p];
    j->prompt = learn->prompt_text[p];
    j->prompt_len = learn->prompt_text_len[p];
    j->twist = (struct twist_choice){.type = TWIST_NONE};
    j->base_proposal = true;
    j->ess_threshold = 0;
    j->n_potentials = 0;
    return j;
}

/* φ: the request's, or the probability of an ending. */
static void set_potential(struct job *j, const struct run *r, const struct ids *ending)
{
    j->n_potentials = r->job->n_potentials;
    if (ending->n == 0)
        return;
    j->potentials = ARENA_NEW(&j->arena, struct potential, 1);
    j->potentials[0] =
        (struct potential){.type = POTENTIAL_CONTINUATION, .weight = 1, .continuation = *ending};
    j->n_potentials = 1;
}

/* A text and its ending. */
static void set_condition_draw(struct job *j, const struct learn *learn)
{
    struct segment *hole = ARENA_NEW(&j->arena, struct segment, 1);
    *hole = j->segments[0];
    hole->max_tokens += learn->condition_tokens;
    j->segments = hole;
    j->particles = learn->condition_batch;
    j->ev_sample = true;
}

int learn_check_runs(struct run *r, struct err *err)
{
    const struct learn *learn = &r->job->learn;
    for (int p = 0; p < learn->n_prompts; p++) {
        struct job *j = prior_job(r, p, JOB_SAMPLE, 0);
        struct ids *ending = ARENA_NEW(&j->arena, struct ids, 1);
        *ending = (struct ids){ARENA_NEW(&j->arena, int32_t, learn->condition_tokens + 1),
                               learn->condition_tokens};
        set_potential(j, r, ending);
        if (study_check(r, j, err) != 0)
            return -1;
        if (!learn->condition_tokens)
            continue;
        j = prior_job(r, p, JOB_SAMPLE, 0);
        set_condition_draw(j, learn);
        if (study_check(r, j, err) != 0)
            return -1;
    }
    return 0;
}

/* Of an update, 0 = the first: with its prompt. */
static struct job *update_job(const struct learner *l, int update, enum job_kind kind, int number)
{
    int p = update % l->run->job->learn.n_prompts;
    return prior_job(l->run, p, kind, (uint64_t)update << NUMBER_BITS | (uint64_t)number);
}

/* By the twist that is being learned; with a base proposal it gives values all the same. */
static struct job *twisted_job(const struct learner *l, int update, const struct group *g,
                               enum job_kind kind, int number)
{
    struct job *j = update_job(l, update, kind, number);
    struct ids ending = copy_ids(&j->arena, &g->ending);
    j->base_proposal = false;
    j->twist = (struct twist_choice){.type = TWIST_LEARNED,
                                     .name = l->run->job->learn.spec.name,
                                     .condition = ending,
                                     .head = l->head};
    set_potential(j, l->run, &ending);
    return j;
}

/* ---- what the method learns from ---- */

static int on_recording(void *user, const struct event *e)
{
    const struct recording *rec = user;
    struct learner *l = rec->of;
    if (e->type == EVENT_DONE && e->done.kind == JOB_SAMPLE)
        l->tokens += e->done.completion_tokens;
    if (e->type == EVENT_ERROR)
        run_fail(l->run, &e->error);
    return 0;
}

static int record(struct learner *l, struct recording *rec, struct job *j, struct err *err)
{
    arena_free(&rec->arena);
    trace_init(&rec->trace, &rec->arena, rec->k, l->t_max);
    rec->grad = ARENA_NEW(&rec->arena, double, (size_t)rec->k *(size_t)l->t_max);
    rec->trace.hidden = rec->hidden;
    rec->trace.condition = rec->condition;
    struct sink sink = {.event = on_recording, .user = rec};
    return study_spawn(l->run, j, sink, &rec->trace, err);
}

static int spawn_q(struct learner *l, struct group *g, int number, struct err *err)
{
    struct job *j = twisted_job(l, l->updates, g, JOB_SAMPLE, number);
    j->particles = g->q.k;
    j->ess_threshold = l->run->job->ess_threshold;
    return record(l, &g->q, j, err);
}

/* Its φ matters where no other population tells of log Z. */
static int spawn_base(struct learner *l, struct group *g, int number, struct err *err)
{
    struct job *j = twisted_job(l, l->updates, g, JOB_SAMPLE, number);
    j->particles = g->base.k;
    j->base_proposal = true;
    if (g->q.k)
        j->n_potentials = 0;
    return record(l, &g->base, j, err);
}

/* The next of the exact draws, round and round; of a condition, its own text. Only a regression on
 * φ has to know φ. */
static int spawn_exact(struct learner *l, struct group *g, int number, struct err *err)
{
    struct job *j = twisted_job(l, l->updates, g, JOB_SCORE, number);
    struct ids *text = ARENA_NEW(&j->arena, struct ids, g->exact.k);
    int64_t first = (int64_t)l->updates * g->exact.k;
    for (int i = 0; i < g->exact.k; i++)
        text[i] = g->drawn ? g->text : l->target[(first + i) % l->n_targets];
    j->completions = text;
    j->n_completions = g->exact.k;
    if (l->run->job->learn.spec.method != TWIST_RL)
        j->n_potentials = 0;
    return record(l, &g->exact, j, err);
}

int learn_spawn_draws(struct learner *l, struct err *err)
{
    for (int i = 0; i < l->n_groups; i++) {
        struct group *g = &l->group[i];
        int number = FIRST_DRAWS + RECORDINGS * i;
        if ((g->q.k && spawn_q(l, g, number, err) != 0) ||
            (g->base.k && spawn_base(l, g, number + 1, err) != 0) ||
            (g->exact.k && spawn_exact(l, g, number + 2, err) != 0))
            return -1;
    }
    return 0;
}

/* ---- conditions ---- */

/* The end of a draw of the prior is a condition, and what comes before it an exact draw given it:
 * together they are a draw of p0(text, ending) (Grosse et al. 2015). */
static int on_condition(void *user, const struct event *e)
{
    struct learner *l = user;
    if (e->type == EVENT_SAMPLE) {
        struct group *g = &l->group[e->sample.index];
        CHECK(e->sample.n_tokens == g->text.n + g->ending.n);
        memcpy(g->drawn, e->sample.tokens, (size_t)e->sample.n_tokens * sizeof *g->drawn);
    }
    if (e->type == EVENT_DONE)
        l->tokens += e->done.completion_tokens;
    if (e->type == EVENT_ERROR)
        run_fail(l->run, &e->error);
    return 0;
}

int learn_spawn_conditions(struct learner *l, struct err *err)
{
    struct job *j = update_job(l, l->updates, JOB_SAMPLE, CONDITIONS);
    set_condition_draw(j, &l->run->job->learn);
    return study_spawn(l->run, j, (struct sink){.event = on_condition, .user = l}, NULL, err);
}

/* ---- bounds ---- */

static int on_bound(void *user, const struct event *e)
{
    struct bounding *b = user;
    if (e->type == EVENT_DONE) {
        b->log_z = e->done.log_z;
        b->of->tokens += e->done.completion_tokens;
    }
    if (e->type == EVENT_ERROR)
        run_fail(b->of->run, &e->error);
    return 0;
}

static int spawn_bound(struct learner *l, struct group *g, struct bounding *b,
                       const struct ids *pinned, int number, struct err *err)
{
    const struct job *of = l->run->job;
    struct job *j = twisted_job(l, l->updates - 1, g, JOB_SAMPLE, FIRST_BOUNDS + number);
    j->particles = g->q.k ? g->q.k : g->base.k;
    j->ess_threshold = of->ess_threshold > 0 ? of->ess_threshold : BOUNDS_THRESHOLD;
    if (pinned) {
        struct ids *text = ARENA_NEW(&j->arena, struct ids, 1);
        *text = copy_ids(&j->arena, pinned);
        j->pinned = text;
    }
    *b = (struct bounding){l, NAN};
    return study_spawn(l->run, j, (struct sink){.event = on_bound, .user = b}, NULL, err);
}

int learn_spawn_bounds(struct learner *l, struct err *err)
{
    for (int i = 0; i < l->n_groups; i++) {
        struct group *g = &l->group[i];
        const struct ids *exact = NULL;
        if (g->drawn)
            exact = &g->text;
        else if (l->n_targets)
            exact = &l->target[(l->updates - 1) % l->n_targets];
        g->upper.log_z = NAN;
        if (spawn_bound(l, g, &g->lower, NULL, 2 * i, err) != 0 ||
            (exact && spawn_bound(l, g, &g->upper, exact, 2 * i + 1, err) != 0))
            return -1;
    }
    return 0;
}
