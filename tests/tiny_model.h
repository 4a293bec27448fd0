/* A llama of random weights and eleven tokens, as a GGUF file: 0 begins texts, 1 ends them, 2 to 9
 * are "a" to "h". For tests that need a model of which everything can be enumerated. */
#pragma once
#include <stdlib.h>
#include <unistd.h>

#include "../core/buf.h"
#include "../kernels/philox.h"
#include "check.h"
#include "gguf_write.h"

enum {
    DIM = 16,
    LAYERS = 2,
    HEADS = 4,
    KV_HEADS = 2,
    HEAD_DIM = 4,
    FFN = 24,
    VOCAB = 11,
    CONTEXT = 256
};

static const int32_t PROMPT[] = {0, 2, 3, 4, 2, 5}; /* of most tests: "abcad" */

static void put_matrix(struct gguf_write *w, const char *name, int rows, int columns,
                       uint32_t *seed, float scale)
{
    float *data = calloc((size_t)rows * (size_t)columns, sizeof *data);
    for (int i = 0; i < rows * columns; i++) {
        struct philox r = philox4x32(5, (*seed)++, 0, 0, 0);
        data[i] = scale * (float)(2 * philox_u01(r.v[0], r.v[1]) - 1);
    }
    int64_t dims[2] = {columns, rows};
    gguf_write_tensor(w, name, 0, 2, dims, data, (size_t)rows * (size_t)columns * sizeof *data);
    free(data);
}

static void put_norm(struct gguf_write *w, const char *name)
{
    float ones[DIM];
    for (int i = 0; i < DIM; i++)
        ones[i] = 1;
    int64_t dims[1] = {DIM};
    gguf_write_tensor(w, name, 0, 1, dims, ones, sizeof ones);
}

static void put_metadata(struct gguf_write *w)
{
    static const char *const pieces[VOCAB] = {"<s>", "</s>", "a", "b", "c",           "d",
                                              "e",   "f",    "g", "h", "\xe2\x96\x81"};
    static const int32_t types[VOCAB] = {3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    static const float scores[VOCAB];
    gguf_write_string(w, "general.architecture", "llama");
    gguf_write_string(w, "general.name", "test");
    gguf_write_u32(w, "llama.context_length", CONTEXT);
    gguf_write_u32(w, "llama.embedding_length", DIM);
    gguf_write_u32(w, "llama.block_count", LAYERS);
    gguf_write_u32(w, "llama.feed_forward_length", FFN);
    gguf_write_u32(w, "llama.attention.head_count", HEADS);
    gguf_write_u32(w, "llama.attention.head_count_kv", KV_HEADS);
    gguf_write_f32(w, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    gguf_write_string(w, "tokenizer.ggml.model", "llama");
    gguf_write_strings(w, "tokenizer.ggml.tokens", pieces, VOCAB);
    gguf_write_f32s(w, "tokenizer.ggml.scores", scores, VOCAB);
    gguf_write_i32s(w, "tokenizer.ggml.token_type", types, VOCAB);
    gguf_write_u32(w, "tokenizer.ggml.bos_token_id", 0);
    gguf_write_u32(w, "tokenizer.ggml.eos_token_id", 1);
}

/* path: a template for mkstemp. */
static void tiny_model_write(char *path)
{
    struct gguf_write w = {0};
    uint32_t seed = 0;
    char name[64];
    put_metadata(&w);
    put_matrix(&w, "token_embd.weight", VOCAB, DIM, &seed, 1);
    for (int l = 0; l < LAYERS; l++) {
        static const struct {
            const char *name;
            int rows, columns;
        } m[] = {{"attn_q", HEADS * HEAD_DIM, DIM},
                 {"attn_k", KV_HEADS * HEAD_DIM, DIM},
                 {"attn_v", KV_HEADS * HEAD_DIM, DIM},
                 {"attn_output", DIM, HEADS * HEAD_DIM},
                 {"ffn_gate", FFN, DIM},
                 {"ffn_up", FFN, DIM},
                 {"ffn_down", DIM, FFN}};
        for (size_t i = 0; i < sizeof m / sizeof *m; i++) {
            snprintf(name, sizeof name, "blk.%d.%s.weight", l, m[i].name);
            put_matrix(&w, name, m[i].rows, m[i].columns, &seed, 0.8f);
        }
        snprintf(name, sizeof name, "blk.%d.attn_norm.weight", l);
        put_norm(&w, name);
        snprintf(name, sizeof name, "blk.%d.ffn_norm.weight", l);
        put_norm(&w, name);
    }
    put_norm(&w, "output_norm.weight");
    struct buf file = {0};
    gguf_write_end(&w, &file);
    int fd = mkstemp(path);
    EXPECT(fd >= 0 && write(fd, file.data, file.len) == (ssize_t)file.len);
    close(fd);
    buf_free(&file);
}
