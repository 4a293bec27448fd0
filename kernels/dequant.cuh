/* The tensor formats of dequant.c, element by element on the device, to the same bits.
 *
 * at_<format>(row, i) is element i of a row; a row begins on an even address, one of float on a
 * multiple of 4. Fusing a product with the minimum that is added does not matter: the product is
 * exact. */
#pragma once
#include "cuda.cuh"

/* Bits of a byte, `n` of them from `first` on. */
static __device__ __forceinline__ int bits(int byte, int first, int n)
{
    return byte >> first & ((1 << n) - 1);
}

/* Element i of 32 in 16 bytes: the low halves come first. */
static __device__ __forceinline__ int nibble(const uint8_t *q, int i)
{
    return bits(q[i % 16], i / 16 * 4, 4);
}

static __device__ __forceinline__ float load_half(const uint8_t *p)
{
    const uint32_t h = *reinterpret_cast<const uint16_t *>(p);
    const uint32_t special = (h & 0x7c00) == 0x7c00 ? 0x7f800000 : 0; /* infinity, NaN */
    const float size = __uint_as_float((h & 0x7fff) << 13) * 0x1p112f;
    return __uint_as_float((h & 0x8000) << 16 | __float_as_uint(size) | special);
}

static __device__ __forceinline__ float at_f32(const uint8_t *row, int i)
{
    return reinterpret_cast<const float *>(row)[i];
}

static __device__ __forceinline__ float at_f16(const uint8_t *row, int i)
{
    return load_half(row + 2 * (size_t)i);
}

static __device__ __forceinline__ float at_bf16(const uint8_t *row, int i)
{
    return to_float(reinterpret_cast<const bf16 *>(row)[i]);
}

/* {half d; int8 q[32]}: d q */
static __device__ __forceinline__ float at_q8_0(const uint8_t *row, int i)
{
    const uint8_t *block = row + (size_t)(i / 32) * 34;
    return load_half(block) * (float)(int8_t)block[2 + i % 32];
}

/* {half d; nibbles[16]}: d (q - 8) */
static __device__ __forceinline__ float at_q4_0(const uint8_t *row, int i)
{
    const uint8_t *block = row + (size_t)(i / 32) * 18;
    return load_half(block) * (float)(nibble(block + 2, i % 32) - 8);
}

/* {half d, m; nibbles[16]}: d q + m */
static __device__ __forceinline__ float at_q4_1(const uint8_t *row, int i)
{
    const uint8_t *block = row + (size_t)(i / 32) * 20;
    return load_half(block) * (float)nibble(block + 4, i % 32) + load_half(block + 2);
}

/* The fifth bit of element i of 32 is bit i of four bytes. */
static __device__ __forceinline__ int five_bits(const uint8_t *high, const uint8_t *q, int i)
{
    return nibble(q, i) | bits(high[i / 8], i % 8, 1) << 4;
}

/* {half d; uint32 high; nibbles[16]}: d (q - 16) */
static __device__ __forceinline__ float at_q5_0(const uint8_t *row, int i)
{
    const uint8_t *block = row + (size_t)(i / 32) * 22;
    return load_half(block) * (float)(five_bits(block + 2, block + 6, i % 32) - 16);
}

/* {half d, m; uint32 high; nibbles[16]}: d q + m */
static __device__ __forceinline__ float at_q5_1(const uint8_t *row, int i)
{
    const uint8_t *block = row + (size_t)(i / 32) * 24;
    return load_half(block) * (float)five_bits(block + 4, block + 8, i % 32) + load_half(block + 2);
}

/* What Q4_K and Q5_K make of quant q of a group: d s q - dmin m. The packed six-bit numbers are
 * explained in dequant.c. */
static __device__ __forceinline__ float group_value(const uint8_t *block, int group, int q)
{
    const uint8_t *packed = block + 4;
    int s, m;
    if (group < 4) {
        s = bits(packed[group], 0, 6);
        m = bits(packed[group + 4], 0, 6);
    } else {
        s = bits(packed[group + 4], 0, 4) | bits(packed[group - 4], 6, 2) << 4;
        m = bits(packed[group + 4], 4, 4) | bits(packed[group], 6, 2) << 4;
    }
    return load_half(block) * (float)s * (float)q - load_half(block + 2) * (float)m;
}

/* 32 bytes hold two groups of 32, the even one in the low halves. */
static __device__ __forceinline__ int group_nibble(const uint8_t *q, int group, int i)
{
    return bits(q[group / 2 * 32 + i], group % 2 * 4, 4);
}

/* {half d, dmin; scales[12]; nibbles[128]} */
static __device__ __forceinline__ float at_q4_k(const uint8_t *row, int i)
{
    const uint8_t *block = row + (size_t)(i / 256) * 144;
    const int group = i % 256 / 32;
    return group_value(block, group, group_nibble(block + 16, group, i % 32));
}

/* {half d, dmin; scales[12]; high[32]; nibbles[128]} */
static __device__ __forceinline__ float at_q5_k(const uint8_t *row, int i)
{
    const uint8_t *block = row + (size_t)(i / 256) * 176;
    const int group = i % 256 / 32, high = bits(block[16 + i % 32], group, 1);
    return group_value(block, group, group_nibble(block + 48, group, i % 32) | high << 4);
}

/* {nibbles[128]; high[64]; int8 scale[16]; half d}: d s (q - 32). A block is two halves of four
 * rows of 32; two scales a row. */
static __device__ __forceinline__ float at_q6_k(const uint8_t *row, int i)
{
    const uint8_t *block = row + (size_t)(i / 256) * 210;
    const int half = i % 256 / 128, line = i % 128 / 32, k = i % 32;
    const int low = bits(block[half * 64 + line % 2 * 32 + k], line / 2 * 4, 4);
    const int high = bits(block[128 + half * 32 + k], line * 2, 2);
    const float scale = load_half(block + 208) * (float)(int8_t)block[192 + i % 256 / 16];
    return scale * (float)((low | high << 4) - 32);
}

/* Element i of a row of any type, which is the same for a whole block of threads. */
static __device__ __forceinline__ float dequant_at(enum tensor_type type, const uint8_t *row, int i)
{
    switch (type) {
    case TENSOR_F32:
        return at_f32(row, i);
    case TENSOR_F16:
        return at_f16(row, i);
    case TENSOR_BF16:
        return at_bf16(row, i);
    case TENSOR_Q8_0:
        return at_q8_0(row, i);
    case TENSOR_Q4_0:
        return at_q4_0(row, i);
    case TENSOR_Q4_1:
        return at_q4_1(row, i);
    case TENSOR_Q5_0:
        return at_q5_0(row, i);
    case TENSOR_Q5_1:
        return at_q5_1(row, i);
    case TENSOR_Q4_K:
        return at_q4_k(row, i);
    case TENSOR_Q5_K:
        return at_q5_k(row, i);
    case TENSOR_Q6_K:
        return at_q6_k(row, i);
    }
    return 0;
}
