/* Tokenizers of vocabularies made here: merging against a naive loop, special tokens, the rules for
 * what comes before a text, and a refusal for each way to be broken. */
#include "../../core/tokenizer.h"

#include <stdint.h>
#include <stdlib.h>

#include "../check.h"
#include "../gguf_write.h"

enum { MAX_TOKENS = 400, NORMAL = 1, UNKNOWN, CONTROL, USER, UNUSED, BYTE };

/* A vocabulary under construction, and what is opened from it. */
struct vocab {
    const char *text[MAX_TOKENS];
    float score[MAX_TOKENS];
    int32_t type[MAX_TOKENS];
    int n;
    const char *merge[MAX_TOKENS];
    int n_merges;
    struct gguf_write w; /* keys beside these */
    bool bare;           /* no types, no scores */
    struct buf file;
    struct gguf *gguf;
    struct tokenizer *t;
    char pool[1 << 16];
    size_t used;
};

static const char *keep(struct vocab *v, const char *s)
{
    char *p = v->pool + v->used;
    v->used += strlen(s) + 1;
    memcpy(p, s, strlen(s) + 1);
    return p;
}

static int add(struct vocab *v, const char *text, int type, float score)
{
    v->text[v->n] = keep(v, text);
    v->type[v->n] = type;
    v->score[v->n] = score;
    return v->n++;
}

static void add_merge(struct vocab *v, const char *merge)
{
    v->merge[v->n_merges++] = keep(v, merge);
}

/* GPT-2's letter for a byte, by its definition: walk the bytes in order, giving those that cannot
 * be seen the next letter from U+0100 on. */
static const char *letter(int byte)
{
    static char out[256][3];
    int next = 256;
    for (int b = 0; b < 256; b++) {
        bool seen = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        int c = seen ? b : next++;
        if (c < 128) {
            out[b][0] = (char)c;
            out[b][1] = '\0';
        } else {
            out[b][0] = (char)(0xc0 | c >> 6);
            out[b][1] = (char)(0x80 | (c & 63));
        }
    }
    return out[byte];
}

static void add_letters(struct vocab *v)
{
    for (int b = 0; b < 256; b++)
        add(v, letter(b), NORMAL, 0);
}

static void add_bytes(struct vocab *v)
{
    for (int b = 0; b < 256; b++) {
        char text[8];
        snprintf(text, sizeof text, "<0x%02X>", b);
        add(v, text, BYTE, 0);
    }
}

/* 0, or -1 with err. */
static int open_vocab(struct vocab *v, const char *model, int size, struct err *err)
{
    if (model)
        gguf_write_string(&v->w, "tokenizer.ggml.model", model);
    if (v->n)
        gguf_write_strings(&v->w, "tokenizer.ggml.tokens", v->text, (size_t)v->n);
    if (v->n && !v->bare) {
        gguf_write_i32s(&v->w, "tokenizer.ggml.token_type", v->type, (size_t)v->n);
        gguf_write_f32s(&v->w, "tokenizer.ggml.scores", v->score, (size_t)v->n);
    }
    if (v->n_merges)
        gguf_write_strings(&v->w, "tokenizer.ggml.merges", v->merge, (size_t)v->n_merges);
    gguf_write_end(&v->w, &v->file);
    EXPECT_INT(gguf_open_memory(&v->gguf, v->file.data, v->file.len, err), 0);
    return tokenizer_open(&v->t, v->gguf, size, err);
}

static void must_open(struct vocab *v, const char *model)
{
    struct err err = {.msg = ""};
    open_vocab(v, model, v->n, &err);
    EXPECT_STR(err.msg, "");
}

static void close_vocab(struct vocab *v)
{
    tokenizer_close(v->t);
    gguf_close(v->gguf);
    buf_free(&v->file);
    memset(v, 0, sizeof *v);
}

static struct vocab shared; /* too large for some stacks */

