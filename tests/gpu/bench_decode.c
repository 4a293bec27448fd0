/* Decode steps of a population on a model with random weights: forward, draws, weights, resampling,
 * pages.
 *
 *     bench_decode KIND SHAPE BANDWIDTH RATE PARTICLES...
 *
 * KIND: cpu, cuda or cuda-fast. SHAPE: tiny, 135m, 1b, 8b. BANDWIDTH (GB/s) and RATE (TFLOP/s) are
 * what was measured of the device, 0: unknown. For each number of particles (those that fit) a
 * line: the median step of the second half of 64 tokens behind a shared prompt of 32; the floor,
 * which is the larger of (bytes of the weights + of the distinct keys and values) / BANDWIDTH and
 * 2 · parameters · particles / RATE; SMC's share, which is what a step takes beyond the same
 * forward pass with its logits. */
#include "bench.h"
#include "decode.h"

enum { LENGTH = 64 };

/* The forward pass alone, up to the logits: the model's own head is out of reach, so it is a second
 * one. */
struct plain {
    struct weight *head;
    float *logits; /* dev (chunk, vocab) */
    void *hidden;  /* dev act (most, dim) */
};

static void plain_open(struct plain *p, const struct decode *d)
{
    struct backend *b = d->b;
    const struct gguf_tensor *t = gguf_tensor(d->g, "token_embd.weight");
    const struct weight_part part = {t->data, (enum tensor_type)t->type, d->c.vocab};
    const size_t chunk = (size_t)model_chunk_rows(d->m), dim = (size_t)d->c.dim;
    backend_must(b->ops->weight_open(b, &p->head, &part, 1, d->c.dim, WEIGHT_LINEAR), b);
    backend_must(b->ops->alloc(b, (void **)&p->logits, 4 * chunk * (size_t)d->c.vocab), b);
    backend_must(b->ops->alloc(b, &p->hidden, (size_t)d->most * dim * act_size(b->act)), b);
}

static void plain_close(struct plain *p, const struct decode *d)
{
    d->b->ops->weight_close(d->b, p->head);
    d->b->ops->release(d->b, p->logits);
    d->b->ops->release(d->b, p->hidden);
}

/* The batch once more: its keys and values are written again, to the same numbers. */
static double plain_step(const struct plain *p, struct decode *d)
{
    struct backend *b = d->b;
    const int chunk = model_chunk_rows(d->m), n = d->batch.n;
    const size_t row = (size_t)d->c.dim * act_size(b->act);
    const double start = seconds();
    float first;
    d->batch.n_cow = 0; /* done */
    decode_forward(d);
    for (int i = 0; i < n; i += chunk)
        backend_must(b->ops->linear(b, p->logits, LINEAR_F32, (char *)p->hidden + (size_t)i * row,
                                    p->head, n - i < chunk ? n - i : chunk),
                     b);
    backend_must(b->ops->download(b, &first, p->logits, sizeof first), b);
    return seconds() - start;
}

/* Tokens in the cache, each page's counted once. */
static double distinct_tokens(const struct decode *d)
{
    char *seen = calloc(1, (size_t)kv_pages_total(d->pool));
    int n = 0;
    CHECK(seen);
    for (int i = 0; i < d->pop.k; i++) {
        const struct kv_seq *s = &d->seqs[i];
        for (int j = 0; j < s->n_pages; j++) {
            const int left = s->n_tokens - j * KV_PAGE;
            if (!seen[s->page[j]])
                n += left < KV_PAGE ? left : KV_PAGE;
            seen[s->page[j]] = 1;
        }
    }
    free(seen);
    return n;
}

struct floors {
    double bytes, flops; /* seconds that a step takes at least for each */
};

static struct floors floor_of(const struct decode *d, const struct bench_args *a)
{
    const struct shape *s = d->shape;
    const double act = (double)act_size(d->b->act), parameters = shape_parameters(s);
    const double token = 2.0 * s->layers * s->kv_heads * shape_head_dim(s) * act;
    return (struct floors){(parameters * act + distinct_tokens(d) * token) / a->bandwidth,
                           2 * parameters * d->pop.k / a->rate};
}

static void report(const struct decode *d, double step, double plain, const struct floors *f)
{
    const double least = f->bytes > f->flops ? f->bytes : f->flops;
    const double beyond = step > plain ? step - plain : 0;
    printf("%-6s %9d %9.3f %10.0f ", d->shape->name, d->pop.k, 1e3 * step, d->pop.k / step);
    if (isfinite(least))
        printf("%9.3f %7.1f %-5s ", 1e3 * least, 100 * least / step,
               f->bytes > f->flops ? "bytes" : "flops");
    else
        printf("%9s %7s %-5s ", "-", "-", "-");
    printf("%6.1f %9d\n", 100 * beyond / step, d->resampled);
    fflush(stdout);
}

static void bench(struct decode *d, const struct plain *p, const struct bench_args *a, int k)
{
    enum { FROM = LENGTH / 2 };
    double step[LENGTH], plain[LENGTH];
    struct floors f = {0, 0};
    decode_start(d, k);
    for (int t = 0; t < LENGTH; t++) {
        double start = seconds();
        decode_batch(d);
        decode_forward(d);
        decode_propose(d, NULL, d->out);
        step[t] = seconds() - start;
        plain[t] = plain_step(p, d);
        if (t == (FROM + LENGTH) / 2)
            f = floor_of(d, a);
        start = seconds();
        decode_weigh(d);
        step[t] += seconds() - start;
    }
    report(d, median(step + FROM, LENGTH - FROM), median(plain + FROM, LENGTH - FROM), &f);
    decode_stop(d);
}

int main(int argc, char **argv)
{
    const struct bench_args a = bench_open(argc, argv);
    struct decode d;
    struct plain p;
    decode_open(&d, a.b, a.shape, a.most, LENGTH);
    plain_open(&p, &d);
    fprintf(stderr, "%d rows of logits at a time\n", model_chunk_rows(d.m));
    printf("%-6s %9s %9s %10s %9s %7s %-5s %6s %9s\n", "shape", "particles", "ms/step", "tokens/s",
           "floor ms", "floor%", "bound", "SMC%", "resampled");
    for (int i = 0; i < a.n_n; i++)
        if (a.n[i] <= d.most)
            bench(&d, &p, &a, a.n[i]);
        else
            fprintf(stderr, "%d particles do not fit\n", a.n[i]);
    plain_close(&p, &d);
    decode_close(&d);
    backend_close(a.b);
    return 0;
}
