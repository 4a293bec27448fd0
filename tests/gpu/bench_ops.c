/* Each operation of a backend, timed against its floor.
 *
 *     bench_ops KIND SHAPE BANDWIDTH RATE ROWS...
 *
 * Arguments are bench_decode's; an operation has the shapes of a step of so many rows of that
 * model, or of learning a linear twist on it. A line each: the median time of a call; the floor,
 * which is the larger of the bytes that it must at least move / BANDWIDTH (inputs once, outputs
 * once, pages that rows share once) and its multiplications and additions / RATE. Inputs are random
 * and rotate through more memory than caches hold. Where the device records, the calls of a
 * rotation are one recording, so that no launch is waited for. */
#include "../../core/err.h"
#include "../ops/ops.h"
#include "bench.h"

enum { CONTEXT = 96, SHARED = 2, PAGES = CONTEXT / KV_PAGE, SETS_MAX = 32, TRIALS = 5 };

struct bench {
    struct backend *b;
    const struct shape *s;
    double bandwidth, rate; /* bytes and operations a second; 0: unknown */
    int n;                  /* rows */
    size_t act;             /* bytes of an activation */
    char *pool;             /* dev (pool_bytes) random bf16, which are random floats as well */
    size_t pool_bytes;
    size_t stride; /* bytes of a set of inputs and outputs in the pool */
    int key;       /* of the next recording */
    /* what an operation works on beside the pool */
    struct weight *w[SETS_MAX];
    int n_w, out, in;
    struct kv_store *kv;
    int32_t *ids, *slot,
        *index;   /* dev (n) tokens; where the last token of each row goes; 0 … n-1 */
    int32_t *pos; /* dev (n) CONTEXT - 1 */
    int32_t *page_start, *pages; /* dev (n + 1), (n PAGES) */
    float *cos_sin;              /* dev (CONTEXT, head_dim) */
    struct prior *prior;
    struct propose_row *rows;            /* dev (n) */
    struct propose_draw *draws, *forced; /* dev (n) one a row */
    struct propose_out *proposed;        /* dev (n) */
};

/* What is timed. */
struct timed {
    const char *name;
    int (*run)(struct bench *, int set); /* one call */
    double bytes, flops;                 /* at least */
    double memory;                       /* bytes of the pool that a call works on */
    bool direct;                         /* cannot be recorded */
};

static void must(const struct bench *x, int rc)
{
    if (rc == 0)
        return;
    fprintf(stderr, "%s: %s\n", x->b->name, x->b->why);
    exit(1);
}

static void wait(struct bench *x)
{
    char first;
    must(x, x->b->ops->download(x->b, &first, x->pool, 1));
}

static void *dev(struct bench *x, const void *host, size_t bytes)
{
    void *p;
    must(x, x->b->ops->alloc(x->b, &p, bytes));
    must(x, x->b->ops->upload(x->b, p, host, bytes));
    wait(x); /* host may go */
    return p;
}

/* ---- timing ---- */

static void rotate(struct bench *x, const struct timed *t, int sets, int key)
{
    const int rc = key < 0 ? 0 : x->b->ops->record(x->b, key);
    if (rc == 1)
        return;
    must(x, rc);
    for (int i = 0; i < sets; i++)
        must(x, t->run(x, i));
    if (key >= 0)
        must(x, x->b->ops->record_end(x->b));
}

/* Seconds of a rotation, from so many that it takes a while. */
static double trial(struct bench *x, const struct timed *t, int sets, int key)
{
    for (int times = 1;; times *= 2) {
        const double start = seconds();
        for (int i = 0; i < times; i++)
            rotate(x, t, sets, key);
        wait(x);
        const double took = seconds() - start;
        if (took > 0.01)
            return took / times;
    }
}

static void report(const struct bench *x, const struct timed *t, double took)
{
    const double bytes = t->bytes / x->bandwidth, flops = t->flops / x->rate;
    const double least = bytes > flops ? bytes : flops;
    printf("%-16s %6d %10.2f %8.0f %8.2f ", t->name, x->n, 1e6 * took, 1e-9 * t->bytes / took,
           1e-12 * t->flops / took);
    if (isfinite(least))
        printf("%10.2f %7.1f %s\n", 1e6 * least, 100 * least / took,
               bytes > flops ? "bytes" : "flops");
    else
        printf("%10s %7s -\n", "-", "-");
    fflush(stdout);
}

enum { ALIGN = 256, SLACK = 8 * ALIGN }; /* of the parts of a set, and what that may cost */

