#include "model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kv.h"

/* Logits are computed for some rows at a time: as many that reading the head's weights for each
 * such chunk is cheap beside the multiplication, as few that their memory can be planned for.
 *
 * On a device its bandwidth decides. With 128,256 tokens of 2,048 dimensions in bf16 the weights
 * are 525 MB, and a row of logits is half a megabyte. 24 MiB would stay in the 50 MB of an H100's
 * second-level cache, but are 49 rows: 10.7 MB of weights a row. The logits of 512 rows go through
 * memory, written once and read once or, with top-k and top-p, up to three times: 1.0 MB of weights
 * and 1.0 to 2.1 MB of logits a row. Whole tiles of the multiplication leave none of it idle. */
#define LOGITS_BYTES        ((size_t)24 << 20)
#define LOGITS_BYTES_DEVICE ((size_t)256 << 20)
enum { LOGITS_TILE = 128 }; /* rows */

struct layer {
    struct weight *qkv;          /* (q_dim + 2 kv_dim, dim) */
    struct weight *out;          /* (dim, q_dim) */
    struct weight *gate_up;      /* (2 ffn, dim) */
    struct weight *down;         /* (dim, ffn) */
    float *attn_norm, *ffn_norm; /* (dim) into model.norms */
};

/* Everything a step works on, in one piece of device memory. R = max_rows, H = R + max_hidden, M
 * the rows of a chunk of logits. */
struct workspace {
    float *x;       /* (R, dim) the residual stream */
    void *h;        /* act (R, max(dim, q_dim)) what enters a linear */
    float *wide;    /* (R, max(q_dim + 2 kv_dim, 2 ffn)) what leaves one: qkv, gate | up */
    void *ff;       /* act (R, ffn) */
    float *x_out;   /* (R, dim) x and h of the wanted rows, from the last layer's attention on */
    void *h_out;    /* act (R, max(dim, q_dim)) */
    void *hidden;   /* act (H, dim) the hidden store */
    void *h_head;   /* act (M, dim) */
    float *logits;  /* (M, vocab) */
    float *log_psi; /* (M, vocab) of rows with a learned twist; nothing without opts.twists */
    int32_t *pair; /* (3, M) rows of a conditional head's input: 0, 2, … | 1, 3, … | 0, 0, … */
    int32_t *copy;                /* (2, H) the indices of model_copy_hidden */
    int32_t *index;               /* (index_size) the batch's arrays */
    struct propose_out *draw_out; /* (H) */
    struct top_token *top;        /* (H, 1 + TOP_MAX) */
    char *ask;                    /* (ask_size) draws, rows and hidden indices of model_propose */
    size_t bytes;
};

struct model {
    struct backend *b;
    struct model_config c;
    struct model_opts o;
    int q_dim, kv_dim; /* heads head_dim, kv_heads head_dim */
    int chunk;         /* rows of logits at a time */
    struct weight *embed, *head;
    struct layer *layers; /* (n_layers) */
    float *norms;         /* dev (2 n_layers + 1, dim): attention and ffn of each layer, the last */
    float *cos_sin;       /* dev (context, rope_dim) */
    struct kv_store *kv;
    struct workspace w;
    void *device;         /* what w points into */
    int32_t *index;       /* host (index_size): what is uploaded to w.index */
    char *ask;            /* host (ask_size) */
    int32_t *copy;        /* host (2, H) */
    bool index_in_flight; /* the upload of `index` may not be done yet */
};

/* The static functions below that take a struct model return 0, or something else once the device
 * has failed (or, with an err, the file is refused). */
static int device_failed(const struct model *m, struct err *err)
{
    return err_set(err, ERR_INTERNAL, "%s: %s", m->b->name, m->b->why);
}

/* ---- sizes ---- */

static int max_int(int a, int b)
{
    return a > b ? a : b;
}

static int hidden_rows(const struct model_opts *o)
{
    return o->max_rows + o->max_hidden;
}

