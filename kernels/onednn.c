/* The matrix multiply by oneDNN.
 *
 * oneDNN makes a primitive for each shape, the number of rows included, and multiplies fastest with
 * weights in a layout it chooses itself. Each weight is put into that layout once, when it is
 * opened, and every primitive of its shape is made for that layout.
 *
 * A row must not depend on n. oneDNN's kernels for CPUs with AVX-512 keep this by themselves; older
 * ones do not (one row is another algorithm than two). So each shape is tried when its first weight
 * is opened, and if the bits of a row differ between several n, all its products run in tiles of a
 * fixed number of rows. */
#include <stdlib.h>
#include <string.h>

#include "onednn.h"

#include "cpu_ops.h"
#include "dnnl_api.h"
#include "num.h"

enum {
    SLOTS = 256,      /* primitives kept per shape and kind of output */
    TILE = 16,        /* rows */
    LAYOUT_ROWS = 64, /* the layout is the one oneDNN likes for so many rows */
};

/* One primitive with its arguments. Their data pointers are set before each run. */
struct product {
    int n; /* rows; 0: none made yet */
    dnnl_primitive_t primitive;
    dnnl_memory_t x, y;
};

struct shape {
    struct shape *next;
    int in, out;
    bool tiled;                        /* multiplied in tiles of TILE rows only */
    dnnl_memory_desc_t layout;         /* of the weights */
    struct product products[2][SLOTS]; /* by enum linear_out and n % SLOTS; the last one wins */
};

struct onednn {
    enum act_type act;
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    struct shape *shapes;
};

struct onednn_weight {
    struct shape *shape;
    void *data;
    size_t bytes;
    dnnl_memory_t memory;
};

static dnnl_data_type_t act_data_type(enum act_type act)
{
    return act == ACT_BF16 ? dnnl_bf16 : dnnl_f32;
}

/* ---- what this CPU can do ---- */

/* oneDNN believes CPUID leaf 1D about the AMX tiles; hypervisors that offer AMX but hide the leaf
 * make it die of an illegal instruction. So it is kept to AVX-512; this must come before anything
 * else. */
static void keep_from_amx(void)
{
    dnnl_set_max_cpu_isa(dnnl_cpu_isa_avx512_core_bf16);
}

/* oneDNN's codes of instruction sets are bit sets, larger ones containing the smaller. */
static bool has_isa(dnnl_cpu_isa_t isa)
{
    return (dnnl_get_effective_cpu_isa() & isa) == isa;
}

bool onednn_has_bf16(void)
{
    keep_from_amx();
    return has_isa(dnnl_cpu_isa_avx512_core_bf16);
}

/* ---- primitives ---- */

/* w is the weights' descriptor: a real layout, or format_tag_any to ask for one. */
static int describe(const struct onednn *o, dnnl_primitive_desc_t *pd, int n, int in, int out,
                    enum linear_out how, md_ref w)
{
    dnnl_memory_desc_t x = {0}, y = {0};
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t ops = NULL;
    int rc = -1;
    if (md_init(&x, n, in, act_data_type(o->act), dnnl_ab) ||
        md_init(&y, n, out, dnnl_f32, dnnl_ab) || dnnl_primitive_attr_create(&attr) ||
        dnnl_post_ops_create(&ops))
        goto out;
    if (how == LINEAR_ADD && (append_sum(ops) || dnnl_primitive_attr_set_post_ops(attr, ops)))
        goto out;
    rc = matmul_desc(pd, o->engine, MD_REF(x), w, MD_REF(y), attr) ? -1 : 0;
out:
    dnnl_post_ops_destroy(ops);
    dnnl_primitive_attr_destroy(attr);
    md_drop(&x);
    md_drop(&y);
    return rc;
}

static void product_close(struct product *p)
{
    dnnl_memory_destroy(p->x);
    dnnl_memory_destroy(p->y);
    dnnl_primitive_destroy(p->primitive);
    *p = (struct product){0};
}

static int product_open(struct onednn *o, struct product *p, const struct shape *s,
                        enum linear_out how, int n)
{
    dnnl_primitive_desc_t pd = NULL;
    product_close(p);
    if (describe(o, &pd, n, s->in, s->out, how, MD_REF(s->layout)))
        return -1;
    if (dnnl_primitive_create(&p->primitive, pd) ||
        dnnl_memory_create(&p->x, dnnl_primitive_desc_query_md(pd, dnnl_query_src_md, 0), o->engine,
                           DNNL_MEMORY_NONE) ||
        dnnl_memory_create(&p->y, dnnl_primitive_desc_query_md(pd, dnnl_query_dst_md, 0), o->engine,
                           DNNL_MEMORY_NONE))
        product_close(p);
    else
        p->n = n;
    dnnl_primitive_desc_destroy(pd);
    return p->n ? 0 : -1;
}

