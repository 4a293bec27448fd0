/* See rejection.h. Draws have numbers, and are accepted or not in the order of these, so that what
 * is found does not depend on which population ends first. */
#include "rejection.h"

#include <math.h>
#include <string.h>

#include "../kernels/philox.h"

enum {
    FIRST_WAVE = 64,  /* draws that are made at once; then twice as many each time … */
    POPULATION = 256, /* … in populations of so many … */
    AT_ONCE = 8,      /* … of which so many run at the same time */
};

/* A log φ up to here is 0 but for rounding. */
static const double CERTAIN = 1e-6;

/* A run that draws from p0, and what is accepted of it, in order. */
struct population_of_p0 {
    struct rejection *of;
    int64_t first;        /* number of its first draw */
    struct ids *accepted; /* (POPULATION) */
    int n;
    double excess; /* the log φ > 0 of the draw after those, if it has one; else 0 */
};

struct rejection {
    struct run *study;
    struct ids *found; /* (wanted) */
    int n, wanted;
    int64_t drawn, tokens;
    int n_runs, wave; /* draws of the next wave */
    struct population_of_p0 part[AT_ONCE];
    int n_parts; /* of the wave that is under way */
};

struct rejection *rejection_new(struct run *study, int wanted)
{
    struct arena *a = &study->job->arena;
    struct rejection *x = ARENA_NEW(a, struct rejection, 1);
    x->study = study;
    x->wanted = wanted;
    x->wave = FIRST_WAVE;
    x->found = ARENA_NEW(a, struct ids, wanted);
    for (int i = 0; i < AT_ONCE; i++)
        x->part[i] =
            (struct population_of_p0){.of = x, .accepted = ARENA_NEW(a, struct ids, POPULATION)};
    return x;
}

/* ---- what the populations say ---- */

static bool accepts(const struct rejection *x, int64_t draw, double log_phi)
{
    struct philox random = philox4x32(x->study->job->seed, (uint32_t)draw,
                                      (uint32_t)((uint64_t)draw >> 32), PHILOX_REJECT, 0);
    return philox_u01(random.v[0], random.v[1]) < exp(log_phi);
}

static void look_at(struct population_of_p0 *p, int index, const int32_t *tokens, int n_tokens,
                    double log_phi)
{
    struct rejection *x = p->of;
    if (p->excess > 0 || x->n + p->n == x->wanted)
        return;
    if (log_phi > CERTAIN) {
        p->excess = log_phi;
        return;
    }
    if (!accepts(x, p->first + index, log_phi))
        return;
    int32_t *id = ARENA_NEW(&x->study->job->arena, int32_t, n_tokens + 1);
    memcpy(id, tokens, (size_t)n_tokens * sizeof *id);
    p->accepted[p->n++] = (struct ids){id, n_tokens};
}

static int on_event(void *user, const struct event *e)
{
    struct population_of_p0 *p = user;
    if (e->type == EVENT_SAMPLE)
        look_at(p, e->sample.index, e->sample.tokens, e->sample.n_tokens, e->sample.log_phi);
    if (e->type == EVENT_DONE)
        p->of->tokens += e->done.completion_tokens;
    if (e->type == EVENT_ERROR)
        run_fail(p->of->study, &e->error);
    return 0;
}

/* ---- wave by wave ---- */

static int take_wave(struct rejection *x, struct err *err)
{
    for (int i = 0; i < x->n_parts; i++) {
        const struct population_of_p0 *p = &x->part[i];
        for (int k = 0; k < p->n && x->n < x->wanted; k++)
            x->found[x->n++] = p->accepted[k];
        if (x->n < x->wanted && p->excess > 0)
            return err_field(err, "targets", "rejection needs φ <= 1, a draw has log φ = %g",
                             p->excess);
    }
    return 0;
}

static struct job *population_job(const struct rejection *x, int n)
{
    struct job *j = study_job(x->study, JOB_SAMPLE, STUDY_SEED_REJECTION + (uint64_t)x->n_runs);
    j->particles = n;
    j->twist = (struct twist_choice){.type = TWIST_NONE};
    j->base_proposal = true;
    j->ess_threshold = 0;
    j->ev_sample = true;
    return j;
}

static int spawn_wave(struct rejection *x, struct err *err)
{
    int most = x->study->m->max_particles < POPULATION ? x->study->m->max_particles : POPULATION;
    int64_t left = x->study->job->targets.max_draws - x->drawn;
    left = left < x->wave ? left : x->wave;
    x->wave = 2 * x->wave < AT_ONCE * POPULATION ? 2 * x->wave : AT_ONCE * POPULATION;
    for (x->n_parts = 0; x->n_parts < AT_ONCE && left > 0; x->n_parts++) {
        struct population_of_p0 *p = &x->part[x->n_parts];
        int n = left < most ? (int)left : most;
        p->first = x->drawn;
        p->n = 0;
        p->excess = 0;
        struct sink sink = {.event = on_event, .user = p};
        if (study_spawn(x->study, population_job(x, n), sink, NULL, err) != 0)
            return -1;
        x->n_runs++;
        x->drawn += n;
        left -= n;
    }
    return 0;
}

int rejection_advance(struct rejection *x, struct err *err)
{
    if (take_wave(x, err) != 0)
        return -1;
    x->n_parts = 0;
    if (x->n == x->wanted || x->drawn >= x->study->job->targets.max_draws)
        return 0;
    return spawn_wave(x, err) == 0 ? 1 : -1;
}

struct ids *rejection_found(const struct rejection *x, int *n)
{
    *n = x->n;
    return x->found;
}

int64_t rejection_tokens(const struct rejection *x)
{
    return x->tokens;
}
