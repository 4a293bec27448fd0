/* The tokenizers of real vocabularies against ids by independent implementations
 * (tests/golden/make_tokenizer.py, llama.cpp's vocabulary tests). Files that are not here are left
 * out with a message: SmolLM2 from $CLOTHO_TEST_MODEL or the cache, the others from
 * $CLOTHO_TEST_DATA.
 */
#include "../../core/tokenizer.h"

#include <stdint.h>
#include <stdlib.h>

#include "../check.h"
#include "../gguf_write.h"

struct model {
    struct gguf *gguf;
    struct tokenizer *tokenizer;
    struct buf file; /* of a gguf in memory */
};

static bool open_tokenizer(struct model *m)
{
    const struct gguf_str *tokens;
    struct err err = {.msg = ""};
    int n = (int)gguf_array_strings(m->gguf, "tokenizer.ggml.tokens", &tokens);
    int rc = tokenizer_open(&m->tokenizer, m->gguf, n, &err);
    EXPECT_STR(err.msg, "");
    return rc == 0;
}

static bool open_model(struct model *m, const char *folder, const char *name)
{
    char path[512];
    struct err err;
    snprintf(path, sizeof path, "%s%s%s", folder ? folder : "", folder && *name ? "/" : "", name);
    *m = (struct model){0};
    if (!folder || gguf_open(&m->gguf, path, &err)) {
        fprintf(stderr, "skipped: no %s here\n", *name ? name : "model");
        return false;
    }
    return open_tokenizer(m);
}

static void close_model(struct model *m)
{
    tokenizer_close(m->tokenizer);
    gguf_close(m->gguf);
    buf_free(&m->file);
    *m = (struct model){0};
}

static struct buf read_file(const char *folder, const char *name)
{
    char path[512], chunk[4096];
    struct buf b = {0};
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "rb");
    EXPECT(f != NULL);
    if (!f)
        return b;
    for (size_t n; (n = fread(chunk, 1, sizeof chunk, f)) > 0;)
        buf_add(&b, chunk, n);
    fclose(f);
    return b;
}

/* The ids as " 1 2 3", which is how the goldens have them. */
static void expect_ids(const struct tokenizer *t, const char *text, size_t len, const char *want)
{
    struct tokens ids = {0};
    struct buf got = {0};
    struct err err = {.msg = ""};
    tokenizer_encode(t, text, len, 0, &ids, &err);
    buf_puts(&got, err.msg);
    for (int i = 0; i < ids.n; i++)
        buf_printf(&got, " %d", ids.ids[i]);
    EXPECT_STR(got.data, want);
    free(ids.ids);
    buf_free(&got);
}

/* Decoding gives the text back, byte for byte. */
static void expect_round_trip(const struct tokenizer *t, const char *text, size_t len)
{
    struct tokens ids = {0};
    struct buf back = {0};
    struct err err;
    EXPECT_INT(tokenizer_encode(t, text, len, 0, &ids, &err), 0);
    buf_puts(&back, "");
    for (int i = 0; i < ids.n; i++) {
        size_t n;
        const char *piece = tokenizer_piece(t, ids.ids[i], &n);
        buf_add(&back, piece, n);
    }
    EXPECT(back.len == len && memcmp(back.data, text, len) == 0);
    free(ids.ids);
    buf_free(&back);
}

static size_t from_hex(char *s)
{
    size_t n = strcmp(s, "-") == 0 ? 0 : strlen(s) / 2;
    for (size_t i = 0; i < n; i++) {
        char digits[3] = {s[2 * i], s[2 * i + 1], '\0'};
        s[i] = (char)strtol(digits, NULL, 16);
    }
    return n;
}

/* Lines of one pre-tokenizer. */
static void check_goldens(const struct tokenizer *t, const char *name, const char *pre)
{
    struct buf goldens = read_file(TEST_DATA "/golden", name);
    int n = 0;
    char *rest;
    for (char *line = strtok_r(goldens.data, "\n", &rest); line;
         line = strtok_r(NULL, "\n", &rest)) {
        char *hex = strchr(line, ' '), *ids;
        if (!hex || strlen(pre) != (size_t)(hex - line) || memcmp(pre, line, strlen(pre)) != 0)
            continue;
        hex++;
        size_t hex_len = strcspn(hex, " ");
        ids = strdup(hex + hex_len);
        hex[hex_len] = '\0';
        size_t len = from_hex(hex);
        expect_ids(t, hex, len, ids);
        expect_round_trip(t, hex, len);
        free(ids);
        n++;
    }
    EXPECT(n >= 100);
    buf_free(&goldens);
}

/* The same vocabulary under another pre-tokenizer. */
static void rewrite(struct model *out, const struct gguf *from, const char *pre)
{
    static const char *const arrays[] = {"tokenizer.ggml.tokens", "tokenizer.ggml.merges"};
    struct gguf_write w = {0};
    struct err err = {.msg = ""};
    const int32_t *types;
    int64_t n_types = gguf_array_i32(from, "tokenizer.ggml.token_type", &types);
    gguf_write_string(&w, "tokenizer.ggml.model", "gpt2");
    gguf_write_string(&w, "tokenizer.ggml.pre", pre);
    gguf_write_i32s(&w, "tokenizer.ggml.token_type", types, (size_t)n_types);
    for (int i = 0; i < 2; i++) {
        const struct gguf_str *s;
        int64_t n = gguf_array_strings(from, arrays[i], &s);
        gguf_write_array(&w, arrays[i], 8, (uint64_t)n, NULL, 0);
        for (int64_t j = 0; j < n; j++)
            gguf_put_string(&w.keys, s[j].s, s[j].len);
    }
    *out = (struct model){0};
    gguf_write_end(&w, &out->file);
    EXPECT_INT(gguf_open_memory(&out->gguf, out->file.data, out->file.len, &err), 0);
    EXPECT_STR(err.msg, "");
    open_tokenizer(out);
}