static void measure(struct bench *x, const struct timed *t)
{
    double took[TRIALS];
    x->stride = ((size_t)t->memory + SLACK) / ALIGN * ALIGN;
    const size_t fit = x->pool_bytes / x->stride;
    const int sets = fit > SETS_MAX ? SETS_MAX : (int)fit;
    const int key = x->b->records && !t->direct ? x->key++ : -1;
    CHECK(sets > 0 && "pool_size knows every operation");
    rotate(x, t, sets, key); /* to warm up */
    for (int i = 0; i < TRIALS; i++)
        took[i] = trial(x, t, sets, key) / sets;
    report(x, t, median(took, TRIALS));
}

/* A part of a set that begins `offset` bytes behind its start, or a little later. */
static void *at(const struct bench *x, int set, size_t offset)
{
    return x->pool + (size_t)set * x->stride + (offset + ALIGN - 1) / ALIGN * ALIGN;
}

/* ---- the operations of a step ---- */

static int run_embed(struct bench *x, int set)
{
    return x->b->ops->embed(x->b, at(x, set, 0), x->w[0], x->ids, x->n);
}

static int run_rmsnorm(struct bench *x, int set)
{
    const size_t in = 4 * (size_t)x->n * (size_t)x->s->dim;
    return x->b->ops->rmsnorm(x->b, at(x, set, in), at(x, set, 0), (float *)x->pool, x->n,
                              x->s->dim, 1e-5f);
}

static int run_linear(struct bench *x, int set)
{
    const size_t in = x->act * (size_t)x->n * (size_t)x->in;
    return x->b->ops->linear(x->b, at(x, set, in), LINEAR_F32, at(x, set, 0), x->w[set % x->n_w],
                             x->n);
}

static int run_rope_store(struct bench *x, int set)
{
    const struct shape *s = x->s;
    const int hd = shape_head_dim(s);
    const struct rope_args a = {.qkv = at(x, set, 0),
                                .pos = x->pos,
                                .slot = x->slot,
                                .cos_sin = x->cos_sin,
                                .heads = s->heads,
                                .kv_heads = s->kv_heads,
                                .head_dim = hd,
                                .rope_dim = hd};
    return x->b->ops->rope_store(x->b, x->kv, 0, &a, x->n);
}

static int run_attend(struct bench *x, int set)
{
    const struct shape *s = x->s;
    const size_t qkv = 4 * (size_t)x->n * (size_t)shape_qkv(s);
    const struct attend_args a = {.out = at(x, set, qkv),
                                  .qkv = at(x, set, 0),
                                  .pos = x->pos,
                                  .seq = x->index,
                                  .page_start = x->page_start,
                                  .pages = x->pages,
                                  .heads = s->heads,
                                  .kv_heads = s->kv_heads,
                                  .head_dim = shape_head_dim(s),
                                  .scale = 0.125f};
    return x->b->ops->attend(x->b, x->kv, 0, &a, x->n);
}

static int run_swiglu(struct bench *x, int set)
{
    const size_t in = 8 * (size_t)x->n * (size_t)x->s->ffn;
    return x->b->ops->swiglu(x->b, at(x, set, in), at(x, set, 0), x->n, x->s->ffn);
}

static int run_copy_rows(struct bench *x, int set)
{
    const size_t row = x->act * (size_t)x->s->dim;
    return x->b->ops->copy_rows(x->b, at(x, set, (size_t)x->n * row), x->index, at(x, set, 0), NULL,
                                x->n, row);
}

/* Rows' own pages; each row's first one to its second. */
static int run_kv_copy(struct bench *x, int set)
{
    enum { MOST = 64 };
    int32_t from[MOST], to[MOST];
    const int n = x->n < MOST ? x->n : MOST;
    (void)set;
    for (int i = 0; i < n; i++) {
        from[i] = SHARED + i * (PAGES - SHARED);
        to[i] = from[i] + 1;
    }
    return x->b->ops->kv_copy(x->b, x->kv, from, to, n);
}

static struct propose_args propose_args(const struct bench *x, int set,
                                        const struct propose_draw *draws)
{
    return (struct propose_args){.logits = at(x, set, 0),
                                 .vocab = x->s->vocab,
                                 .priors = x->prior,
                                 .rows = x->rows,
                                 .draws = draws,
                                 .out = x->proposed,
                                 .n_draws = x->n};
}

static int run_propose(struct bench *x, int set)
{
    const struct propose_args a = propose_args(x, set, x->draws);
    return x->b->ops->propose(x->b, &a, x->n);
}

