/* A row's numbers are its own: hidden states and draws of a population's decode step, each row
 * alone and in parts, are the bits of all rows together; with recordings and without.
 *
 *     test_alone [KIND [SHAPE [PARTICLES]]]      cpu tiny 40 */
#include "../check.h"

#include "decode.h"

enum { STEPS = 21 }; /* two pages behind the prompt's, the last with a few tokens */

/* The rows of one population's step, and what came of them together. */
struct whole {
    struct batch batch;
    struct propose_out *out; /* (k) */
    char *hidden;            /* act (k, dim) */
    void *copy;              /* dev act (k, dim) */
};

static size_t hidden_bytes(const struct decode *d)
{
    return (size_t)d->c.dim * act_size(d->b->act);
}

/* Forward and draws of the batch's rows, as these particles; their hidden states. */
static void compute(struct decode *d, const struct whole *w, const int *particle,
                    struct propose_out *out, char *hidden)
{
    struct err err;
    const int n = d->batch.n;
    void **to = calloc((size_t)n, sizeof *to);
    CHECK(to);
    for (int i = 0; i < n; i++)
        to[i] = w->copy;
    decode_forward(d);
    decode_must(model_copy_hidden(d->m, d->hidden, to, d->hidden, n, &err), &err);
    decode_propose(d, particle, out);
    backend_must(d->b->ops->download(d->b, hidden, w->copy, (size_t)n * hidden_bytes(d)), d->b);
    free(to);
}

/* The batch of n rows of the whole one. */
static void pick(struct decode *d, const struct batch *from, const int *row, int n)
{
    struct batch *b = &d->batch;
    batch_reset(b);
    for (int i = 0; i < n; i++) {
        const int r = row[i], start = b->page_start[i], at = from->page_start[r];
        const int pages = from->page_start[r + 1] - at;
        b->token[i] = from->token[r];
        b->pos[i] = from->pos[r];
        b->slot[i] = from->slot[r];
        b->seq[i] = b->out_row[i] = b->out_hidden[i] = i;
        memcpy(b->page + start, from->page + at, (size_t)pages * sizeof *b->page);
        b->page_start[i + 1] = start + pages;
    }
    b->n = b->n_seq = b->n_out = n;
}

static bool same_draw(const struct propose_out *a, const struct propose_out *b)
{
    return a->token == b->token && memcmp(&a->log_p0, &b->log_p0, sizeof a->log_p0) == 0 &&
           memcmp(&a->log_q, &b->log_q, sizeof a->log_q) == 0;
}

/* Parts of `size` rows, from the last row to the first; of many parts, some. */
static void check_parts(struct decode *d, const struct whole *w, int size)
{
    const int k = d->pop.k, parts = k / size, every = parts > 16 ? parts / 16 : 1;
    struct propose_out *out = calloc((size_t)size, sizeof *out);
    char *hidden = malloc((size_t)size * hidden_bytes(d));
    int *row = calloc((size_t)size, sizeof *row), wrong = 0;
    CHECK(out && hidden && row);
    for (int part = 0; part < parts; part += every) {
        for (int i = 0; i < size; i++)
            row[i] = k - 1 - (part * size + i);
        pick(d, &w->batch, row, size);
        compute(d, w, row, out, hidden);
        for (int i = 0; i < size; i++)
            wrong += !same_draw(&out[i], &w->out[row[i]]) ||
                     memcmp(hidden + (size_t)i * hidden_bytes(d),
                            w->hidden + (size_t)row[i] * hidden_bytes(d), hidden_bytes(d)) != 0;
    }
    if (wrong)
        fprintf(stderr, "%d rows in parts of %d are not those of %d, on %s, recordings %s\n", wrong,
                size, k, d->b->device, d->b->records ? "on" : "off");
    check_failures += wrong > 0;
    free(out), free(hidden), free(row);
}

/* The next step's batch and its results. The batch stays in w, the decoder gets another. */
static void whole_open(struct whole *w, struct decode *d)
{
    struct err err;
    const size_t k = (size_t)d->pop.k;
    w->out = calloc(k, sizeof *w->out);
    w->hidden = malloc(k * hidden_bytes(d));
    CHECK(w->out && w->hidden);
    backend_must(d->b->ops->alloc(d->b, &w->copy, k * hidden_bytes(d)), d->b);
    decode_batch(d);
    compute(d, w, NULL, w->out, w->hidden);
    struct batch empty;
    decode_must(batch_open(&empty, d->most, d->batch.max_pages, &err), &err);
    w->batch = d->batch;
    d->batch = empty;
}

static void whole_close(struct whole *w, struct decode *d)
{
    d->b->ops->release(d->b, w->copy);
    batch_close(&w->batch);
    free(w->out);
    free(w->hidden);
}

static void test_population(struct backend *b, const struct shape *shape, int particles)
{
    static const int sizes[] = {1, 2, 7, 33, 256, 1000};
    struct decode d;
    struct whole w;
    const bool records = b->records;
    decode_open(&d, b, shape, particles, STEPS + 1);
    decode_start(&d, d.most);
    for (int t = 0; t < STEPS; t++)
        decode_step(&d);
    EXPECT(d.resampled > 0);
    whole_open(&w, &d);
    for (int mode = 0; mode <= records; mode++) {
        b->records = mode;
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes && sizes[i] <= d.pop.k; i++)
            check_parts(&d, &w, sizes[i]);
    }
    b->records = records;
    EXPECT(!records || b->calls[OP_REPLAY] > 0);
    whole_close(&w, &d);
    decode_stop(&d);
    decode_close(&d);
}

int main(int argc, char **argv)
{
    const char *kind = argc > 1 ? argv[1] : "cpu";
    const struct shape *shape = shape_named(argc > 2 ? argv[2] : "tiny");
    const int particles = argc > 3 ? (int)strtol(argv[3], NULL, 10) : 40;
    static const char *const dtypes[] = {"bf16", "f32"};
    for (int i = 0; i < 2; i++) {
        struct backend *b;
        char why[256];
        if (backend_open(&b, &(struct backend_opts){.kind = kind, .dtype = dtypes[i], .threads = 2},
                         why, sizeof why)) {
            fprintf(stderr, "%s\n", why);
            return 1;
        }
        test_population(b, shape, particles);
        backend_close(b);
    }
    return test_failures();
}
