/* Any vocabulary, any text. What is encoded decodes to the same bytes.
 *
 * The input: kind, flags, number of tokens, number of merges, then the tokens (type, length,
 * bytes), the merges (length, bytes), and the text. Bits of `kind`: 0 SentencePiece, 1 without
 * types and scores, 2 with a token for every byte, 3.. the pre-tokenizer. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../core/tokenizer.h"
#include "../../core/utf8.h"
#include "../gguf_write.h"

struct input {
    const uint8_t *at;
    size_t left;
};

static uint8_t next(struct input *in)
{
    return in->left ? (in->left--, *in->at++) : 0;
}

static void copy_string(struct input *in, struct buf *out)
{
    size_t len = next(in);
    len = len < in->left ? len : in->left;
    gguf_put_string(out, (const char *)in->at, len);
    in->at += len;
    in->left -= len;
}

/* The visible letters of GPT-2's code are themselves; the others are U+0100 and on. */
static void put_byte_token(struct buf *out, int byte, bool spm, int *hidden)
{
    char text[8];
    bool seen = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
    int c = seen ? byte : 256 + (*hidden)++;
    if (spm)
        snprintf(text, sizeof text, "<0x%02X>", byte);
    else if (c < 128)
        snprintf(text, sizeof text, "%c", c);
    else
        snprintf(text, sizeof text, "%c%c", 0xc0 | c >> 6, 0x80 | (c & 63));
    gguf_put_string(out, text, strlen(text));
}

/* Returns the number of tokens. */
static int write_vocabulary(struct gguf_write *w, struct input *in, uint8_t kind, int n_tokens)
{
    enum { MAX = 512 };
    int32_t type[MAX] = {0};
    float score[MAX] = {0};
    struct buf tokens = {0};
    int n = 0, hidden = 0;
    for (; n < n_tokens; n++) {
        uint8_t head = next(in);
        type[n] = head % 8; /* 0 and 7 are refused */
        score[n] = (float)-(head / 8);
        copy_string(in, &tokens);
    }
    for (int byte = 0; kind & 4 && byte < 256; byte++, n++) {
        put_byte_token(&tokens, byte, kind & 1, &hidden);
        type[n] = kind & 1 ? 6 : 1;
    }
    gguf_write_array(w, "tokenizer.ggml.tokens", 8, (uint64_t)n, tokens.data, tokens.len);
    buf_free(&tokens);
    if (kind & 2)
        return n;
    gguf_write_i32s(w, "tokenizer.ggml.token_type", type, (size_t)n);
    gguf_write_f32s(w, "tokenizer.ggml.scores", score, (size_t)n);
    return n;
}

static int write_model(struct buf *file, struct input *in, uint8_t kind)
{
    static const char *const pres[] = {"gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "none"};
    struct gguf_write w = {0};
    struct buf merges = {0};
    int n_tokens = next(in), n_merges = next(in);
    gguf_write_string(&w, "tokenizer.ggml.model", kind & 1 ? "llama" : "gpt2");
    gguf_write_string(&w, "tokenizer.ggml.pre", pres[(kind >> 3) % 6]);
    gguf_write_u32(&w, "tokenizer.ggml.bos_token_id", 1);
    gguf_write_u32(&w, "tokenizer.ggml.eos_token_id", 2);
    int n = write_vocabulary(&w, in, kind, n_tokens);
    for (int i = 0; i < n_merges; i++)
        copy_string(in, &merges);
    gguf_write_array(&w, "tokenizer.ggml.merges", 8, (uint64_t)n_merges, merges.data, merges.len);
    buf_free(&merges);
    gguf_write_end(&w, file);
    return n;
}

static void require(bool cond)
{
    if (!cond)
        abort();
}

/* What the ids say, and that streaming it never breaks a character. */
static void check_ids(const struct tokenizer *t, const struct tokens *ids, const char *text,
                      size_t len, int flags)
{
    struct buf back = {0}, shown = {0};
    for (int i = 0; i < ids->n; i++) {
        size_t n;
        require(ids->ids[i] >= 0 && ids->ids[i] < tokenizer_vocab(t));
        const char *piece = tokenizer_piece(t, ids->ids[i], &n);
        buf_add(&back, piece, n);
    }
    require(flags || (back.len == len && (len == 0 || memcmp(back.data, text, len) == 0)));
    require(back.len - utf8_complete(back.data, back.len) <= 3);
    utf8_sanitize(&shown, back.data, back.len);
    require(utf8_valid(shown.data, shown.len));
    buf_free(&shown);
    buf_free(&back);
}

static void check_text(const struct tokenizer *t, const char *text, size_t len, int flags)
{
    struct tokens ids = {0};
    struct err err;
    if (tokenizer_encode(t, text, len, flags, &ids, &err))
        require(ids.n == 0);
    else
        check_ids(t, &ids, text, len, flags);
    free(ids.ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    uint8_t kind = next(&in), flags = next(&in);
    struct buf file = {0};
    struct gguf *g;
    struct tokenizer *t;
    struct err err;
    int n = write_model(&file, &in, kind);
    require(gguf_open_memory(&g, file.data, file.len, &err) == 0);
    if (tokenizer_open(&t, g, n, &err) == 0) {
        check_text(t, (const char *)in.at, in.left, 0);
        check_text(t, (const char *)in.at, in.left, flags & 3);
        tokenizer_close(t);
    }
    gguf_close(g);
    buf_free(&file);
    return 0;
}
