#include "head.h"

#include <stdlib.h>
#include <string.h>

/* All of Adam's numbers lie in one block, so that a step is one operation: the biases of all
 * layers, then their weights, each beginning at a multiple of ALIGN floats. A head that does not
 * learn has the biases alone; its weights are only packed. What is between them is and stays 0. */
enum { ALIGN = 16 };

struct layer {
    int in, out;
    struct weight *w;
    size_t bias, weight; /* where they begin in a block */
};

struct head {
    struct backend *b;
    struct twist_spec spec; /* calibration: own */
    struct layer layer[TWIST_LAYERS_MAX];
    bool learning;
    int max_rows;
    size_t n_numbers;                /* of a block */
    float *value;                    /* dev, a block */
    float *grad, *moment1, *moment2; /* dev, blocks; NULL unless learning */
    int32_t *zeros;                  /* dev (max_rows) */
    void *act[TWIST_LAYERS_MAX];     /* dev act (max_rows, in): each layer's input */
    float *wide[2]; /* dev (max_rows, hidden): outputs of a hidden layer, and gradients; [1] is only
                       there when learning */
};

/* ---- sizes ---- */

static size_t aligned(size_t n)
{
    return (n + ALIGN - 1) / ALIGN * ALIGN;
}

/* Bytes of a packed (out, in) weight: devices fill both sides up to whole tiles of 32. */
static size_t packed_bytes(const struct layer *l, enum act_type act)
{
    return ((size_t)l->in + 31) / 32 * 32 * (((size_t)l->out + 31) / 32 * 32) * act_size(act);
}

/* Fill in the layers' shapes and places; returns the numbers of a block. */
static size_t lay_out(struct layer *layer, const struct twist_spec *s, bool learning)
{
    size_t n = 0;
    for (int i = 0; i < s->n_layers; i++) {
        layer[i] = (struct layer){.in = twist_in(s, i), .out = twist_out(s, i), .bias = n};
        n += aligned((size_t)layer[i].out);
    }
    for (int i = 0; learning && i < s->n_layers; i++) {
        layer[i].weight = n;
        n += aligned((size_t)layer[i].out * (size_t)layer[i].in);
    }
    return n;
}

static size_t wide_bytes(const struct twist_spec *s, int max_rows)
{
    return s->n_layers > 1 ? sizeof(float) * (size_t)max_rows * (size_t)s->hidden : 0;
}

static size_t input_bytes(const struct layer *l, enum act_type act, int max_rows)
{
    return act_size(act) * (size_t)max_rows * (size_t)l->in;
}

size_t head_bytes(const struct twist_spec *s, enum act_type act, int max_rows, bool learning)
{
    struct layer layer[TWIST_LAYERS_MAX];
    size_t bytes = sizeof(float) * lay_out(layer, s, learning) * (learning ? 4 : 1);
    bytes += wide_bytes(s, max_rows) * (learning ? 2 : 1) + sizeof(int32_t) * (size_t)max_rows;
    for (int i = 0; i < s->n_layers; i++)
        bytes += packed_bytes(&layer[i], act) + input_bytes(&layer[i], act, max_rows);
    return bytes;
}

/* ---- open and close ---- */

static int open_memory(struct head *h)
{
    struct backend *b = h->b;
    const size_t block = sizeof(float) * h->n_numbers, wide = wide_bytes(&h->spec, h->max_rows);
    const size_t zeros = sizeof *h->zeros * (size_t)h->max_rows;
    if (b->ops->alloc(b, (void **)&h->value, block) || b->ops->alloc(b, (void **)&h->zeros, zeros))
        return -1;
    for (int i = 0; i < h->spec.n_layers; i++)
        if (b->ops->alloc(b, &h->act[i], input_bytes(&h->layer[i], b->act, h->max_rows)))
            return -1;
    if (wide && b->ops->alloc(b, (void **)&h->wide[0], wide))
        return -1;
    if (!h->learning)
        return 0;
    if (wide && b->ops->alloc(b, (void **)&h->wide[1], wide))
        return -1;
    return b->ops->alloc(b, (void **)&h->grad, block) ||
                   b->ops->alloc(b, (void **)&h->moment1, block) ||
                   b->ops->alloc(b, (void **)&h->moment2, block)
               ? -1
               : 0;
}

static int open_layer(struct head *h, int i, const float *w, const float *bias)
{
    struct backend *b = h->b;
    struct layer *l = &h->layer[i];
    const struct weight_part part = {w, TENSOR_F32, l->out};
    const size_t out = (size_t)l->out;
    if (b->ops->weight_open(b, &l->w, &part, 1, l->in, WEIGHT_LINEAR) ||
        b->ops->upload(b, h->value + l->bias, bias, sizeof *bias * out))
        return -1;
    if (!h->learning)
        return 0;
    return b->ops->upload(b, h->value + l->weight, w, sizeof *w * out * (size_t)l->in);
}

/* Only a download waits for the copies: from then on the twist may go. */
static int open_numbers(struct head *h, const struct twist *t)
{
    float last;
    for (int i = 0; i < h->spec.n_layers; i++)
        if (open_layer(h, i, t->w[i], t->b[i]))
            return -1;
    return h->b->ops->download(h->b, &last, h->value, sizeof last);
}