/* The ids of text as "1 2 3", or the refusal. Borrowed until the next call. */
static const char *ids_of_bytes(const struct tokenizer *t, const char *text, size_t len, int flags)
{
    static struct buf out;
    struct tokens ids = {0};
    struct err err = {.msg = ""};
    int rc = tokenizer_encode(t, text, len, flags, &ids, &err);
    EXPECT(rc == 0 || ids.n == 0);
    buf_reset(&out);
    buf_puts(&out, err.msg);
    for (int i = 0; i < ids.n; i++)
        buf_printf(&out, "%s%d", i ? " " : "", ids.ids[i]);
    free(ids.ids);
    return out.data;
}

static const char *ids_of(const struct tokenizer *t, const char *text, int flags)
{
    return ids_of_bytes(t, text, strlen(text), flags);
}

static const char *piece(const struct tokenizer *t, int32_t id, bool special)
{
    static char out[64];
    size_t n;
    const char *p = special ? tokenizer_piece_special(t, id, &n) : tokenizer_piece(t, id, &n);
    memcpy(out, p, n);
    out[n] = '\0';
    return out;
}

/* ---- merging against the definition ---- */

/* Symbols, of which the best pair is joined again and again. */
struct naive {
    char symbol[64][256];
    int n;
};

static void naive_join(struct naive *s, int at)
{
    strncat(s->symbol[at], s->symbol[at + 1], 200);
    memmove(s->symbol[at + 1], s->symbol[at + 2], sizeof *s->symbol * (size_t)(s->n - at - 2));
    s->n--;
}

static int find_text(const struct vocab *v, const char *s)
{
    for (int i = 0; i < v->n; i++)
        if (v->type[i] == NORMAL && strcmp(v->text[i], s) == 0)
            return i;
    return -1;
}

static double bpe_cost(const struct vocab *v, const char *a, const char *b)
{
    char merge[256];
    snprintf(merge, sizeof merge, "%s %s", a, b);
    for (int i = 0; i < v->n_merges; i++)
        if (strcmp(v->merge[i], merge) == 0)
            return i;
    return INFINITY;
}

static double spm_cost(const struct vocab *v, const char *a, const char *b)
{
    char joined[256];
    snprintf(joined, sizeof joined, "%s%s", a, b);
    int id = find_text(v, joined);
    return id < 0 ? INFINITY : -(double)v->score[id];
}

static const char *naive_ids(const struct vocab *v, struct naive *s,
                             double (*cost)(const struct vocab *, const char *, const char *))
{
    static struct buf out;
    for (;;) {
        int best = -1;
        double best_cost = INFINITY;
        for (int i = 0; i + 1 < s->n; i++) {
            double c = cost(v, s->symbol[i], s->symbol[i + 1]);
            if (c < best_cost) {
                best_cost = c;
                best = i;
            }
        }
        if (best < 0)
            break;
        naive_join(s, best);
    }
    buf_reset(&out);
    buf_puts(&out, "");
    for (int i = 0; i < s->n; i++) {
        int id = find_text(v, s->symbol[i]);
        if (id >= 0) {
            buf_printf(&out, "%s%d", out.len ? " " : "", id);
            continue;
        }
        for (const char *p = s->symbol[i]; *p; p++) { /* byte tokens come first in the vocabulary */
            const char *shown = strcmp(s->symbol[i], "▁") == 0 ? " " : p;
            buf_printf(&out, "%s%d", out.len ? " " : "", (unsigned char)*shown);
            if (shown != p)
                break;
        }
    }
    return out.data;
}

static void random_merges(struct vocab *v, int n)
{
    int first = find_text(v, "a");
    for (int tries = 0; tries < 20 * n && v->n_merges < n; tries++) {
        int a = rand() % (3 + v->n_merges), b = rand() % (3 + v->n_merges);
        const char *x = v->text[a < 3 ? first + a : 253 + a];
        const char *y = v->text[b < 3 ? first + b : 253 + b];
        char merge[64], joined[64];
        snprintf(merge, sizeof merge, "%.20s %.20s", x, y);
        snprintf(joined, sizeof joined, "%.20s%.20s", x, y);
        if (strlen(joined) > 12 || find_text(v, joined) >= 0)
            continue;
        add_merge(v, merge);
        add(v, joined, NORMAL, 0);
    }
}

