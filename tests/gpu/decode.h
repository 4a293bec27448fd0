/* A population that decodes as the engine's do: a shared prompt, a row a particle and step, draws,
 * weights, resampling, and pages that are copied when they are written. The model is random, and so
 * is the twist: log ψ of a text is a random walk, which makes the population resample every few
 * steps. What the engine does around it (texts, events, admission) is left out. */
#pragma once
#include <stdio.h>
#include <stdlib.h>

#include "../../core/arena.h"
#include "../../core/kv.h"
#include "../../core/model.h"
#include "../../core/smc.h"
#include "../ops/ops.h"
#include "random_model.h"

enum { PROMPT = 32 };

struct decode {
    const struct shape *shape;
    struct backend *b;
    struct buf file;
    struct gguf *g;
    struct model_config c;
    struct model *m;
    struct prior *prior; /* dev (1) */
    int most, length;    /* particles, tokens behind the prompt */

    struct arena arena; /* of the population */
    struct population pop;
    struct smc_device weigher;
    struct kv_pool *pool;
    struct kv_account account;
    struct kv_seq *seqs; /* (k) */
    int32_t *token;      /* (k) the last one, not yet in the cache */
    int t, resampled;    /* steps done; those that resampled */
    struct batch batch;
    int32_t *hidden;            /* (most) 0, 1, … */
    struct propose_row *rows;   /* (most) */
    struct model_twist *twists; /* (most) none */
    struct propose_draw *draws; /* (most) */
    struct propose_out *out;    /* (most) */
};

static inline void decode_must(int rc, const struct err *err)
{
    if (rc == 0)
        return;
    fprintf(stderr, "%s\n", err->msg);
    exit(1);
}

static inline void backend_must(int rc, const struct backend *b)
{
    if (rc == 0)
        return;
    fprintf(stderr, "%s: %s\n", b->name, b->why);
    exit(1);
}

static inline int decode_pages(const struct decode *d, int k)
{
    return (k + 1) * kv_pages_for(PROMPT + d->length);
}

static inline void decode_rows(struct decode *d)
{
    const size_t n = (size_t)d->most;
    d->hidden = calloc(n, sizeof *d->hidden);
    d->rows = calloc(n, sizeof *d->rows);
    d->twists = calloc(n, sizeof *d->twists);
    d->draws = calloc(n, sizeof *d->draws);
    d->out = calloc(n, sizeof *d->out);
    d->token = calloc(n, sizeof *d->token);
    CHECK(d->hidden && d->rows && d->twists && d->draws && d->out && d->token);
    for (int i = 0; i < d->most; i++) {
        d->hidden[i] = i;
        d->rows[i] = (struct propose_row){.first_draw = i, .n_draws = 1};
    }
}

static inline void decode_prior(struct decode *d)
{
    const struct backend_ops *ops = d->b->ops;
    struct prior prior = {.temperature = 1, .top_p = 1};
    backend_must(ops->alloc(d->b, (void **)&d->prior, sizeof prior), d->b);
    backend_must(ops->upload(d->b, d->prior, &prior, sizeof prior), d->b);
    backend_must(ops->download(d->b, &prior, d->prior, sizeof prior), d->b);
}

static inline struct model_opts decode_opts(const struct decode *d, int most)
{
    return (struct model_opts){
        .max_rows = most, .n_pages = decode_pages(d, most), .context = PROMPT + d->length};
}

/* The most particles, of the asked ones or half as many or …, that fit the device. */
static inline int decode_fitting(const struct decode *d, int most)
{
    for (;; most /= 2) {
        struct model_memory need;
        const struct model_opts opts = decode_opts(d, most);
        model_memory(&d->c, d->b, d->g, &opts, &need);
        if (most == 1 || d->b->memory == 0 || need.total < d->b->memory * 9 / 10)
            return most;
    }
}

/* For populations of up to `most` particles, fewer if that is too much for the device, that write
 * up to `length` tokens each. Ends the program where it cannot go on, as all of this file does. */
static inline void decode_open(struct decode *d, struct backend *b, const struct shape *shape,
                               int most, int length)
{
    struct err err;
    *d = (struct decode){.shape = shape, .b = b, .length = length};
    random_model(&d->file, shape);
    decode_must(gguf_open_memory(&d->g, d->file.data, d->file.len, &err), &err);
    decode_must(model_config_read(&d->c, d->g, shape->name, &err), &err);
    d->most = decode_fitting(d, most);
    const struct model_opts opts = decode_opts(d, d->most);
    decode_must(model_open(&d->m, b, d->g, &d->c, &opts, &err), &err);
    decode_must(batch_open(&d->batch, d->most, decode_pages(d, d->most), &err), &err);
    decode_must(smc_device_open(&d->weigher, b, d->most, 1, &err), &err);
    decode_rows(d);
    decode_prior(d);
}