static int chunk_rows(const struct model_config *c, const struct model_opts *o,
                      const struct backend *b)
{
    size_t bytes = b->own_memory ? LOGITS_BYTES_DEVICE : LOGITS_BYTES;
    size_t rows = bytes / ((size_t)c->vocab * sizeof(float));
    int most = hidden_rows(o);
    if (b->own_memory && rows > LOGITS_TILE)
        rows -= rows % LOGITS_TILE;
    return rows < 1 ? 1 : rows < (size_t)most ? (int)rows : most;
}

static size_t index_size(const struct model_opts *o)
{
    return batch_dev_size(o->max_rows, o->max_rows * kv_pages_for(o->context));
}

/* draws | rows | hidden indices, each for hidden_rows */
static size_t ask_size(const struct model_opts *o)
{
    return (size_t)hidden_rows(o) *
           (sizeof(struct propose_draw) + sizeof(struct propose_row) + sizeof(int32_t));
}

/* The next part of a block that starts at base: its address, *used moved past it. */
static void *carve(uintptr_t base, size_t *used, size_t rows, size_t columns, size_t element)
{
    void *part = (void *)(base + *used);
    *used += (rows * columns * element + 255) & ~(size_t)255;
    return part;
}

/* Lay out the workspace at base; its size does not depend on base. */
static struct workspace workspace_at(uintptr_t base, const struct model_config *c,
                                     const struct model_opts *o, const struct backend *b)
{
    size_t act = act_size(b->act), rows = (size_t)o->max_rows, kept = (size_t)hidden_rows(o);
    size_t chunk = (size_t)chunk_rows(c, o, b), dim = (size_t)c->dim, ffn = (size_t)c->ffn;
    int q_dim = c->n_heads * c->head_dim, qkv_dim = q_dim + 2 * c->n_kv_heads * c->head_dim;
    size_t h_dim = (size_t)max_int(c->dim, q_dim), wide = (size_t)max_int(qkv_dim, 2 * c->ffn);
    size_t twisted = o->twists ? chunk : 0;
    struct workspace w;
    size_t used = 0;
    w.x = carve(base, &used, rows, dim, sizeof(float));
    w.h = carve(base, &used, rows, h_dim, act);
    w.wide = carve(base, &used, rows, wide, sizeof(float));
    w.ff = carve(base, &used, rows, ffn, act);
    w.x_out = carve(base, &used, rows, dim, sizeof(float));
    w.h_out = carve(base, &used, rows, h_dim, act);
    w.hidden = carve(base, &used, kept, dim, act);
    w.h_head = carve(base, &used, chunk, dim, act);
    w.logits = carve(base, &used, chunk, (size_t)c->vocab, sizeof(float));
    w.log_psi = carve(base, &used, twisted, (size_t)c->vocab, sizeof(float));
    w.pair = carve(base, &used, 3, twisted, sizeof(int32_t));
    w.copy = carve(base, &used, 2, kept, sizeof(int32_t));
    w.index = carve(base, &used, 1, index_size(o), sizeof(int32_t));
    w.draw_out = carve(base, &used, kept, 1, sizeof *w.draw_out);
    w.top = carve(base, &used, kept, 1 + TOP_MAX, sizeof *w.top);
    w.ask = carve(base, &used, 1, ask_size(o), 1);
    w.bytes = used;
    return w;
}

static size_t elements(const struct gguf_tensor *t)
{
    return (size_t)t->dim[0] * (size_t)t->dim[1];
}

void model_memory(const struct model_config *c, const struct backend *b, const struct gguf *g,
                  const struct model_opts *o, struct model_memory *out)
{
    const struct gguf_tensor *table = gguf_tensor(g, "token_embd.weight");
    bool tied = !gguf_tensor(g, "output.weight");
    size_t matrices = (size_t)c->parameters - (tied ? 0 : elements(table));
    size_t rope = (size_t)o->context * (size_t)c->rope_dim * sizeof(float);
    size_t token = 2 * (size_t)c->n_layers * (size_t)c->n_kv_heads * (size_t)c->head_dim;
    out->weights = table->bytes + matrices * act_size(b->act) + rope;
    out->kv = (size_t)o->n_pages * KV_PAGE * token * act_size(b->act);
    out->activations = workspace_at(0, c, o, b).bytes;
    out->total = out->weights + out->kv + out->activations;
}

