/* clotho bench: how fast this machine samples, for several population sizes, and what of a step is
 * SMC's own. Each run is a request to the engine as a client's would be: a prompt, K particles that
 * all draw the same number of tokens, a lexicon of frequent tokens as the potential with its factor
 * twist, so that every draw weighs all of the vocabulary and populations are resampled now and
 * then.
 *
 * A run with one token is the prefill and the first draw. What a run of T tokens takes beyond it is
 * T - 1 whole steps, and the counters of engine_stats tell where they went. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../core/kv.h"
#include "../proto/json_write.h"
#include "commands.h"

enum {
    MAX_DRAWN = 1 << 24, /* tokens of a run */
    LEXICON = 64,
    WARM_UP_TOKENS = 4,
    POLL_NS = 500 * 1000,
};

static const char *const text = /* repeated until the prompt is long enough */
    "The old lighthouse keeper climbed the stairs every evening, lit the lamp, and wrote down what "
    "he had seen: two fishing boats, a storm far out in the west, and once a whale. ";

/* ---- the tokens that live particles still have in common ---- */

/* Every drawn token is a node; a node is alive while a particle or a child holds it. */
struct family {
    int32_t *parent, *holders; /* of each node; parent -1: the prompt */
    int32_t *leaf;             /* (k) the last token of each particle, -1: none yet */
    int32_t *unused;           /* nodes */
    int k, n_unused, n_alive, most_alive;
};

static void *must_calloc(size_t n, size_t size)
{
    void *p = calloc(n, size);
    CHECK(p && "out of memory");
    return p;
}

static void family_open(struct family *f, int k, int tokens)
{
    int n = k * tokens;
    *f = (struct family){.k = k, .n_unused = n};
    f->parent = must_calloc((size_t)n, sizeof *f->parent);
    f->holders = must_calloc((size_t)n, sizeof *f->holders);
    f->unused = must_calloc((size_t)n, sizeof *f->unused);
    f->leaf = must_calloc((size_t)k, sizeof *f->leaf);
    for (int i = 0; i < n; i++)
        f->unused[i] = i;
    for (int i = 0; i < k; i++)
        f->leaf[i] = -1;
}

static void family_close(struct family *f)
{
    free(f->parent);
    free(f->holders);
    free(f->unused);
    free(f->leaf);
}

/* Every particle draws. Its hold on the last token becomes the new one's. */
static void family_draw(struct family *f)
{
    for (int i = 0; i < f->k; i++) {
        CHECK(f->n_unused > 0);
        int32_t node = f->unused[--f->n_unused];
        f->parent[node] = f->leaf[i];
        f->holders[node] = 1;
        f->leaf[i] = node;
    }
    f->n_alive += f->k;
    f->most_alive = f->n_alive > f->most_alive ? f->n_alive : f->most_alive;
}

static void family_drop(struct family *f, int32_t node)
{
    for (; node >= 0 && --f->holders[node] == 0; node = f->parent[node]) {
        f->unused[f->n_unused++] = node;
        f->n_alive--;
    }
}

/* Survivors keep their slot, so slots can be replaced one after the other. */
static void family_resample(struct family *f, const int32_t *ancestor)
{
    for (int i = 0; i < f->k; i++) {
        int32_t a = ancestor[i];
        if (a == i || f->leaf[a] < 0)
            continue;
        f->holders[f->leaf[a]]++;
        family_drop(f, f->leaf[i]);
        f->leaf[i] = f->leaf[a];
    }
}

/* ---- one run ---- */

struct outcome { /* written on the engine's thread; read when the job has ended */
    struct family family;
    struct err err;
    bool failed;
};

static int on_event(void *user, const struct event *e)
{
    struct outcome *o = user;
    if (e->type == EVENT_STEP) {
        family_draw(&o->family);
    } else if (e->type == EVENT_RESAMPLE) {
        family_resample(&o->family, e->resample.ancestors);
    } else if (e->type == EVENT_ERROR) {
        o->err = e->error;
        o->failed = true;
    }
    return 0;
}

static void on_closed(void *user)
{
    (void)user; /* engine_stats tells */
}

