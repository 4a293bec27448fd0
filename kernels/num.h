/* Number helpers of the CPU kernels: vectors of 16 floats (GCC vector extensions, which every
 * instruction level compiles to what it has), bfloat16, exp. Plain IEEE arithmetic: nothing here
 * may be compiled with fast-math. */
#pragma once
#include <stdint.h>
#include <string.h>
#ifdef __SSE__
#include <immintrin.h>
#endif

#define NUM_FN static inline __attribute__((always_inline))

enum { VF = 16 }; /* floats in a vector: one AVX-512 register, and the keys of one KV page */

typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));
typedef uint16_t vh __attribute__((vector_size(32)));

NUM_FN vf vf_set(float x)
{
    return (vf){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
}

/* Have denormals count as 0 in this thread: x86 computes with them a hundred times slower. Returns
 * the mode before, for num_set_denormals. Other processors are left as they are. */
NUM_FN unsigned num_denormals_zero(void)
{
#ifdef __SSE__
    enum { FLUSH_RESULTS = 0x8000, ZERO_OPERANDS = 0x0040 };
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | FLUSH_RESULTS | ZERO_OPERANDS);
    return before;
#else
    return 0;
#endif
}

NUM_FN void num_set_denormals(unsigned mode)
{
#ifdef __SSE__
    _mm_setcsr(mode);
#else
    (void)mode;
#endif
}

/* 16 floats from anywhere; p needs no alignment. */
NUM_FN vf vf_load(const float *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

NUM_FN void vf_store(float *p, vf v)
{
    memcpy(p, &v, sizeof v);
}

/* The first n < 16 floats at p, `fill` in the other lanes. */
NUM_FN vf vf_load_part(const float *p, int n, float fill)
{
    vf v = vf_set(fill);
    memcpy(&v, p, sizeof(float) * (size_t)n);
    return v;
}

NUM_FN void vf_store_part(float *p, vf v, int n)
{
    memcpy(p, &v, sizeof(float) * (size_t)n);
}

/* mask ? a : b by lane; a mask lane is all ones or all zeros, as comparisons give it. */
NUM_FN vf vf_select(vi mask, vf a, vf b)
{
    return (vf)(((vi)a & mask) | ((vi)b & ~mask));
}

NUM_FN vf vf_max(vf a, vf b)
{
#ifdef __AVX512F__ /* GCC makes three operations of the other form */
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return vf_select(a > b, a, b);
#endif
}

/* Store the lanes of x that are in [low, high] at `to`, in order; returns how many. What follows
 * them at `to`, up to VF floats in all, may be overwritten. */
NUM_FN int vf_store_within(float *to, vf x, float low, float high)
{
#ifdef __AVX512F__
    __mmask16 mask = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(low), _CMP_GE_OQ);
    mask = _mm512_mask_cmp_ps_mask(mask, (__m512)x, _mm512_set1_ps(high), _CMP_LE_OQ);
    _mm512_storeu_ps(to, _mm512_maskz_compress_ps(mask, (__m512)x));
    return __builtin_popcount(mask);
#else
    int n = 0;
    for (int i = 0; i < VF; i++) {
        to[n] = x[i];
        n += (x[i] >= low) & (x[i] <= high);
    }
    return n;
#endif
}

/* Lane i of the result is lane i + n of v, cyclically. */
#define VF_ROTATE(v, n)                                                                            \
    __builtin_shufflevector(v, v, n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6, n + 7, n + 8,       \
                            n + 9, n + 10, n + 11, n + 12, n + 13, n + 14, n + 15)

/* Sum and maximum over the lanes, in one fixed order: halves folded onto each other. */
NUM_FN float vf_sum(vf v)
{
    v += VF_ROTATE(v, 8);
    v += VF_ROTATE(v, 4);
    v += VF_ROTATE(v, 2);
    v += VF_ROTATE(v, 1);
    return v[0];
}

NUM_FN float vf_hmax(vf v)
{
    v = vf_max(v, VF_ROTATE(v, 8));
    v = vf_max(v, VF_ROTATE(v, 4));
    v = vf_max(v, VF_ROTATE(v, 2));
    v = vf_max(v, VF_ROTATE(v, 1));
    return v[0];
}

/* e^x with a relative error below 1.2e-7 for x in [-87.33, 88.37]; exactly 0 below, so also for
 * -inf; +inf above; NaN for NaN. e^x = 2^k e^r with k = round(x / ln 2) and |r| <= ln 2 / 2; ln 2
 * is split in two so that k ln 2 is exact enough (Cody and Waite 1980). */
