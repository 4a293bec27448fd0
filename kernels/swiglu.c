/* The gated activation of the feed-forward layer (Shazeer 2020): silu(gate) * up. */
#include "cpu_ops.h"
#include "num.h"

/* silu(g) u = g u / (1 + e^-g). Where e^-g overflows the result is -0, as it should be. */
static vf swiglu(vf g, vf u)
{
    return g * u / (1.0f + vf_exp(-g));
}

static void swiglu_row_f32(float *y, const float *g, const float *u, int ffn)
{
    int j = 0;
    for (; j + VF <= ffn; j += VF)
        vf_store(y + j, swiglu(vf_load(g + j), vf_load(u + j)));
    if (j < ffn)
        vf_store_part(y + j,
                      swiglu(vf_load_part(g + j, ffn - j, 0), vf_load_part(u + j, ffn - j, 0)),
                      ffn - j);
}

static void swiglu_row_bf16(bf16 *y, const float *g, const float *u, int ffn)
{
    int j = 0;
    for (; j + VF <= ffn; j += VF)
        vf_store_bf16(y + j, swiglu(vf_load(g + j), vf_load(u + j)));
    if (j < ffn)
        vf_store_bf16_part(y + j,
                           swiglu(vf_load_part(g + j, ffn - j, 0), vf_load_part(u + j, ffn - j, 0)),
                           ffn - j);
}

void CPU_FN(swiglu)(enum act_type act, void *y, const float *gu, int n, int ffn)
{
#pragma omp parallel for if (n > 4)
    for (int i = 0; i < n; i++) {
        const float *g = gu + (size_t)i * 2 * (size_t)ffn;
        size_t at = (size_t)i * (size_t)ffn;
        if (act == ACT_BF16)
            swiglu_row_bf16((bf16 *)y + at, g, g + ffn, ffn);
        else
            swiglu_row_f32((float *)y + at, g, g + ffn, ffn);
    }
}
