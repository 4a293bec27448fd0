/* Byte-level BPE (GPT-2): a pattern cuts the text into words, and within a word neighbours are
 * merged in the order in which the merges were learned. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

#include "utf8.h"

/* White space as Unicode defines it (the property White_Space), for use inside a class: PCRE2's own
 * \s differs in U+180E. */
#define WS "\\p{Z}\\t-\\r\\x{85}"

/* Parts shared by the patterns. A run of spaces leaves its last one to the word that follows it. */
#define APOSTROPHES     "'(?:[sdmt]|ll|ve|re)"
#define APOSTROPHES_ANY "'(?:[sdmtSDMT]|[lL][lL]|[vV][eE]|[rR][eE])"
#define SPACES          "[" WS "]+(?![^" WS "])|[" WS "]+"
#define LINES           "[" WS "]*[\\r\\n]+"
#define SIGNS           " ?[^" WS "\\p{L}\\p{N}]+"
#define AFTER_SIGN      "[^\\r\\n\\p{L}\\p{N}]?"
#define UPPER           "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER           "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"

#define GPT2 APOSTROPHES "| ?\\p{L}+| ?\\p{N}+|" SIGNS "|" SPACES

/* Defined as: each digit is cut out, then what lies between is cut by GPT2. In one pattern: numbers
 * never join a space, and a digit ends a run of spaces as the end of the text does. */
#define DIGITS_GPT2                                                                                \
    "\\p{N}|" APOSTROPHES "| ?\\p{L}+|" SIGNS "|[" WS "]+(?![^" WS "\\p{N}])|[" WS "]+"

#define LLAMA3                                                                                     \
    APOSTROPHES_ANY "|" AFTER_SIGN "\\p{L}+|\\p{N}{1,3}|" SIGNS "[\\r\\n]*|" LINES "|" SPACES
#define QWEN2 APOSTROPHES_ANY "|" AFTER_SIGN "\\p{L}+|\\p{N}|" SIGNS "[\\r\\n]*|" LINES "|" SPACES
#define TEKKEN                                                                                     \
    AFTER_SIGN UPPER "*" LOWER "+|" AFTER_SIGN UPPER "+" LOWER "*|\\p{N}|" SIGNS                   \
                     "[\\r\\n/]*|" LINES "|" SPACES

struct pre {
    const char *name; /* tokenizer.ggml.pre */
    const char *pattern;
    bool whole_words; /* a word that is a token is taken as it is, without merges */
    bool adds_bos;    /* unless the metadata says otherwise */
};

static const struct pre pres[] = {
    {"gpt-2", GPT2, false, false},         {"phi-2", GPT2, false, false},
    {"olmo", GPT2, false, false},          {"mpt", GPT2, false, false},
    {"smollm", DIGITS_GPT2, false, false}, {"starcoder", DIGITS_GPT2, false, false},
    {"refact", DIGITS_GPT2, false, false}, {"codeshell", DIGITS_GPT2, false, false},
    {"llama-bpe", LLAMA3, true, true},     {"llama-v3", LLAMA3, true, true},
    {"llama3", LLAMA3, true, true},        {"falcon3", LLAMA3, true, true},
    {"smaug-bpe", LLAMA3, false, false},   {"dbrx", LLAMA3, false, false},
    {"qwen2", QWEN2, false, false},        {"deepseek-r1-qwen", QWEN2, false, false},
    {"stablelm2", QWEN2, false, false},    {"tekken", TEKKEN, true, true},
};

/* Open addressing by the pair of ids, at most half full. */
struct pair {
    uint64_t key;  /* left id << 32 | right id */
    uint32_t rank; /* 1 is learned first; 0 is a free place */
    int32_t id;    /* what the pair becomes */
};

struct bpe {
    pcre2_code *pattern;
    bool whole_words;
    struct pair *pair;
    int bits; /* log2 of the number of places */
};

/* The pair's place, or the free one where it belongs. */
static struct pair *pair_place(const struct bpe *b, uint64_t key)
{
    uint64_t at = key * UINT64_C(0x9e3779b97f4a7c15) >> (64 - b->bits);
    while (b->pair[at].rank && b->pair[at].key != key)
        at = (at + 1) & ((UINT64_C(1) << b->bits) - 1);
    return &b->pair[at];
}