/* y (n, out) = or += x (n, in) Wᵀ with one primitive. */
static int multiply(struct onednn *o, float *y, enum linear_out how, const void *x,
                    const struct onednn_weight *w, int n)
{
    struct product *p = &w->shape->products[how][n % SLOTS];
    if (p->n != n && product_open(o, p, w->shape, how, n))
        return -1;
    dnnl_exec_arg_t args[] = {
        {DNNL_ARG_SRC, p->x}, {DNNL_ARG_WEIGHTS, w->memory}, {DNNL_ARG_DST, p->y}};
    bool bad =
        dnnl_memory_set_data_handle(p->x, (void *)x) || dnnl_memory_set_data_handle(p->y, y) ||
        dnnl_primitive_execute(p->primitive, o->stream, 3, args) || dnnl_stream_wait(o->stream);
    return bad ? -1 : 0;
}

/* The same in tiles. The last one is filled up with rows of zeros, in memory of its own. */
static int multiply_tiled(struct onednn *o, float *y, enum linear_out how, const void *x,
                          const struct onednn_weight *w, int n)
{
    size_t x_row = (size_t)w->shape->in * act_size(o->act), y_row = (size_t)w->shape->out;
    int i = 0;
    for (; i + TILE <= n; i += TILE)
        if (multiply(o, y + (size_t)i * y_row, how, (const char *)x + (size_t)i * x_row, w, TILE))
            return -1;
    if (i == n)
        return 0;
    size_t rest = (size_t)(n - i);
    void *tile_x = calloc(TILE, x_row);
    float *tile_y = calloc(TILE, y_row * sizeof *y);
    int rc = -1;
    if (tile_x && tile_y) {
        memcpy(tile_x, (const char *)x + (size_t)i * x_row, rest * x_row);
        memcpy(tile_y, y + (size_t)i * y_row, rest * y_row * sizeof *y);
        rc = multiply(o, tile_y, how, tile_x, w, TILE);
        memcpy(y + (size_t)i * y_row, tile_y, rest * y_row * sizeof *y);
    }
    free(tile_x);
    free(tile_y);
    return rc;
}

int onednn_multiply(struct onednn *o, float *y, enum linear_out how, const void *x,
                    const struct onednn_weight *w, int n)
{
    return w->shape->tiled ? multiply_tiled(o, y, how, x, w, n) : multiply(o, y, how, x, w, n);
}

/* ---- shapes ---- */

static int shape_open(struct onednn *o, struct shape **out, int in, int n_out)
{
    struct shape *s = calloc(1, sizeof *s);
    dnnl_memory_desc_t any = {0};
    dnnl_primitive_desc_t pd = NULL;
    if (!s)
        return -1;
    s->in = in;
    s->out = n_out;
    int rc = md_init(&any, in, n_out, act_data_type(o->act), dnnl_format_tag_any) ||
             describe(o, &pd, LAYOUT_ROWS, in, n_out, LINEAR_F32, MD_REF(any)) ||
             md_copy(&s->layout, dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0));
    dnnl_primitive_desc_destroy(pd);
    md_drop(&any);
    if (rc) {
        free(s);
        return -1;
    }
    s->next = o->shapes;
    o->shapes = s;
    *out = s;
    return 0;
}

static void shape_close(struct shape *s)
{
    for (int how = 0; how < 2; how++)
        for (int i = 0; i < SLOTS; i++)
            product_close(&s->products[how][i]);
    md_drop(&s->layout);
    free(s);
}

/* Multiply n equal rows and tell whether each result is `want`, bit for bit. */
static int rows_equal(struct onednn *o, const struct onednn_weight *w, const void *x, float *y,
                      const float *want, int n, bool *equal)
{
    size_t out = (size_t)w->shape->out;
    if (multiply(o, y, LINEAR_F32, x, w, n))
        return -1;
    for (int i = 0; i < n; i++)
        *equal = *equal && memcmp(y + (size_t)i * out, want, out * sizeof *y) == 0;
    return 0;
}

