/* `linear`: weights out of a model file, and who multiplies with them: our AMX kernel for bf16
 * where the CPU has tiles, oneDNN everywhere else. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "amx.h"
#include "cpu_ops.h"
#include "onednn.h"

struct linear {
    enum act_type act;
    struct onednn *onednn; /* NULL with AMX */
    bf16 *padded;          /* rows filled up to a multiple of AMX_DEPTH, for odd shapes */
    size_t padded_size;    /* elements */
};

struct linear_weight {
    int in, out;
    struct onednn_weight *onednn; /* or */
    void *panels;                 /* AMX */
    size_t bytes;                 /* of panels */
};

bool linear_has_bf16(void)
{
    return amx_open() || onednn_has_bf16();
}

const char *linear_isa(const struct linear *l)
{
    if (!l->onednn)
        return "AMX bf16";
    return l->act == ACT_BF16 ? "AVX-512 bf16" : "f32";
}

int linear_open(struct linear **out, enum act_type act)
{
    struct linear *l = calloc(1, sizeof *l);
    if (!l)
        return -1;
    l->act = act;
    if (!(act == ACT_BF16 && amx_open()) && onednn_open(&l->onednn, act)) {
        free(l);
        return -1;
    }
    *out = l;
    return 0;
}

void linear_close(struct linear *l)
{
    if (!l)
        return;
    onednn_close(l->onednn);
    free(l->padded);
    free(l);
}

/* ---- weights ---- */

/* Row `row` of the stacked parts as activations. buffer: in floats. */
static void dequant_row(enum act_type act, void *to, const struct weight_part *p, int row, int in,
                        float *buffer)
{
    while (row >= p->rows)
        row -= p++->rows;
    const char *from = (const char *)p->data + (size_t)row * tensor_row_bytes(p->type, (size_t)in);
    if (act == ACT_F32) {
        dequant(p->type, from, to, (size_t)in);
        return;
    }
    dequant(p->type, from, buffer, (size_t)in);
    for (int i = 0; i < in; i++)
        ((bf16 *)to)[i] = bf16_from_float(buffer[i]);
}

/* The parts as one plain matrix, which oneDNN then packs. */
static int open_onednn(struct linear *l, struct linear_weight *w, const struct weight_part *parts)
{
    const size_t row_bytes = (size_t)w->in * act_size(l->act), bytes = (size_t)w->out * row_bytes;
    unsigned char *plain = cpu_map(bytes);
    int rc = plain ? 0 : -1;
    if (!plain)
        return -1;
#pragma omp parallel reduction(| : rc)
    {
        float *buffer = malloc(sizeof *buffer * (size_t)w->in);
        rc |= !buffer;
#pragma omp for
        for (int row = 0; row < w->out; row++)
            if (buffer)
                dequant_row(l->act, plain + (size_t)row * row_bytes, parts, row, w->in, buffer);
        free(buffer);
    }
    rc = rc ? -1 : onednn_weight_open(l->onednn, &w->onednn, plain, w->in, w->out);
    cpu_unmap(plain, bytes);
    return rc;
}

/* Panel by panel: no second copy of the whole matrix. */
static int open_amx(struct linear_weight *w, const struct weight_part *parts)
{
    const size_t panel_bytes = amx_panel_bytes(w->in), in = (size_t)w->in;
    const int n_panels = (w->out + AMX_PANEL - 1) / AMX_PANEL;
    int rc = 0;
    w->bytes = panel_bytes * (size_t)n_panels;
    w->panels = cpu_map(w->bytes);
    if (!w->panels)
        return -1;
#pragma omp parallel reduction(| : rc)
    {
        float *buffer = malloc(sizeof *buffer * in);
        bf16 *rows = malloc(sizeof *rows * in * AMX_PANEL);
        rc |= !buffer || !rows;
#pragma omp for
        for (int p = 0; p < n_panels; p++) {
            int first = p * AMX_PANEL, n = w->out - first < AMX_PANEL ? w->out - first : AMX_PANEL;
            for (int i = 0; i < n && !rc; i++)
                dequant_row(ACT_BF16, rows + (size_t)i * in, parts, first + i, w->in, buffer);
            if (!rc)
                amx_pack((char *)w->panels + (size_t)p * panel_bytes, rows, n, w->in);
        }
        free(buffer);
        free(rows);
    }
    return rc ? -1 : 0;
}

int linear_weight_open(struct linear *l, struct linear_weight **out,
                       const struct weight_part *parts, int n_parts, int in)
{
    struct linear_weight *w = calloc(1, sizeof *w);
    if (!w)
        return -1;
    w->in = in;
    for (int i = 0; i < n_parts; i++)
        w->out += parts[i].rows;
    if (l->onednn ? open_onednn(l, w, parts) : open_amx(w, parts)) {
        linear_weight_close(w);
        return -1;
    }
    *out = w;
    return 0;
}

void linear_weight_close(struct linear_weight *w)
{
    if (!w)
        return;
    onednn_weight_close(w->onednn);
    cpu_unmap(w->panels, w->bytes);
    free(w);
}

/* ---- the multiply ---- */

/* x with its rows filled up; NULL without memory. The buffer grows to the largest n once. */
static const bf16 *pad_rows(struct linear *l, const bf16 *x, int n, int in)
{
    const size_t row = (size_t)amx_padded(in), size = row * (size_t)n;
    if (size > l->padded_size) {
        free(l->padded);
        l->padded = aligned_alloc(64, sizeof *l->padded * size);
        l->padded_size = l->padded ? size : 0;
        if (!l->padded)
            return NULL;
    }
    memset(l->padded, 0, sizeof *l->padded * size);
    for (int i = 0; i < n; i++)
        memcpy(l->padded + (size_t)i * row, x + (size_t)i * (size_t)in, sizeof *x * (size_t)in);
    return l->padded;
}

int linear_run(struct linear *l, float *y, enum linear_out how, const void *x,
               const struct linear_weight *w, int n)
{
    if (w->onednn)
        return onednn_multiply(l->onednn, y, how, x, w->onednn, n);
    if (amx_padded(w->in) != w->in)
        x = pad_rows(l, x, n, w->in);
    if (!x)
        return -1;
    amx_multiply(y, how == LINEAR_ADD, x, w->panels, n, w->in, w->out);
    return 0;
}