struct bench {
    struct engine *engine;
    const struct engine_info *info;
    struct tokens prompt;
    int32_t lexicon[LEXICON];
    float bias[LEXICON];
    int n_lexicon;
    uint64_t seed;   /* of the next run */
    int peak_before; /* KV pages that were ever used before this line: more is its own doing */
};

static struct job *new_job(struct bench *b, int k, int tokens)
{
    struct job *j = job_new();
    struct arena *a = &j->arena;
    j->kind = JOB_SAMPLE;
    snprintf(j->id, sizeof j->id, "bench-%llu", (unsigned long long)b->seed);
    j->seed = b->seed++;
    j->prompt = "";
    j->prompt_ids = (struct ids){b->prompt.ids, b->prompt.n};
    j->particles = k;
    j->ignore_eos = true;
    j->base_proposal = false;
    j->twist.type = TWIST_FACTOR;
    j->n_potentials = 1;
    j->potentials = ARENA_NEW(a, struct potential, 1);
    j->potentials[0].type = POTENTIAL_LEXICON;
    j->potentials[0].weight = 1;
    j->potentials[0].lexicon.id = b->lexicon;
    j->potentials[0].lexicon.bias = b->bias;
    j->potentials[0].lexicon.n = b->n_lexicon;
    j->n_segments = 1;
    j->segments = ARENA_NEW(a, struct segment, 1);
    j->segments[0].type = SEGMENT_SAMPLE;
    j->segments[0].max_tokens = tokens;
    return j;
}

static uint64_t ended(const struct engine_stats *s)
{
    return s->jobs_done + s->jobs_failed + s->jobs_cancelled;
}

/* What one run added to the counters, and the most it held. */
struct used {
    double forward, smc, op[OP_COUNT]; /* seconds */
    double rows, steps, resamples;
    int pages, distinct_tokens; /* at most, prompt included */
};

static struct used used_between(const struct engine_stats *a, const struct engine_stats *b)
{
    struct used u = {
        .forward = b->forward_seconds - a->forward_seconds,
        .smc = b->smc_seconds - a->smc_seconds,
        .rows = (double)(b->rows - a->rows),
        .steps = (double)(b->steps - a->steps),
        .resamples = (double)(b->resamples - a->resamples),
    };
    for (int i = 0; i < OP_COUNT; i++)
        u.op[i] = b->op_seconds[i] - a->op_seconds[i];
    return u;
}

static int run(struct bench *b, int k, int tokens, struct used *out, struct err *err)
{
    struct outcome o = {0};
    struct engine_stats before, now;
    struct job *job = new_job(b, k, tokens);
    uint64_t handle;
    int pages = 0;
    family_open(&o.family, k, tokens);
    engine_stats(b->engine, &before);
    int rc = engine_submit(b->engine, job, (struct sink){on_event, on_closed, &o}, &handle, err);
    if (rc != 0) {
        job_free(job);
        goto out;
    }
    do {
        nanosleep(&(struct timespec){.tv_nsec = POLL_NS}, NULL);
        engine_stats(b->engine, &now);
        pages = now.kv_pages_used > pages ? now.kv_pages_used : pages;
    } while (ended(&now) == ended(&before));
    if (o.failed) {
        *err = o.err;
        rc = -1;
        goto out;
    }
    *out = used_between(&before, &now);
    out->pages = now.kv_pages_peak > b->peak_before ? now.kv_pages_peak : pages;
    out->distinct_tokens = b->prompt.n + o.family.most_alive;
out:
    family_close(&o.family);
    return rc;
}

/* ---- the table ---- */

enum field {
    FORWARD_RATE,
    SMC_RATE,
    SMC_SHARE,
    PREFILL_RATE,
    LINEAR_MS,
    ATTEND_MS,
    PROPOSE_MS,
    RESAMPLE_MS,
    KV_MS,
    OTHER_MS,
    PAGES_USED,
    PAGES_DISTINCT,
    RESAMPLES,
    N_FIELDS
};