static void test_bpe_merging(void)
{
    struct vocab *v = &shared;
    for (int round = 0; round < 20; round++) {
        add_letters(v);
        random_merges(v, 2 + round * 2);
        must_open(v, "gpt2");
        for (int i = 0; i < 200; i++) {
            struct naive s = {.n = 1 + rand() % 40};
            char text[64] = "";
            for (int j = 0; j < s.n; j++) {
                text[j] = "aaabbc"[rand() % 6];
                s.symbol[j][0] = text[j];
            }
            EXPECT_STR(ids_of(v->t, text, 0), naive_ids(v, &s, bpe_cost));
        }
        close_vocab(v);
    }
}

/* Pieces over {a, b, ▁}; with `crossing` some go on after a space, so that words cannot be split.
 */
static void random_pieces(struct vocab *v, bool crossing)
{
    static const char *const symbols[] = {"a", "b", "▁"};
    add(v, "a", NORMAL, 0);
    add(v, "b", NORMAL, 0);
    add(v, "▁", NORMAL, 0);
    for (int i = 0; i < 40; i++) {
        char text[64] = "";
        bool seen_letter = false, crosses = false;
        for (int j = 2 + rand() % 4; j > 0; j--) {
            int k = rand() % 3;
            crosses = crosses || (k == 2 && seen_letter);
            seen_letter = seen_letter || k < 2;
            strncat(text, symbols[k], 8);
        }
        if ((crossing || !crosses) && find_text(v, text) < 0)
            add(v, text, NORMAL, (float)-(rand() % 12)); /* with ties */
    }
}

static void test_spm_merging(void)
{
    struct vocab *v = &shared;
    for (int round = 0; round < 20; round++) {
        add_bytes(v);
        random_pieces(v, round % 2);
        must_open(v, "llama");
        for (int i = 0; i < 200; i++) {
            struct naive s = {.n = 1 + rand() % 40};
            char text[64] = "";
            for (int j = 0; j < s.n; j++) {
                text[j] = "aab  c"[rand() % 6]; /* c is spelt as a byte */
                snprintf(s.symbol[j], 8, "%s", text[j] == ' ' ? "▁" : (char[]){text[j], '\0'});
            }
            EXPECT_STR(ids_of(v->t, text, 0), naive_ids(v, &s, spm_cost));
        }
        close_vocab(v);
    }
}

static void test_long_words(void)
{
    struct vocab *v = &shared;
    enum { N = 1 << 20 };
    char *text = malloc(N);
    memset(text, 'a', N);
    add_letters(v);
    add(v, "aa", NORMAL, 0);
    add(v, "aaaa", NORMAL, 0);
    add_merge(v, "a a");
    add_merge(v, "aa aa");
    must_open(v, "gpt2");
    struct tokens ids = {0};
    struct err err;
    EXPECT_INT(tokenizer_encode(v->t, text, N, 0, &ids, &err), 0);
    EXPECT(ids.n == N / 4 && ids.ids[0] == 257 && ids.ids[N / 4 - 1] == 257);
    free(ids.ids);
    free(text);
    close_vocab(v);
}

/* ---- what becomes what ---- */

