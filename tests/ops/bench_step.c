/* One decode step of SmolLM2-135M's shape on random weights, operation by operation.
 *
 *     bench_step [rows [context [dtype [threads]]]]
 *
 * Every row is a sequence of its own with `context` tokens, of which the first two pages are one
 * prompt that all share. Prints the fastest and the median of the steps in ms, and where the
 * median's time goes; propose and resample are not part of it. Then the same of a linear twist's
 * head: its application to rows, and a step of learning. */
#include <stdio.h>

#include "../../core/head.h"
#include "ops.h"

enum { LAYERS = 30, DIM = 576, FFN = 1536, HEADS = 9, KV_HEADS = 3, HEAD = 64, VOCAB = 49152 };
enum { QKV = (HEADS + 2 * KV_HEADS) * HEAD, SHARED = 2, STEPS = 15, LOGIT_ROWS = 64 };
enum { ENTRIES = 2048, DENSE_ROWS = 256 }; /* that a step of learning sees */

struct step {
    struct backend *b;
    int n, context;
    struct weight *table, *qkv_w[LAYERS], *o_w[LAYERS], *gu_w[LAYERS], *down_w[LAYERS], *head;
    struct kv_store *kv;
    float *x, *qkv, *gu, *logits, *norm;
    void *act;
    struct rope_args rope;
    struct attend_args attend;
    int32_t *ids;
};

static void check(int rc, const struct backend *b)
{
    if (rc == 0)
        return;
    fprintf(stderr, "%s\n", b->why);
    exit(1);
}

static void *dev(struct backend *b, const void *host, size_t bytes)
{
    void *p;
    check(b->ops->alloc(b, &p, bytes), b);
    if (host)
        check(b->ops->upload(b, p, host, bytes), b);
    return p;
}

/* Large enough for any weight; there as long as the process lives. */
static float *numbers(void)
{
    static float *data;
    const size_t n = (size_t)VOCAB * DIM;
    if (data)
        return data;
    data = malloc(n * sizeof *data);
    for (size_t i = 0; i < n; i++)
        data[i] = noise(1, i % 4099) * 0.05f;
    return data;
}

static struct weight *weight(struct backend *b, int out, int in, enum weight_use use)
{
    struct weight *w;
    struct weight_part part = {numbers(), TENSOR_F32, out};
    check(b->ops->weight_open(b, &w, &part, 1, in, use), b);
    return w;
}

static void open_weights(struct step *s)
{
    s->table = weight(s->b, VOCAB, DIM, WEIGHT_TABLE);
    s->head = weight(s->b, VOCAB, DIM, WEIGHT_LINEAR);
    for (int i = 0; i < LAYERS; i++) {
        s->qkv_w[i] = weight(s->b, QKV, DIM, WEIGHT_LINEAR);
        s->o_w[i] = weight(s->b, DIM, DIM, WEIGHT_LINEAR);
        s->gu_w[i] = weight(s->b, 2 * FFN, DIM, WEIGHT_LINEAR);
        s->down_w[i] = weight(s->b, DIM, FFN, WEIGHT_LINEAR);
    }
}

