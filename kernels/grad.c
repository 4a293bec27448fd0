/* The backward pass of `linear`, in float.
 *
 * With one gradient a row (col), a row reads one row of W and adds to one row of dW: bound by
 * memory, and next to nothing beside the dense case. Threads share out the columns, so each goes
 * over all rows in order.
 *
 * Dense, dW += dYᵀ X and dX = dY W are one product: C += Aᵀ B, summed over the rows of A and B in
 * order. B is put in strips as wide as a tile of sums, A in blocks of its height; both lie in the
 * order in which the inner loop wants them. A tile of C goes into registers, DEPTH rows of A and B
 * are added, and it goes back: every element is one chain of additions in the order of rows,
 * wherever tiles, depths and threads end. Gradients of unlikely tokens may be denormal; they count
 * as 0 (num.h). */
#include <omp.h>
#include <string.h>

#include "cpu_ops.h"
#include "num.h"

/* A tile: so many rows and vectors as the level has registers for. */
#if defined(__AVX512F__)
enum { ROWS = 8, WIDTH = 2 };
#elif defined(__AVX2__)
enum { ROWS = 4, WIDTH = 1 };
#else
enum { ROWS = 2, WIDTH = 1 };
#endif
enum {
    STRIP = WIDTH * VF,
    BLOCK_ROWS = 32, /* of C, that one thread works on with one pass over B */
};
_Static_assert(BLOCK_ROWS % ROWS == 0 && GRAD_PAD % STRIP == 0, "blocks are whole tiles");

/* ---- dense ---- */

/* c (rows, columns) += aᵀ b, a (depth, rows), b (depth, columns). */
struct product {
    float *c;
    const float *a;
    size_t a_down, a_right; /* distance of a's neighbours in depth, and in rows */
    const void *b;
    enum act_type b_type;
    int rows, columns, depth;
};

static int least(int a, int b)
{
    return a < b ? a : b;
}

/* Rows [first, first + depth) of b, the strip's columns; zeros behind the last one. */
static void pack_strip(float *to, const struct product *p, int first, int depth, int column)
{
    const int n = least(STRIP, p->columns - column);
    for (int s = 0; s < depth; s++, to += STRIP) {
        const size_t at = (size_t)(first + s) * (size_t)p->columns + (size_t)column;
        if (p->b_type == ACT_F32)
            memcpy(to, (const float *)p->b + at, sizeof *to * (size_t)n);
        else
            for (int k = 0; k < n; k++)
                to[k] = bf16_to_float(((const bf16 *)p->b)[at + (size_t)k]);
        for (int k = n; k < STRIP; k++)
            to[k] = 0;
    }
}

/* Up to ROWS rows of c, `depth` deep; zeros behind the last one. */
static void pack_block(float *to, const struct product *p, int first, int depth, int row)
{
    const int n = least(ROWS, p->rows - row);
    const float *from = p->a + (size_t)first * p->a_down + (size_t)row * p->a_right;
    if (n < ROWS)
        memset(to, 0, sizeof *to * (size_t)depth * ROWS);
    if (n == ROWS && p->a_right == 1) {
        for (int s = 0; s < depth; s++)
            memcpy(to + (size_t)s * ROWS, from + (size_t)s * p->a_down, sizeof *to * ROWS);
        return;
    }
    for (int r = 0; r < n; r++)
        for (int s = 0; s < depth; s++)
            to[s * ROWS + r] = from[(size_t)s * p->a_down + (size_t)r * p->a_right];
}

/* A tile at the edge of c has less than ROWS rows or STRIP columns. */
static void add_tile(float *c, size_t ldc, const float *a, const float *b, int depth, int rows,
                     int columns)
{
    vf sum[ROWS][WIDTH] = {0};
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < WIDTH && j * VF < columns; j++)
            sum[r][j] = vf_load_part(c + (size_t)r * ldc + j * VF, least(VF, columns - j * VF), 0);
    for (int s = 0; s < depth; s++, a += ROWS, b += STRIP)
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
            for (int j = 0; j < WIDTH; j++)
                sum[r][j] += vf_load(b + j * VF) * a[r];
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < WIDTH && j * VF < columns; j++)
            vf_store_part(c + (size_t)r * ldc + j * VF, sum[r][j], least(VF, columns - j * VF));
}

static void add_block(const struct product *p, const float *strips, int first, int depth, int row)
{
    float a[BLOCK_ROWS * GRAD_DEPTH];
    const int end = least(p->rows, row + BLOCK_ROWS);
    for (int r = row; r < end; r += ROWS)
        pack_block(a + (r - row) * depth, p, first, depth, r);
    for (int k = 0; k < p->columns; k += STRIP)
        for (int r = row; r < end; r += ROWS)
            add_tile(p->c + (size_t)r * (size_t)p->columns + k, (size_t)p->columns,
                     a + (r - row) * depth, strips + (size_t)k * (size_t)depth, depth,
                     least(ROWS, end - r), least(STRIP, p->columns - k));
}