static void test_bytes(void)
{
    struct vocab *v = &shared;
    char all[768], back[768];
    for (int i = 0; i < 768; i++) /* every byte, alone and in a mess */
        all[i] = (char)(i < 256 ? i : rand());
    for (int kind = 0; kind < 2; kind++) {
        kind ? add_bytes(v) : add_letters(v);
        must_open(v, kind ? "llama" : "gpt2");
        struct tokens ids = {0};
        struct err err;
        EXPECT_INT(tokenizer_encode(v->t, all, sizeof all, 0, &ids, &err), 0);
        EXPECT_INT(ids.n, sizeof all);
        for (int i = 0; i < ids.n; i++) {
            size_t n;
            const char *p = tokenizer_piece(v->t, ids.ids[i], &n);
            EXPECT_INT(n, 1);
            back[i] = *p;
        }
        EXPECT(memcmp(all, back, sizeof all) == 0);
        free(ids.ids);
        close_vocab(v);
    }
}

static void test_specials(void)
{
    struct vocab *v = &shared;
    add_letters(v);
    add(v, "<|a|>", CONTROL, 0);   /* 256 */
    add(v, "<|a|>b", CONTROL, 0);  /* 257 */
    add(v, "<|a|>bc", USER, 0);    /* 258 */
    add(v, "xy", USER, 0);         /* 259 */
    add(v, "<unk>", UNKNOWN, 0);   /* 260 */
    add(v, "<unused>", UNUSED, 0); /* 261 */
    add(v, "<|a|>", USER, 0);      /* 262: the same text as 256 */
    add(v, "", CONTROL, 0);        /* 263 */
    must_open(v, "gpt2");
    EXPECT_STR(ids_of(v->t, "<|a|><|a|>b", TOKENIZE_SPECIAL), "256 257");
    EXPECT_STR(ids_of(v->t, "<|a|>bcxy<unk>", TOKENIZE_SPECIAL), "258 259 260");
    EXPECT_STR(ids_of(v->t, "<|a|>bcxy", 0), "258 259");
    EXPECT_STR(ids_of(v->t, "<|a|>", 0), "262");
    EXPECT_STR(ids_of(v->t, "<unused>", TOKENIZE_SPECIAL), "60 117 110 117 115 101 100 62");
    EXPECT_STR(ids_of(v->t, "<unk>", 0), "60 117 110 107 62");
    EXPECT_STR(ids_of(v->t, "<|", TOKENIZE_SPECIAL), "60 124");
    EXPECT_STR(ids_of(v->t, "", TOKENIZE_SPECIAL | TOKENIZE_START), "");
    EXPECT_STR(piece(v->t, 256, false), "");
    EXPECT_STR(piece(v->t, 256, true), "<|a|>");
    EXPECT_STR(piece(v->t, 260, false), "");
    EXPECT_STR(piece(v->t, 261, false), "");
    EXPECT_STR(piece(v->t, 258, false), "<|a|>bc");
    EXPECT_STR(piece(v->t, 263, true), "");
    close_vocab(v);
}