static int run_activate(struct bench *x, int set)
{
    const size_t in = 4 * (size_t)x->n * (size_t)x->s->dim;
    return x->b->ops->activate(x->b, at(x, set, in), ACTIVATE_RELU, at(x, set, 0), x->n, x->s->dim);
}

/* ---- learning: a linear head, (vocab, dim) ---- */

static size_t head_elements(const struct bench *x)
{
    return (size_t)x->s->vocab * (size_t)x->s->dim;
}

static int run_weight_update(struct bench *x, int set)
{
    return x->b->ops->weight_update(x->b, x->w[0], at(x, set, 0));
}

static int run_linear_grad(struct bench *x, int set)
{
    const size_t dw = 4 * head_elements(x), dy = 4 * (size_t)x->n * (size_t)x->s->vocab;
    const struct linear_grad_args a = {.dy = at(x, set, dw),
                                       .x = at(x, set, dw + dy),
                                       .dw = at(x, set, 0),
                                       .in = x->s->dim,
                                       .out = x->s->vocab};
    return x->b->ops->linear_grad(x->b, &a, x->n);
}

static int run_linear_grad_col(struct bench *x, int set)
{
    const size_t dw = 4 * head_elements(x), dy = 4 * (size_t)x->n;
    const struct linear_grad_args a = {.dy = at(x, set, dw),
                                       .col = x->ids,
                                       .x = at(x, set, dw + dy),
                                       .dw = at(x, set, 0),
                                       .in = x->s->dim,
                                       .out = x->s->vocab};
    return x->b->ops->linear_grad(x->b, &a, x->n);
}

static int run_relu_grad(struct bench *x, int set)
{
    const size_t elements = (size_t)x->n * (size_t)x->s->dim;
    return x->b->ops->relu_grad(x->b, at(x, set, 0), at(x, set, 0), at(x, set, 4 * elements), x->n,
                                x->s->dim);
}

static int run_propose_grad(struct bench *x, int set)
{
    const struct propose_args a = propose_args(x, set, x->forced);
    return x->b->ops->propose_grad(x->b, &a, (float *)x->pool,
                                   at(x, set, 4 * (size_t)x->n * (size_t)x->s->vocab), x->n);
}

/* b2 is 0, so that the random numbers in v's place, some of them negative, do not matter. */
static int run_adam(struct bench *x, int set)
{
    const size_t bytes = 4 * head_elements(x);
    const struct adam_args a = {.w = at(x, set, 0),
                                .m = at(x, set, bytes),
                                .v = at(x, set, 2 * bytes),
                                .g = at(x, set, 3 * bytes),
                                .rate = 1e-4f,
                                .b1 = 0.9f,
                                .eps = 1e-8f,
                                .step = 1};
    return x->b->ops->adam(x->b, &a, head_elements(x));
}

/* ---- what they work on ---- */

static size_t pool_size(const struct shape *s, int rows)
{
    const size_t head = (size_t)s->vocab * (size_t)s->dim, logits = (size_t)rows * (size_t)s->vocab;
    const size_t wide = (size_t)rows * (size_t)(3 * s->ffn + 3 * s->dim);
    return 16 * head + 8 * logits + 8 * wide + ((size_t)1 << 16);
}

static void open_pool(struct bench *x, int rows)
{
    enum { BLOCK = 4 << 20 };
    struct buf block = {0};
    x->pool_bytes = pool_size(x->s, rows);
    must(x, x->b->ops->alloc(x->b, (void **)&x->pool, x->pool_bytes));
    random_bf16(&block, BLOCK);
    for (size_t done = 0; done < x->pool_bytes; done += BLOCK) {
        const size_t left = x->pool_bytes - done;
        must(x, x->b->ops->upload(x->b, x->pool + done, block.data, left < BLOCK ? left : BLOCK));
        wait(x);
    }
    buf_free(&block);
}

/* Copies of a (out, in) matrix, more than caches hold but at most SETS_MAX. */
static void open_weights(struct bench *x, int out, int in, enum weight_use use)
{
    enum { ENOUGH = 256 << 20 };
    struct buf data = {0};
    const size_t bytes = 2 * (size_t)out * (size_t)in;
    const struct weight_part part = {NULL, TENSOR_BF16, out};
    random_bf16(&data, bytes);
    x->out = out;
    x->in = in;
    x->n_w = bytes >= ENOUGH || use == WEIGHT_TABLE ? 1 : (int)(ENOUGH / bytes) + 1;
    x->n_w = x->n_w > SETS_MAX ? SETS_MAX : x->n_w;
    for (int i = 0; i < x->n_w; i++) {
        struct weight_part p = part;
        p.data = data.data;
        must(x, x->b->ops->weight_open(x->b, &x->w[i], &p, 1, in, use));
    }
    wait(x);
    if (use == WEIGHT_LINEAR)
        buf_free(&data); /* that of a table stays, as long as the program */
}

