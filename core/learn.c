/* Learning a twist, as a study: update after update draws under the twist as it is now, turns what
 * the draws wrote down into a gradient of the head, and takes a step of Adam; at last the twist is
 * a file. Bounds of the twist after an update are run beside the draws of the next one, and so is
 * the writing of a checkpoint, which a thread of its own does. Nothing here depends on when
 * anything ends: the same seed gives the same file, byte for byte. */
#include <math.h>
#include <stdlib.h>

#include "learner.h"

enum { TARGETS_MOST = 1024 /* exact draws that rejection is to find */ };

/* ---- the plan ---- */

static bool has_exact(const struct job *j)
{
    return j->learn.spec.method != TWIST_FUDGE &&
           (j->learn.spec.conditional || j->targets.n || j->targets.max_draws);
}

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

static int most_targets(const struct job *j)
{
    int64_t useful = (int64_t)j->particles * j->learn.spec.updates;
    return j->targets.n ? j->targets.n : useful < TARGETS_MOST ? (int)useful : TARGETS_MOST;
}

/* Who draws how many in an update. Some population is always there, to tell of log Z. */
static void shape(struct learner *l)
{
    struct run *r = l->run;
    const struct job *j = r->job;
    const struct learn *learn = &j->learn;
    bool conditional = learn->spec.conditional, exact = has_exact(j);
    struct loss_needs needs = loss_needs(learn->spec.method, exact);
    l->n_groups = conditional ? learn->condition_batch : 1;
    l->group = ARENA_NEW(&r->job->arena, struct group, l->n_groups);
    l->t_max = j->segments[0].max_tokens;
    int k = j->particles / l->n_groups;
    for (int i = 0; i < l->n_groups; i++) {
        struct group *g = &l->group[i];
        g->q.k = needs.q || !needs.base ? k : 0;
        g->base.k = needs.base ? k : 0;
        if (exact)
            g->exact.k = conditional ? 1 : min_int(k, most_targets(j));
        if (!conditional)
            continue;
        g->drawn = ARENA_NEW(&r->job->arena, int32_t, l->t_max + learn->condition_tokens);
        g->text = (struct ids){g->drawn, l->t_max};
        g->ending = (struct ids){g->drawn + l->t_max, learn->condition_tokens};
    }
}

/* A condition is what a text comes to at its full length. */
static int check_conditional(const struct job *j, struct err *err)
{
    if (!j->ignore_eos)
        return err_field(err, "ignore_eos",
                         "must be true with a condition: every text has to reach its ending");
    if (j->segments[0].n_stop)
        return err_field(err, "stop", "cannot be combined with a condition");
    if (2 * j->learn.condition_batch > j->particles)
        return err_field(err, "condition.batch",
                         "%d endings share %d particles; each needs at least 2",
                         j->learn.condition_batch, j->particles);
    return 0;
}

static int check_targets(const struct run *r, struct err *err)
{
    const struct job *j = r->job;
    if ((j->targets.n || j->targets.max_draws) && j->learn.n_prompts > 1)
        return err_field(err, "targets", "are for one prompt, and there are %d",
                         j->learn.n_prompts);
    return study_check_targets(r, err);
}

static int check_memory(struct run *r, struct err *err)
{
    const size_t mib = 1 << 20, has = r->m->info.twist_bytes;
    r->twist_bytes = learn_step_bytes(r->study);
    if (r->twist_bytes <= has)
        return 0;
    return err_field(err, "head",
                     "needs %zu MiB of twist memory, the server has %zu (--twist-memory)",
                     (r->twist_bytes + mib - 1) / mib, has / mib);
}

static int plan(struct run *r, struct err *err)
{
    const struct job *j = r->job;
    struct learner *l = ARENA_NEW(&r->job->arena, struct learner, 1);
    l->run = r;
    r->study = l;
    if (!*r->m->info.twist_dir)
        return err_set(err, ERR_INVALID, "this server has no folder to keep twists in");
    if (twist_can_save(r->m->info.twist_dir, err) != 0)
        return -1;
    if (j->learn.spec.conditional && check_conditional(j, err) != 0)
        return -1;
    shape(l);
    return check_targets(r, err) != 0 || check_memory(r, err) != 0 ? -1 : learn_check_runs(r, err);
}

