/* From what an update's runs wrote down to a step of Adam. */
#include <math.h>
#include <string.h>

#include "learner.h"

/* ---- memory ---- */

static size_t cells_of(const struct recording *rec, int t_max)
{
    return (size_t)rec->k * (size_t)t_max;
}

static size_t all_cells(const struct learner *l)
{
    size_t n = 0;
    for (int i = 0; i < l->n_groups; i++)
        for (int k = 0; k < RECORDINGS; k++)
            n += cells_of(learn_recording(&l->group[i], k), l->t_max);
    return n;
}

static const struct twist_spec *spec_of(const struct learner *l)
{
    return &l->run->job->learn.spec;
}

static bool is_dense(const struct learner *l)
{
    return spec_of(l)->method == TWIST_DPG;
}

static size_t row_bytes(const struct learner *l)
{
    return (size_t)spec_of(l)->dim * act_size(l->run->m->backend->act);
}

static size_t dense_bytes(const struct learner *l)
{
    size_t rows = (size_t)model_chunk_rows(l->run->m->model);
    return is_dense(l) ? rows * (size_t)spec_of(l)->vocab * sizeof(float) : 0;
}

/* A list of staging for each cell, here and on the device. */
static size_t staged_bytes(const struct learner *l)
{
    size_t ask = sizeof(struct propose_row) + sizeof(struct propose_draw);
    return 2 * sizeof(int32_t) + sizeof(float) + (is_dense(l) ? ask : 0);
}

size_t learn_step_bytes(const struct learner *l)
{
    const struct machine *m = l->run->m;
    size_t written = sizeof(struct trace_entry) + 2 * sizeof(int32_t) + 3 * sizeof(double);
    size_t cell = row_bytes(l) + written + 2 * staged_bytes(l);
    return head_bytes(spec_of(l), m->backend->act, model_chunk_rows(m->model), true) +
           all_cells(l) * cell + dense_bytes(l) + (size_t)(RECORDINGS * l->n_groups) * row_bytes(l);
}

static int open_recording(struct learner *l, struct recording *rec)
{
    struct backend *b = l->run->m->backend;
    rec->of = l;
    if (rec->k == 0)
        return 0;
    if (b->ops->alloc(b, &rec->hidden, cells_of(rec, l->t_max) * row_bytes(l)))
        return -1;
    return spec_of(l)->conditional ? b->ops->alloc(b, &rec->condition, row_bytes(l)) : 0;
}

static int open_staging(struct learner *l)
{
    struct backend *b = l->run->m->backend;
    struct arena *a = &l->run->job->arena;
    size_t n = all_cells(l);
    struct staging *host = &l->host, *dev = &l->dev;
    *host = (struct staging){.row = ARENA_NEW(a, int32_t, n),
                             .token = ARENA_NEW(a, int32_t, n),
                             .grad = ARENA_NEW(a, float, n)};
    if (b->ops->alloc(b, (void **)&dev->row, n * sizeof *dev->row) ||
        b->ops->alloc(b, (void **)&dev->token, n * sizeof *dev->token) ||
        b->ops->alloc(b, (void **)&dev->grad, n * sizeof *dev->grad))
        return -1;
    if (!is_dense(l))
        return 0;
    host->rows = ARENA_NEW(a, struct propose_row, n);
    host->draws = ARENA_NEW(a, struct propose_draw, n);
    return b->ops->alloc(b, (void **)&dev->rows, n * sizeof *dev->rows) ||
           b->ops->alloc(b, (void **)&dev->draws, n * sizeof *dev->draws) ||
           b->ops->alloc(b, (void **)&l->dense, dense_bytes(l));
}

static int open_prior(struct learner *l)
{
    struct machine *m = l->run->m;
    struct backend *b = m->backend;
    if (run_prior_open(m, l->run->job, &l->prior, &l->prior_memory) != 0)
        return -1;
    l->prior.base_proposal = false;
    return b->ops->alloc(b, (void **)&l->dev_prior, sizeof l->prior) ||
           b->ops->upload(b, l->dev_prior, &l->prior, sizeof l->prior);
}