NUM_FN vf vf_exp(vf x)
{
    const float log2e = 0x1.715476p+0f, ln2_hi = 0x1.62e4p-1f, ln2_lo = 0x1.7f7d1cp-20f;
    const float round_bias = 0x1.8p23f; /* adding it leaves the nearest integer in the low bits */
    vf biased = x * log2e + round_bias;
    vf k = biased - round_bias;
    vf r = (x - k * ln2_hi) - k * ln2_lo;
    vf p = vf_set(0x1.6a23cep-10f); /* minimax for 1 + r + r² q(r): off by 4e-9 at most */
    p = p * r + 0x1.123a2p-7f;
    p = p * r + 0x1.5558f2p-5f;
    p = p * r + 0x1.555492p-3f;
    p = p * r + 0x1.fffffcp-2f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    vi scale = ((vi)biased + 127) << 23; /* the bias' own bits fall off the top */
    vf y = p * (vf)scale;
    y = vf_select(x < vf_set(-87.33654f), vf_set(0.0f), y);
    return vf_select(x > vf_set(88.37626f), vf_set(__builtin_inff()), y);
}

/* e^x for x <= 0, cheaper: relative error below 2.5e-7 + 7e-8 |x|; exactly 1 at 0, exactly 0 below
 * -87.7. As above, but ln 2 in one piece, a minimax polynomial of degree 5 (9.2e-8), and the
 * exponent's bias is added with round_bias; -88 makes the scale 0. */
NUM_FN vf vf_exp_neg(vf x)
{
    const float log2e = 0x1.715476p+0f, ln2 = 0x1.62e43p-1f, round_bias = 0x1.8p23f + 127;
    x = vf_max(x, vf_set(-88.0f));
    vf biased = x * log2e + round_bias;
    vf r = x - (biased - round_bias) * ln2;
    vf p = vf_set(0x1.0fa82p-7f);
    p = p * r + 0x1.573a6cp-5f;
    p = p * r + 0x1.555a6cp-3f;
    p = p * r + 0x1.fffdc6p-2f;
    p = p * r + 0x1.fffff6p-1f;
    p = p * r + 1.0f;
    return p * (vf)((vi)biased << 23);
}

typedef uint16_t bf16; /* the upper half of a float */

NUM_FN float bf16_to_float(bf16 h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* Round to nearest, ties to even; NaN stays NaN. */
NUM_FN bf16 bf16_from_float(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if (f != f)
        return (bf16)(u >> 16 | 0x40);
    return (bf16)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* The same in every lane; the result is in the low halves. */
NUM_FN vu vf_round_bf16(vf v)
{
    vu u = (vu)v;
    vu rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
    vu nan = (vu)(v != v);
    return (rounded & ~nan) | ((u >> 16 | 0x40) & nan);
}

NUM_FN void vf_store_bf16(bf16 *p, vf v)
{
    vh h = __builtin_convertvector(vf_round_bf16(v), vh);
    memcpy(p, &h, sizeof h);
}

NUM_FN void vf_store_bf16_part(bf16 *p, vf v, int n)
{
    vh h = __builtin_convertvector(vf_round_bf16(v), vh);
    memcpy(p, &h, sizeof(bf16) * (size_t)n);
}

/* A block is 32 elements, two vectors a and b. As float they follow each other; as bf16 lane i is
 * the word a[i] | b[i] << 16, so that one load and a shift or mask make a vector of floats. Block i
 * of an array of blocks; it needs no alignment. */
NUM_FN void num_load_block(int is_bf16, const void *blocks, size_t i, vf *a, vf *b)
{
    if (is_bf16) {
        vu u;
        memcpy(&u, (const char *)blocks + i * sizeof u, sizeof u);
        *a = (vf)(u << 16);
        *b = (vf)(u & 0xffff0000u);
    } else {
        const float *f = (const float *)blocks + i * 2 * VF;
        *a = vf_load(f);
        *b = vf_load(f + VF);
    }
}

/* A whole block, */
NUM_FN void num_store_block(int is_bf16, void *blocks, size_t i, vf a, vf b)
{
    if (is_bf16) {
        vu u = vf_round_bf16(a) | vf_round_bf16(b) << 16;
        memcpy((char *)blocks + i * sizeof u, &u, sizeof u);
    } else {
        float *f = (float *)blocks + i * 2 * VF;
        vf_store(f, a);
        vf_store(f + VF, b);
    }
}

/* or one lane of it. */
NUM_FN void num_put_pair(int is_bf16, void *blocks, size_t i, int lane, float a, float b)
{
    if (is_bf16) {
        ((uint32_t *)blocks)[i * VF + (size_t)lane] =
            bf16_from_float(a) | (uint32_t)bf16_from_float(b) << 16;
    } else {
        ((float *)blocks)[i * 2 * VF + (size_t)lane] = a;
        ((float *)blocks)[i * 2 * VF + (size_t)(VF + lane)] = b;
    }
}