static void close_weights(struct bench *x)
{
    for (int i = 0; i < x->n_w; i++)
        x->b->ops->weight_close(x->b, x->w[i]);
    x->n_w = 0;
}

/* Rows 0 … n-1: a sequence of CONTEXT tokens each, whose first SHARED pages are the same. */
static void open_rows(struct bench *x)
{
    const int n = x->n, own = PAGES - SHARED, hd = shape_head_dim(x->s);
    const size_t ints = sizeof(int32_t) * (size_t)n;
    int32_t *ids = malloc(ints), *slot = malloc(ints), *index = malloc(ints), *pos = malloc(ints);
    int32_t *start = malloc(ints + sizeof *start), *pages = malloc(ints * PAGES);
    float *cos_sin = malloc(sizeof *cos_sin * (size_t)(CONTEXT * hd));
    CHECK(ids && slot && index && pos && start && pages && cos_sin);
    start[0] = 0;
    for (int i = 0; i < n; i++) {
        ids[i] = (int32_t)((uint32_t)i * 2654435761u % (uint32_t)x->s->vocab);
        index[i] = i;
        pos[i] = CONTEXT - 1;
        start[i + 1] = start[i] + PAGES;
        for (int j = 0; j < PAGES; j++)
            pages[start[i] + j] = j < SHARED ? j : SHARED + i * own + j - SHARED;
        slot[i] = pages[start[i + 1] - 1] * KV_PAGE + KV_PAGE - 1;
    }
    for (int i = 0; i < CONTEXT * hd; i++)
        cos_sin[i] = noise(2, (size_t)i);
    x->ids = dev(x, ids, ints);
    x->slot = dev(x, slot, ints);
    x->index = dev(x, index, ints);
    x->pos = dev(x, pos, ints);
    x->page_start = dev(x, start, ints + sizeof *start);
    x->pages = dev(x, pages, ints * PAGES);
    x->cos_sin = dev(x, cos_sin, sizeof *cos_sin * (size_t)(CONTEXT * hd));
    free(ids), free(slot), free(index), free(pos), free(start), free(pages), free(cos_sin);
}

static void open_draws(struct bench *x)
{
    const size_t n = (size_t)x->n;
    const struct prior prior = {.temperature = 1, .top_p = 1};
    struct propose_row *rows = calloc(n, sizeof *rows);
    struct propose_draw *draws = calloc(n, sizeof *draws);
    CHECK(rows && draws);
    for (int i = 0; i < x->n; i++) {
        rows[i] = (struct propose_row){.twist = -1, .first_draw = i, .n_draws = 1};
        draws[i] = (struct propose_draw){.seed = 1, .particle = (uint32_t)i, .forced = -1};
    }
    x->prior = dev(x, &prior, sizeof prior);
    x->rows = dev(x, rows, n * sizeof *rows);
    x->draws = dev(x, draws, n * sizeof *draws);
    for (int i = 0; i < x->n; i++)
        draws[i].forced = i % x->s->vocab;
    x->forced = dev(x, draws, n * sizeof *draws);
    must(x, x->b->ops->alloc(x->b, (void **)&x->proposed, n * sizeof *x->proposed));
    free(rows), free(draws);
}

static void close_rows(struct bench *x)
{
    void *all[] = {x->ids,     x->slot,  x->index, x->pos,   x->page_start, x->pages,
                   x->cos_sin, x->prior, x->rows,  x->draws, x->forced,     x->proposed};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        x->b->ops->release(x->b, all[i]);
}

/* ---- all of them ---- */

static void bench_linear(struct bench *x, const char *name, int out, int in)
{
    const double n = x->n, act = (double)x->act;
    const double rows = n * in * act + n * out * 4;
    open_weights(x, out, in, WEIGHT_LINEAR);
    measure(x, &(struct timed){name, run_linear, (double)out * in * act + rows, 2.0 * n * in * out,
                               rows, false});
    close_weights(x);
}

static void bench_linears(struct bench *x)
{
    const struct shape *s = x->s;
    bench_linear(x, "linear_qkv", shape_qkv(s), s->dim);
    bench_linear(x, "linear_out", s->dim, s->dim);
    bench_linear(x, "linear_gate|up", 2 * s->ffn, s->dim);
    bench_linear(x, "linear_down", s->dim, s->ffn);
    bench_linear(x, "linear_head", s->vocab, s->dim);
}

