/* The matrix multiply, on oneDNN.
 *
 * oneDNN makes a primitive for each shape, the number of rows included, and multiplies fastest with
 * weights in a layout it chooses itself. Each weight is put into that layout once, when it is
 * opened, and every primitive of its shape is made for that layout.
 *
 * A row must not depend on n. oneDNN's kernels for CPUs with AVX-512 keep this by themselves; older
 * ones do not (one row is another algorithm than two). So each shape is tried when its first weight
 * is opened, and if the bits of a row differ between several n, all its products run in tiles of a
 * fixed number of rows. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

struct linear {
    enum act_type act;
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    struct shape *shapes;
};

struct linear_weight {
    struct shape *shape;
    void *data;
    size_t bytes;
    dnnl_memory_t memory;
};

static dnnl_data_type_t act_data_type(enum act_type act)
{
    return act == ACT_BF16 ? dnnl_bf16 : dnnl_f32;
}

static int failed(const char *what, char *why, size_t why_size)
{
    snprintf(why, why_size, "oneDNN: %s", what);
    return -1;
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

bool linear_has_bf16(void)
{
    keep_from_amx();
    return has_isa(dnnl_cpu_isa_avx512_core_bf16);
}

const char *linear_isa(enum act_type act)
{
    return act == ACT_F32 ? "f32" : "AVX-512 bf16";
}

/* ---- primitives ---- */

/* w is the weights' descriptor: a real layout, or format_tag_any to ask for one. */
static int describe(const struct linear *l, dnnl_primitive_desc_t *pd, int n, int in, int out,
                    enum linear_out how, md_ref w)
{
    dnnl_memory_desc_t x = {0}, y = {0};
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t ops = NULL;
    int rc = -1;
    if (md_init(&x, n, in, act_data_type(l->act), dnnl_ab) ||
        md_init(&y, n, out, dnnl_f32, dnnl_ab) || dnnl_primitive_attr_create(&attr) ||
        dnnl_post_ops_create(&ops))
        goto out;
    if (how == LINEAR_ADD && (append_sum(ops) || dnnl_primitive_attr_set_post_ops(attr, ops)))
        goto out;
    rc = matmul_desc(pd, l->engine, MD_REF(x), w, MD_REF(y), attr) ? -1 : 0;
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

static int product_open(struct linear *l, struct product *p, const struct shape *s,
                        enum linear_out how, int n)
{
    dnnl_primitive_desc_t pd = NULL;
    product_close(p);
    if (describe(l, &pd, n, s->in, s->out, how, MD_REF(s->layout)))
        return -1;
    if (dnnl_primitive_create(&p->primitive, pd) ||
        dnnl_memory_create(&p->x, dnnl_primitive_desc_query_md(pd, dnnl_query_src_md, 0), l->engine,
                           DNNL_MEMORY_NONE) ||
        dnnl_memory_create(&p->y, dnnl_primitive_desc_query_md(pd, dnnl_query_dst_md, 0), l->engine,
                           DNNL_MEMORY_NONE))
        product_close(p);
    else
        p->n = n;
    dnnl_primitive_desc_destroy(pd);
    return p->n ? 0 : -1;
}

/* y (n, out) = or += x (n, in) Wᵀ with one primitive. */
static int multiply(struct linear *l, float *y, enum linear_out how, const void *x,
                    const struct linear_weight *w, int n)
{
    struct product *p = &w->shape->products[how][n % SLOTS];
    if (p->n != n && product_open(l, p, w->shape, how, n))
        return -1;
    dnnl_exec_arg_t args[] = {
        {DNNL_ARG_SRC, p->x}, {DNNL_ARG_WEIGHTS, w->memory}, {DNNL_ARG_DST, p->y}};
    bool bad =
        dnnl_memory_set_data_handle(p->x, (void *)x) || dnnl_memory_set_data_handle(p->y, y) ||
        dnnl_primitive_execute(p->primitive, l->stream, 3, args) || dnnl_stream_wait(l->stream);
    return bad ? -1 : 0;
}

/* The same in tiles. The last one is filled up with rows of zeros, in memory of its own. */
static int multiply_tiled(struct linear *l, float *y, enum linear_out how, const void *x,
                          const struct linear_weight *w, int n)
{
    size_t x_row = (size_t)w->shape->in * act_size(l->act), y_row = (size_t)w->shape->out;
    int i = 0;
    for (; i + TILE <= n; i += TILE)
        if (multiply(l, y + (size_t)i * y_row, how, (const char *)x + (size_t)i * x_row, w, TILE))
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
        rc = multiply(l, tile_y, how, tile_x, w, TILE);
        memcpy(y + (size_t)i * y_row, tile_y, rest * y_row * sizeof *y);
    }
    free(tile_x);
    free(tile_y);
    return rc;
}

