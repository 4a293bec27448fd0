/* Root mean square norm (Zhang and Sennrich 2019). */
#include <math.h>

#include "cpu_ops.h"
#include "num.h"

/* The sum over a row runs in 32 lanes, folded at the end: the order is fixed by dim alone. */
static float sum_of_squares(const float *x, int dim)
{
    vf even = {0}, odd = {0};
    int j = 0;
    for (; j + 2 * VF <= dim; j += 2 * VF) {
        vf a = vf_load(x + j), b = vf_load(x + j + VF);
        even += a * a;
        odd += b * b;
    }
    for (; j < dim; j += VF) {
        vf a = dim - j >= VF ? vf_load(x + j) : vf_load_part(x + j, dim - j, 0.0f);
        even += a * a;
    }
    return vf_sum(even + odd);
}

static void norm_row_f32(float *y, const float *x, const float *w, int dim, float scale)
{
    for (int j = 0; j < dim; j++)
        y[j] = x[j] * scale * w[j];
}

static void norm_row_bf16(bf16 *y, const float *x, const float *w, int dim, float scale)
{
    int j = 0;
    for (; j + VF <= dim; j += VF)
        vf_store_bf16(y + j, vf_load(x + j) * scale * vf_load(w + j));
    for (; j < dim; j++)
        y[j] = bf16_from_float(x[j] * scale * w[j]);
}

void CPU_FN(rmsnorm)(enum act_type act, void *y, const float *x, const float *w, int n, int dim,
                     float eps)
{
#pragma omp parallel for if (n > 16)
    for (int i = 0; i < n; i++) {
        size_t at = (size_t)i * (size_t)dim;
        float scale = 1.0f / sqrtf(sum_of_squares(x + at, dim) / (float)dim + eps);
        if (act == ACT_BF16)
            norm_row_bf16((bf16 *)y + at, x + at, w, dim, scale);
        else
            norm_row_f32((float *)y + at, x + at, w, dim, scale);
    }
}