/* ---- loading ---- */

static const struct gguf_tensor *layer_tensor(const struct gguf *g, int layer, const char *name)
{
    char full[64];
    snprintf(full, sizeof full, "blk.%d.%s.weight", layer, name);
    const struct gguf_tensor *t = gguf_tensor(g, full);
    CHECK(t && "model_config_read checked the file");
    return t;
}

static struct weight_part part_of(const struct gguf_tensor *t)
{
    return (struct weight_part){t->data, (enum tensor_type)t->type, (int)t->dim[1]};
}

/* Stack up to three of a layer's matrices to one weight. */
static int open_stacked(struct model *m, struct weight **out, const struct gguf *g, int layer,
                        const char *const names[3])
{
    struct weight_part parts[3];
    int n = 0, in = 0;
    for (; n < 3 && names[n]; n++) {
        const struct gguf_tensor *t = layer_tensor(g, layer, names[n]);
        parts[n] = part_of(t);
        in = (int)t->dim[0];
    }
    return m->b->ops->weight_open(m->b, out, parts, n, in, WEIGHT_LINEAR);
}

static int open_layers(struct model *m, const struct gguf *g)
{
    for (int i = 0; i < m->c.n_layers; i++) {
        struct layer *l = &m->layers[i];
        if (open_stacked(m, &l->qkv, g, i, (const char *[3]){"attn_q", "attn_k", "attn_v"}) ||
            open_stacked(m, &l->out, g, i, (const char *[3]){"attn_output"}) ||
            open_stacked(m, &l->gate_up, g, i, (const char *[3]){"ffn_gate", "ffn_up"}) ||
            open_stacked(m, &l->down, g, i, (const char *[3]){"ffn_down"}))
            return -1;
        l->attn_norm = m->norms + (size_t)(2 * i) * (size_t)m->c.dim;
        l->ffn_norm = l->attn_norm + m->c.dim;
    }
    return 0;
}

static int open_embedding(struct model *m, const struct gguf *g)
{
    const struct backend_ops *ops = m->b->ops;
    const struct gguf_tensor *table = gguf_tensor(g, "token_embd.weight");
    const struct gguf_tensor *head = gguf_tensor(g, "output.weight");
    struct weight_part embed_part = part_of(table), head_part = part_of(head ? head : table);
    return ops->weight_open(m->b, &m->embed, &embed_part, 1, m->c.dim, WEIGHT_TABLE) ||
           ops->weight_open(m->b, &m->head, &head_part, 1, m->c.dim, WEIGHT_LINEAR);
}

/* A table made on the host: allocate, copy, and wait, so that `host` may go. */
static int upload_table(struct model *m, float **out, const float *host, size_t n)
{
    float first;
    return m->b->ops->alloc(m->b, (void **)out, n * sizeof(float)) ||
           m->b->ops->upload(m->b, *out, host, n * sizeof(float)) ||
           m->b->ops->download(m->b, &first, *out, sizeof first);
}

static int open_norms(struct model *m, const struct gguf *g)
{
    size_t dim = (size_t)m->c.dim, n = (size_t)(2 * m->c.n_layers + 1) * dim;
    float *host = malloc(n * sizeof *host), *row = host;
    CHECK(host && "out of memory");
    for (int i = 0; i < m->c.n_layers; i++, row += 2 * dim) {
        const struct gguf_tensor *attn = layer_tensor(g, i, "attn_norm");
        const struct gguf_tensor *ffn = layer_tensor(g, i, "ffn_norm");
        dequant(attn->type, attn->data, row, dim);
        dequant(ffn->type, ffn->data, row + dim, dim);
    }
    const struct gguf_tensor *last = gguf_tensor(g, "output_norm.weight");
    dequant(last->type, last->data, row, dim);
    int rc = upload_table(m, &m->norms, host, n);
    free(host);
    return rc;
}