int linear_run(struct linear *l, float *y, enum linear_out how, const void *x,
               const struct linear_weight *w, int n, char *why, size_t why_size)
{
    int rc = w->shape->tiled ? multiply_tiled(l, y, how, x, w, n) : multiply(l, y, how, x, w, n);
    return rc ? failed("a matrix multiply failed", why, why_size) : 0;
}

/* ---- shapes ---- */

static int shape_open(struct linear *l, struct shape **out, int in, int n_out)
{
    struct shape *s = calloc(1, sizeof *s);
    dnnl_memory_desc_t any = {0};
    dnnl_primitive_desc_t pd = NULL;
    if (!s)
        return -1;
    s->in = in;
    s->out = n_out;
    int rc = md_init(&any, in, n_out, act_data_type(l->act), dnnl_format_tag_any) ||
             describe(l, &pd, LAYOUT_ROWS, in, n_out, LINEAR_F32, MD_REF(any)) ||
             md_copy(&s->layout, dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0));
    dnnl_primitive_desc_destroy(pd);
    md_drop(&any);
    if (rc) {
        free(s);
        return -1;
    }
    s->next = l->shapes;
    l->shapes = s;
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
static int rows_equal(struct linear *l, const struct linear_weight *w, const void *x, float *y,
                      const float *want, int n, bool *equal)
{
    size_t out = (size_t)w->shape->out;
    if (multiply(l, y, LINEAR_F32, x, w, n))
        return -1;
    for (int i = 0; i < n; i++)
        *equal = *equal && memcmp(y + (size_t)i * out, want, out * sizeof *y) == 0;
    return 0;
}

/* Sets shape->tiled when rows depend on n. Fails if even the rows of one tile differ. */
static int try_shape(struct linear *l, const struct linear_weight *w)
{
    static const int counts[] = {1, 2, 3, 7, TILE, 33, LAYOUT_ROWS};
    const size_t in = (size_t)w->shape->in, out = (size_t)w->shape->out;
    size_t x_bytes = in * LAYOUT_ROWS * act_size(l->act);
    unsigned char *x = calloc(1, x_bytes);
    float *y = calloc(out * (LAYOUT_ROWS + 1), sizeof *y), *want = y + out * LAYOUT_ROWS;
    bool tile_equal = true, all_equal = true;
    int rc = x && y ? 0 : -1;
    for (size_t i = 0; rc == 0 && i < in * LAYOUT_ROWS; i++) {
        float v = (float)((i % in * 2654435761u) >> 8 & 0xffff) * 0x1p-15f - 1.0f;
        if (l->act == ACT_BF16)
            ((bf16 *)x)[i] = bf16_from_float(v);
        else
            ((float *)x)[i] = v;
    }
    if (rc == 0)
        rc = multiply(l, y, LINEAR_F32, x, w, TILE);
    if (rc == 0) {
        memcpy(want, y, out * sizeof *y);
        rc = rows_equal(l, w, x, y, want, TILE, &tile_equal);
    }
    for (size_t i = 0; rc == 0 && i < sizeof counts / sizeof *counts; i++)
        rc = rows_equal(l, w, x, y, want, counts[i], &all_equal);
    w->shape->tiled = !all_equal;
    free(x);
    free(y);
    return tile_equal ? rc : -1;
}

/* ---- weights ---- */

static void dequant_row(const struct linear *l, void *to, const struct weight_part *p, int row,
                        float *buffer, size_t in)
{
    const char *from = (const char *)p->data + (size_t)row * tensor_row_bytes(p->type, in);
    if (l->act == ACT_F32) {
        dequant(p->type, from, to, in);
        return;
    }
    dequant(p->type, from, buffer, in);
    for (size_t i = 0; i < in; i++)
        ((bf16 *)to)[i] = bf16_from_float(buffer[i]);
}

