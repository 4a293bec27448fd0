/* The number formats of a model file, turned into float. Pure functions on host memory.
 * Ids are those of GGUF (ggml_type). Block layouts: docs of the GGUF format; low nibbles are
 * elements 0..15. */
#pragma once
#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum tensor_type {
    TENSOR_F32 = 0,
    TENSOR_F16 = 1,
    TENSOR_Q4_0 = 2,
    TENSOR_Q4_1 = 3,
    TENSOR_Q5_0 = 6,
    TENSOR_Q5_1 = 7,
    TENSOR_Q8_0 = 8,
    TENSOR_Q4_K = 12,
    TENSOR_Q5_K = 13,
    TENSOR_Q6_K = 14,
    TENSOR_BF16 = 30,
};

bool tensor_type_known(int type);
const char *tensor_type_name(int type);      /* "Q4_1"; "?" when unknown */
int tensor_type_block(int type);             /* elements a block: 1, 32 or 256 */
size_t tensor_row_bytes(int type, size_t n); /* bytes of n elements; n is a multiple of the block */

/* dst[0..n) = the first n elements at src; n is a multiple of the block. src needs no alignment. */
void dequant(int type, const void *src, float *dst, size_t n);

#ifdef __cplusplus
}
#endif