/* The angle of pair i turns by base^(-2i / rope_dim) / factor[i] a position. Angles in double:
 * float would lose the low bits of position * frequency long before the context's end. */
static int rope_frequencies(const struct model_config *c, const struct gguf *g, double *freq,
                            struct err *err)
{
    int pairs = c->rope_dim / 2;
    const struct gguf_tensor *t = gguf_tensor(g, "rope_freqs.weight");
    float factor[512]; /* rope_dim <= head_dim <= 1024 */
    CHECK(pairs <= 512);
    if (t)
        dequant(t->type, t->data, factor, (size_t)pairs);
    for (int i = 0; i < pairs; i++) {
        double f = t ? (double)factor[i] : 1.0;
        if (!(f > 0) || !isfinite(f))
            return err_set(err, ERR_FILE, "tensor rope_freqs.weight holds %g", f);
        freq[i] = pow((double)c->rope_base, -2.0 * i / c->rope_dim) / (f * (double)c->rope_scale);
    }
    return 0;
}

static int open_rope(struct model *m, const struct gguf *g, struct err *err)
{
    int pairs = m->c.rope_dim / 2;
    double freq[512];
    if (rope_frequencies(&m->c, g, freq, err) != 0)
        return -1;
    size_t n = (size_t)m->o.context * (size_t)m->c.rope_dim;
    float *host = malloc(n * sizeof *host), *out = host;
    CHECK(host && "out of memory");
    for (int pos = 0; pos < m->o.context; pos++) {
        for (int i = 0; i < pairs; i++) {
            *out++ = (float)cos(pos * freq[i]);
            *out++ = (float)sin(pos * freq[i]);
        }
    }
    int rc = upload_table(m, &m->cos_sin, host, n);
    free(host);
    return rc ? device_failed(m, err) : 0;
}

static int upload_pairs(struct model *m)
{
    const struct backend_ops *ops = m->b->ops;
    size_t n = (size_t)m->chunk;
    int32_t *pair = calloc(3 * n, sizeof *pair), first;
    CHECK(pair && "out of memory");
    for (int i = 0; i < m->chunk; i++) {
        pair[i] = 2 * i;
        pair[m->chunk + i] = 2 * i + 1;
    }
    int rc = ops->upload(m->b, m->w.pair, pair, 3 * n * sizeof *pair) ||
             ops->download(m->b, &first, m->w.pair, sizeof first); /* until then `pair` is read */
    free(pair);
    return rc;
}

static int open_step_memory(struct model *m)
{
    const struct backend_ops *ops = m->b->ops;
    size_t bytes = workspace_at(0, &m->c, &m->o, m->b).bytes;
    m->index = calloc(index_size(&m->o), sizeof *m->index);
    m->ask = calloc(1, ask_size(&m->o));
    m->copy = calloc(2 * (size_t)hidden_rows(&m->o), sizeof *m->copy);
    CHECK(m->index && m->ask && m->copy && "out of memory");
    int pages = m->o.n_pages + m->b->records; /* the last one is that of the rows that pad */
    if (ops->kv_open(m->b, &m->kv, m->c.n_layers, pages, m->c.n_kv_heads, m->c.head_dim) ||
        ops->alloc(m->b, &m->device, bytes))
        return -1;
    m->w = workspace_at((uintptr_t)m->device, &m->c, &m->o, m->b);
    return m->o.twists ? upload_pairs(m) : 0;
}

int model_open(struct model **out, struct backend *b, const struct gguf *g,
               const struct model_config *c, const struct model_opts *o, struct err *err)
{
    CHECK(o->max_rows > 0 && o->max_hidden >= 0 && o->context > 0 && o->context <= c->context);
    struct model *m = calloc(1, sizeof *m);
    CHECK(m && "out of memory");
    m->b = b;
    m->c = *c;
    m->o = *o;
    m->q_dim = c->n_heads * c->head_dim;
    m->kv_dim = c->n_kv_heads * c->head_dim;
    m->chunk = chunk_rows(c, o, b);
    m->layers = calloc((size_t)c->n_layers, sizeof *m->layers);
    CHECK(m->layers && "out of memory");
    if (open_rope(m, g, err) != 0)
        goto fail;
    if (open_norms(m, g) || open_embedding(m, g) || open_layers(m, g) || open_step_memory(m)) {
        device_failed(m, err);
        goto fail;
    }
    *out = m;
    return 0;
fail:
    model_close(m);
    return -1;
}