static uint64_t pair_key(int32_t left, int32_t right)
{
    return (uint64_t)left << 32 | (uint32_t)right;
}

/* GPT-2 writes every byte as a letter that can be seen: the visible ones of Latin-1 as themselves,
 * the others, in order, as U+0100, U+0101 … */
static bool is_visible(int byte)
{
    return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
}

/* The byte that the letter c stands for, or -1. */
static int byte_of_letter(unsigned c)
{
    if (c < 256)
        return is_visible((int)c) ? (int)c : -1;
    for (int byte = 0, letter = 256; byte < 256; byte++)
        if (!is_visible(byte) && (unsigned)letter++ == c)
            return byte;
    return -1;
}

/* The code point of a valid character of one or two bytes; all letters of the code are of these. */
static unsigned code_point(const char *s, size_t n)
{
    const unsigned char *p = (const unsigned char *)s;
    return n == 1 ? p[0] : (p[0] & 31u) << 6 | (p[1] & 63u);
}

size_t bpe_decode(char *out, const char *s, size_t len)
{
    size_t n_out = 0;
    for (size_t at = 0, n; at < len; at += n) {
        n = utf8_char(s + at, len - at);
        int byte = n == 1 || n == 2 ? byte_of_letter(code_point(s + at, n)) : -1;
        n = n ? n : 1;
        if (byte >= 0) {
            out[n_out++] = (char)byte;
            continue;
        }
        memcpy(out + n_out, s + at, n); /* not in the code: it stands for itself */
        n_out += n;
    }
    return n_out;
}

/* "left right" as merge number `rank`. */
static int add_merge(struct tokenizer *t, struct gguf_str merge, uint32_t rank)
{
    char raw[MAX_PIECE];
    const char *space = merge.len > 1 ? memchr(merge.s + 1, ' ', merge.len - 1) : NULL;
    if (!space || merge.len > sizeof raw + 1)
        return -1;
    size_t n_left = (size_t)(space - merge.s), n_right = merge.len - n_left - 1;
    n_left = bpe_decode(raw, merge.s, n_left);
    n_right = bpe_decode(raw + n_left, space + 1, n_right);
    int32_t left = tokenizer_find(t, raw, n_left);
    int32_t right = tokenizer_find(t, raw + n_left, n_right);
    int32_t id = tokenizer_find(t, raw, n_left + n_right);
    if (left < 0 || right < 0 || id < 0)
        return -1;
    uint64_t key = pair_key(left, right);
    struct pair *p = pair_place(t->bpe, key);
    if (!p->rank)
        *p = (struct pair){key, rank, id};
    return 0;
}

static int read_merges(struct tokenizer *t, const struct gguf *g, struct err *err)
{
    const struct gguf_str *merge = NULL;
    int64_t n = gguf_array_strings(g, "tokenizer.ggml.merges", &merge);
    n = n < 0 ? 0 : n;
    if (n > INT32_MAX / 4)
        return err_set(err, ERR_FILE, "tokenizer.ggml.merges has %lld entries", (long long)n);
    t->bpe->bits = 1;
    while (INT64_C(1) << t->bpe->bits < 2 * n)
        t->bpe->bits++;
    t->bpe->pair = ARENA_NEW(&t->arena, struct pair, UINT64_C(1) << t->bpe->bits);
    for (int64_t i = 0; i < n; i++)
        if (add_merge(t, merge[i], (uint32_t)i + 1))
            return err_set(err, ERR_FILE,
                           "tokenizer.ggml.merges[%lld] does not join two tokens to a third",
                           (long long)i);
    return 0;
}

static const struct pre *find_pre(struct gguf_str name)
{
    for (size_t i = 0; i < sizeof pres / sizeof *pres; i++)
        if (strlen(pres[i].name) == name.len && memcmp(pres[i].name, name.s, name.len) == 0)
            return &pres[i];
    return NULL;
}