/* All parts as one plain (out, in) matrix of the activations' type. */
static int dequant_parts(const struct linear *l, unsigned char *plain,
                         const struct weight_part *parts, int n_parts, int in)
{
    const size_t row_bytes = (size_t)in * act_size(l->act);
    int rc = 0;
    for (int part = 0; part < n_parts; part++) {
        const struct weight_part *p = &parts[part];
#pragma omp parallel reduction(| : rc)
        {
            float *buffer = malloc(sizeof *buffer * (size_t)in);
            rc |= !buffer;
#pragma omp for
            for (int row = 0; row < p->rows; row++)
                if (buffer)
                    dequant_row(l, plain + (size_t)row * row_bytes, p, row, buffer, (size_t)in);
            free(buffer);
        }
        plain += (size_t)p->rows * row_bytes;
    }
    return rc ? -1 : 0;
}

/* The plain (out, in) matrix into the shape's layout. oneDNN sees it as (in, out), columns first.
 */
static int pack(struct linear *l, struct linear_weight *w, void *plain)
{
    const struct shape *s = w->shape;
    dnnl_memory_desc_t from_md = {0};
    dnnl_memory_t from = NULL;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_t reorder = NULL;
    int rc = -1;
    if (md_init(&from_md, s->in, s->out, act_data_type(l->act), dnnl_ba) ||
        dnnl_memory_create(&from, MD_REF(from_md), l->engine, plain) ||
        dnnl_memory_create(&w->memory, MD_REF(s->layout), l->engine, w->data) ||
        dnnl_reorder_primitive_desc_create(&pd, MD_REF(from_md), l->engine, MD_REF(s->layout),
                                           l->engine, NULL) ||
        dnnl_primitive_create(&reorder, pd))
        goto out;
    dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, w->memory}};
    rc =
        dnnl_primitive_execute(reorder, l->stream, 2, args) || dnnl_stream_wait(l->stream) ? -1 : 0;
out:
    dnnl_primitive_destroy(reorder);
    dnnl_primitive_desc_destroy(pd);
    dnnl_memory_destroy(from);
    md_drop(&from_md);
    return rc;
}

static struct shape *shape_find(const struct linear *l, int in, int out)
{
    struct shape *s = l->shapes;
    while (s && (s->in != in || s->out != out))
        s = s->next;
    return s;
}

int linear_weight_open(struct linear *l, struct linear_weight **out,
                       const struct weight_part *parts, int n_parts, int in, char *why,
                       size_t why_size)
{
    int rows = 0;
    for (int i = 0; i < n_parts; i++)
        rows += parts[i].rows;
    struct linear_weight *w = calloc(1, sizeof *w);
    if (!w)
        return failed("out of memory", why, why_size);
    w->shape = shape_find(l, in, rows);
    bool is_new = !w->shape;
    if (is_new && shape_open(l, &w->shape, in, rows)) {
        free(w);
        return failed("no matrix multiply of this shape", why, why_size);
    }
    w->bytes = dnnl_memory_desc_get_size(MD_REF(w->shape->layout));
    w->data = cpu_map(w->bytes);
    size_t plain_bytes = (size_t)rows * (size_t)in * act_size(l->act);
    void *plain = cpu_map(plain_bytes);
    int rc = !w->data || !plain || dequant_parts(l, plain, parts, n_parts, in) || pack(l, w, plain);
    cpu_unmap(plain, plain_bytes);
    if (rc || (is_new && try_shape(l, w))) {
        linear_weight_close(w);
        return failed(rc ? "out of memory for the weights"
                         : "rows of one product depend on their place",
                      why, why_size);
    }
    *out = w;
    return 0;
}

void linear_weight_close(struct linear_weight *w)
{
    if (!w)
        return;
    dnnl_memory_destroy(w->memory);
    cpu_unmap(w->data, w->bytes);
    free(w);
}

/* ---- open and close ---- */

int linear_open(struct linear **out, enum act_type act, char *why, size_t why_size)
{
    struct linear *l = calloc(1, sizeof *l);
    if (!l)
        return failed("out of memory", why, why_size);
    keep_from_amx();
    l->act = act;
    keep_from_amx(); /* also when nobody asked for bf16: a later backend may */
    if (dnnl_engine_create(&l->engine, dnnl_cpu, 0) ||
        dnnl_stream_create(&l->stream, l->engine, dnnl_stream_default_flags)) {
        linear_close(l);
        return failed("no CPU engine", why, why_size);
    }
    *out = l;
    return 0;
}

void linear_close(struct linear *l)
{
    if (!l)
        return;
    for (struct shape *s = l->shapes, *next; s; s = next) {
        next = s->next;
        shape_close(s);
    }
    dnnl_stream_destroy(l->stream);
    dnnl_engine_destroy(l->engine);
    free(l);
}