/* Sets shape->tiled when rows depend on n. Fails if even the rows of one tile differ. */
static int try_shape(struct onednn *o, const struct onednn_weight *w)
{
    static const int counts[] = {1, 2, 3, 7, TILE, 33, LAYOUT_ROWS};
    const size_t in = (size_t)w->shape->in, out = (size_t)w->shape->out;
    size_t x_bytes = in * LAYOUT_ROWS * act_size(o->act);
    unsigned char *x = calloc(1, x_bytes);
    float *y = calloc(out * (LAYOUT_ROWS + 1), sizeof *y), *want = y + out * LAYOUT_ROWS;
    bool tile_equal = true, all_equal = true;
    int rc = x && y ? 0 : -1;
    for (size_t i = 0; rc == 0 && i < in * LAYOUT_ROWS; i++) {
        float v = (float)((i % in * 2654435761u) >> 8 & 0xffff) * 0x1p-15f - 1.0f;
        if (o->act == ACT_BF16)
            ((bf16 *)x)[i] = bf16_from_float(v);
        else
            ((float *)x)[i] = v;
    }
    if (rc == 0)
        rc = multiply(o, y, LINEAR_F32, x, w, TILE);
    if (rc == 0) {
        memcpy(want, y, out * sizeof *y);
        rc = rows_equal(o, w, x, y, want, TILE, &tile_equal);
    }
    for (size_t i = 0; rc == 0 && i < sizeof counts / sizeof *counts; i++)
        rc = rows_equal(o, w, x, y, want, counts[i], &all_equal);
    w->shape->tiled = !all_equal;
    free(x);
    free(y);
    return tile_equal ? rc : -1;
}

/* ---- weights ---- */

/* The plain (out, in) matrix into the shape's layout. oneDNN sees it as (in, out), columns first.
 */
static int pack(struct onednn *o, struct onednn_weight *w, const void *plain)
{
    const struct shape *s = w->shape;
    dnnl_memory_desc_t from_md = {0};
    dnnl_memory_t from = NULL;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_t reorder = NULL;
    int rc = -1;
    if (md_init(&from_md, s->in, s->out, act_data_type(o->act), dnnl_ba) ||
        dnnl_memory_create(&from, MD_REF(from_md), o->engine, (void *)plain) ||
        dnnl_memory_create(&w->memory, MD_REF(s->layout), o->engine, w->data) ||
        dnnl_reorder_primitive_desc_create(&pd, MD_REF(from_md), o->engine, MD_REF(s->layout),
                                           o->engine, NULL) ||
        dnnl_primitive_create(&reorder, pd))
        goto out;
    dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, w->memory}};
    rc =
        dnnl_primitive_execute(reorder, o->stream, 2, args) || dnnl_stream_wait(o->stream) ? -1 : 0;
out:
    dnnl_primitive_destroy(reorder);
    dnnl_primitive_desc_destroy(pd);
    dnnl_memory_destroy(from);
    md_drop(&from_md);
    return rc;
}

static struct shape *shape_find(const struct onednn *o, int in, int out)
{
    struct shape *s = o->shapes;
    while (s && (s->in != in || s->out != out))
        s = s->next;
    return s;
}

int onednn_weight_open(struct onednn *o, struct onednn_weight **out, const void *plain, int in,
                       int n_out)
{
    struct onednn_weight *w = calloc(1, sizeof *w);
    if (!w)
        return -1;
    w->shape = shape_find(o, in, n_out);
    bool is_new = !w->shape;
    if (is_new && shape_open(o, &w->shape, in, n_out)) {
        free(w);
        return -1;
    }
    w->bytes = dnnl_memory_desc_get_size(MD_REF(w->shape->layout));
    w->data = cpu_map(w->bytes);
    if (!w->data || pack(o, w, plain) || (is_new && try_shape(o, w))) {
        onednn_weight_close(w);
        return -1;
    }
    *out = w;
    return 0;
}

void onednn_weight_close(struct onednn_weight *w)
{
    if (!w)
        return;
    dnnl_memory_destroy(w->memory);
    cpu_unmap(w->data, w->bytes);
    free(w);
}

/* ---- open and close ---- */

int onednn_open(struct onednn **out, enum act_type act)
{
    struct onednn *o = calloc(1, sizeof *o);
    if (!o)
        return -1;
    keep_from_amx();
    o->act = act;
    if (dnnl_engine_create(&o->engine, dnnl_cpu, 0) ||
        dnnl_stream_create(&o->stream, o->engine, dnnl_stream_default_flags)) {
        onednn_close(o);
        return -1;
    }
    *out = o;
    return 0;
}

void onednn_close(struct onednn *o)
{
    if (!o)
        return;
    for (struct shape *s = o->shapes, *next; s; s = next) {
        next = s->next;
        shape_close(s);
    }
    dnnl_stream_destroy(o->stream);
    dnnl_engine_destroy(o->engine);
    free(o);
}
