/* What stands between the layers of a twist's head and behind its last, and the way back. */
#include <math.h>

#include "cpu_ops.h"
#include "num.h"

/* log(1 + e) for e in [0, 1], within 3 roundings: 2 artanh(s) with s = e / (2 + e) <= 1/3, whose
 * series is far below a rounding after eight terms. */
NUM_FN vf log1p_unit(vf e)
{
    vf s = e / (2.0f + e), t = s * s, p = vf_set(1.0f / 15);
    p = p * t + 1.0f / 13;
    p = p * t + 1.0f / 11;
    p = p * t + 1.0f / 9;
    p = p * t + 1.0f / 7;
    p = p * t + 1.0f / 5;
    p = p * t + 1.0f / 3;
    return 2.0f * s * (p * t + 1.0f);
}

/* -log(1 + e^-x) = min(x, 0) - log(1 + e^-|x|): no exponential overflows. */
NUM_FN vf log_sigmoid(vf x)
{
    vf low = -vf_max(-x, vf_set(0)), size = vf_max(x, -x);
    return low - log1p_unit(vf_exp(-size));
}

static void log_sigmoid_row(float *y, const float *x, int dim)
{
    int j = 0;
    for (; j + VF <= dim; j += VF)
        vf_store(y + j, log_sigmoid(vf_load(x + j)));
    if (j < dim)
        vf_store_part(y + j, log_sigmoid(vf_load_part(x + j, dim - j, 0)), dim - j);
}

static void relu_row_f32(float *y, const float *x, int dim)
{
    for (int j = 0; j < dim; j++)
        y[j] = x[j] > 0 ? x[j] : 0;
}

static void relu_row_bf16(bf16 *y, const float *x, int dim)
{
    int j = 0;
    for (; j + VF <= dim; j += VF)
        vf_store_bf16(y + j, vf_max(vf_load(x + j), vf_set(0)));
    if (j < dim)
        vf_store_bf16_part(y + j, vf_max(vf_load_part(x + j, dim - j, 0), vf_set(0)), dim - j);
}

void CPU_FN(activate)(enum act_type act, void *y, enum activation f, const float *x, int n, int dim)
{
#pragma omp parallel for if (n > 4)
    for (int i = 0; i < n; i++) {
        const size_t at = (size_t)i * (size_t)dim;
        if (f == ACTIVATE_LOG_SIGMOID)
            log_sigmoid_row((float *)y + at, x + at, dim);
        else if (act == ACT_BF16)
            relu_row_bf16((bf16 *)y + at, x + at, dim);
        else
            relu_row_f32((float *)y + at, x + at, dim);
    }
}

/* A bfloat16 is positive exactly when its bits, as a signed integer, are. */
static void relu_grad_row_bf16(float *dx, const float *dy, const bf16 *y, int dim)
{
    for (int j = 0; j < dim; j++)
        dx[j] = (int16_t)y[j] > 0 ? dy[j] : 0;
}

static void relu_grad_row_f32(float *dx, const float *dy, const float *y, int dim)
{
    for (int j = 0; j < dim; j++)
        dx[j] = y[j] > 0 ? dy[j] : 0;
}

void CPU_FN(relu_grad)(enum act_type act, float *dx, const float *dy, const void *y, int n, int dim)
{
#pragma omp parallel for if (n > 4)
    for (int i = 0; i < n; i++) {
        const size_t at = (size_t)i * (size_t)dim;
        if (act == ACT_BF16)
            relu_grad_row_bf16(dx + at, dy + at, (const bf16 *)y + at, dim);
        else
            relu_grad_row_f32(dx + at, dy + at, (const float *)y + at, dim);
    }
}