static void test_start(void)
{
    struct vocab *v = &shared;
    add_bytes(v);
    add(v, "<s>", CONTROL, 0);  /* 256 */
    add(v, "▁", NORMAL, -1);    /* 257 */
    add(v, "a", NORMAL, -2);    /* 258 */
    add(v, "▁a", NORMAL, -3);   /* 259 */
    add(v, "<s>a", NORMAL, -3); /* 260 */
    gguf_write_u32(&v->w, "tokenizer.ggml.bos_token_id", 256);
    must_open(v, "llama");
    EXPECT(tokenizer_bos(v->t) == 256 && tokenizer_adds_bos(v->t));
    EXPECT_STR(ids_of(v->t, "a a", 0), "258 259");
    EXPECT_STR(ids_of(v->t, "a a", TOKENIZE_START), "256 259 259");
    EXPECT_STR(ids_of(v->t, " a", TOKENIZE_START), "256 257 259");
    EXPECT_STR(ids_of(v->t, "", TOKENIZE_START), "256");
    EXPECT_STR(ids_of(v->t, "a<s>a", TOKENIZE_START | TOKENIZE_SPECIAL), "256 259 256 259");
    EXPECT_STR(ids_of(v->t, "a<s>a", TOKENIZE_SPECIAL), "258 256 258");
    EXPECT_STR(piece(v->t, 259, false), " a");
    EXPECT_STR(ids_of(v->t, "▁", 0), "226 150 129"); /* the sign itself, not a space */
    close_vocab(v);

    add_bytes(v);
    add(v, "a", NORMAL, 0);
    gguf_write_u32(&v->w, "tokenizer.ggml.bos_token_id", 256);
    gguf_write_bool(&v->w, "tokenizer.ggml.add_bos_token", 0);
    gguf_write_bool(&v->w, "tokenizer.ggml.add_space_prefix", 0);
    must_open(v, "llama");
    EXPECT_STR(ids_of(v->t, "a", TOKENIZE_START), "256");
    close_vocab(v);

    add_letters(v);
    gguf_write_u32(&v->w, "tokenizer.ggml.bos_token_id", 7);
    gguf_write_bool(&v->w, "tokenizer.ggml.add_bos_token", 1);
    must_open(v, "gpt2");
    EXPECT_STR(ids_of(v->t, "a", TOKENIZE_START), "7 97");
    EXPECT_STR(ids_of(v->t, "a", 0), "97");
    close_vocab(v);

    add_letters(v);
    gguf_write_bool(&v->w, "tokenizer.ggml.add_bos_token", 1); /* but there is none */
    must_open(v, "gpt2");
    EXPECT(tokenizer_bos(v->t) == -1 && !tokenizer_adds_bos(v->t));
    close_vocab(v);
}

static void test_whole_words(void)
{
    struct vocab *v = &shared;
    for (int i = 0; i < 2; i++) {
        add_letters(v);
        add(v, "abc", NORMAL, 0); /* no merge leads there */
        gguf_write_string(&v->w, "tokenizer.ggml.pre", i ? "llama-bpe" : "gpt-2");
        must_open(v, "gpt2");
        EXPECT_STR(ids_of(v->t, "abc", 0), i ? "256" : "97 98 99");
        close_vocab(v);
    }
}

static void test_eos(void)
{
    struct vocab *v = &shared;
    const int32_t *eos;
    add_letters(v);
    add(v, "<|im_end|>", CONTROL, 0);
    add(v, "</s>", NORMAL, 0); /* not a control token: just text */
    add(v, "<end>", CONTROL, 0);
    add(v, "<|endoftext|>", CONTROL, 0);
    gguf_write_u32(&v->w, "tokenizer.ggml.eos_token_id", 259);
    gguf_write_u32(&v->w, "tokenizer.ggml.eot_token_id", 258);
    gguf_write_u32(&v->w, "tokenizer.ggml.bos_token_id", UINT32_MAX); /* means none */
    must_open(v, "gpt2");
    EXPECT_INT(tokenizer_eos(v->t, &eos), 3);
    EXPECT(eos[0] == 256 && eos[1] == 258 && eos[2] == 259);
    EXPECT_INT(tokenizer_eos_id(v->t), 259);
    EXPECT(tokenizer_is_eos(v->t, 258) && !tokenizer_is_eos(v->t, 257));
    EXPECT_INT(tokenizer_bos(v->t), -1);
    close_vocab(v);

    add_letters(v);
    add(v, "<|end|>", CONTROL, 0);
    add(v, "<|im_end|>", CONTROL, 0);
    must_open(v, "gpt2"); /* none is named */
    EXPECT_INT(tokenizer_eos_id(v->t), 256);
    close_vocab(v);
}