/* ---- the beginning ---- */

static int open_head(struct learner *l, struct err *err)
{
    struct machine *m = l->run->m;
    const struct job *j = l->run->job;
    struct twist *t = twist_new(&j->learn.spec);
    if (!t)
        return err_set(err, ERR_UNAVAILABLE, "no memory for the twist");
    /* The last layer stays at 0: at first q is p0. Numbers of the usual size would already be
     * noise, as large as the model's hidden states are. */
    twist_init(t, t->spec.n_layers - 1, j->seed);
    int rc = head_open(&l->head, m->backend, t, model_chunk_rows(m->model), true, err);
    twist_free(t);
    return rc;
}

static void open_scales(struct learner *l)
{
    struct arena *a = &l->run->job->arena;
    for (int i = 0; i < CALIBRATION_UPDATES; i++)
        l->scales[i] =
            (struct loss_scales){ARENA_NEW(a, double, l->t_max), ARENA_NEW(a, double, l->t_max)};
}

static int begin_update(struct learner *l, struct err *err)
{
    bool conditional = l->group[0].drawn;
    l->stage = conditional ? LEARN_CONDITIONS : LEARN_DRAWS;
    return conditional ? learn_spawn_conditions(l, err) : learn_spawn_draws(l, err);
}

static int begin(struct run *r, struct err *err)
{
    struct learner *l = r->study;
    const struct job *j = r->job;
    l->reserved = machine_take_twist_bytes(r->m, r->twist_bytes);
    if (!l->reserved)
        return err_set(err, ERR_UNAVAILABLE, "twist memory is taken");
    if (open_head(l, err) != 0 || learn_step_open(l, err) != 0)
        return -1;
    open_scales(l);
    r->first_draw = seconds_now();
    l->target = j->targets.given;
    l->n_targets = j->targets.n;
    if (j->targets.n || !j->targets.max_draws || !has_exact(j))
        return begin_update(l, err);
    l->stage = LEARN_TARGETS;
    l->rejection = rejection_new(r, most_targets(j));
    return 0;
}

static int take_targets(struct learner *l, struct err *err)
{
    int rc = rejection_advance(l->rejection, err);
    if (rc != 0)
        return rc > 0 ? 0 : -1;
    l->target = rejection_found(l->rejection, &l->n_targets);
    l->tokens += rejection_tokens(l->rejection);
    if (l->n_targets == 0)
        return err_field(err, "targets", "none of %lld draws was accepted",
                         (long long)l->run->job->targets.max_draws);
    l->group[0].exact.k = min_int(l->group[0].exact.k, l->n_targets);
    return begin_update(l, err);
}

/* ---- saving ---- */

static void *save(void *arg)
{
    struct saver *s = arg;
    struct run *r = s->run;
    s->rc = twist_save(s->twist, s->dir, &s->err);
    study_awake(r);
    return NULL;
}

static bool all_finite(const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i]))
            return false;
    return true;
}

static bool is_finite(const struct twist *t)
{
    for (int i = 0; i < t->spec.n_layers; i++) {
        size_t in = (size_t)twist_in(&t->spec, i), out = (size_t)twist_out(&t->spec, i);
        if (!all_finite(t->w[i], in * out) || !all_finite(t->b[i], out))
            return false;
    }
    return true;
}

/* The twist as it is now, with what is known of it. */
static struct twist *snapshot(struct learner *l, struct err *err)
{
    struct twist_spec spec = l->run->job->learn.spec;
    float *calibration = calloc((size_t)l->t_max, sizeof *calibration);
    spec.updates = l->updates;
    spec.log_z = l->log_z;
    if (calibration && l->n_scales) {
        loss_calibration(l->scales, min_int(l->n_scales, CALIBRATION_UPDATES), l->t_max,
                         calibration);
        spec.calibration = calibration;
    }
    struct twist *t = calibration ? twist_new(&spec) : NULL;
    free(calibration);
    if (!t) {
        err_set(err, ERR_UNAVAILABLE, "no memory to save the twist");
        return NULL;
    }
    if (head_download(l->head, t) != 0)
        err_set(err, ERR_INTERNAL, "%s", l->run->m->backend->why);
    else if (!is_finite(t))
        err_field(err, "learning_rate", "the twist is not finite after %d updates", l->updates);
    else
        return t;
    twist_free(t);
    return NULL;
}

