#include "tokenizer_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Texts of control tokens that end an answer, in the families of models that use them. */
static const char *const eos_texts[] = {
    "</s>",       "<eos>",   "<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>",
    "<|eom_id|>", "<|end|>", "<|eot|>",    "<end_of_turn>", "<|EOT|>",         "<|end_of_turn|>",
};

static bool is_text(enum token_type t) /* may plain text become such a token? */
{
    return t == TOKEN_NORMAL || t == TOKEN_USER_DEFINED;
}

static uint32_t hash(const char *s, size_t len) /* FNV-1a, folded */
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < len; i++)
        h = (h ^ (unsigned char)s[i]) * 0x100000001b3u;
    return (uint32_t)(h ^ h >> 32);
}

/* The slot of these bytes, or the free one where they belong. */
static int32_t *find_slot(const struct tokenizer *t, const char *s, size_t len)
{
    uint32_t at = hash(s, len) & t->slot_mask;
    for (; t->slot[at] >= 0; at = (at + 1) & t->slot_mask) {
        const struct piece *p = &t->piece[t->slot[at]];
        if (p->len == len && memcmp(p->raw, s, len) == 0)
            break;
    }
    return &t->slot[at];
}

int32_t tokenizer_find(const struct tokenizer *t, const char *s, size_t len)
{
    return len > 0 && len <= t->longest ? *find_slot(t, s, len) : -1;
}

/* The first of several tokens with the same bytes is the one that text becomes. */
static void add_to_slots(struct tokenizer *t, enum token_type type)
{
    for (int32_t id = 0; id < t->vocab; id++) {
        const struct piece *p = &t->piece[id];
        if (p->type != type || p->len == 0)
            continue;
        int32_t *slot = find_slot(t, p->raw, p->len);
        *slot = *slot < 0 ? id : *slot;
        t->longest = p->len > t->longest ? p->len : t->longest;
    }
}

static void build_slots(struct tokenizer *t)
{
    uint64_t n = 2;
    while (n < 2 * (uint64_t)t->vocab)
        n *= 2;
    t->slot = ARENA_NEW(&t->arena, int32_t, n);
    t->slot_mask = (uint32_t)(n - 1);
    memset(t->slot, 0xff, n * sizeof *t->slot);
    add_to_slots(t, TOKEN_NORMAL);
    add_to_slots(t, TOKEN_USER_DEFINED);
}

static int hex_digit(char c)
{
    static const char digits[] = "0123456789ABCDEF";
    const char *at = c ? strchr(digits, c) : NULL;
    return at ? (int)(at - digits) : -1;
}

