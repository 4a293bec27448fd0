/* What the request readers know of a model, without one: a SentencePiece vocabulary of letters,
 * bytes and a few words, a context of 128 tokens and small limits. */
#pragma once
#include <stdio.h>
#include <stdlib.h>

#include "../core/engine.h"
#include "gguf_write.h"

enum tiny_kind {
    TINY_BOS,    /* a tokenizer that puts BOS before a text */
    TINY_NO_BOS, /* one that does not */
    TINY_IDS,    /* no tokenizer at all: ids only */
};

struct tiny_info {
    struct buf file;
    struct gguf *gguf;
    struct tokenizer *tokenizer;
    struct engine_info info;
};

enum { TINY_VOCAB = 320 };

/* Ids: 0 <unk>, 1 <s>, 2 </s>, 3 <|im_end|>, 4..259 the bytes, then a space, letters and words. */
static inline void tiny_write(struct gguf_write *w, enum tiny_kind kind)
{
    static const char *const words[] = {"he", "the", "▁the", "ca", "cat", "▁cat",
                                        "do", "dog", "▁dog", "ha", "hat", "▁hat"};
    static char names[TINY_VOCAB][24];
    static const char *tokens[TINY_VOCAB];
    static float scores[TINY_VOCAB];
    static int32_t types[TINY_VOCAB];
    int n = 0;
    for (const char *const *s = (const char *const[]){"<unk>", "<s>", "</s>", "<|im_end|>", NULL};
         *s; s++)
        snprintf(names[n++], sizeof *names, "%s", *s);
    for (int byte = 0; byte < 256; byte++)
        snprintf(names[n++], sizeof *names, "<0x%02X>", byte);
    snprintf(names[n++], sizeof *names, "▁");
    for (char c = 'a'; c <= 'z'; c++)
        snprintf(names[n++], sizeof *names, "%c", c);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        snprintf(names[n++], sizeof *names, "%s", words[i]);
    for (int i = 0; i < TINY_VOCAB; i++) {
        if (i >= n)
            snprintf(names[i], sizeof *names, "<unused%d>", i);
        if (i == TINY_VOCAB - 1)
            snprintf(names[i], sizeof *names, "<|im_start|>");
        tokens[i] = names[i];
        scores[i] = (float)-i;
        types[i] = i == 0 ? 2 : i < 4 || i == TINY_VOCAB - 1 ? 3 : i < 260 ? 6 : i < n ? 1 : 5;
    }
    gguf_write_string(w, "tokenizer.ggml.model", kind == TINY_IDS ? "none" : "llama");
    if (kind == TINY_IDS)
        return;
    gguf_write_strings(w, "tokenizer.ggml.tokens", tokens, TINY_VOCAB);
    gguf_write_f32s(w, "tokenizer.ggml.scores", scores, TINY_VOCAB);
    gguf_write_i32s(w, "tokenizer.ggml.token_type", types, TINY_VOCAB);
    gguf_write_u32(w, "tokenizer.ggml.bos_token_id", 1);
    gguf_write_u32(w, "tokenizer.ggml.eos_token_id", 2);
    gguf_write_bool(w, "tokenizer.ggml.add_bos_token", kind == TINY_BOS);
    gguf_write_bool(w, "tokenizer.ggml.add_space_prefix", 0);
}

static inline void tiny_open(struct tiny_info *t, enum tiny_kind kind)
{
    struct gguf_write w = {0};
    struct err err;
    *t = (struct tiny_info){0};
    tiny_write(&w, kind);
    gguf_write_end(&w, &t->file);
    if (gguf_open_memory(&t->gguf, t->file.data, t->file.len, &err) ||
        tokenizer_open(&t->tokenizer, t->gguf, TINY_VOCAB, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        exit(1);
    }
    t->info = (struct engine_info){
        .model = "tiny",
        .fingerprint = "0123456789abcdef",
        .twist_dir = "twists",
        .config = {.dim = 8, .vocab = TINY_VOCAB, .context = 128, .parameters = 12345},
        .context = 128,
        .chat = {.format = CHAT_CHATML, .system = "he"},
        .tokenizer = t->tokenizer,
        .limits = {.max_particles = 1024,
                   .max_tokens = 96,
                   .max_prompt_tokens = 1000,
                   .max_completions = 4,
                   .max_potentials = 4,
                   .max_segments = 6,
                   .max_pattern = 32,
                   .max_body = 1 << 20},
        .loaded_unix = 1700000000,
    };
}

static inline void tiny_close(struct tiny_info *t)
{
    tokenizer_close(t->tokenizer);
    gguf_close(t->gguf);
    buf_free(&t->file);
}