static const struct {
    const char *name, *title;
    int width, digits;
} fields[N_FIELDS] = {
    [FORWARD_RATE] = {"forward_rows_per_second", "rows/s forward", 15, 0},
    [SMC_RATE] = {"rows_per_second", "rows/s SMC", 11, 0},
    [SMC_SHARE] = {"smc_percent", "SMC %", 6, 1},
    [PREFILL_RATE] = {"prefill_tokens_per_second", "prefill tok/s", 14, 0},
    [LINEAR_MS] = {"linear_ms", "ms/step: linear", 16, 2},
    [ATTEND_MS] = {"attend_ms", "attend", 7, 2},
    [PROPOSE_MS] = {"propose_ms", "propose", 8, 2},
    [RESAMPLE_MS] = {"resample_ms", "resample", 9, 2},
    [KV_MS] = {"kv_ms", "kv", 6, 2},
    [OTHER_MS] = {"other_ms", "other", 6, 2},
    [PAGES_USED] = {"kv_pages_used", "KV pages: used", 15, 0},
    [PAGES_DISTINCT] = {"kv_pages_distinct", "distinct", 9, 0},
    [RESAMPLES] = {"resamples", "resampled", 10, 0},
};

/* first: a run of one token, all: one of many. */
static void measure(double v[N_FIELDS], const struct used *first, const struct used *all,
                    int n_prompt)
{
    double rows = all->rows - first->rows, steps = all->steps - first->steps;
    double forward = all->forward - first->forward, smc = all->smc - first->smc;
    double total = forward + smc, op[OP_COUNT], ms = 1e3 / steps;
    for (int i = 0; i < OP_COUNT; i++)
        op[i] = all->op[i] - first->op[i];
    v[FORWARD_RATE] = rows / forward;
    v[SMC_RATE] = rows / total;
    v[SMC_SHARE] = 100 * smc / total;
    v[PREFILL_RATE] = n_prompt / first->forward;
    v[LINEAR_MS] = op[OP_LINEAR] * ms;
    v[ATTEND_MS] = op[OP_ATTEND] * ms;
    v[PROPOSE_MS] = op[OP_PROPOSE] * ms;
    v[RESAMPLE_MS] = op[OP_RESAMPLE] * ms;
    v[KV_MS] = op[OP_KV_COPY] * ms;
    v[OTHER_MS] = (total - op[OP_LINEAR] - op[OP_ATTEND] - op[OP_PROPOSE] - op[OP_RESAMPLE] -
                   op[OP_KV_COPY]) *
                  ms;
    v[PAGES_USED] = all->pages;
    v[PAGES_DISTINCT] = kv_pages_for(all->distinct_tokens);
    v[RESAMPLES] = all->resamples;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The median of each field by itself, of n runs. */
static void median(double out[N_FIELDS], double (*v)[N_FIELDS], int n)
{
    double *column = must_calloc((size_t)n, sizeof *column);
    for (int f = 0; f < N_FIELDS; f++) {
        for (int i = 0; i < n; i++)
            column[i] = v[i][f];
        qsort(column, (size_t)n, sizeof *column, by_value);
        out[f] = (column[(n - 1) / 2] + column[n / 2]) / 2;
    }
    free(column);
}

static int bench_line(struct bench *b, const struct config *c, int k, double out[N_FIELDS],
                      struct err *err)
{
    double(*v)[N_FIELDS] = must_calloc((size_t)c->repeat, sizeof *v);
    struct engine_stats stats;
    struct used first, all;
    engine_stats(b->engine, &stats);
    b->peak_before = stats.kv_pages_peak;
    int rc = run(b, k, WARM_UP_TOKENS, &all, err);
    for (int i = 0; rc == 0 && i < c->repeat; i++) {
        rc = run(b, k, 1, &first, err) || run(b, k, c->tokens, &all, err) ? -1 : 0;
        if (rc == 0)
            measure(v[i], &first, &all, b->prompt.n);
    }
    if (rc == 0)
        median(out, v, c->repeat);
    free(v);
    return rc;
}

static void print_head(const struct bench *b, const struct config *c)
{
    const struct engine_info *i = b->info;
    printf("%s, %.1f M parameters, on %s\n", i->model, (double)i->config.parameters / 1e6,
           i->device);
    printf("prompt of %d tokens, %d drawn by each of K particles, medians of %d runs; target: a "
           "lexicon of %d tokens, with its twist\n\n   K",
           b->prompt.n, c->tokens, c->repeat, b->n_lexicon);
    for (int f = 0; f < N_FIELDS; f++)
        printf(" %*s", fields[f].width, fields[f].title);
    printf("\n");
}

static void print_line(int k, const double v[N_FIELDS])
{
    printf("%4d", k);
    for (int f = 0; f < N_FIELDS; f++)
        printf(" %*.*f", fields[f].width, fields[f].digits, v[f]);
    printf("\n");
    fflush(stdout);
}

/* An object a line: what was measured on, and then a line each. */
static void print_json_head(const struct bench *b, const struct config *c)
{
    struct buf out = {0};
    struct json j = {.out = &out};
    json_open(&j, NULL, '{');
    json_string_member(&j, "model", b->info->model);
    json_int_member(&j, "parameters", b->info->config.parameters);
    json_string_member(&j, "device", b->info->device);
    json_int_member(&j, "prompt_tokens", b->prompt.n);
    json_int_member(&j, "tokens", c->tokens);
    json_int_member(&j, "repeat", c->repeat);
    json_close(&j, '}');
    printf("%s\n", out.data);
    buf_free(&out);
}

static void print_json_line(int k, const double v[N_FIELDS])
{
    struct buf out = {0};
    struct json j = {.out = &out};
    json_open(&j, NULL, '{');
    json_int_member(&j, "particles", k);
    for (int f = 0; f < N_FIELDS; f++)
        json_real_member(&j, fields[f].name, v[f]);
    json_close(&j, '}');
    printf("%s\n", out.data);
    fflush(stdout);
    buf_free(&out);
}

/* ---- set-up ---- */

static int make_prompt(struct bench *b, int n, struct err *err)
{
    int flags = TOKENIZE_START;
    for (; b->prompt.n < n; flags = 0)
        if (tokenizer_encode(b->info->tokenizer, text, strlen(text), flags, &b->prompt, err) != 0)
            return -1;
    b->prompt.n = n;
    return 0;
}

/* The first merges of a BPE vocabulary, after its bytes, are the most frequent tokens. */
static void make_lexicon(struct bench *b)
{
    int vocab = b->info->config.vocab, first = vocab / 2 < 260 ? vocab / 2 : 260;
    b->n_lexicon = vocab / 4 < LEXICON ? vocab / 4 : LEXICON;
    for (int i = 0; i < b->n_lexicon; i++) {
        b->lexicon[i] = first + i;
        b->bias[i] = i % 2 ? 2 : -2;
    }
}

static int bench(struct bench *b, const struct config *c, const int *counts, int n, struct err *err)
{
    if (engine_wait_ready(b->engine, err) != 0)
        return -1;
    b->info = engine_info(b->engine);
    if (make_prompt(b, c->prompt_tokens, err) != 0)
        return -1;
    make_lexicon(b);
    (c->json ? print_json_head : print_head)(b, c);
    for (int i = 0; i < n; i++) {
        double v[N_FIELDS];
        if (bench_line(b, c, counts[i], v, err) != 0)
            return -1;
        (c->json ? print_json_line : print_line)(counts[i], v);
    }
    return 0;
}

static int bench_config(const struct config *c, struct err *err)
{
    struct bench b = {.seed = 1};
    int counts[MAX_POPULATIONS], n = command_populations(c, counts, err);
    if (n < 0)
        return -1;
    if (c->tokens < 2 || c->tokens > c->max_tokens)
        return err_field(err, "tokens", "%d is not in 2..%d", c->tokens, c->max_tokens);
    for (int i = 0; i < n; i++)
        if (counts[i] > c->max_particles || counts[i] > MAX_DRAWN / c->tokens)
            return err_field(err, "particles", "%d is more than fits", counts[i]);
    struct engine_opts opts = command_engine_opts(c);
    opts.max_queue = 1; /* one run at a time */
    if (command_open_twists(c, false, err) || engine_open(&b.engine, &opts, err) != 0)
        return -1;
    int rc = bench(&b, c, counts, n, err);
    engine_close(b.engine);
    free(b.prompt.ids);
    return rc;
}

int command_bench(int argc, char **argv)
{
    struct config c;
    struct err err;
    int status = command_config(&c, CONFIG_BENCH, argc, argv);
    if (status < 0) {
        status = bench_config(&c, &err) == 0 ? 0 : 1;
        if (status != 0)
            fprintf(stderr, "clotho: %s\n", err.msg);
    }
    config_free(&c);
    return status;
}