static void check_smollm2_specials(const struct tokenizer *t)
{
    static const char text[] = "<|im_start|>user\nhi<|im_end|>";
    struct tokens ids = {0};
    const int32_t *eos;
    struct err err;
    size_t n;
    EXPECT_INT(tokenizer_vocab(t), 49152);
    EXPECT(tokenizer_bos(t) == 1 && !tokenizer_adds_bos(t));
    EXPECT_INT(tokenizer_eos(t, &eos), 2);
    EXPECT(eos[0] == 0 && eos[1] == 2 && tokenizer_is_eos(t, 2) && !tokenizer_is_eos(t, 1));
    EXPECT_INT(
        tokenizer_encode(t, text, sizeof text - 1, TOKENIZE_START | TOKENIZE_SPECIAL, &ids, &err),
        0);
    EXPECT(ids.n == 5 && ids.ids[0] == 1 && ids.ids[4] == 2);
    tokenizer_piece(t, 1, &n);
    EXPECT_INT(n, 0);
    EXPECT(memcmp(tokenizer_piece_special(t, 1, &n), "<|im_start|>", 12) == 0 && n == 12);
    free(ids.ids);
}

static bool test_smollm2(void)
{
    static const char *const pres[] = {"gpt-2", "llama-bpe", "qwen2", "tekken"};
    const char *model = getenv("CLOTHO_TEST_MODEL"), *home = getenv("HOME");
    struct model m, other;
    if (!(model ? open_model(&m, model, "")
                : open_model(&m, home, ".cache/clotho/SmolLM2-135M-Instruct.Q4_1.gguf")))
        return false;
    if (tokenizer_vocab(m.tokenizer) == 49152) { /* CLOTHO_TEST_MODEL may be another one */
        check_smollm2_specials(m.tokenizer);
        check_goldens(m.tokenizer, "tokenizer_smollm2.txt", "smollm");
        for (int i = 0; i < 4; i++) {
            rewrite(&other, m.gguf, pres[i]);
            check_goldens(other.tokenizer, "tokenizer_smollm2.txt", pres[i]);
            close_model(&other);
        }
    }
    close_model(&m);
    return true;
}

static bool test_stories(const char *data)
{
    struct model m;
    if (!open_model(&m, data, "stories260K-F32.gguf"))
        return false;
    /* SentencePiece's own encoding begins with the dummy prefix: so do the goldens, after BOS. */
    struct buf goldens = read_file(TEST_DATA "/golden", "tokenizer_stories260K.txt");
    char *rest;
    for (char *line = strtok_r(goldens.data, "\n", &rest); line;
         line = strtok_r(NULL, "\n", &rest)) {
        struct tokens ids = {0};
        struct buf got = {0};
        struct err err;
        size_t hex_len = strcspn(line + 2, " ");
        char *want = line + 2 + hex_len;
        char *text = strndup(line + 2, hex_len);
        size_t len = from_hex(text);
        EXPECT_INT(tokenizer_encode(m.tokenizer, text, len, TOKENIZE_START, &ids, &err), 0);
        EXPECT_INT(ids.ids[0], 1);
        for (int i = 1; i < ids.n; i++)
            buf_printf(&got, " %d", ids.ids[i]);
        EXPECT_STR(got.data, want);
        expect_round_trip(m.tokenizer, text, len);
        free(ids.ids);
        free(text);
        buf_free(&got);
    }
    buf_free(&goldens);
    close_model(&m);
    return true;
}

static bool test_gpt2(const char *data)
{
    static const char mark[] = "\n__ggml_vocab_test__\n";
    struct model m;
    if (!open_model(&m, data, "ggml-vocab-gpt-2.gguf"))
        return false;
    struct buf in = read_file(data, "ggml-vocab-gpt-2.gguf.inp");
    struct buf out = read_file(data, "ggml-vocab-gpt-2.gguf.out");
    int n = 0;
    char *text = in.data, *ids = out.data;
    for (char *end; (end = strstr(text, mark)); text = end + sizeof mark - 1, n++) {
        char *line_end = strchr(ids, '\n');
        *line_end = '\0';
        size_t len = strlen(ids);
        while (len > 0 && ids[len - 1] == ' ')
            ids[--len] = '\0';
        expect_ids(m.tokenizer, text, (size_t)(end - text), ids);
        expect_round_trip(m.tokenizer, text, (size_t)(end - text));
        ids = line_end + 1;
    }
    EXPECT_INT(n, 46);
    buf_free(&in);
    buf_free(&out);
    close_model(&m);
    return true;
}

int main(void)
{
    const char *data = getenv("CLOTHO_TEST_DATA");
    int ran = test_smollm2();
    ran += test_stories(data);
    ran += test_gpt2(data);
    return test_failures() ? 1 : ran ? 0 : 77;
}