void model_close(struct model *m)
{
    if (!m)
        return;
    const struct backend_ops *ops = m->b->ops;
    for (int i = 0; i < m->c.n_layers; i++) {
        struct weight *all[] = {m->layers[i].qkv, m->layers[i].out, m->layers[i].gate_up,
                                m->layers[i].down};
        for (int j = 0; j < 4; j++)
            if (all[j])
                ops->weight_close(m->b, all[j]);
    }
    if (m->embed)
        ops->weight_close(m->b, m->embed);
    if (m->head)
        ops->weight_close(m->b, m->head);
    if (m->kv)
        ops->kv_close(m->b, m->kv);
    void *memory[] = {m->norms, m->cos_sin, m->device};
    for (int i = 0; i < 3; i++)
        if (memory[i])
            ops->release(m->b, memory[i]);
    free(m->layers);
    free(m->index);
    free(m->ask);
    free(m->copy);
    free(m);
}

/* ---- forward ---- */

/* All index arrays in one upload, as `rows` rows. A forward that nobody asked a result of leaves
 * its upload in flight: wait before the host block is written again. */
static int upload_batch(struct model *m, const struct batch *b, int rows, struct batch_dev *out)
{
    if (m->index_in_flight && m->b->ops->download(m->b, m->index, m->w.index, sizeof(int32_t)))
        return -1;
    size_t n = batch_stage(b, rows, m->o.n_pages, m->index, m->w.index, out);
    m->index_in_flight = true;
    return m->b->ops->upload(m->b, m->w.index, m->index, n * sizeof(int32_t));
}

/* q, k, v of all rows: keys and values are stored, wide holds the rotated q. */
static int project_qkv(struct model *m, int layer, const struct batch_dev *ix, int n)
{
    const struct backend_ops *ops = m->b->ops;
    const struct layer *l = &m->layers[layer];
    struct rope_args rope = {
        .qkv = m->w.wide,
        .pos = ix->pos,
        .slot = ix->slot,
        .cos_sin = m->cos_sin,
        .heads = m->c.n_heads,
        .kv_heads = m->c.n_kv_heads,
        .head_dim = m->c.head_dim,
        .rope_dim = m->c.rope_dim,
    };
    return ops->rmsnorm(m->b, m->w.h, m->w.x, l->attn_norm, n, m->c.dim, m->c.norm_eps) ||
           ops->linear(m->b, m->w.wide, LINEAR_F32, m->w.h, l->qkv, n) ||
           ops->rope_store(m->b, m->kv, layer, &rope, n);
}

/* h = attention of the q in wide. */
static int attend(struct model *m, int layer, const struct batch_dev *ix, int n)
{
    struct attend_args args = {
        .out = m->w.h,
        .qkv = m->w.wide,
        .pos = ix->pos,
        .seq = ix->seq,
        .page_start = ix->page_start,
        .pages = ix->page,
        .heads = m->c.n_heads,
        .kv_heads = m->c.n_kv_heads,
        .head_dim = m->c.head_dim,
        .scale = 1.0f / sqrtf((float)m->c.head_dim),
    };
    return m->b->ops->attend(m->b, m->kv, layer, &args, n);
}

