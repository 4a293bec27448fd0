/* Models of well-known shapes with random weights, as GGUF files in memory. All matrices are the
 * same bytes of the file, so that 8 billion parameters take a gigabyte and a second: for timing, a
 * matrix is as good as another. */
#pragma once
#include <stdio.h>
#include <stdlib.h>

#include "../../kernels/dequant.h"
#include "../gguf_write.h"

struct shape {
    const char *name;
    int layers, dim, ffn, heads, kv_heads, vocab;
    int tied; /* the head is the embedding table */
};

static const struct shape shapes[] = {
    {"tiny", 3, 64, 96, 4, 2, 515, 1},
    {"135m", 30, 576, 1536, 9, 3, 49152, 1},
    {"1b", 16, 2048, 8192, 32, 8, 128256, 1},
    {"8b", 32, 4096, 14336, 32, 8, 128256, 0},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes, RANDOM_CONTEXT = 512 };

/* Ends the program when there is no such shape. */
static inline const struct shape *shape_named(const char *name)
{
    for (int i = 0; i < N_SHAPES; i++)
        if (strcmp(shapes[i].name, name) == 0)
            return &shapes[i];
    fprintf(stderr, "no shape \"%s\": tiny, 135m, 1b, 8b\n", name);
    exit(2);
}

static inline int shape_head_dim(const struct shape *s)
{
    return s->dim / s->heads;
}

static inline int shape_qkv(const struct shape *s)
{
    return (s->heads + 2 * s->kv_heads) * shape_head_dim(s);
}

/* Elements of all matrices that a token is multiplied with. */
static inline double shape_parameters(const struct shape *s)
{
    const double attention = (double)s->dim * (shape_qkv(s) + s->dim);
    return s->layers * (attention + 3.0 * s->dim * s->ffn) + (double)s->vocab * s->dim;
}

/* Uniform in ±1/16, as bf16, a block of them over and over. */
static inline void random_bf16(struct buf *out, size_t bytes)
{
    enum { BLOCK = 1 << 20 };
    uint16_t *block = malloc(BLOCK * sizeof *block);
    uint64_t x = 1;
    for (int i = 0; i < BLOCK; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        const float f = (float)(int32_t)(x >> 32) * 0x1p-35f;
        uint32_t u;
        memcpy(&u, &f, sizeof u);
        block[i] = (uint16_t)(u >> 16);
    }
    for (size_t at = 0; at < bytes; at += BLOCK * sizeof *block)
        buf_add(out, block,
                bytes - at < BLOCK * sizeof *block ? bytes - at : BLOCK * sizeof *block);
    free(block);
}

static inline void random_keys(struct gguf_write *w, const struct shape *s)
{
    gguf_write_string(w, "general.architecture", "llama");
    gguf_write_string(w, "general.name", s->name);
    gguf_write_u32(w, "llama.context_length", RANDOM_CONTEXT);
    gguf_write_u32(w, "llama.embedding_length", (uint32_t)s->dim);
    gguf_write_u32(w, "llama.block_count", (uint32_t)s->layers);
    gguf_write_u32(w, "llama.feed_forward_length", (uint32_t)s->ffn);
    gguf_write_u32(w, "llama.attention.head_count", (uint32_t)s->heads);
    gguf_write_u32(w, "llama.attention.head_count_kv", (uint32_t)s->kv_heads);
    gguf_write_f32(w, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
}

static inline void random_layer(struct gguf_write *w, const struct shape *s, int layer,
                                uint64_t norm_at)
{
    const int q = s->dim, kv = s->kv_heads * shape_head_dim(s);
    const struct {
        const char *name;
        int64_t dim[2]; /* in, out */
    } matrices[] = {{"attn_q", {s->dim, q}},        {"attn_k", {s->dim, kv}},
                    {"attn_v", {s->dim, kv}},       {"attn_output", {q, s->dim}},
                    {"ffn_gate", {s->dim, s->ffn}}, {"ffn_up", {s->dim, s->ffn}},
                    {"ffn_down", {s->ffn, s->dim}}};
    const int64_t dim = s->dim;
    char name[64];
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) {
        snprintf(name, sizeof name, "blk.%d.%s.weight", layer, matrices[i].name);
        gguf_write_tensor_at(w, name, TENSOR_BF16, 2, matrices[i].dim, 0);
    }
    snprintf(name, sizeof name, "blk.%d.attn_norm.weight", layer);
    gguf_write_tensor_at(w, name, TENSOR_F32, 1, &dim, norm_at);
    snprintf(name, sizeof name, "blk.%d.ffn_norm.weight", layer);
    gguf_write_tensor_at(w, name, TENSOR_F32, 1, &dim, norm_at);
}

/* file: an empty buffer, the caller's. */
static inline void random_model(struct buf *file, const struct shape *s)
{
    struct gguf_write w = {0};
    const int64_t dim = s->dim, table[2] = {s->dim, s->vocab};
    size_t most = (size_t)s->dim * (size_t)(s->vocab > s->ffn ? s->vocab : s->ffn);
    random_keys(&w, s);
    random_bf16(&w.data, most * sizeof(uint16_t));
    gguf_pad(&w.data);
    const uint64_t norm_at = w.data.len;
    for (int i = 0; i < s->dim; i++)
        buf_add(&w.data, &(float){1}, sizeof(float));
    gguf_write_tensor_at(&w, "token_embd.weight", TENSOR_BF16, 2, table, 0);
    gguf_write_tensor_at(&w, "output_norm.weight", TENSOR_F32, 1, &dim, norm_at);
    if (!s->tied)
        gguf_write_tensor_at(&w, "output.weight", TENSOR_BF16, 2, table, 0);
    for (int i = 0; i < s->layers; i++)
        random_layer(&w, s, i, norm_at);
    gguf_write_end(&w, file);
}