static int compile_pattern(struct bpe *b, const char *pattern, struct err *err)
{
    int code;
    size_t at;
    b->pattern =
        pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF, &code, &at, NULL);
    if (!b->pattern)
        return err_set(err, ERR_INTERNAL, "pre-tokenizer: PCRE2 error %d at %zu", code, at);
    pcre2_jit_compile(b->pattern, PCRE2_JIT_COMPLETE); /* without it matching is slower, no more */
    return 0;
}

int bpe_open(struct tokenizer *t, const struct gguf *g, struct err *err)
{
    struct gguf_str name = {"gpt-2", 5};
    gguf_string(g, "tokenizer.ggml.pre", &name);
    const struct pre *pre = find_pre(name);
    if (!pre)
        return err_set(err, ERR_FILE, "tokenizer.ggml.pre: the pre-tokenizer \"%.*s\" is not known",
                       (int)(name.len < 64 ? name.len : 64), name.s);
    t->bpe = ARENA_NEW(&t->arena, struct bpe, 1);
    t->bpe->whole_words = pre->whole_words;
    t->adds_bos = pre->adds_bos;
    return compile_pattern(t->bpe, pre->pattern, err) ? -1 : read_merges(t, g, err);
}

void bpe_close(struct tokenizer *t)
{
    if (t->bpe)
        pcre2_code_free(t->bpe->pattern);
}

static bool bpe_rule(const struct tokenizer *t, const char *text, const struct symbol *left,
                     const struct symbol *right, struct merge *m)
{
    (void)text;
    if (left->id < 0 || right->id < 0)
        return false;
    const struct pair *p = pair_place(t->bpe, pair_key(left->id, right->id));
    if (!p->rank)
        return false;
    m->cost = p->rank;
    m->id = p->id;
    return true;
}

static int encode_word(struct encoding *e, const char *text, size_t len)
{
    int32_t whole = e->t->bpe->whole_words ? tokenizer_find(e->t, text, len) : -1;
    if (whole >= 0) {
        tokens_add(e->out, whole);
        return 0;
    }
    merge_reserve(e, len);
    for (int32_t i = 0; i < (int32_t)len; i++)
        e->symbols[i] = (struct symbol){e->t->byte_id[(unsigned char)text[i]], i - 1, i + 1};
    merge_all(e, text, (int32_t)len, bpe_rule);
    return merge_emit(e, text, (int32_t)len);
}

/* Cut valid UTF-8 into words. What the pattern leaves out is a word of its own. */
static int encode_valid(struct encoding *e, pcre2_match_data *match, const char *text, size_t len)
{
    const size_t *span = pcre2_get_ovector_pointer(match);
    for (size_t at = 0; at < len; at = span[1]) {
        int rc = pcre2_match(e->t->bpe->pattern, (PCRE2_SPTR)text, len, at, PCRE2_NO_UTF_CHECK,
                             match, NULL);
        if (rc == PCRE2_ERROR_NOMATCH)
            return encode_word(e, text + at, len - at);
        if (rc < 0)
            return err_set(e->err, ERR_INTERNAL, "pre-tokenizer: PCRE2 error %d", rc);
        if (span[0] > at && encode_word(e, text + at, span[0] - at))
            return -1;
        if (encode_word(e, text + span[0], span[1] - span[0]))
            return -1;
    }
    return 0;
}

/* Runs of valid UTF-8, and the bytes between them one by one. */
static int encode_runs(struct encoding *e, pcre2_match_data *match, const char *text, size_t len)
{
    for (size_t at = 0, end = 0; at < len; at = end) {
        for (size_t n; end < len && (n = utf8_char(text + end, len - end)) > 0;)
            end += n;
        if (end > at && encode_valid(e, match, text + at, end - at))
            return -1;
        if (end < len && encode_word(e, text + end++, 1))
            return -1;
    }
    return 0;
}

int bpe_encode(struct encoding *e, const char *text, size_t len)
{
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    CHECK(match && "out of memory");
    int rc = encode_runs(e, match, text, len);
    pcre2_match_data_free(match);
    return rc;
}
