/* SentencePiece BPE: characters are merged by the best score of the joined piece; what remains
 * unknown is spelt in byte tokens. */
#include "tokenizer_impl.h"

#include <math.h>
#include <string.h>

#include "utf8.h"

/* Does the piece hold a space after something else? Then merges may cross from one word to the
 * next, and a text cannot be taken word by word. */
static bool joins_words(const struct piece *p)
{
    for (uint32_t i = 1; i < p->len; i++)
        if (p->raw[i] == ' ' && p->raw[i - 1] != ' ')
            return true;
    return false;
}

int spm_open(struct tokenizer *t, const struct gguf *g, struct err *err)
{
    float *score = ARENA_NEW(&t->arena, float, t->vocab);
    const float *from = NULL;
    int64_t n = gguf_array_f32(g, "tokenizer.ggml.scores", &from);
    if (n >= 0 && n != t->vocab)
        return err_set(err, ERR_FILE, "tokenizer.ggml.scores has %lld entries, not %d",
                       (long long)n, t->vocab);
    if (n > 0)
        memcpy(score, from, (size_t)n * sizeof *score);
    t->score = score;
    t->words_apart = true;
    for (int i = 0; i < t->vocab; i++) {
        if (isnan(score[i]))
            return err_set(err, ERR_FILE, "tokenizer.ggml.scores[%d] is not a number", i);
        const struct piece *p = &t->piece[i];
        if (p->type == TOKEN_NORMAL || p->type == TOKEN_USER_DEFINED)
            t->words_apart = t->words_apart && !joins_words(p);
    }
    return 0;
}

static bool spm_rule(const struct tokenizer *t, const char *text, const struct symbol *left,
                     const struct symbol *right, struct merge *m)
{
    (void)left, (void)right;
    m->id = tokenizer_find(t, text + m->left, (size_t)m->len);
    if (m->id < 0)
        return false;
    m->cost = -(double)t->score[m->id];
    return true;
}

static int encode_word(struct encoding *e, const char *text, size_t len)
{
    merge_reserve(e, len);
    for (size_t at = 0, prev = 0, n; at < len; prev = at, at += n) {
        n = utf8_char(text + at, len - at);
        n = n ? n : 1;
        e->symbols[at] = (struct symbol){
            .id = tokenizer_find(e->t, text + at, n),
            .prev = at ? (int32_t)prev : -1,
            .next = (int32_t)(at + n),
        };
    }
    merge_all(e, text, (int32_t)len, spm_rule);
    return merge_emit(e, text, (int32_t)len);
}

int spm_encode(struct encoding *e, const char *text, size_t len)
{
    size_t from = 0;
    for (size_t at = 1; e->t->words_apart && at < len; at++) {
        if (text[at] != ' ' || text[at - 1] == ' ')
            continue;
        if (encode_word(e, text + from, at - from))
            return -1;
        from = at;
    }
    return encode_word(e, text + from, len - from);
}
