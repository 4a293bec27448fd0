/* A twist's head against a double-precision one on the host: outputs, gradients against finite
 * differences, steps of Adam, and that what was learned is what is downloaded. The backend's table
 * is replaced by one with spies in it. */
#include "../../core/head.h"

#include <stdlib.h>

#include "../check.h"
#include "../ops/ops.h"
#include "../test_backend.h"

enum { DIM = 9, HIDDEN = 21, VOCAB = 35, ROWS = 18, MAX_TOKENS = 5 };

/* ---- the backend, watched ---- */

static struct {
    const struct backend_ops *real;
    struct backend_ops ops;
    size_t allocated;                               /* bytes */
    struct linear_grad_args grad[TWIST_LAYERS_MAX]; /* calls, the last layer's first */
    int n_grad;
    int calls_left; /* until a call fails; < 0: none does */
} spy;

static bool fails(struct backend *b)
{
    if (spy.calls_left < 0 || spy.calls_left-- > 0)
        return false;
    spy.calls_left = 0;
    snprintf(b->why, sizeof b->why, "no more");
    return true;
}

static int spy_alloc(struct backend *b, void **out, size_t bytes)
{
    spy.allocated += bytes;
    return fails(b) ? -1 : spy.real->alloc(b, out, bytes);
}

static int spy_upload(struct backend *b, void *dev, const void *host, size_t bytes)
{
    return fails(b) ? -1 : spy.real->upload(b, dev, host, bytes);
}

static int spy_download(struct backend *b, void *host, const void *dev, size_t bytes)
{
    return fails(b) ? -1 : spy.real->download(b, host, dev, bytes);
}

static int spy_weight_open(struct backend *b, struct weight **out, const struct weight_part *parts,
                           int n_parts, int in, enum weight_use use)
{
    return fails(b) ? -1 : spy.real->weight_open(b, out, parts, n_parts, in, use);
}

static int spy_linear_grad(struct backend *b, const struct linear_grad_args *a, int n)
{
    spy.grad[spy.n_grad++ % TWIST_LAYERS_MAX] = *a;
    return spy.real->linear_grad(b, a, n);
}

static struct backend *open_backend(const char *dtype, int threads)
{
    struct backend *b;
    char why[256];
    const struct backend_opts opts = {.kind = test_backend(), .dtype = dtype, .threads = threads};
    if (backend_open(&b, &opts, why, sizeof why)) {
        fprintf(stderr, "%s\n", why);
        exit(1);
    }
    spy.calls_left = -1;
    spy.real = b->ops;
    spy.ops = *b->ops;
    spy.ops.alloc = spy_alloc;
    spy.ops.upload = spy_upload;
    spy.ops.download = spy_download;
    spy.ops.weight_open = spy_weight_open;
    spy.ops.linear_grad = spy_linear_grad;
    b->ops = &spy.ops;
    return b;
}

/* ---- twists and their inputs ---- */

static const float calibration[MAX_TOKENS] = {0.5f, 1, -2, 3, 0};

static struct twist_spec spec_of(int n_layers, bool conditional, bool log_sigmoid)
{
    return (struct twist_spec){
        .name = "t",
        .dim = DIM,
        .vocab = VOCAB,
        .n_layers = n_layers,
        .hidden = HIDDEN,
        .conditional = conditional,
        .log_sigmoid = log_sigmoid,
        .max_tokens = MAX_TOKENS,
        .calibration = calibration,
    };
}

/* Random numbers; the caller's, by drop_twist. */
static struct twist make_twist(const struct twist_spec *s)
{
    struct twist t = {.spec = *s};
    for (int i = 0; i < s->n_layers; i++) {
        const int in = twist_in(s, i), out = twist_out(s, i);
        t.w[i] = malloc(sizeof(float) * (size_t)(in * out));
        t.b[i] = malloc(sizeof(float) * (size_t)out);
        for (int j = 0; j < in * out; j++)
            t.w[i][j] = noise(10 + (uint32_t)i, (size_t)j) * 0.5f;
        for (int j = 0; j < out; j++)
            t.b[i][j] = noise(30 + (uint32_t)i, (size_t)j);
    }
    return t;
}

static void drop_twist(struct twist *t)
{
    for (int i = 0; i < t->spec.n_layers; i++) {
        free(t->w[i]);
        free(t->b[i]);
    }
}

static float input_at(int row, int k)
{
    return noise(50, (size_t)(row * 1000 + k)) * 2;
}

