/* `linear`: weights of a model file into panels, and who multiplies with them: the AMX kernel for
 * bf16 where the CPU has tiles, the one of the instruction level everywhere else. */
#include <stdlib.h>
#include <string.h>

#include "cpu_ops.h"
#include "num.h"

struct linear {
    enum act_type act;
    const struct cpu_level *level;
    bool amx;
    void *scratch; /* rows of x in the form the kernel wants; grows to the largest once */
    size_t scratch_bytes;
};

int linear_open(struct linear **out, enum act_type act, const struct cpu_level *level)
{
    struct linear *l = calloc(1, sizeof *l);
    if (!l)
        return -1;
    l->act = act;
    l->level = level;
    l->amx = act == ACT_BF16 && amx_open();
    *out = l;
    return 0;
}

void linear_close(struct linear *l)
{
    if (!l)
        return;
    free(l->scratch);
    free(l);
}

const char *linear_kernel(const struct linear *l)
{
    return l->amx ? "AMX bf16" : l->act == ACT_BF16 ? "bf16" : "f32";
}

/* ---- weights ---- */

/* Row `row` of the stacked parts. */
static void dequant_row(float *to, const struct weight_part *p, int row, int in)
{
    while (row >= p->rows)
        row -= p++->rows;
    dequant(p->type, (const char *)p->data + (size_t)row * tensor_row_bytes(p->type, (size_t)in),
            to, (size_t)in);
}

/* The rows of 16 outputs, `row` elements long, an even number, into half h of their panel. */
static void pack_half(enum act_type type, unsigned char *panel, int h, const float *rows,
                      size_t row)
{
    for (size_t p = 0; 2 * p < row; p++) {
        vf a, b;
        for (size_t j = 0; j < VF; j++) {
            a[j] = rows[j * row + 2 * p];
            b[j] = rows[j * row + 2 * p + 1];
        }
        num_store_block(type == ACT_BF16, panel, (p / VF * 2 + (size_t)h) * VF + p % VF, a, b);
    }
}

/* 16 outputs are dequantised at a time: beside the file and the panels nothing is held. */
static int fill_panels(struct panels *w, const struct weight_part *parts)
{
    const size_t row = ((size_t)w->in + 1) / 2 * 2;
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        float *rows = calloc(VF * row, sizeof *rows); /* an odd `in` is filled up with 0 */
        failed |= !rows;
#pragma omp for schedule(static)
        for (int first = 0; first < w->out; first += VF) {
            const int n = w->out - first < VF ? w->out - first : VF;
            if (!rows)
                continue;
            for (int j = 0; j < n; j++)
                dequant_row(rows + (size_t)j * row, parts, first + j, w->in);
            memset(rows + (size_t)n * row, 0, sizeof *rows * (size_t)(VF - n) * row);
            pack_half(w->type, w->data + (size_t)(first / PANEL) * w->panel_bytes,
                      first % PANEL / VF, rows, row);
        }
        free(rows);
    }
    return failed ? -1 : 0;
}

int linear_pack(const struct linear *l, struct panels *out, const struct weight_part *parts,
                int n_parts, int in)
{
    struct panels w = {.type = l->act, .in = in, .steps = (in + DEPTH - 1) / DEPTH};
    for (int i = 0; i < n_parts; i++)
        w.out += parts[i].rows;
    w.panel_bytes = (size_t)w.steps * DEPTH * PANEL * act_size(w.type);
    w.bytes = (size_t)((w.out + PANEL - 1) / PANEL) * w.panel_bytes;
    w.data = cpu_map(w.bytes);
    if (!w.data)
        return -1;
    if (fill_panels(&w, parts)) {
        linear_unpack(&w);
        return -1;
    }
    *out = w;
    return 0;
}

int linear_repack(struct panels *w, const float *from)
{
    return fill_panels(w, &(struct weight_part){from, TENSOR_F32, w->out});
}

void linear_unpack(struct panels *w)
{
    cpu_unmap(w->data, w->bytes);
    *w = (struct panels){0};
}

/* ---- the multiply ---- */

static int reserve_scratch(struct linear *l, size_t bytes)
{
    if (bytes <= l->scratch_bytes)
        return 0;
    free(l->scratch);
    l->scratch = aligned_alloc(64, bytes);
    l->scratch_bytes = l->scratch ? bytes : 0;
    return l->scratch ? 0 : -1;
}

/* AMX reads whole steps: rows of another length are filled up with zeros. */
static void pad_rows(bf16 *to, size_t to_row, const bf16 *from, size_t from_row, int n)
{
    memset(to, 0, sizeof *to * to_row * (size_t)n);
    for (int i = 0; i < n; i++)
        memcpy(to + (size_t)i * to_row, from + (size_t)i * from_row, sizeof *to * from_row);
}

static int run_amx(struct linear *l, float *y, bool add, const void *x, const struct panels *w,
                   int n)
{
    const size_t row = (size_t)w->steps * DEPTH;
    if (row != (size_t)w->in) {
        if (reserve_scratch(l, sizeof(bf16) * row * (size_t)n))
            return -1;
        pad_rows(l->scratch, row, x, (size_t)w->in, n);
        x = l->scratch;
    }
    amx_multiply(y, add, x, w, n);
    return 0;
}

int linear_run(struct linear *l, float *y, enum linear_out how, const void *x,
               const struct panels *w, int n)
{
    if (l->amx)
        return run_amx(l, y, how == LINEAR_ADD, x, w, n);
    if (reserve_scratch(l, sizeof(float) * GEMM_ROWS * (size_t)w->steps * DEPTH))
        return -1;
    l->level->multiply(y, how == LINEAR_ADD, l->act, x, w, n, l->scratch);
    return 0;
}

/* ---- its backward pass ---- */

int linear_grad_run(struct linear *l, const struct linear_grad_args *a, int n)
{
    const size_t width = ((size_t)a->in + GRAD_PAD - 1) / GRAD_PAD * GRAD_PAD;
    if (!a->col && reserve_scratch(l, sizeof(float) * GRAD_DEPTH * width))
        return -1;
    l->level->linear_grad(l->act, a, n, l->scratch);
    return 0;
}