static inline void decode_close(struct decode *d)
{
    d->b->ops->release(d->b, d->prior);
    smc_device_close(&d->weigher);
    batch_close(&d->batch);
    model_close(d->m);
    gguf_close(d->g);
    buf_free(&d->file);
    free(d->hidden), free(d->rows), free(d->twists), free(d->draws), free(d->out), free(d->token);
}

/* One token of a sequence into the batch, whose hidden state is wanted. */
static inline void decode_add(struct decode *d, struct kv_seq *s, int32_t token)
{
    struct batch *b = &d->batch;
    const int i = b->n++, start = b->page_start[b->n_seq];
    int32_t from, to;
    CHECK(kv_append(d->pool, s, 1, b->slot + i, &from, &to) == 0);
    if (from >= 0) {
        b->cow_from[b->n_cow] = from;
        b->cow_to[b->n_cow++] = to;
    }
    b->token[i] = token;
    b->pos[i] = s->n_tokens - 1;
    b->seq[i] = b->n_seq;
    b->out_row[b->n_out] = i;
    b->out_hidden[b->n_out++] = i;
    memcpy(b->page + start, s->page, (size_t)s->n_pages * sizeof *s->page);
    b->page_start[++b->n_seq] = start + s->n_pages;
}

static inline void decode_forward(struct decode *d)
{
    struct err err;
    decode_must(model_forward(d->m, &d->batch, &err), &err);
}

/* Draws of the batch's rows: row i as particle[i], NULL: as particle i. */
static inline void decode_propose(struct decode *d, const int *particle, struct propose_out *out)
{
    struct err err;
    const int n = d->batch.n;
    for (int i = 0; i < n; i++)
        d->draws[i] = (struct propose_draw){.seed = 1,
                                            .step = (uint32_t)d->t,
                                            .particle = (uint32_t)(particle ? particle[i] : i),
                                            .forced = -1};
    const struct model_ask ask = {.hidden = d->hidden,
                                  .rows = d->rows,
                                  .twist = d->twists,
                                  .n_rows = n,
                                  .draws = d->draws,
                                  .n_draws = n,
                                  .priors = d->prior};
    decode_must(model_propose(d->m, &ask, out, &err), &err);
}

/* The prompt, a token a step, and k forks of it. */
static inline void decode_start(struct decode *d, int k)
{
    struct err err;
    const int cap = kv_pages_for(PROMPT + d->length);
    const int pages = decode_pages(d, k);
    d->account = (struct kv_account){.limit = pages};
    d->arena = (struct arena){0};
    d->t = d->resampled = 0;
    decode_must(kv_open(&d->pool, pages, &err), &err);
    smc_init(&d->pop, &d->arena, k, RESAMPLE_SYSTEMATIC, 0.5, 1);
    d->seqs = ARENA_NEW(&d->arena, struct kv_seq, k);
    for (int i = 0; i < k; i++)
        d->seqs[i] = (struct kv_seq){&d->account, ARENA_NEW(&d->arena, int32_t, cap), 0, cap, 0};
    for (int t = 0; t < PROMPT; t++) {
        batch_reset(&d->batch);
        decode_add(d, &d->seqs[0], (t * 37 + 5) % d->c.vocab);
        decode_forward(d);
    }
    for (int i = 1; i < k; i++)
        kv_fork(d->pool, &d->seqs[i], &d->seqs[0], PROMPT);
    for (int i = 0; i < k; i++)
        d->token[i] = i % d->c.vocab;
}

static inline void decode_stop(struct decode *d)
{
    kv_close(d->pool);
    arena_free(&d->arena);
}

/* A row a particle. */
static inline void decode_batch(struct decode *d)
{
    batch_reset(&d->batch);
    for (int i = 0; i < d->pop.k; i++)
        decode_add(d, &d->seqs[i], d->token[i]);
}

/* Weigh what was drawn; resample, and share pages, when the ESS asks for it. */
static inline void decode_weigh(struct decode *d)
{
    struct err err;
    struct population *p = &d->pop;
    for (int i = 0; i < p->k; i++) {
        const struct propose_out *o = &d->out[i];
        const double walk = 0.5 * (double)noise(9, (size_t)d->t * (size_t)p->k + (size_t)i);
        smc_extend(p, i, o->log_p0, o->log_q, p->lpsi[i] + walk);
        d->token[i] = o->token;
    }
    struct smc_weighing w = {
        .population = p, .by = SMC_BY_TWIST, .may_resample = true, .step = (uint32_t)d->t};
    decode_must(smc_weigh(&d->weigher, &(struct smc_weighing *){&w}, 1, &err), &err);
    if (w.stats.resampled) {
        kv_retable(d->pool, d->seqs, p->ancestor, p->k);
        for (int i = 0; i < p->k; i++) /* ancestors keep their slot */
            d->token[i] = d->token[p->ancestor[i]];
    }
    d->resampled += w.stats.resampled;
    d->t++;
}

static inline void decode_step(struct decode *d)
{
    decode_batch(d);
    decode_forward(d);
    decode_propose(d, NULL, d->out);
    decode_weigh(d);
}