/* x += W_out h, then x += W_down swiglu(W_gate_up norm(x)); h is overwritten. */
static int finish_layer(struct model *m, const struct layer *l, float *x, void *h, int n)
{
    const struct backend_ops *ops = m->b->ops;
    return ops->linear(m->b, x, LINEAR_ADD, h, l->out, n) ||
           ops->rmsnorm(m->b, h, x, l->ffn_norm, n, m->c.dim, m->c.norm_eps) ||
           ops->linear(m->b, m->w.wide, LINEAR_F32, h, l->gate_up, n) ||
           ops->swiglu(m->b, m->w.ff, m->w.wide, n, m->c.ffn) ||
           ops->linear(m->b, x, LINEAR_ADD, m->w.ff, l->down, n);
}

/* The last layer's rest, for the n_out wanted ones of n rows, into the hidden store. */
static int finish_wanted(struct model *m, const struct batch_dev *ix, int n, int n_out)
{
    const struct backend_ops *ops = m->b->ops;
    const struct layer *last = &m->layers[m->c.n_layers - 1];
    const float *norm = m->norms + (size_t)(2 * m->c.n_layers) * (size_t)m->c.dim;
    size_t act = act_size(m->b->act), dim = (size_t)m->c.dim;
    float *x = m->w.x;
    void *h = m->w.h;
    if (n_out < n) {
        x = m->w.x_out;
        h = m->w.h_out;
        if (ops->copy_rows(m->b, x, NULL, m->w.x, ix->out_row, n_out, dim * sizeof(float)) ||
            ops->copy_rows(m->b, h, NULL, m->w.h, ix->out_row, n_out, (size_t)m->q_dim * act))
            return -1;
    }
    return finish_layer(m, last, x, h, n_out) ||
           ops->rmsnorm(m->b, h, x, norm, n_out, m->c.dim, m->c.norm_eps) ||
           ops->copy_rows(m->b, m->w.hidden, ix->out_hidden, h, NULL, n_out, dim * act);
}

/* All operations from the tokens to the hidden store. */
static int transform(struct model *m, const struct batch_dev *ix, int n, int n_out)
{
    int last = m->c.n_layers - 1;
    if (m->b->ops->embed(m->b, m->w.x, m->embed, ix->token, n))
        return -1;
    for (int layer = 0; layer < last; layer++)
        if (project_qkv(m, layer, ix, n) || attend(m, layer, ix, n) ||
            finish_layer(m, &m->layers[layer], m->w.x, m->w.h, n))
            return -1;
    if (project_qkv(m, last, ix, n))
        return -1;
    if (n_out == 0) /* a prompt's chunk but the last: only its keys and values matter */
        return 0;
    return attend(m, last, ix, n) || finish_wanted(m, ix, n, n_out);
}

/* The same for n rows that are all wanted, as they were recorded if n rows have come before. */
static int transform_recorded(struct model *m, const struct batch_dev *ix, int n)
{
    int replayed = m->b->ops->record(m->b, n);
    if (replayed)
        return replayed < 0 ? -1 : 0;
    return transform(m, ix, n, n) || m->b->ops->record_end(m->b);
}

/* A decode step, where every row is wanted, is padded to one of a few sizes that are recorded. */
static int forward(struct model *m, const struct batch *b)
{
    const struct backend_ops *ops = m->b->ops;
    struct batch_dev ix;
    bool records = m->b->records && b->n_out == b->n;
    int rows = records ? batch_padded_rows(b->n, m->o.max_rows) : b->n;
    if ((b->n_cow > 0 && ops->kv_copy(m->b, m->kv, b->cow_from, b->cow_to, b->n_cow)) ||
        upload_batch(m, b, rows, &ix))
        return -1;
    return records ? transform_recorded(m, &ix, rows) : transform(m, &ix, rows, b->n_out);
}

int model_forward(struct model *m, const struct batch *b, struct err *err)
{
    const struct batch_limits limits = {
        .rows = m->o.max_rows,
        .pages = m->o.n_pages,
        .context = m->o.context,
        .vocab = m->c.vocab,
        .hidden = hidden_rows(&m->o),
    };
    batch_check(b, &limits);
    return forward(m, b) ? device_failed(m, err) : 0;
}