int learn_step_open(struct learner *l, struct err *err)
{
    struct backend *b = l->run->m->backend;
    int rc = open_staging(l);
    for (int i = 0; i < l->n_groups && rc == 0; i++)
        for (int k = 0; k < RECORDINGS && rc == 0; k++)
            rc = open_recording(l, learn_recording(&l->group[i], k));
    if (rc == 0 && is_dense(l))
        rc = open_prior(l);
    return rc ? err_set(err, ERR_INTERNAL, "%s", b->why) : 0;
}

/* The last update's lists may still be on their way from memory that is about to go: they are
 * waited for. */
void learn_step_close(struct learner *l)
{
    struct backend *b = l->run->m->backend;
    float last;
    if (l->dev.grad)
        b->ops->download(b, &last, l->dev.grad, sizeof last);
    for (int i = 0; i < l->n_groups; i++)
        for (int k = 0; k < RECORDINGS; k++) {
            struct recording *rec = learn_recording(&l->group[i], k);
            b->ops->release(b, rec->hidden);
            b->ops->release(b, rec->condition);
            arena_free(&rec->arena);
        }
    void *const dev[] = {l->dev.row,   l->dev.token, l->dev.grad,     l->dev.rows,
                         l->dev.draws, l->dense,     l->prior_memory, l->dev_prior};
    for (size_t i = 0; i < sizeof dev / sizeof *dev; i++)
        b->ops->release(b, dev[i]);
}

/* ---- the gradient ---- */

static double group_loss(const struct learner *l, struct group *g)
{
    struct loss_grad grad = {.q = g->q.grad, .base = g->base.grad, .exact = g->exact.grad};
    return loss_gradient(spec_of(l)->method, g->q.k ? &g->q.trace : NULL,
                         g->base.k ? &g->base.trace : NULL, g->exact.k ? &g->exact.trace : NULL,
                         &grad);
}

/* A row asked again, as its run asked it; the i-th of its recording. */
static void stage_ask(struct learner *l, int at, int i, int t, int32_t token)
{
    const struct job *j = l->run->job;
    l->host.rows[at] = (struct propose_row){
        .twist = i % model_chunk_rows(l->run->m->model),
        .ban_eos = j->ignore_eos || t < j->min_tokens,
        .first_draw = at,
        .n_draws = 1,
    };
    l->host.draws[at] = (struct propose_draw){.forced = token};
}

/* The entries that have a gradient; returns where the next recording's begin. */
static int stage(struct learner *l, struct recording *rec, int at)
{
    rec->staged = at;
    rec->n_staged = 0;
    for (int e = 0; e < rec->k * l->t_max; e++) {
        if (rec->grad[e] == 0)
            continue;
        int32_t token = rec->trace.entry[e].token;
        l->host.row[at] = e;
        l->host.token[at] = token;
        l->host.grad[at] = (float)(rec->grad[e] / l->n_groups);
        if (is_dense(l))
            stage_ask(l, at, rec->n_staged, e / rec->k, token);
        at++;
        rec->n_staged++;
    }
    return at;
}

/* The host's lists stay as they are until the next update, whose runs download. */
static int upload(struct learner *l, int n_entries)
{
    struct backend *b = l->run->m->backend;
    const struct staging *host = &l->host, *dev = &l->dev;
    size_t n = (size_t)n_entries;
    if (n == 0)
        return 0;
    if (b->ops->upload(b, dev->row, host->row, n * sizeof *host->row) ||
        b->ops->upload(b, dev->token, host->token, n * sizeof *host->token) ||
        b->ops->upload(b, dev->grad, host->grad, n * sizeof *host->grad))
        return -1;
    if (!is_dense(l))
        return 0;
    return b->ops->upload(b, dev->rows, host->rows, n * sizeof *host->rows) ||
           b->ops->upload(b, dev->draws, host->draws, n * sizeof *host->draws);
}