/* The pages of row i are the shared ones, then its own. */
static void open_rows(struct step *s)
{
    struct backend *b = s->b;
    const int n = s->n, per_row = (s->context + KV_PAGE - 1) / KV_PAGE, own = per_row - SHARED;
    const size_t ints = sizeof(int32_t) * (size_t)n;
    int32_t *pos = malloc(ints), *slot = malloc(ints), *seq = malloc(ints), *ids = malloc(ints);
    int32_t *start = malloc(ints + sizeof *start), *pages = malloc(ints * (size_t)per_row);
    float *cos_sin = malloc(sizeof *cos_sin * (size_t)s->context * HEAD);
    start[0] = 0;
    for (int i = 0; i < n; i++) {
        start[i + 1] = start[i] + per_row;
        for (int j = 0; j < per_row; j++)
            pages[start[i] + j] = j < SHARED ? j : SHARED + i * own + j - SHARED;
        seq[i] = i;
        ids[i] = i * 37 % VOCAB;
        pos[i] = s->context - 1;
        slot[i] = pages[start[i] + pos[i] / KV_PAGE] * KV_PAGE + pos[i] % KV_PAGE;
    }
    for (int i = 0; i < s->context * HEAD; i++)
        cos_sin[i] = noise(2, (size_t)i);
    check(b->ops->kv_open(b, &s->kv, LAYERS, SHARED + n * own, KV_HEADS, HEAD), b);
    s->x = dev(b, NULL, sizeof(float) * (size_t)n * DIM);
    s->qkv = dev(b, NULL, sizeof(float) * (size_t)n * QKV);
    s->gu = dev(b, NULL, sizeof(float) * (size_t)n * 2 * FFN);
    s->logits = dev(b, NULL, sizeof(float) * LOGIT_ROWS * VOCAB);
    s->norm = dev(b, NULL, sizeof(float) * DIM);
    s->act = dev(b, NULL, act_size(b->act) * (size_t)n * FFN);
    s->ids = dev(b, ids, ints);
    s->rope = (struct rope_args){s->qkv,
                                 dev(b, pos, ints),
                                 dev(b, slot, ints),
                                 dev(b, cos_sin, sizeof *cos_sin * (size_t)s->context * HEAD),
                                 HEADS,
                                 KV_HEADS,
                                 HEAD,
                                 HEAD};
    s->attend = (struct attend_args){.out = s->act,
                                     .qkv = s->qkv,
                                     .pos = s->rope.pos,
                                     .seq = dev(b, seq, ints),
                                     .page_start = dev(b, start, ints + 4),
                                     .pages = dev(b, pages, ints * (size_t)per_row),
                                     .heads = HEADS,
                                     .kv_heads = KV_HEADS,
                                     .head_dim = HEAD,
                                     .scale = 0.125f};
    free(pos), free(slot), free(seq), free(ids), free(start), free(pages), free(cos_sin);
}

static int run(void *arg)
{
    struct step *s = arg;
    struct backend *b = s->b;
    const struct backend_ops *op = b->ops;
    const int n = s->n;
    int rc = op->embed(b, s->x, s->table, s->ids, n);
    for (int i = 0; i < LAYERS; i++) {
        rc |= op->rmsnorm(b, s->act, s->x, s->norm, n, DIM, 1e-5f);
        rc |= op->linear(b, s->qkv, LINEAR_F32, s->act, s->qkv_w[i], n);
        rc |= op->rope_store(b, s->kv, i, &s->rope, n);
        rc |= op->attend(b, s->kv, i, &s->attend, n);
        rc |= op->linear(b, s->x, LINEAR_ADD, s->act, s->o_w[i], n);
        rc |= op->rmsnorm(b, s->act, s->x, s->norm, n, DIM, 1e-5f);
        rc |= op->linear(b, s->gu, LINEAR_F32, s->act, s->gu_w[i], n);
        rc |= op->swiglu(b, s->act, s->gu, n, FFN);
        rc |= op->linear(b, s->x, LINEAR_ADD, s->act, s->down_w[i], n);
    }
    rc |= op->rmsnorm(b, s->act, s->x, s->norm, n, DIM, 1e-5f);
    for (int i = 0; i < n; i += LOGIT_ROWS)
        rc |= op->linear(b, s->logits, LINEAR_F32,
                         (char *)s->act + (size_t)i * DIM * act_size(b->act), s->head,
                         n - i < LOGIT_ROWS ? n - i : LOGIT_ROWS);
    return rc;
}