int model_copy_hidden(struct model *m, const int32_t *from, void *const *to, const int32_t *to_row,
                      int n, struct err *err)
{
    const struct backend_ops *ops = m->b->ops;
    int most = hidden_rows(&m->o);
    size_t bytes = (size_t)m->c.dim * act_size(m->b->act);
    CHECK(n > 0 && n <= most);
    for (int i = 0; i < n; i++) {
        CHECK(from[i] >= 0 && from[i] < most && to_row[i] >= 0);
        m->copy[i] = from[i];
        m->copy[n + i] = to_row[i];
    }
    int rc = ops->upload(m->b, m->w.copy, m->copy, 2 * (size_t)n * sizeof *m->copy);
    for (int i = 0, next; i < n && rc == 0; i = next) {
        for (next = i + 1; next < n && to[next] == to[i];)
            next++;
        rc = ops->copy_rows(m->b, to[i], m->w.copy + n + i, m->w.hidden, m->w.copy + i, next - i,
                            bytes);
    }
    return rc ? device_failed(m, err) : 0;
}

/* ---- logits, twists and draws ---- */

int model_chunk_rows(const struct model *m)
{
    return m->chunk;
}

/* The arrays of model_propose lie back to back in `ask`, in order of their alignment. */
struct staged {
    struct propose_draw *draws;
    struct propose_row *rows;
    int32_t *hidden;
};

static struct staged staged_at(char *base, const struct model_ask *ask)
{
    struct staged s;
    s.draws = (void *)base;
    s.rows = (void *)(s.draws + ask->n_draws);
    s.hidden = (void *)(s.rows + ask->n_rows);
    return s;
}

static bool same_twist(const struct model_twist *a, const struct model_twist *b)
{
    return a->head == b->head && a->condition == b->condition;
}

int model_head_input(struct model *m, const struct model_twist *t, const void *hidden,
                     const int32_t *row, int n)
{
    const struct backend_ops *ops = m->b->ops;
    size_t bytes = (size_t)m->c.dim * act_size(m->b->act);
    void *in = head_input(t->head);
    const int32_t *even = m->w.pair, *odd = even + m->chunk, *zero = odd + m->chunk;
    if (!head_spec(t->head)->conditional)
        return ops->copy_rows(m->b, in, NULL, hidden, row, n, bytes);
    return ops->copy_rows(m->b, in, even, hidden, row, n, bytes) ||
           ops->copy_rows(m->b, in, odd, t->condition, zero, n, bytes);
}

/* log ψ of n rows of the chunk from `first` on, by one head. */
static int twist_rows(struct model *m, const struct model_twist *t, int first, int n)
{
    size_t bytes = (size_t)m->c.dim * act_size(m->b->act);
    const char *h = (const char *)m->w.h_head + (size_t)first * bytes;
    return model_head_input(m, t, h, NULL, n) ||
           head_apply(t->head, m->w.log_psi + (size_t)first * (size_t)m->c.vocab, n);
}

static int twist_chunk(struct model *m, const struct model_twist *twist, int n)
{
    for (int i = 0, next; i < n; i = next) {
        for (next = i + 1; next < n && same_twist(&twist[next], &twist[i]);)
            next++;
        if (twist[i].head && twist_rows(m, &twist[i], i, next - i))
            return -1;
    }
    return 0;
}

/* The likeliest tokens of the chunk's rows, if they are wanted. */
static int top_chunk(struct model *m, const struct model_ask *ask, const struct staged *dev,
                     int first, int n)
{
    const struct top_args args = {
        .logits = m->w.logits,
        .vocab = m->c.vocab,
        .k = ask->top,
        .rows = dev->rows + first,
        .draws = dev->draws,
        .out = m->w.top + (size_t)first * (size_t)(1 + ask->top),
    };
    return ask->top ? m->b->ops->top(m->b, &args, n) : 0;
}