static int copy_calibration(struct head *h)
{
    const size_t bytes = sizeof(float) * (size_t)h->spec.max_tokens;
    float *copy;
    if (!h->spec.calibration)
        return 0;
    copy = malloc(bytes);
    if (copy)
        memcpy(copy, h->spec.calibration, bytes);
    h->spec.calibration = copy;
    return copy ? 0 : -1;
}

int head_open(struct head **out, struct backend *b, const struct twist *t, int max_rows,
              bool learning, struct err *err)
{
    struct head *h = calloc(1, sizeof *h);
    if (!h)
        return err_set(err, ERR_INTERNAL, "out of memory");
    h->b = b;
    h->spec = t->spec;
    h->spec.request = NULL;
    h->learning = learning;
    h->max_rows = max_rows;
    h->n_numbers = lay_out(h->layer, &h->spec, learning);
    if (copy_calibration(h)) {
        err_set(err, ERR_INTERNAL, "out of memory");
        head_close(h);
        return -1;
    }
    if (open_memory(h) || open_numbers(h, t)) {
        err_set(err, ERR_INTERNAL, "twist %s: %s", t->spec.name, b->why);
        head_close(h);
        return -1;
    }
    *out = h;
    return 0;
}

void head_close(struct head *h)
{
    if (!h)
        return;
    struct backend *b = h->b;
    for (int i = 0; i < h->spec.n_layers; i++) {
        b->ops->weight_close(b, h->layer[i].w);
        b->ops->release(b, h->act[i]);
    }
    void *const dev[] = {h->value,   h->grad,    h->moment1, h->moment2,
                         h->wide[0], h->wide[1], h->zeros};
    for (size_t i = 0; i < sizeof dev / sizeof *dev; i++)
        b->ops->release(b, dev[i]);
    free((void *)h->spec.calibration);
    free(h);
}

const struct twist_spec *head_spec(const struct head *h)
{
    return &h->spec;
}

void *head_input(const struct head *h)
{
    return h->act[0];
}

/* ---- forward ---- */

/* y = x Wᵀ + bias: the bias is copied to every row, then the product is added. */
static int apply_layer(struct head *h, int i, float *y, int n)
{
    struct backend *b = h->b;
    const struct layer *l = &h->layer[i];
    if (b->ops->copy_rows(b, y, NULL, h->value + l->bias, h->zeros, n,
                          sizeof(float) * (size_t)l->out))
        return -1;
    return b->ops->linear(b, y, LINEAR_ADD, h->act[i], l->w, n);
}

/* The inputs of all layers behind the first. */
static int apply_hidden(struct head *h, int n)
{
    struct backend *b = h->b;
    for (int i = 0; i + 1 < h->spec.n_layers; i++)
        if (apply_layer(h, i, h->wide[0], n) ||
            b->ops->activate(b, h->act[i + 1], ACTIVATE_RELU, h->wide[0], n, h->spec.hidden))
            return -1;
    return 0;
}

int head_apply(struct head *h, float *log_psi, int n)
{
    struct backend *b = h->b;
    if (apply_hidden(h, n) || apply_layer(h, h->spec.n_layers - 1, log_psi, n))
        return -1;
    if (!h->spec.log_sigmoid)
        return 0;
    return b->ops->activate(b, log_psi, ACTIVATE_LOG_SIGMOID, log_psi, n, h->spec.vocab);
}

/* ---- learning ---- */

int head_backward(struct head *h, const float *g, const int32_t *col, int n)
{
    struct backend *b = h->b;
    CHECK(h->learning);
    if (apply_hidden(h, n))
        return -1;
    for (int i = h->spec.n_layers - 1; i >= 0; i--) {
        const struct layer *l = &h->layer[i];
        float *dx = i > 0 ? h->wide[i % 2] : NULL;
        const struct linear_grad_args a = {
            .dy = g,
            .col = col,
            .x = h->act[i],
            .w = h->value + l->weight,
            .dx = dx,
            .dw = h->grad + l->weight,
            .db = h->grad + l->bias,
            .in = l->in,
            .out = l->out,
        };
        if (b->ops->linear_grad(b, &a, n))
            return -1;
        if (dx && b->ops->relu_grad(b, dx, dx, h->act[i], n, l->in))
            return -1;
        g = dx;
        col = NULL;
    }
    return 0;
}

int head_step(struct head *h, float rate, int step)
{
    struct backend *b = h->b;
    const struct adam_args a = {
        .w = h->value,
        .m = h->moment1,
        .v = h->moment2,
        .g = h->grad,
        .rate = rate,
        .b1 = 0.9f,
        .b2 = 0.999f,
        .eps = 1e-8f,
        .step = step,
    };
    CHECK(h->learning);
    if (b->ops->adam(b, &a, h->n_numbers))
        return -1;
    for (int i = 0; i < h->spec.n_layers; i++)
        if (b->ops->weight_update(b, h->layer[i].w, h->value + h->layer[i].weight))
            return -1;
    return 0;
}

int head_download(struct head *h, struct twist *out)
{
    struct backend *b = h->b;
    CHECK(h->learning);
    for (int i = 0; i < h->spec.n_layers; i++) {
        const struct layer *l = &h->layer[i];
        const size_t bias = sizeof(float) * (size_t)l->out;
        if (b->ops->download(b, out->w[i], h->value + l->weight, bias * (size_t)l->in) ||
            b->ops->download(b, out->b[i], h->value + l->bias, bias))
            return -1;
    }
    return 0;
}