/* Some rows of a recording, n of them, staged from `at` on. */
static int backward_rows(struct learner *l, const struct recording *rec, int at, int n)
{
    struct model *m = l->run->m->model;
    struct model_twist twist = {.head = l->head, .condition = rec->condition};
    const struct staging *dev = &l->dev;
    if (!is_dense(l))
        return model_head_input(m, &twist, rec->hidden, dev->row + at, n) ||
               head_backward(l->head, dev->grad + at, dev->token + at, n);
    struct propose_args args = {.vocab = spec_of(l)->vocab,
                                .priors = l->dev_prior,
                                .rows = dev->rows + at,
                                .draws = dev->draws};
    return model_propose_grad(m, &twist, rec->hidden, dev->row + at, &args, dev->grad + at,
                              l->dense, n) ||
           head_backward(l->head, l->dense, NULL, n);
}

static int backward(struct learner *l)
{
    int chunk = model_chunk_rows(l->run->m->model), at = 0;
    for (int i = 0; i < l->n_groups; i++)
        for (int k = 0; k < RECORDINGS; k++)
            at = stage(l, learn_recording(&l->group[i], k), at);
    if (upload(l, at))
        return -1;
    for (int i = 0; i < l->n_groups; i++)
        for (int k = 0; k < RECORDINGS; k++) {
            const struct recording *rec = learn_recording(&l->group[i], k);
            for (int r = 0; r < rec->n_staged; r += chunk) {
                int n = rec->n_staged - r < chunk ? rec->n_staged - r : chunk;
                if (backward_rows(l, rec, rec->staged + r, n))
                    return -1;
            }
        }
    return 0;
}

/* ---- the update ---- */

/* Means over conditions, if there are several. */
static void summarise(struct learner *l)
{
    l->loss = l->log_z = l->ess = 0;
    for (int i = 0; i < l->n_groups; i++) {
        const struct trace *t = &learn_population(&l->group[i])->trace;
        l->loss += group_loss(l, &l->group[i]) / l->n_groups;
        l->log_z += (smc_lse(t->log_w, t->k) - log(t->k)) / l->n_groups;
        l->ess += smc_ess(t->log_w, t->k) / l->n_groups;
    }
}

/* Conditions have scales of their own, which no one calibration would bring together. */
static void remember_scales(struct learner *l)
{
    if (!spec_of(l)->resample || spec_of(l)->conditional)
        return;
    loss_scales(&learn_population(&l->group[0])->trace,
                &l->scales[l->n_scales++ % CALIBRATION_UPDATES]);
}

/* Did particles find no token to draw? */
static bool died_drawing(const struct trace *t)
{
    for (int i = 0; i < t->k && t->n_steps > 0; i++)
        if (t->cloud[(size_t)(t->n_steps - 1) * (size_t)t->k + (size_t)i] < 0)
            return true;
    return false;
}

/* As long as log ψ is finite a draw fails only where the prior itself has no token left; such a
 * prior shows that before the first step. */
static bool is_finite(struct learner *l)
{
    bool died = false;
    for (int i = 0; i < l->n_groups; i++)
        died |= died_drawing(&learn_population(&l->group[i])->trace);
    l->mortal |= died && l->updates == 0;
    return isfinite(l->loss) && (!died || l->mortal);
}

int learn_step(struct learner *l, struct err *err)
{
    struct backend *b = l->run->m->backend;
    summarise(l);
    if (!is_finite(l))
        return err_field(err, "learning_rate", "the loss is not finite after %d updates",
                         l->updates);
    remember_scales(l);
    if (backward(l) || head_step(l->head, (float)spec_of(l)->learning_rate, l->updates + 1))
        return err_set(err, ERR_INTERNAL, "%s", b->why);
    l->updates++;
    return 0;
}