/* Rows first .. first + n: their logits and twists, and what is asked of them. */
static int propose_chunk(struct model *m, const struct model_ask *ask, const struct staged *dev,
                         int first, int n)
{
    const struct backend_ops *ops = m->b->ops;
    struct propose_args args = {
        .logits = m->w.logits,
        .twist = m->w.log_psi,
        .vocab = m->c.vocab,
        .priors = ask->priors,
        .rows = dev->rows + first,
        .draws = dev->draws,
        .out = m->w.draw_out,
        .n_draws = ask->n_draws,
    };
    size_t row_bytes = (size_t)m->c.dim * act_size(m->b->act);
    return ops->copy_rows(m->b, m->w.h_head, NULL, m->w.hidden, dev->hidden + first, n,
                          row_bytes) ||
           ops->linear(m->b, m->w.logits, LINEAR_F32, m->w.h_head, m->head, n) ||
           top_chunk(m, ask, dev, first, n) || twist_chunk(m, ask->twist + first, n) ||
           ops->propose(m->b, &args, n);
}

static int propose(struct model *m, const struct model_ask *ask, struct propose_out *out)
{
    const struct backend_ops *ops = m->b->ops;
    struct staged host = staged_at(m->ask, ask), dev = staged_at(m->w.ask, ask);
    memcpy(host.draws, ask->draws, (size_t)ask->n_draws * sizeof *host.draws);
    memcpy(host.rows, ask->rows, (size_t)ask->n_rows * sizeof *host.rows);
    memcpy(host.hidden, ask->hidden, (size_t)ask->n_rows * sizeof *host.hidden);
    for (int i = 0; i < ask->n_rows; i++)
        host.rows[i].twist = ask->twist[i].head ? i % m->chunk : -1;
    size_t bytes = (size_t)((char *)(host.hidden + ask->n_rows) - m->ask);
    if (ops->upload(m->b, m->w.ask, m->ask, bytes))
        return -1;
    for (int i = 0; i < ask->n_rows; i += m->chunk) {
        int n = ask->n_rows - i < m->chunk ? ask->n_rows - i : m->chunk;
        if (propose_chunk(m, ask, &dev, i, n))
            return -1;
    }
    size_t top_bytes = (size_t)ask->n_rows * (size_t)(1 + ask->top) * sizeof *ask->top_out;
    if (ops->download(m->b, out, m->w.draw_out, (size_t)ask->n_draws * sizeof *out) ||
        (ask->top && ops->download(m->b, ask->top_out, m->w.top, top_bytes)))
        return -1;
    m->index_in_flight = false; /* download waits for all that was queued */
    return 0;
}

int model_propose(struct model *m, const struct model_ask *ask, struct propose_out *out,
                  struct err *err)
{
    int most = hidden_rows(&m->o);
    CHECK(ask->top >= 0 && ask->top <= TOP_MAX);
    CHECK(ask->n_rows > 0 && ask->n_rows <= most && ask->n_draws > 0 && ask->n_draws <= most);
    for (int i = 0; i < ask->n_rows; i++) {
        const struct propose_row *row = &ask->rows[i];
        const struct model_twist *t = &ask->twist[i];
        CHECK(ask->hidden[i] >= 0 && ask->hidden[i] < most);
        CHECK(row->first_draw >= 0 && row->first_draw + row->n_draws <= ask->n_draws);
        CHECK(!t->head || (m->o.twists && head_spec(t->head)->conditional == !!t->condition));
    }
    return propose(m, ask, out) ? device_failed(m, err) : 0;
}

int model_propose_grad(struct model *m, const struct model_twist *t, const void *hidden,
                       const int32_t *row, const struct propose_args *asked, const float *coef,
                       float *dy, int n)
{
    const struct backend_ops *ops = m->b->ops;
    struct propose_args args = *asked;
    args.logits = m->w.logits;
    args.twist = m->w.log_psi;
    size_t bytes = (size_t)m->c.dim * act_size(m->b->act);
    return ops->copy_rows(m->b, m->w.h_head, NULL, hidden, row, n, bytes) ||
           ops->linear(m->b, m->w.logits, LINEAR_F32, m->w.h_head, m->head, n) ||
           model_head_input(m, t, hidden, row, n) || head_apply(t->head, m->w.log_psi, n) ||
           ops->propose_grad(m->b, &args, coef, dy, n);
}
