/* The matrix multiply without AMX: float arithmetic on weights of either type.
 *
 * x is first widened to float and put in blocks of ROWS rows, element by element: what the inner
 * loop broadcasts lies side by side. The last block is filled up with zeros, so every row goes
 * through the very same code, and its sums run over `in` in one order. A thread walks its own
 * panels once, with all rows per panel, and prefetches the next panel meanwhile. */
#include <string.h>

#include "cpu_ops.h"
#include "num.h"

/* So many rows and halves of a panel at a time as the level has registers for. */
#if defined(__AVX512F__)
enum { ROWS = 8, HALVES = 2 };
#elif defined(__AVX2__)
enum { ROWS = 4, HALVES = 1 };
#else
enum { ROWS = 2, HALVES = 1 };
#endif

_Static_assert(GEMM_ROWS % ROWS == 0, "scratch for GEMM_ROWS rows at a time holds whole blocks");

/* ---- x in blocks ---- */

static void pack_row(enum act_type act, float *block, const void *x, size_t at, int in)
{
    if (act == ACT_BF16)
        for (int k = 0; k < in; k++)
            block[k * ROWS] = bf16_to_float(((const bf16 *)x)[at + (size_t)k]);
    else
        for (int k = 0; k < in; k++)
            block[k * ROWS] = ((const float *)x)[at + (size_t)k];
}

static void pack_rows(enum act_type act, float *packed, const void *x, int n,
                      const struct panels *w)
{
    const size_t depth = (size_t)w->steps * DEPTH;
#pragma omp parallel for if (n > 16)
    for (int i = 0; i < n; i += ROWS) {
        float *block = packed + (size_t)i * depth;
        if (n - i < ROWS || w->in < (int)depth)
            memset(block, 0, sizeof *block * ROWS * depth);
        for (int r = 0; r < ROWS && i + r < n; r++)
            pack_row(act, block + r, x, (size_t)(i + r) * (size_t)w->in, w->in);
    }
}

/* ---- one block of rows times one panel ---- */

struct sums {
    vf at[ROWS][HALVES];
};

/* Memory that will be wanted next. */
struct ahead {
    const char *at, *end;
    int lines; /* of 64 bytes, for each two elements of depth */
};

/* The inner loop: `rows` rows of the block, HALVES halves of the panel from `half` on. */
NUM_FN void multiply_block(enum act_type type, int rows, struct sums *sums, const float *x,
                           const unsigned char *w, int steps, int half, struct ahead *ahead)
{
    const size_t line = type == ACT_BF16 ? 64 : 128; /* bytes of a block */
    const int lines = ahead->at < ahead->end ? ahead->lines : 0;
    const char *at = ahead->at;
    vf sum[ROWS][HALVES] = {0};
    for (int step = 0; step < steps; step++, w += 2 * VF * line)
        for (int p = 0; p < DEPTH / 2; p++, x += 2 * ROWS) {
            vf even[HALVES], odd[HALVES];
            for (int i = 0; i < lines; i++, at += 64)
                __builtin_prefetch(at, 0, 2);
#pragma GCC unroll 2
            for (int h = 0; h < HALVES; h++)
                num_load_block(type == ACT_BF16, w, (size_t)((half + h) * VF + p), &even[h],
                               &odd[h]);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
                for (int h = 0; h < HALVES; h++)
                    sum[r][h] += even[h] * x[r];
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
                for (int h = 0; h < HALVES; h++)
                    sum[r][h] += odd[h] * x[ROWS + r];
        }
    ahead->at = at;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int h = 0; h < HALVES; h++)
            sums->at[r][h] = sum[r][h];
}

/* A single row is worth a loop of its own: then only the weights' bytes matter. */
NUM_FN void multiply_rows(enum act_type type, int rows, struct sums *sums, const float *x,
                          const unsigned char *w, int steps, int half, struct ahead *ahead)
{
    if (rows == 1)
        multiply_block(type, 1, sums, x, w, steps, half, ahead);
    else
        multiply_block(type, ROWS, sums, x, w, steps, half, ahead);
}

static void store_sums(float *y, size_t ldy, bool add, const struct sums *sums, int rows,
                       int columns)
{
    for (int r = 0; r < rows; r++, y += ldy)
        for (int h = 0; h < HALVES && h * VF < columns; h++) {
            int part = columns - h * VF < VF ? columns - h * VF : VF;
            vf sum = sums->at[r][h];
            if (add)
                sum += vf_load_part(y + h * VF, part, 0.0f);
            vf_store_part(y + h * VF, sum, part);
        }
}

static void multiply_panel(float *y, bool add, const float *x, const struct panels *w, int panel,
                           int n)
{
    const unsigned char *data = w->data + (size_t)panel * w->panel_bytes;
    const char *next = (const char *)data + w->panel_bytes;
    const int first = panel * PANEL, columns = w->out - first < PANEL ? w->out - first : PANEL;
    const int pairs = w->steps * DEPTH / 2 * ((n + ROWS - 1) / ROWS) * (2 / HALVES);
    struct ahead ahead = {next, next + w->panel_bytes,
                          ((int)(w->panel_bytes / 64) + pairs - 1) / pairs};
    struct sums sums;
    for (int i = 0; i < n; i += ROWS)
        for (int half = 0; half < 2 && half * VF < columns; half += HALVES) {
            const float *block = x + (size_t)i * (size_t)w->steps * DEPTH;
            const int rows = n - i < ROWS ? n - i : ROWS;
            if (w->type == ACT_BF16)
                multiply_rows(ACT_BF16, rows, &sums, block, data, w->steps, half, &ahead);
            else
                multiply_rows(ACT_F32, rows, &sums, block, data, w->steps, half, &ahead);
            store_sums(y + (size_t)i * (size_t)w->out + first + half * VF, (size_t)w->out, add,
                       &sums, rows, columns - half * VF);
        }
}

void CPU_FN(multiply)(float *y, bool add, enum act_type act, const void *x, const struct panels *w,
                      int n, float *scratch)
{
    const int n_panels = (w->out + PANEL - 1) / PANEL;
    const size_t x_row = (size_t)w->in * act_size(act);
    for (int i = 0; i < n; i += GEMM_ROWS) {
        const int rows = n - i < GEMM_ROWS ? n - i : GEMM_ROWS;
        pack_rows(act, scratch, (const char *)x + (size_t)i * x_row, rows, w);
#pragma omp parallel for schedule(static)
        for (int p = 0; p < n_panels; p++)
            multiply_panel(y + (size_t)i * (size_t)w->out, add, scratch, w, p, rows);
    }
}