static int begin_save(struct learner *l, struct err *err)
{
    struct saver *s = &l->saver;
    *s = (struct saver){.run = l->run, .dir = l->run->m->info.twist_dir};
    s->twist = snapshot(l, err);
    if (!s->twist)
        return -1;
    s->started = pthread_create(&s->thread, NULL, save, s) == 0;
    if (s->started) {
        study_sleep(l->run);
        return 0;
    }
    twist_free(s->twist);
    s->twist = NULL;
    return err_set(err, ERR_UNAVAILABLE, "no thread to save the twist");
}

static void join_saver(struct saver *s)
{
    if (!s->started)
        return;
    pthread_join(s->thread, NULL);
    twist_free(s->twist);
    s->twist = NULL;
    s->started = false;
}

/* It has awoken the study, so it is over. */
static int end_save(struct learner *l, struct err *err)
{
    struct saver *s = &l->saver;
    if (!s->started)
        return 0;
    join_saver(s);
    if (s->rc != 0)
        *err = s->err;
    return s->rc;
}

/* ---- going on ---- */

static void say_mean(struct learner *l, bool upper)
{
    double sum = 0;
    for (int i = 0; i < l->n_groups; i++)
        sum += upper ? l->group[i].upper.log_z : l->group[i].lower.log_z;
    if (!isnan(sum))
        run_say(l->run, &(struct event){.type = EVENT_BOUND,
                                        .bound = {.upper = upper, .log_z = sum / l->n_groups}});
}

static void say_bounds(struct learner *l)
{
    if (!l->bounding)
        return;
    l->bounding = false;
    say_mean(l, false);
    say_mean(l, true);
}

static void say_update(struct learner *l)
{
    run_say(
        l->run,
        &(struct event){
            .type = EVENT_UPDATE,
            .update = {.update = l->updates, .loss = l->loss, .log_z = l->log_z, .ess = l->ess}});
}

static void say_done(struct learner *l)
{
    struct run *r = l->run;
    run_say(r, &(struct event){.type = EVENT_DONE,
                               .done = {.kind = JOB_LEARN,
                                        .name = r->job->learn.spec.name,
                                        .updates = l->updates,
                                        .log_z = l->log_z,
                                        .ess = l->ess,
                                        .prompt_tokens = r->n_prompt,
                                        .completion_tokens = l->tokens,
                                        .queue_seconds = r->admitted - r->submitted,
                                        .prompt_seconds = r->first_draw - r->admitted,
                                        .sample_seconds = seconds_now() - r->first_draw}});
    r->phase = RUN_ENDED;
}

static bool is_due(int every, int update)
{
    return every > 0 && update % every == 0;
}

static int end_update(struct learner *l, struct err *err)
{
    const struct learn *learn = &l->run->job->learn;
    if (learn_step(l, err) != 0)
        return -1;
    say_update(l);
    bool last = l->updates == learn->spec.updates;
    l->bounding = is_due(learn->bounds, l->updates);
    if (l->bounding && learn_spawn_bounds(l, err) != 0)
        return -1;
    if ((last || is_due(learn->checkpoint, l->updates)) && begin_save(l, err) != 0)
        return -1;
    if (!last)
        return begin_update(l, err);
    l->stage = LEARN_END;
    return 0;
}

static int advance(struct run *r, struct err *err)
{
    struct learner *l = r->study;
    if (end_save(l, err) != 0)
        return -1;
    say_bounds(l);
    switch (l->stage) {
    case LEARN_TARGETS:
        return take_targets(l, err);
    case LEARN_CONDITIONS:
        l->stage = LEARN_DRAWS;
        return learn_spawn_draws(l, err);
    case LEARN_DRAWS:
        return end_update(l, err);
    case LEARN_END:
        say_done(l);
        break;
    }
    return 0;
}

static void finish(struct run *r)
{
    struct learner *l = r->study;
    join_saver(&l->saver);
    if (!l->reserved)
        return;
    learn_step_close(l);
    head_close(l->head);
    machine_give_twist_bytes(r->m, r->twist_bytes);
}

const struct study_ops learn_ops = {plan, begin, advance, finish};