static int by_total(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Do a job STEPS times, and once before to warm up; prints the total and each operation. */
static void measure(struct backend *b, int (*job)(void *), void *arg, const char *what)
{
    static double took[STEPS][1 + OP_COUNT]; /* total, then each operation */
    check(job(arg), b);
    for (int i = 0; i < STEPS; i++) {
        took[i][0] = 0;
        for (int j = 0; j < OP_COUNT; j++)
            took[i][1 + j] = -b->seconds[j];
        check(job(arg), b);
        for (int j = 0; j < OP_COUNT; j++) {
            took[i][1 + j] += b->seconds[j];
            took[i][0] += took[i][1 + j];
        }
    }
    qsort(took, STEPS, sizeof took[0], by_total);
    printf("%s: best %.1f, median %.1f ms:", what, took[0][0] * 1e3, took[STEPS / 2][0] * 1e3);
    for (int j = 0; j < OP_COUNT; j++)
        if (took[0][1 + j] > 0)
            printf(" %s %.2f", backend_op_names[j], took[STEPS / 2][1 + j] * 1e3);
    printf("; best:");
    for (int j = 0; j < OP_COUNT; j++)
        if (took[0][1 + j] > 0)
            printf(" %s %.2f", backend_op_names[j], took[0][1 + j] * 1e3);
    putchar('\n');
}

/* ---- a linear twist's head ---- */

struct learning {
    struct head *head;
    float *wide;  /* dev (DENSE_ROWS, VOCAB): log psi, or a dense gradient */
    float *g;     /* dev (ENTRIES) */
    int32_t *col; /* dev (ENTRIES) */
    int step;
};

static int apply_64(void *arg)
{
    struct learning *l = arg;
    return head_apply(l->head, l->wide, 64);
}

static int apply_256(void *arg)
{
    struct learning *l = arg;
    return head_apply(l->head, l->wide, 256);
}

static int learn_entries(void *arg)
{
    struct learning *l = arg;
    return head_backward(l->head, l->g, l->col, ENTRIES) || head_step(l->head, 1e-4f, ++l->step);
}

static int learn_dense(void *arg)
{
    struct learning *l = arg;
    return head_backward(l->head, l->wide, NULL, DENSE_ROWS) ||
           head_step(l->head, 1e-4f, ++l->step);
}

static void measure_head(struct backend *b)
{
    static float bias[VOCAB], g[ENTRIES];
    static int32_t col[ENTRIES];
    const struct twist t = {
        .spec = {.name = "bench", .dim = DIM, .vocab = VOCAB, .n_layers = 1},
        .w = {numbers()},
        .b = {bias},
    };
    struct learning l = {0};
    struct err err;
    if (head_open(&l.head, b, &t, ENTRIES, true, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        exit(1);
    }
    for (int i = 0; i < ENTRIES; i++) {
        g[i] = noise(3, (size_t)i);
        col[i] = (int32_t)((unsigned)i * 2654435761u % VOCAB);
    }
    l.wide = dev(b, NULL, sizeof(float) * DENSE_ROWS * VOCAB);
    l.g = dev(b, g, sizeof g);
    l.col = dev(b, col, sizeof col);
    measure(b, apply_64, &l, "head, 64 rows");
    measure(b, apply_256, &l, "head, 256 rows");
    measure(b, learn_entries, &l, "learning, 2048 entries");
    measure(b, learn_dense, &l, "learning, 256 dense rows");
    head_close(l.head);
}

/* An argument, or 0 where it is no number. */
static int number(const char *text)
{
    return (int)strtol(text, NULL, 10);
}

int main(int argc, char **argv)
{
    struct step s = {.n = argc > 1 ? number(argv[1]) : 256,
                     .context = argc > 2 ? number(argv[2]) : 100};
    struct backend_opts o = {"cpu", argc > 3 ? argv[3] : "auto", argc > 4 ? number(argv[4]) : 0};
    char why[256];
    if (s.n < 1 || s.context <= SHARED * KV_PAGE || backend_open(&s.b, &o, why, sizeof why))
        return 1;
    open_weights(&s);
    open_rows(&s);
    printf("%s; ", s.b->device);
    char what[64];
    snprintf(what, sizeof what, "%d rows, context %d", s.n, s.context);
    measure(s.b, run, &s, what);
    measure_head(s.b);
    return 0;
}