/* Put these rows into the head. */
static void set_input(struct backend *b, struct head *h, const int *rows, int n)
{
    const int in = twist_in(head_spec(h), 0);
    float *x = malloc(sizeof *x * (size_t)(n * in));
    for (int i = 0; i < n; i++)
        for (int k = 0; k < in; k++)
            x[i * in + k] = input_at(rows[i], k);
    void *act = act_from_float(b->act, x, (size_t)(n * in));
    EXPECT_INT(b->ops->upload(b, head_input(h), act, act_size(b->act) * (size_t)(n * in)), 0);
    free(act);
    free(x);
}

static struct head *open_head(struct backend *b, const struct twist *t, bool learning)
{
    struct head *h = NULL;
    struct err err;
    if (head_open(&h, b, t, ROWS, learning, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        exit(1);
    }
    return h;
}

/* log ψ (n, vocab) of these rows; out is the caller's array. */
static void apply(struct backend *b, struct head *h, const int *rows, int n, float *out)
{
    struct buffers mem = {.b = b};
    const size_t bytes = sizeof *out * (size_t)(n * VOCAB);
    float *dev = dev_new(&mem, NULL, bytes);
    set_input(b, h, rows, n);
    EXPECT_INT(head_apply(h, dev, n), 0);
    EXPECT_INT(b->ops->download(b, out, dev, bytes), 0);
    dev_free_all(&mem);
}

static const int *all_rows(void)
{
    static int rows[ROWS];
    for (int i = 0; i < ROWS; i++)
        rows[i] = i;
    return rows;
}

/* ---- the same on the host, in double ---- */

/* The numbers of a head as one array: weights and biases, layer by layer. */
struct model {
    struct twist_spec spec;
    double *value;
    int n;
};

static struct model model_of(const struct twist *t)
{
    struct model m = {.spec = t->spec};
    m.value = malloc(sizeof *m.value * 100000);
    for (int i = 0; i < t->spec.n_layers; i++) {
        const int in = twist_in(&t->spec, i), out = twist_out(&t->spec, i);
        for (int j = 0; j < in * out; j++)
            m.value[m.n++] = (double)t->w[i][j];
        for (int j = 0; j < out; j++)
            m.value[m.n++] = (double)t->b[i][j];
    }
    return m;
}

/* The output before any log sigmoid; y (vocab). */
static void model_apply(const struct model *m, int row, double *y)
{
    double x[2 * DIM + HIDDEN];
    const double *w = m->value;
    for (int k = 0; k < twist_in(&m->spec, 0); k++)
        x[k] = (double)input_at(row, k);
    for (int i = 0; i < m->spec.n_layers; i++) {
        const int in = twist_in(&m->spec, i), out = twist_out(&m->spec, i);
        const double *bias = w + in * out;
        for (int j = 0; j < out; j++) {
            y[j] = bias[j];
            for (int k = 0; k < in; k++)
                y[j] += w[j * in + k] * x[k];
        }
        for (int j = 0; j < out && i + 1 < m->spec.n_layers; j++)
            x[j] = fmax(0, y[j]);
        w = bias + out;
    }
}

/* What multiplies output v of a row; every column, or one. */
static double coefficient(bool is_sparse, int row, int v)
{
    if (is_sparse && v != row * 7 % VOCAB % 5) /* columns come more than once */
        return 0;
    return (double)noise(60, (size_t)(row * VOCAB + v));
}

/* Σ g x, of which the gradient is wanted. */
static double model_sum(const struct model *m, bool is_sparse)
{
    double y[VOCAB + HIDDEN], sum = 0;
    for (int i = 0; i < ROWS; i++) {
        model_apply(m, i, y);
        for (int v = 0; v < VOCAB; v++)
            sum += coefficient(is_sparse, i, v) * y[v];
    }
    return sum;
}

/* By central differences: exact for what is linear in one number, as this is between two kinks. */
static double model_slope(struct model *m, int at, bool is_sparse)
{
    const double step = 1e-6, value = m->value[at];
    m->value[at] = value + step;
    double up = model_sum(m, is_sparse);
    m->value[at] = value - step;
    double down = model_sum(m, is_sparse);
    m->value[at] = value;
    return (up - down) / (2 * step);
}

/* ---- tests ---- */

static void backward(struct backend *b, struct head *h, bool is_sparse)
{
    float g[ROWS * VOCAB];
    int32_t col[ROWS];
    struct buffers mem = {.b = b};
    for (int i = 0; i < ROWS; i++) {
        col[i] = i * 7 % VOCAB % 5;
        for (int v = 0; v < VOCAB && !is_sparse; v++)
            g[i * VOCAB + v] = (float)coefficient(false, i, v);
        if (is_sparse)
            g[i] = (float)coefficient(true, i, col[i]);
    }
    set_input(b, h, all_rows(), ROWS);
    spy.n_grad = 0;
    EXPECT_INT(
        head_backward(h, dev_new(&mem, g, sizeof *g * (size_t)(is_sparse ? ROWS : ROWS * VOCAB)),
                      is_sparse ? dev_new(&mem, col, sizeof col) : NULL, ROWS),
        0);
    dev_free_all(&mem);
}

/* The gradients lie where head_backward told linear_grad to put them. Float sums of up to ROWS
 * products behind sums of up to HIDDEN, all of order 1. */
static void test_gradient(int n_layers, bool conditional, bool is_sparse)
{
    struct backend *b = open_backend("f32", 2);
    const struct twist_spec spec = spec_of(n_layers, conditional, false);
    struct twist t = make_twist(&spec);
    struct head *h = open_head(b, &t, true);
    struct model m = model_of(&t);
    int at = 0;
    backward(b, h, is_sparse);
    EXPECT_INT(spy.n_grad, n_layers);
    for (int i = 0; i < n_layers; i++) {
        const struct linear_grad_args *a = &spy.grad[n_layers - 1 - i];
        const int n_w = a->in * a->out;
        float *got = malloc(sizeof *got * (size_t)(n_w + a->out));
        EXPECT_INT(b->ops->download(b, got, a->dw, sizeof *got * (size_t)n_w), 0);
        EXPECT_INT(b->ops->download(b, got + n_w, a->db, sizeof *got * (size_t)a->out), 0);
        for (int j = 0; j < n_w + a->out; j++, at++)
            EXPECT_NEAR((double)got[j], model_slope(&m, at, is_sparse), 2e-5);
        free(got);
    }
    EXPECT_INT(at, m.n);
    free(m.value);
    head_close(h);
    drop_twist(&t);
    backend_close(b);
}

/* Outputs, and the same bits for rows alone and in another order. */
static void test_apply(int n_layers, bool conditional, bool log_sigmoid, const char *dtype)
{
    struct backend *b = open_backend(dtype, 2);
    const struct twist_spec spec = spec_of(n_layers, conditional, log_sigmoid);
    struct twist t = make_twist(&spec);
    struct head *h = open_head(b, &t, false);
    struct model m = model_of(&t);
    float all[ROWS * VOCAB], some[ROWS * VOCAB];
    double y[VOCAB + HIDDEN];
    int reversed[ROWS];
    apply(b, h, all_rows(), ROWS, all);
    for (int i = 0; i < ROWS; i++) {
        model_apply(&m, i, y);
        for (int v = 0; v < VOCAB; v++)
            EXPECT_NEAR((double)all[i * VOCAB + v], log_sigmoid ? -log1p(exp(-y[v])) : y[v],
                        b->act == ACT_F32 ? 2e-5 : 0.15);
        apply(b, h, &i, 1, some);
        EXPECT(memcmp(some, all + i * VOCAB, sizeof *some * VOCAB) == 0);
        reversed[i] = ROWS - 1 - i;
    }
    apply(b, h, reversed, ROWS, some);
    for (int i = 0; i < ROWS; i++)
        EXPECT(memcmp(some + i * VOCAB, all + reversed[i] * VOCAB, sizeof *some * VOCAB) == 0);
    EXPECT(memcmp(head_spec(h)->calibration, calibration, sizeof calibration) == 0);
    EXPECT(head_spec(h)->calibration != calibration && head_spec(h)->request == NULL);
    free(m.value);
    head_close(h);
    drop_twist(&t);
    backend_close(b);
}

/* One number's Adam in double. */
struct adam {
    double m, v;
};

static void adam_step(struct adam *a, double *value, double g, double rate, int step)
{
    a->m = 0.9 * a->m + 0.1 * g;
    a->v = 0.999 * a->v + 0.001 * g * g;
    *value -= rate * (a->m / (1 - pow(0.9, step))) / (sqrt(a->v / (1 - pow(0.999, step))) + 1e-8);
}

/* Three steps; the second's gradient is a sum of two calls. */
static void test_steps(int n_layers)
{
    enum { STEPS = 3 };
    const float rate = 0.01f;
    struct backend *b = open_backend("f32", 1);
    const struct twist_spec spec = spec_of(n_layers, false, false);
    struct twist t = make_twist(&spec);
    struct head *h = open_head(b, &t, true);
    struct model m = model_of(&t);
    struct adam *state = calloc((size_t)m.n, sizeof *state);
    double *slope = malloc(sizeof *slope * (size_t)m.n);
    for (int step = 1; step <= STEPS; step++) {
        for (int i = 0; i < m.n; i++)
            slope[i] = model_slope(&m, i, true) + (step == 2 ? model_slope(&m, i, false) : 0);
        for (int i = 0; i < m.n; i++)
            adam_step(&state[i], &m.value[i], fabs(slope[i]) < 1e-7 ? 0 : slope[i], (double)rate,
                      step);
        backward(b, h, true);
        if (step == 2)
            backward(b, h, false);
        EXPECT_INT(head_step(h, rate, step), 0);
    }
    EXPECT_INT(head_download(h, &t), 0);
    struct model got = model_of(&t);
    for (int i = 0; i < m.n; i++)
        EXPECT_NEAR(got.value[i], m.value[i], 1e-5);
    free(got.value);
    free(m.value);
    free(state);
    free(slope);
    head_close(h);
    drop_twist(&t);
    backend_close(b);
}

/* A head that learned, and one opened from what it downloads, give the same bits. */
static void test_round_trip(int n_layers, const char *dtype)
{
    struct backend *b = open_backend(dtype, 2);
    const struct twist_spec spec = spec_of(n_layers, true, true);
    struct twist t = make_twist(&spec), learned = make_twist(&spec);
    struct head *h = open_head(b, &t, true);
    float before[ROWS * VOCAB], after[ROWS * VOCAB], again[ROWS * VOCAB];
    apply(b, h, all_rows(), ROWS, before);
    backward(b, h, false);
    EXPECT_INT(head_step(h, 0.1f, 1), 0);
    apply(b, h, all_rows(), ROWS, after);
    EXPECT_INT(head_download(h, &learned), 0);
    head_close(h);
    h = open_head(b, &learned, false);
    apply(b, h, all_rows(), ROWS, again);
    EXPECT(memcmp(before, after, sizeof after) != 0);
    EXPECT(memcmp(after, again, sizeof after) == 0);
    head_close(h);
    drop_twist(&t);
    drop_twist(&learned);
    backend_close(b);
}

/* What is allocated, and the weights, which are filled up to whole tiles of 32. */
static void test_bytes(int n_layers, bool learning, const char *dtype)
{
    struct backend *b = open_backend(dtype, 1);
    const struct twist_spec spec = spec_of(n_layers, false, false);
    struct twist t = make_twist(&spec);
    size_t weights = 0;
    for (int i = 0; i < n_layers; i++)
        weights += (size_t)((twist_in(&spec, i) + 31) / 32 * 32) *
                   (size_t)((twist_out(&spec, i) + 31) / 32 * 32) * act_size(b->act);
    spy.allocated = 0;
    struct head *h = open_head(b, &t, learning);
    EXPECT_INT(head_bytes(&spec, b->act, ROWS, learning), spy.allocated + weights);
    head_close(h);
    drop_twist(&t);
    backend_close(b);
}

/* Whichever call of the device fails first: an error, and nothing leaks. */
static void test_failures_to_open(void)
{
    const struct twist_spec spec = spec_of(3, false, false);
    struct twist t = make_twist(&spec);
    for (int calls = 0;; calls++) {
        struct backend *b = open_backend("f32", 1);
        struct head *h = NULL;
        struct err err = {0};
        spy.calls_left = calls;
        int rc = head_open(&h, b, &t, ROWS, true, &err);
        if (rc) {
            EXPECT_INT(err.code, ERR_INTERNAL);
            EXPECT_STR(err.msg, "twist t: no more");
        }
        head_close(h);
        backend_close(b);
        if (rc == 0) {
            EXPECT(calls > 15);
            break;
        }
    }
    drop_twist(&t);
}

int main(void)
{
    for (int n_layers = 1; n_layers <= 3; n_layers++) {
        for (int flags = 0; flags < 4; flags++) {
            test_gradient(n_layers, flags & 1, flags & 2);
            test_apply(n_layers, flags & 1, flags & 2, "f32");
            test_apply(n_layers, flags & 1, flags & 2, "bf16");
            test_bytes(n_layers, flags & 1, flags & 2 ? "f32" : "bf16");
        }
        test_steps(n_layers);
        test_round_trip(n_layers, "f32");
        test_round_trip(n_layers, "bf16");
    }
    test_failures_to_open();
    head_close(NULL);
    return test_failures();
}