static void add_product(const struct product *p, float *strips)
{
    for (int first = 0; first < p->depth; first += GRAD_DEPTH) {
        const int depth = least(GRAD_DEPTH, p->depth - first);
#pragma omp parallel
        {
            const unsigned mode = num_denormals_zero();
#pragma omp for schedule(static)
            for (int k = 0; k < p->columns; k += STRIP)
                pack_strip(strips + (size_t)k * (size_t)depth, p, first, depth, k);
#pragma omp for schedule(static)
            for (int r = 0; r < p->rows; r += BLOCK_ROWS)
                add_block(p, strips, first, depth, r);
            num_set_denormals(mode);
        }
    }
}

static void add_rows(float *db, const float *dy, int n, int out)
{
    enum { COLUMNS = 1024 };
#pragma omp parallel for schedule(static)
    for (int from = 0; from < out; from += COLUMNS) {
        const int end = least(out, from + COLUMNS);
        for (int i = 0; i < n; i++)
            for (int j = from; j < end; j++)
                db[j] += dy[(size_t)i * (size_t)out + (size_t)j];
    }
}

static void dense(enum act_type act, const struct linear_grad_args *a, int n, float *scratch)
{
    const size_t out = (size_t)a->out;
    if (a->dw)
        add_product(&(struct product){.c = a->dw,
                                      .a = a->dy,
                                      .a_down = out,
                                      .a_right = 1,
                                      .b = a->x,
                                      .b_type = act,
                                      .rows = a->out,
                                      .columns = a->in,
                                      .depth = n},
                    scratch);
    if (a->db)
        add_rows(a->db, a->dy, n, a->out);
    if (!a->dx)
        return;
    memset(a->dx, 0, sizeof *a->dx * (size_t)n * (size_t)a->in);
    add_product(&(struct product){.c = a->dx,
                                  .a = a->dy,
                                  .a_down = 1,
                                  .a_right = out,
                                  .b = a->w,
                                  .b_type = ACT_F32,
                                  .rows = n,
                                  .columns = a->in,
                                  .depth = a->out},
                scratch);
}

/* ---- one gradient a row ---- */

NUM_FN vf load_x(enum act_type act, const void *x, size_t at, int n)
{
    if (act == ACT_F32)
        return vf_load_part((const float *)x + at, n, 0);
    vh h = {0};
    memcpy(&h, (const bf16 *)x + at, sizeof(bf16) * (size_t)n);
    return (vf)(__builtin_convertvector(h, vu) << 16);
}

/* Up to 16 columns, from k on, of row i. */
NUM_FN void sparse_part(enum act_type act, const struct linear_grad_args *a, int i, int k, int n)
{
    const size_t in = (size_t)a->in, at_x = (size_t)i * in + (size_t)k;
    const size_t at_w = (size_t)a->col[i] * in + (size_t)k;
    if (a->dw)
        vf_store_part(a->dw + at_w,
                      vf_load_part(a->dw + at_w, n, 0) + load_x(act, a->x, at_x, n) * a->dy[i], n);
    if (a->dx)
        vf_store_part(a->dx + at_x, vf_load_part(a->w + at_w, n, 0) * a->dy[i], n);
}

/* Columns [from, to) of all rows. */
NUM_FN void sparse_columns(enum act_type act, const struct linear_grad_args *a, int n, int from,
                           int to)
{
    for (int i = 0; i < n; i++) {
        int k = from;
        for (; k + VF <= to; k += VF)
            sparse_part(act, a, i, k, VF);
        if (k < to)
            sparse_part(act, a, i, k, to - k);
    }
}

static void sparse(enum act_type act, const struct linear_grad_args *a, int n)
{
    for (int i = 0; a->db && i < n; i++)
        a->db[a->col[i]] += a->dy[i];
#pragma omp parallel if (n > 16)
    {
        const int threads = omp_get_num_threads(), id = omp_get_thread_num();
        const int vectors = (a->in + VF - 1) / VF; /* threads meet between whole vectors */
        const int from = (int)((long long)vectors * id / threads) * VF;
        const int to = least(a->in, (int)((long long)vectors * (id + 1) / threads) * VF);
        if (act == ACT_BF16)
            sparse_columns(ACT_BF16, a, n, from, to);
        else
            sparse_columns(ACT_F32, a, n, from, to);
    }
}

void CPU_FN(linear_grad)(enum act_type act, const struct linear_grad_args *a, int n, float *scratch)
{
    if (a->col)
        sparse(act, a, n);
    else
        dense(act, a, n, scratch);
}
