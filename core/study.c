/* What all studies have in common: their admission, their runs, their sleep. See study.h. */
#include "study.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "../kernels/philox.h"
#include "potential.h"
#include "utf8.h"

const struct study_ops *study_ops_of(enum job_kind kind)
{
    switch (kind) {
    case JOB_BOUNDS:
        return &bounds_ops;
    case JOB_LEARN:
        return &learn_ops;
    case JOB_COMPLETE:
        return &complete_ops;
    case JOB_SAMPLE:
    case JOB_SCORE:
        break;
    }
    return NULL;
}

int study_plan(struct run *r, struct err *err)
{
    const struct job *j = r->job;
    if (j->n_segments != 1 || j->segments[0].type != SEGMENT_SAMPLE)
        return err_field(err, "segments", "only a single hole will do here");
    r->n_prompt = j->prompt_ids.n;
    r->spawned_end = &r->spawned;
    return r->ops->plan(r, err);
}

int study_admit(struct run *r, struct err *err)
{
    r->phase = RUN_STUDY;
    return r->ops->begin(r, err) == 0 ? run_advance(r, err) : -1;
}

void study_close(struct run *r)
{
    CHECK(!study_has_runs(r));
    r->ops->close(r);
}

int study_spawn(struct run *parent, struct job *job, struct sink sink, struct trace *trace,
                struct err *err)
{
    struct run *r;
    if (run_open(&r, parent->m, job, sink, trace, err) != 0) {
        job_free(job);
        return -1;
    }
    r->ticket = parent->ticket;
    r->parent = parent;
    *parent->spawned_end = r;
    parent->spawned_end = &r->next;
    parent->outstanding++;
    return 0;
}

int study_check(struct run *parent, struct job *job, struct err *err)
{
    struct run *r; /* in the job's arena, and nowhere else */
    int rc = run_open(&r, parent->m, job, (struct sink){0}, NULL, err);
    job_free(job);
    return rc;
}

struct job *study_job(const struct run *parent, enum job_kind kind, uint64_t n)
{
    const struct job *of = parent->job;
    struct job *j = job_new();
    struct arena arena = j->arena; /* the job lies in it */
    struct philox random = philox4x32(of->seed, (uint32_t)n, (uint32_t)(n >> 32), PHILOX_SEED, 0);
    *j = *of;
    j->arena = arena;
    j->kind = kind;
    j->id[0] = '\0';
    j->borrowed = true;
    j->seed = (uint64_t)random.v[1] << 32 | random.v[0];
    j->ev_step = j->ev_resample = j->ev_sample = j->ev_particles = false;
    j->named_holes = j->logprobs = j->per_token = false;
    j->targets = (struct targets){0};
    j->learn = (struct learn){0};
    j->complete = (struct complete){0};
    if (kind == JOB_SCORE)
        j->n_segments = 0;
    return j;
}

void study_sleep(struct run *r)
{
    CHECK(!r->asleep);
    r->asleep = true;
    r->outstanding++;
}

void study_awake(struct run *r)
{
    struct engine *e = r->m->engine; /* once awake, the run may end at any moment */
    atomic_store(&r->awake, true);
    engine_wake(e);
}

void study_rouse(struct run *r)
{
    if (!r->asleep || !atomic_exchange(&r->awake, false))
        return;
    r->asleep = false;
    r->outstanding--;
}

/* ---- targets ---- */

/* Does the text contain a stop string that ends at byte `from` or later? */
static bool stops(const struct segment *g, const struct buf *text, size_t from)
{
    for (int i = 0; i < g->n_stop; i++) {
        size_t len = g->stop_len[i], first = from + 1 > len ? from + 1 - len : 0;
        if (text->len >= len && memmem(text->data + first, text->len - first, g->stop[i], len))
            return true;
    }
    return false;
}

/* NULL, or what keeps these tokens from being what a hole is filled with. Their bytes are appended
 * to text. */
static const char *not_whole(const struct tokenizer *t, const struct segment *g,
                             const struct ids *ids, struct buf *text)
{
    bool ended = false;
    for (int i = 0; i < ids->n; i++) {
        size_t len, before = text->len;
        if (ended)
            return "goes on after its end";
        const char *piece = tokenizer_piece(t, ids->id[i], &len);
        buf_add(text, piece, len);
        ended = tokenizer_is_eos(t, ids->id[i]) || stops(g, text, before);
    }
    if (ids->n > g->max_tokens)
        return "is longer than max_tokens";
    return ended || ids->n == g->max_tokens
               ? NULL
               : "is not a whole text: it ends with EOS, a stop string or at max_tokens";
}

/* Is φ certainly 0? */
static bool excluded(const struct job *j, const struct ids *ids, const struct buf *bytes)
{
    struct buf text = {0};
    double log_phi = 0;
    utf8_sanitize(&text, bytes->data, bytes->len);
    for (int i = 0; i < j->n_potentials && log_phi > -INFINITY; i++) {
        const struct potential *p = &j->potentials[i];
        if (!potential_needs_model(p))
            log_phi += potential_weigh(p->weight, potential_log_phi(p, text.data ? text.data : "",
                                                                    text.len, ids->id, ids->n));
    }
    buf_free(&text);
    return log_phi == -INFINITY;
}

int study_check_targets(const struct run *r, struct err *err)
{
    const struct job *j = r->job;
    for (int i = 0; i < j->targets.n; i++) {
        const struct ids *ids = &j->targets.given[i];
        struct buf bytes = {0};
        const char *why = not_whole(r->m->tokenizer, j->segments, ids, &bytes);
        if (!why && excluded(j, ids, &bytes))
            why = "has potential 0";
        buf_free(&bytes);
        if (!why)
            continue;
        char param[32];
        snprintf(param, sizeof param, "targets[%d]", i);
        return err_field(err, param, "%s", why);
    }
    return 0;
}