/* The byte of "<0x0A>", as SentencePiece writes bytes, or -1. */
static int byte_of_text(struct gguf_str s)
{
    if (s.len != 6 || memcmp(s.s, "<0x", 3) != 0 || s.s[5] != '>')
        return -1;
    int high = hex_digit(s.s[3]), low = hex_digit(s.s[4]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

/* "▁" is a space. */
static size_t spm_decode(char *out, const char *s, size_t len)
{
    size_t n = 0;
    for (size_t at = 0; at < len;) {
        bool space = len - at >= 3 && memcmp(s + at, "\xe2\x96\x81", 3) == 0;
        out[n++] = space ? ' ' : s[at];
        at += space ? 3 : 1;
    }
    return n;
}

/* What the token stands for, into out, which has room for its text. Returns the length. */
static size_t decode_piece(struct tokenizer *t, int32_t id, struct gguf_str text, char *out)
{
    struct piece *p = &t->piece[id];
    int byte = p->type == TOKEN_BYTE ? byte_of_text(text) : -1;
    if (byte >= 0) {
        out[0] = (char)byte;
        t->byte_id[byte] = t->byte_id[byte] < 0 ? id : t->byte_id[byte];
        return 1;
    }
    if (t->kind == TOKENIZER_BPE && p->type == TOKEN_NORMAL)
        return bpe_decode(out, text.s, text.len);
    if (t->kind == TOKENIZER_SPM && is_text(p->type))
        return spm_decode(out, text.s, text.len);
    memcpy(out, text.s, text.len);
    return text.len;
}

static int read_pieces(struct tokenizer *t, const struct gguf_str *text, struct err *err)
{
    size_t total = 0;
    for (int i = 0; i < t->vocab; i++) {
        if (text[i].len > MAX_PIECE)
            return err_set(err, ERR_FILE, "tokenizer.ggml.tokens[%d] has %zu bytes", i,
                           text[i].len);
        total += text[i].len;
    }
    char *out = arena_alloc(&t->arena, total);
    for (int i = 0; i < t->vocab; i++) {
        t->piece[i].raw = out;
        t->piece[i].len = (uint32_t)decode_piece(t, i, text[i], out);
        out += t->piece[i].len;
    }
    return 0;
}

/* In a byte-level vocabulary the tokens of one byte are ordinary ones. */
static void find_bytes(struct tokenizer *t)
{
    for (int byte = 0; byte < 256; byte++) {
        char c = (char)byte;
        int32_t id = tokenizer_find(t, &c, 1);
        t->byte_id[byte] = t->byte_id[byte] < 0 ? id : t->byte_id[byte];
    }
}

static bool is_special(enum token_type t)
{
    return t == TOKEN_CONTROL || t == TOKEN_UNKNOWN || t == TOKEN_USER_DEFINED;
}

static int compare_specials(const void *a, const void *b)
{
    const struct piece *x = *(const struct piece *const *)a, *y = *(const struct piece *const *)b;
    int c = memcmp(x->raw, y->raw, x->len < y->len ? x->len : y->len);
    c = c ? c : (x->len > y->len) - (x->len < y->len);
    return c ? c : (x > y) - (x < y); /* by id */
}

static void build_specials(struct tokenizer *t)
{
    t->special = ARENA_NEW(&t->arena, const struct piece *, t->vocab);
    for (int32_t id = 0; id < t->vocab; id++) {
        const struct piece *p = &t->piece[id];
        if (!is_special(p->type) || p->len == 0)
            continue;
        t->special[t->n_special++] = p;
        t->special_begins[(unsigned char)p->raw[0]] = true;
    }
    qsort(t->special, (size_t)t->n_special, sizeof *t->special, compare_specials);
}

/* The first of special[lo..hi), which agree in n bytes, whose next byte is at least `byte`. */
static int special_bound(const struct tokenizer *t, int lo, int hi, size_t n, int byte)
{
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;
        const struct piece *p = t->special[mid];
        int have = p->len > n ? (unsigned char)p->raw[n] : -1;
        if (have < byte)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* The longest special token at the start of s, or NULL. */
static const struct piece *special_at(const struct tokenizer *t, const char *s, size_t len,
                                      int flags)
{
    const struct piece *best = NULL;
    int lo = 0, hi = t->special_begins[(unsigned char)s[0]] ? t->n_special : 0;
    for (size_t n = 0; n < len && lo < hi; n++) {
        int byte = (unsigned char)s[n];
        lo = special_bound(t, lo, hi, n, byte);
        hi = special_bound(t, lo, hi, n, byte + 1);
        bool found = false; /* those that end here come first, the lowest id at their head */
        for (int i = lo; i < hi && t->special[i]->len == n + 1 && !found; i++) {
            found = flags & TOKENIZE_SPECIAL || t->special[i]->type == TOKEN_USER_DEFINED;
            best = found ? t->special[i] : best;
        }
    }
    return best;
}

/* The id under a metadata key; -1 when it is absent or all ones, which means none. */
static int read_id(const struct tokenizer *t, const struct gguf *g, const char *key, int32_t *id,
                   struct err *err)
{
    uint32_t v;
    *id = -1;
    if (!gguf_u32(g, key, &v) || v == UINT32_MAX)
        return 0;
    if (v >= (uint32_t)t->vocab)
        return err_set(err, ERR_FILE, "%s: %u is not in the vocabulary of %d tokens", key, v,
                       t->vocab);
    *id = (int32_t)v;
    return 0;
}

enum { KEY_BOS, KEY_UNK, KEY_EOS, KEY_EOT, KEY_EOM, N_ID_KEYS };

static const char *const id_keys[N_ID_KEYS] = {
    [KEY_BOS] = "tokenizer.ggml.bos_token_id", [KEY_UNK] = "tokenizer.ggml.unknown_token_id",
    [KEY_EOS] = "tokenizer.ggml.eos_token_id", [KEY_EOT] = "tokenizer.ggml.eot_token_id",
    [KEY_EOM] = "tokenizer.ggml.eom_token_id",
};

/* Without types, the tokens that the metadata gives a role are control tokens, and SentencePiece's
 * byte tokens are told by their text. */
static int read_types(struct tokenizer *t, const struct gguf *g, const struct gguf_str *text,
                      const int32_t ids[N_ID_KEYS], struct err *err)
{
    const int32_t *type = NULL;
    int64_t n = gguf_array_i32(g, "tokenizer.ggml.token_type", &type);
    if (n >= 0 && n != t->vocab)
        return err_set(err, ERR_FILE, "tokenizer.ggml.token_type has %lld entries, not %d",
                       (long long)n, t->vocab);
    for (int i = 0; i < t->vocab; i++) {
        int32_t v =
            t->kind == TOKENIZER_SPM && byte_of_text(text[i]) >= 0 ? TOKEN_BYTE : TOKEN_NORMAL;
        if (n >= 0)
            memcpy(&v, (const char *)type + (size_t)i * sizeof v, sizeof v);
        if (v < TOKEN_NORMAL || v > TOKEN_BYTE)
            return err_set(err, ERR_FILE, "tokenizer.ggml.token_type[%d] is %d, not 1 to 6", i, v);
        t->piece[i].type = (enum token_type)v;
    }
    for (int k = 0; k < N_ID_KEYS; k++)
        if (n < 0 && ids[k] >= 0)
            t->piece[ids[k]].type = TOKEN_CONTROL;
    return 0;
}

static void add_eos(struct tokenizer *t, int32_t id)
{
    int at = t->n_eos;
    if (id < 0 || tokenizer_is_eos(t, id) || t->n_eos == MAX_EOS)
        return;
    for (; at > 0 && t->eos[at - 1] > id; at--)
        t->eos[at] = t->eos[at - 1];
    t->eos[at] = id;
    t->n_eos++;
}

static bool is_eos_text(const struct piece *p)
{
    for (size_t i = 0; i < sizeof eos_texts / sizeof *eos_texts; i++)
        if (strlen(eos_texts[i]) == p->len && memcmp(eos_texts[i], p->raw, p->len) == 0)
            return true;
    return false;
}

static void find_eos(struct tokenizer *t, const int32_t ids[N_ID_KEYS])
{
    for (int k = KEY_EOS; k <= KEY_EOM; k++)
        add_eos(t, ids[k]);
    for (int i = 0; i < t->n_special; i++)
        if (t->special[i]->type == TOKEN_CONTROL && is_eos_text(t->special[i]))
            add_eos(t, (int32_t)(t->special[i] - t->piece));
    t->eos_id = ids[KEY_EOS] >= 0 ? ids[KEY_EOS] : t->n_eos ? t->eos[0] : -1;
}

static int read_kind(struct tokenizer *t, const struct gguf *g, struct err *err)
{
    static const struct {
        const char *name;
        enum tokenizer_kind kind;
    } kinds[] = {{"gpt2", TOKENIZER_BPE},
                 {"llama", TOKENIZER_SPM},
                 {"none", TOKENIZER_NONE},
                 {"no_vocab", TOKENIZER_NONE}};
    struct gguf_str name = {"none", 4};
    gguf_string(g, "tokenizer.ggml.model", &name);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strlen(kinds[i].name) == name.len && memcmp(kinds[i].name, name.s, name.len) == 0) {
            t->kind = kinds[i].kind;
            return 0;
        }
    return err_set(err, ERR_FILE,
                   "tokenizer.ggml.model: \"%.*s\" is not supported (gpt2, llama are)",
                   (int)(name.len < 64 ? name.len : 64), name.s);
}

static int read_vocabulary(struct tokenizer *t, const struct gguf *g, const int32_t ids[N_ID_KEYS],
                           struct err *err)
{
    const struct gguf_str *text = NULL;
    int64_t n = gguf_array_strings(g, "tokenizer.ggml.tokens", &text);
    if (n != t->vocab)
        return err_set(err, ERR_FILE, "tokenizer.ggml.tokens: %lld tokens, but the model has %d",
                       (long long)n, t->vocab);
    if (read_types(t, g, text, ids, err) || read_pieces(t, text, err))
        return -1;
    build_slots(t);
    find_bytes(t);
    build_specials(t);
    return 0;
}

static int open_parts(struct tokenizer *t, const struct gguf *g, struct err *err)
{
    int32_t ids[N_ID_KEYS];
    if (read_kind(t, g, err))
        return -1;
    for (int k = 0; k < N_ID_KEYS; k++)
        if (read_id(t, g, id_keys[k], &ids[k], err))
            return -1;
    t->bos = ids[KEY_BOS];
    t->adds_bos = t->adds_space = t->kind == TOKENIZER_SPM;
    if (t->kind != TOKENIZER_NONE && read_vocabulary(t, g, ids, err))
        return -1;
    if (t->kind == TOKENIZER_BPE && bpe_open(t, g, err))
        return -1;
    if (t->kind == TOKENIZER_SPM && spm_open(t, g, err))
        return -1;
    find_eos(t, ids);
    gguf_bool(g, "tokenizer.ggml.add_bos_token", &t->adds_bos);
    t->adds_bos = t->adds_bos && t->bos >= 0;
    bool adds_space = t->adds_space; /* byte-level vocabularies know no such prefix */
    gguf_bool(g, "tokenizer.ggml.add_space_prefix", &adds_space);
    t->adds_space = t->adds_space && adds_space;
    return 0;
}

int tokenizer_open(struct tokenizer **out, const struct gguf *g, int vocab, struct err *err)
{
    struct tokenizer *t = calloc(1, sizeof *t);
    CHECK(t && "out of memory");
    t->vocab = vocab;
    t->piece = ARENA_NEW(&t->arena, struct piece, vocab);
    memset(t->byte_id, 0xff, sizeof t->byte_id);
    if (open_parts(t, g, err)) {
        tokenizer_close(t);
        return -1;
    }
    *out = t;
    return 0;
}

void tokenizer_close(struct tokenizer *t)
{
    if (!t)
        return;
    bpe_close(t);
    arena_free(&t->arena);
    free(t);
}

void tokens_add(struct tokens *list, int32_t id)
{
    if (list->n == list->cap) {
        list->cap = list->cap ? 2 * list->cap : 64;
        list->ids = realloc(list->ids, (size_t)list->cap * sizeof *list->ids);
        CHECK(list->ids && "out of memory");
    }
    list->ids[list->n++] = id;
}

static int encode_plain(struct encoding *e, const char *text, size_t len)
{
    return e->t->kind == TOKENIZER_BPE ? bpe_encode(e, text, len) : spm_encode(e, text, len);
}

/* Text between special tokens. SentencePiece was trained on texts that begin with a space. */
static int encode_part(struct encoding *e, const char *text, size_t len, bool prefix)
{
    if (len == 0)
        return 0;
    if (!prefix)
        return encode_plain(e, text, len);
    struct buf spaced = {0};
    buf_puts(&spaced, " ");
    buf_add(&spaced, text, len);
    int rc = encode_plain(e, spaced.data, spaced.len);
    buf_free(&spaced);
    return rc;
}

static int encode_text(struct encoding *e, const char *text, size_t len, int flags)
{
    const struct tokenizer *t = e->t;
    bool prefix = t->adds_space && flags & TOKENIZE_START;
    size_t from = 0;
    for (size_t at = 0; at < len;) {
        const struct piece *p = special_at(t, text + at, len - at, flags);
        if (!p) {
            at++;
            continue;
        }
        if (encode_part(e, text + from, at - from, prefix))
            return -1;
        tokens_add(e->out, (int32_t)(p - t->piece));
        from = at += p->len;
    }
    return encode_part(e, text + from, len - from, prefix);
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, int flags,
                     struct tokens *out, struct err *err)
{
    enum { MAX_TEXT = 1 << 30 };
    if (t->kind == TOKENIZER_NONE)
        return err_set(err, ERR_INVALID, "the model has no tokenizer: give token ids");
    if (len > MAX_TEXT)
        return err_set(err, ERR_INVALID, "a text of %zu bytes exceeds the limit %d", len, MAX_TEXT);
    struct encoding e = {.t = t, .out = out, .err = err};
    int n = out->n;
    if (flags & TOKENIZE_START && t->adds_bos)
        tokens_add(out, t->bos);
    int rc = encode_text(&e, text, len, flags);
    free(e.symbols);
    free(e.heap);
    out->n = rc ? n : out->n; /* a refusal leaves the list as it was */
    return rc;
}

const char *tokenizer_piece_special(const struct tokenizer *t, int32_t id, size_t *len)
{
    *len = t->piece[id].len;
    return *len ? t->piece[id].raw : "";
}

const char *tokenizer_piece(const struct tokenizer *t, int32_t id, size_t *len)
{
    enum token_type type = t->piece[id].type;
    if (is_text(type) || type == TOKEN_BYTE)
        return tokenizer_piece_special(t, id, len);
    *len = 0;
    return "";
}

int tokenizer_vocab(const struct tokenizer *t)
{
    return t->vocab;
}

int32_t tokenizer_bos(const struct tokenizer *t)
{
    return t->bos;
}

bool tokenizer_adds_bos(const struct tokenizer *t)
{
    return t->adds_bos;
}

int tokenizer_eos(const struct tokenizer *t, const int32_t **ids)
{
    *ids = t->eos;
    return t->n_eos;
}

int32_t tokenizer_eos_id(const struct tokenizer *t)
{
    return t->eos_id;
}

bool tokenizer_is_eos(const struct tokenizer *t, int32_t id)
{
    for (int i = 0; i < t->n_eos; i++)
        if (t->eos[i] == id)
            return true;
    return false;
}
