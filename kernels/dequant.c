#include "dequant.h"

#include <stdint.h>
#include <string.h>

/* Block layouts are written out by byte offset rather than as structs: blocks of 18, 22, 34 or 210
 * bytes follow each other without padding, so nothing in them is aligned. All products of a scale
 * and a quant are exact in float (11 + 6 + 5 bits at most): only adding the minimum rounds. */

static uint16_t load_u16(const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static float float_of_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* A half's exponent and mantissa, read as those of a float, are the number times 2^-112, subnormals
 * included. Branch-free, so that loops over it vectorise. */
static float float_of_half(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13;
    uint32_t special = (h & 0x7c00) == 0x7c00 ? 0x7f800000 : 0; /* infinity, NaN */
    uint32_t bits;
    float scaled = float_of_bits(magnitude) * 0x1p112f;
    memcpy(&bits, &scaled, sizeof bits);
    return float_of_bits(sign | bits | special);
}

static float load_half(const uint8_t *p)
{
    return float_of_half(load_u16(p));
}

static void dequant_f32(const uint8_t *src, float *dst, size_t n)
{
    memcpy(dst, src, n * sizeof *dst);
}

static void dequant_f16(const uint8_t *src, float *dst, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = load_half(src + 2 * i);
}

static void dequant_bf16(const uint8_t *src, float *dst, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = float_of_bits((uint32_t)load_u16(src + 2 * i) << 16);
}

/* {half d; int8 q[32]}: d q */
static void dequant_q8_0(const uint8_t *src, float *dst, size_t n)
{
    for (size_t b = 0; b < n / 32; b++, src += 34, dst += 32) {
        float d = load_half(src);
        for (int i = 0; i < 32; i++)
            dst[i] = d * (float)(int8_t)src[2 + i];
    }
}

/* {half d; nibbles[16]}: d (q - 8) */
static void dequant_q4_0(const uint8_t *src, float *dst, size_t n)
{
    for (size_t b = 0; b < n / 32; b++, src += 18, dst += 32) {
        float d = load_half(src);
        const uint8_t *q = src + 2;
        for (int i = 0; i < 16; i++) {
            dst[i] = d * (float)((q[i] & 15) - 8);
            dst[i + 16] = d * (float)((q[i] >> 4) - 8);
        }
    }
}

/* {half d, m; nibbles[16]}: d q + m */
static void dequant_q4_1(const uint8_t *src, float *dst, size_t n)
{
    for (size_t b = 0; b < n / 32; b++, src += 20, dst += 32) {
        float d = load_half(src), m = load_half(src + 2);
        const uint8_t *q = src + 4;
        for (int i = 0; i < 16; i++) {
            dst[i] = d * (float)(q[i] & 15) + m;
            dst[i + 16] = d * (float)(q[i] >> 4) + m;
        }
    }
}

/* The fifth bits of a block of 32: bit i belongs to element i. */
static void load_five_bits(uint8_t *q, const uint8_t *high, const uint8_t *nibbles)
{
    uint32_t h;
    memcpy(&h, high, sizeof h);
    for (int i = 0; i < 16; i++) {
        q[i] = (uint8_t)((nibbles[i] & 15) | (h >> i & 1) << 4);
        q[i + 16] = (uint8_t)(nibbles[i] >> 4 | (h >> (i + 16) & 1) << 4);
    }
}

/* {half d; uint32 high; nibbles[16]}: d (q - 16) */
static void dequant_q5_0(const uint8_t *src, float *dst, size_t n)
{
    for (size_t b = 0; b < n / 32; b++, src += 22, dst += 32) {
        float d = load_half(src);
        uint8_t q[32];
        load_five_bits(q, src + 2, src + 6);
        for (int i = 0; i < 32; i++)
            dst[i] = d * (float)(q[i] - 16);
    }
}

/* {half d, m; uint32 high; nibbles[16]}: d q + m */
static void dequant_q5_1(const uint8_t *src, float *dst, size_t n)
{
    for (size_t b = 0; b < n / 32; b++, src += 24, dst += 32) {
        float d = load_half(src), m = load_half(src + 2);
        uint8_t q[32];
        load_five_bits(q, src + 4, src + 8);
        for (int i = 0; i < 32; i++)
            dst[i] = d * (float)q[i] + m;
    }
}

/* Q4_K and Q5_K pack the six-bit scales and minima of eight groups into 12 bytes: the first four
 * groups lie in the low six bits of bytes 0..3 (scale) and 4..7 (minimum); the last four have their
 * low four bits in bytes 8..11 and their high two in the spare bits of bytes 0..7. */
static void load_group_scale(const uint8_t *packed, int group, float d, float dmin, float *scale,
                             float *min)
{
    int s, m;
    if (group < 4) {
        s = packed[group] & 63;
        m = packed[group + 4] & 63;
    } else {
        s = (packed[group + 4] & 15) | packed[group - 4] >> 6 << 4;
        m = packed[group + 4] >> 4 | packed[group] >> 6 << 4;
    }
    *scale = d * (float)s;
    *min = dmin * (float)m;
}

/* {half d, dmin; scales[12]; nibbles[128]}: d s q - dmin m. 32 bytes hold two groups of 32. */
static void dequant_q4_k(const uint8_t *src, float *dst, size_t n)
{
    for (size_t b = 0; b < n / 256; b++, src += 144) {
        float d = load_half(src), dmin = load_half(src + 2);
        const uint8_t *q = src + 16;
        for (int group = 0; group < 8; group += 2, q += 32, dst += 64) {
            float s0, m0, s1, m1;
            load_group_scale(src + 4, group, d, dmin, &s0, &m0);
            load_group_scale(src + 4, group + 1, d, dmin, &s1, &m1);
            for (int i = 0; i < 32; i++) {
                dst[i] = s0 * (float)(q[i] & 15) - m0;
                dst[i + 32] = s1 * (float)(q[i] >> 4) - m1;
            }
        }
    }
}

/* {half d, dmin; scales[12]; high[32]; nibbles[128]}: as Q4_K; bit g of high[i] is the fifth bit of
 * element i of group g. */
static void dequant_q5_k(const uint8_t *src, float *dst, size_t n)
{
    for (size_t b = 0; b < n / 256; b++, src += 176) {
        float d = load_half(src), dmin = load_half(src + 2);
        const uint8_t *high = src + 16, *q = src + 48;
        for (int group = 0; group < 8; group += 2, q += 32, dst += 64) {
            float s0, m0, s1, m1;
            load_group_scale(src + 4, group, d, dmin, &s0, &m0);
            load_group_scale(src + 4, group + 1, d, dmin, &s1, &m1);
            for (int i = 0; i < 32; i++) {
                dst[i] = s0 * (float)((q[i] & 15) | (high[i] >> group & 1) << 4) - m0;
                dst[i + 32] = s1 * (float)(q[i] >> 4 | (high[i] >> (group + 1) & 1) << 4) - m1;
            }
        }
    }
}

/* {nibbles[128]; high[64]; int8 scale[16]; half d}: d s (q - 32), a scale for every 16 elements.
 * Each half of a block is 128 elements in four rows of 32: nibbles[i] and nibbles[i + 32] hold rows
 * 0 and 1 in their low halves, rows 2 and 3 in their high ones; high[i] holds two bits of each row.
 */
static void dequant_q6_k(const uint8_t *src, float *dst, size_t n)
{
    for (size_t half = 0; half < n / 128; half++, dst += 128) {
        const uint8_t *block = src + half / 2 * 210;
        const uint8_t *q = block + half % 2 * 64, *high = block + 128 + half % 2 * 32;
        const uint8_t *scale = block + 192 + half % 2 * 8;
        float d = load_half(block + 208);
        for (int group = 0; group < 8; group++) { /* half a row: 16 elements of one scale */
            int row = group / 2, first = group % 2 * 16;
            const uint8_t *nibbles = q + row % 2 * 32 + first;
            float s = d * (float)(int8_t)scale[group];
            for (int i = 0; i < 16; i++) {
                int v = (nibbles[i] >> row / 2 * 4 & 15) | (high[first + i] >> 2 * row & 3) << 4;
                dst[16 * group + i] = s * (float)(v - 32);
            }
        }
    }
}

struct format {
    int type;
    const char *name;
    int block;    /* elements */
    size_t bytes; /* a block */
    void (*dequant)(const uint8_t *src, float *dst, size_t n);
};

static const struct format formats[] = {
    {TENSOR_F32, "F32", 1, 4, dequant_f32},        {TENSOR_F16, "F16", 1, 2, dequant_f16},
    {TENSOR_BF16, "BF16", 1, 2, dequant_bf16},     {TENSOR_Q8_0, "Q8_0", 32, 34, dequant_q8_0},
    {TENSOR_Q4_0, "Q4_0", 32, 18, dequant_q4_0},   {TENSOR_Q4_1, "Q4_1", 32, 20, dequant_q4_1},
    {TENSOR_Q5_0, "Q5_0", 32, 22, dequant_q5_0},   {TENSOR_Q5_1, "Q5_1", 32, 24, dequant_q5_1},
    {TENSOR_Q4_K, "Q4_K", 256, 144, dequant_q4_k}, {TENSOR_Q5_K, "Q5_K", 256, 176, dequant_q5_k},
    {TENSOR_Q6_K, "Q6_K", 256, 210, dequant_q6_k},
};

static const struct format *find(int type)
{
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (formats[i].type == type)
            return &formats[i];
    return NULL;
}

bool tensor_type_known(int type)
{
    return find(type) != NULL;
}

const char *tensor_type_name(int type)
{
    const struct format *f = find(type);
    return f ? f->name : "?";
}

int tensor_type_block(int type)
{
    return find(type)->block;
}

size_t tensor_row_bytes(int type, size_t n)
{
    const struct format *f = find(type);
    return n / (size_t)f->block * f->bytes;
}

void dequant(int type, const void *src, float *dst, size_t n)
{
    find(type)->dequant(src, dst, n);
}