static void bench_attention(struct bench *x)
{
    const struct shape *s = x->s;
    const double n = x->n, act = (double)x->act, q = n * s->dim;
    const double token = 2.0 * s->kv_heads * shape_head_dim(s) * act; /* of one layer */
    const double tokens = KV_PAGE * (SHARED + n * (PAGES - SHARED));
    const double qkv = 4 * n * shape_qkv(s);
    const double copied = x->n < 64 ? n : 64;
    must(x, x->b->ops->kv_open(x->b, &x->kv, 1, SHARED + x->n * (PAGES - SHARED), s->kv_heads,
                               shape_head_dim(s)));
    measure(x,
            &(struct timed){"rope_store", run_rope_store, qkv + 4 * q + n * token, 0, qkv, false});
    measure(x, &(struct timed){"attend", run_attend, 4 * q + tokens * token + q * act,
                               4.0 * q * CONTEXT, qkv + q * act, false});
    measure(x, &(struct timed){"kv_copy", run_kv_copy, 2 * copied * KV_PAGE * token, 0, 1, true});
    x->b->ops->kv_close(x->b, x->kv);
}

static void bench_rows(struct bench *x)
{
    const struct shape *s = x->s;
    const double n = x->n, dim = s->dim, act = (double)x->act, logits = 4 * n * s->vocab;
    const double norm = n * dim * (4 + act), gate = n * s->ffn * (8 + act);
    open_weights(x, s->vocab, s->dim, WEIGHT_TABLE);
    measure(x, &(struct timed){"embed", run_embed, n * dim * (2 + 4), 0, 4 * n * dim, false});
    close_weights(x);
    measure(x, &(struct timed){"rmsnorm", run_rmsnorm, norm, 0, norm, false});
    measure(x, &(struct timed){"swiglu", run_swiglu, gate, 0, gate, false});
    measure(x, &(struct timed){"copy_rows", run_copy_rows, 2 * n * dim * act, 0, 2 * n * dim * act,
                               false});
    measure(x, &(struct timed){"propose", run_propose, logits, 0, logits, false});
}

static void bench_learning(struct bench *x)
{
    const struct shape *s = x->s;
    const double n = x->n, dim = s->dim, head = (double)head_elements(x), act = (double)x->act;
    const double logits = 4 * n * s->vocab, norm = n * dim * (4 + act), in = n * dim * act;
    const double columns = n < s->vocab ? n : s->vocab; /* of dW that change */
    measure(x, &(struct timed){"activate", run_activate, norm, 0, norm, false});
    measure(x, &(struct timed){"relu_grad", run_relu_grad, norm + 4 * n * dim, 0, norm, false});
    measure(x, &(struct timed){"propose_grad", run_propose_grad, 2 * logits, 0, 2 * logits, false});
    measure(x, &(struct timed){"linear_grad", run_linear_grad, 8 * head + logits + in, 2 * n * head,
                               4 * head + logits + in, false});
    measure(x, &(struct timed){"linear_grad_col", run_linear_grad_col, 8 * columns * dim + in,
                               2 * n * dim, 4 * head + 4 * n + in, false});
    measure(x, &(struct timed){"adam", run_adam, 32 * head, 0, 16 * head, false});
    open_weights(x, s->vocab, s->dim, WEIGHT_LINEAR);
    measure(x, &(struct timed){"weight_update", run_weight_update, head * (4 + act), 0, 4 * head,
                               false});
    close_weights(x);
}

int main(int argc, char **argv)
{
    const struct bench_args a = bench_open(argc, argv);
    struct bench x = {
        .b = a.b,
        .s = a.shape,
        .bandwidth = a.bandwidth,
        .rate = a.rate,
        .act = act_size(a.b->act),
    };
    open_pool(&x, a.most);
    printf("%-16s %6s %10s %8s %8s %10s %7s %s\n", "operation", "rows", "us", "GB/s", "TFLOP/s",
           "floor us", "floor%", "bound");
    for (int i = 0; i < a.n_n; i++) {
        x.n = a.n[i];
        open_rows(&x);
        open_draws(&x);
        bench_rows(&x);
        bench_attention(&x);
        bench_linears(&x);
        bench_learning(&x);
        close_rows(&x);
    }
    x.b->ops->release(x.b, x.pool);
    backend_close(x.b);
    return 0;
}
