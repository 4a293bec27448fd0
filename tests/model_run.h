/* A model with its KV pool and a batch, driven by hand: what tests need to ask for
 * log-probabilities. Failures abort with file and line: there is nothing to go on with. */
#pragma once
#include <stdio.h>
#include <stdlib.h>

#include "../core/kv.h"
#include "../core/model.h"
#include "test_backend.h"

struct run {
    const struct gguf *g;
    struct backend *b;
    struct model_config c;
    struct model *m;
    struct kv_pool *pool;
    struct kv_account account;
    struct batch batch;
    struct prior *priors; /* dev: RUN_PLAIN, RUN_GREEDY */
    int max_rows;
};

enum { RUN_PLAIN, RUN_GREEDY, RUN_PRIORS };

static inline void run_must(int rc, const struct err *err)
{
    if (rc != 0)
        fprintf(stderr, "%s\n", err->msg);
    CHECK(rc == 0);
}

static inline void run_open_backend(struct run *r, const char *dtype)
{
    struct err err;
    struct backend_opts backend = {.kind = test_backend(), .dtype = dtype, .threads = 1};
    *r = (struct run){0};
    if (backend_open(&r->b, &backend, err.msg, sizeof err.msg) != 0)
        run_must(-1, &err);
}

/* On a backend that is open. */
static inline void run_open_model(struct run *r, const struct gguf *g, int max_rows, int max_hidden,
                                  int n_pages)
{
    struct err err;
    r->g = g;
    r->max_rows = max_rows;
    r->account = (struct kv_account){0, n_pages};
    run_must(model_config_read(&r->c, g, "test.gguf", &err), &err);
    int context = r->c.context < 8192 ? r->c.context : 8192;
    struct model_opts opts = {max_rows, max_hidden, n_pages, context, false};
    run_must(model_open(&r->m, r->b, g, &r->c, &opts, &err), &err);
    run_must(kv_open(&r->pool, n_pages, &err), &err);
    run_must(batch_open(&r->batch, max_rows, n_pages, &err), &err);
    struct prior priors[RUN_PRIORS] = {
        [RUN_PLAIN] = {.temperature = 1, .top_p = 1},
        [RUN_GREEDY] = {.temperature = 1, .top_p = 1, .top_k = 1},
    };
    CHECK(r->b->ops->alloc(r->b, (void **)&r->priors, sizeof priors) == 0);
    CHECK(r->b->ops->upload(r->b, r->priors, priors, sizeof priors) == 0);
    CHECK(r->b->ops->download(r->b, priors, r->priors, sizeof priors) == 0);
}

static inline void run_open(struct run *r, const struct gguf *g, const char *dtype, int max_rows,
                            int max_hidden, int n_pages)
{
    run_open_backend(r, dtype);
    run_open_model(r, g, max_rows, max_hidden, n_pages);
}

static inline void run_close(struct run *r)
{
    r->b->ops->release(r->b, r->priors);
    batch_close(&r->batch);
    kv_close(r->pool);
    model_close(r->m);
    backend_close(r->b);
}

/* r stays where it is: the sequence points to its account. */
static inline struct kv_seq run_seq(struct run *r)
{
    int cap = kv_pages_for(r->c.context < 8192 ? r->c.context : 8192);
    int32_t *page = calloc((size_t)cap, sizeof *page);
    struct kv_seq s = {.account = &r->account, .page = page, .cap = cap};
    CHECK(s.page);
    return s;
}

static inline void run_drop(struct run *r, struct kv_seq *s)
{
    kv_truncate(r->pool, s, 0);
    free(s->page);
}

/* Put n tokens of a sequence into the batch; the last `wanted` ones' hidden states go to the kept
 * rows `hidden`, hidden + 1, … */
static inline void run_add(struct run *r, struct kv_seq *s, const int32_t *tokens, int n,
                           int wanted, int hidden)
{
    struct batch *b = &r->batch;
    int32_t from, to;
    CHECK(n <= r->max_rows - b->n && wanted <= n);
    int first = s->n_tokens;
    CHECK(kv_append(r->pool, s, n, b->slot + b->n, &from, &to) == 0);
    if (from >= 0) {
        b->cow_from[b->n_cow] = from;
        b->cow_to[b->n_cow++] = to;
    }
    for (int i = 0; i < n; i++, b->n++) {
        b->token[b->n] = tokens[i];
        b->pos[b->n] = first + i;
        b->seq[b->n] = b->n_seq;
        if (i < n - wanted)
            continue;
        b->out_row[b->n_out] = b->n;
        b->out_hidden[b->n_out++] = r->max_rows + hidden++;
    }
    int at = b->page_start[b->n_seq];
    CHECK(at + s->n_pages <= b->max_pages);
    memcpy(b->page + at, s->page, (size_t)s->n_pages * sizeof *s->page);
    b->page_start[++b->n_seq] = at + s->n_pages;
}

static inline void run_forward(struct run *r)
{
    struct err err;
    run_must(model_forward(r->m, &r->batch, &err), &err);
    batch_reset(&r->batch);
}

/* n kept rows of the hidden store from `hidden` on, each with `draws` draws under one prior; ids
 * (n, draws) are the forced tokens, NULL: drawn. out (n, draws). */
static inline void run_propose(struct run *r, int prior, int hidden, int n, int draws,
                               const int32_t *ids, struct propose_out *out)
{
    struct err err;
    int32_t *index = calloc((size_t)n, sizeof *index);
    struct propose_row *rows = calloc((size_t)n, sizeof *rows);
    struct propose_draw *asked = calloc((size_t)(n * draws), sizeof *asked);
    struct model_twist *twist = calloc((size_t)n, sizeof *twist); /* none */
    CHECK(index && rows && asked && twist);
    for (int i = 0; i < n; i++) {
        index[i] = r->max_rows + hidden + i;
        rows[i] = (struct propose_row){.prior = prior, .first_draw = i * draws, .n_draws = draws};
    }
    for (int i = 0; i < n * draws; i++)
        asked[i] = (struct propose_draw){
            .seed = 1, .particle = (uint32_t)(i % draws), .forced = ids ? ids[i] : -1};
    struct model_ask ask = {.hidden = index,
                            .rows = rows,
                            .twist = twist,
                            .n_rows = n,
                            .draws = asked,
                            .n_draws = n * draws,
                            .priors = r->priors};
    run_must(model_propose(r->m, &ask, out, &err), &err);
    free(index);
    free(rows);
    free(asked);
    free(twist);
}