/* Models of tests have little metadata; what is clear is not refused. */
static void test_minimal(void)
{
    struct vocab *v = &shared;
    const int32_t *eos;
    struct err err;
    v->bare = true;
    add(v, "a", 0, 0);
    add(v, " ", 0, 0); /* a space written as itself */
    add(v, "<e>", 0, 0);
    gguf_write_u32(&v->w, "tokenizer.ggml.eos_token_id", 2);
    must_open(v, "gpt2");
    EXPECT_STR(ids_of(v->t, "a a<e>", TOKENIZE_SPECIAL), "0 1 0 2");
    EXPECT_STR(ids_of(v->t, "ab", 0), "the text cannot be spelt: the model's vocabulary has no "
                                      "token for the byte 0x62");
    EXPECT_STR(piece(v->t, 2, false), "");
    EXPECT_INT(tokenizer_eos(v->t, &eos), 1);
    close_vocab(v);

    v->bare = true;
    add(v, "<unk>", 0, 0);
    add(v, "<0x41>", 0, 0);
    add(v, "▁b", 0, 0);
    must_open(v, "llama");
    EXPECT_STR(piece(v->t, 1, false), "A");
    EXPECT_STR(ids_of(v->t, "A", 0), "1");
    EXPECT_INT(tokenizer_eos_id(v->t), -1);
    close_vocab(v);

    for (int i = 0; i < 2; i++) {
        EXPECT_INT(open_vocab(v, i ? "no_vocab" : NULL, 5, &err), 0);
        EXPECT_INT(tokenizer_vocab(v->t), 5);
        EXPECT_STR(piece(v->t, 4, true), "");
        EXPECT_STR(ids_of(v->t, "a", 0), "the model has no tokenizer: give token ids");
        close_vocab(v);
    }
}

static void expect_refusal(struct vocab *v, const char *model, int size, const char *why)
{
    struct err err = {.msg = ""};
    EXPECT_INT(open_vocab(v, model, size, &err), -1);
    EXPECT(err.code == ERR_FILE);
    if (!strstr(err.msg, why))
        EXPECT_STR(err.msg, why);
    close_vocab(v);
}

static void test_refusals(void)
{
    struct vocab *v = &shared;
    static const int32_t types[] = {1, 2, 3};
    static const float scores[] = {0, 1};
    add_letters(v);
    expect_refusal(v, "bert", 256, "tokenizer.ggml.model: \"bert\" is not supported");
    add_letters(v);
    expect_refusal(v, "gpt2", 255, "tokenizer.ggml.tokens: 256 tokens, but the model has 255");
    expect_refusal(v, "gpt2", 10, "tokenizer.ggml.tokens");
    add_letters(v);
    gguf_write_string(&v->w, "tokenizer.ggml.pre", "martian");
    expect_refusal(v, "gpt2", 256, "tokenizer.ggml.pre: the pre-tokenizer \"martian\"");
    add_letters(v);
    gguf_write_u32(&v->w, "tokenizer.ggml.eos_token_id", 256);
    expect_refusal(v, "gpt2", 256, "tokenizer.ggml.eos_token_id: 256 is not in the vocabulary");
    add_letters(v);
    v->type[3] = 9;
    expect_refusal(v, "gpt2", 256, "tokenizer.ggml.token_type[3] is 9");
    add_letters(v);
    v->bare = true;
    gguf_write_i32s(&v->w, "tokenizer.ggml.token_type", types, 3);
    expect_refusal(v, "gpt2", 256, "tokenizer.ggml.token_type has 3 entries");
    add_bytes(v);
    v->bare = true;
    gguf_write_f32s(&v->w, "tokenizer.ggml.scores", scores, 2);
    expect_refusal(v, "llama", 256, "tokenizer.ggml.scores has 2 entries");
    add_bytes(v);
    v->score[5] = NAN;
    expect_refusal(v, "llama", 256, "tokenizer.ggml.scores[5]");
    static const char *const bad[] = {"a b", "ab", "", " ", "a ", "aa b"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        add_letters(v);
        add_merge(v, bad[i]);
        expect_refusal(v, "gpt2", 256, "tokenizer.ggml.merges[0]");
    }
}

int main(void)
{
    srand(5);
    test_bpe_merging();
    test_spm_merging();
    test_long_words();
    test_bytes();
    test_specials();
    test_start();
    test_whole_words();
    test_eos();
    test_minimal();
    test_refusals();
    return test_failures();
}
