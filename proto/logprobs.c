#include "logprobs.h"

#include <math.h>
#include <string.h>

#include "../core/utf8.h"
#include "json_write.h"

/* The token's text, in out. */
static void write_token(struct buf *out, const struct tokenizer *t, int32_t id)
{
    size_t len;
    const char *piece = tokenizer_piece_special(t, id, &len);
    buf_reset(out);
    if (utf8_valid(piece, len)) {
        buf_add(out, piece, len);
        return;
    }
    buf_puts(out, "bytes:");
    for (size_t i = 0; i < len; i++)
        buf_printf(out, "\\x%02x", (unsigned char)piece[i]);
}

static const struct event_top *top_of(const struct event *e, int i)
{
    return e->choice.top + (size_t)i * (size_t)e->choice.n_top;
}

/* ---- the shape of completions ---- */

/* Has one of the first n of the list, or the token itself, the same text? The map has it then. */
static bool is_written(const struct tokenizer *t, int32_t token, const struct event_top *top, int n,
                       const struct buf *text)
{
    struct buf other = {0};
    bool same = false;
    for (int i = -1; i < n && !same; i++) {
        write_token(&other, t, i < 0 ? token : top[i].id);
        same = other.len == text->len && !memcmp(other.data, text->data, text->len);
    }
    buf_free(&other);
    return same;
}

static void real_named(struct json *w, const struct buf *name, double x)
{
    buf_puts(w->out, w->comma ? "," : "");
    w->comma = false;
    json_text(w, NULL, name->data, name->len);
    buf_puts(w->out, ":");
    w->comma = false;
    json_real_member(w, NULL, x);
}

/* The token itself comes first, whether it is one of the likeliest or not. */
static void top_map(struct json *w, const struct tokenizer *t, const struct event *e, int i)
{
    const struct event_top *top = top_of(e, i);
    struct buf text = {0};
    json_open(w, NULL, '{');
    write_token(&text, t, e->choice.tokens[i]);
    real_named(w, &text, e->choice.token_log_p[i]);
    for (int k = 0; k < e->choice.n_top && top[k].id >= 0; k++) {
        write_token(&text, t, top[k].id);
        if (!is_written(t, e->choice.tokens[i], top, k, &text))
            real_named(w, &text, top[k].log_p);
    }
    json_close(w, '}');
    buf_free(&text);
}

static void top_logprobs(struct json *w, const struct tokenizer *t, const struct event *e)
{
    json_open(w, "top_logprobs", '[');
    for (int i = 0; i < e->choice.n_tokens; i++)
        if (isnan(e->choice.token_log_p[i]))
            json_null_member(w, NULL);
        else
            top_map(w, t, e, i);
    json_close(w, ']');
}

static size_t piece_len(const struct tokenizer *t, int32_t id)
{
    size_t len;
    tokenizer_piece(t, id, &len);
    return len;
}

/* A tokenizer may have put a space before the prompt, which its text does not have. */
static size_t prompt_excess(const struct tokenizer *t, const struct event *e, size_t echo_len)
{
    size_t bytes = 0;
    for (int i = 0; i < e->choice.n_echo; i++)
        bytes += piece_len(t, e->choice.tokens[i]);
    return bytes > echo_len ? bytes - echo_len : 0;
}

/* Bytes that begin a character. */
static int count_chars(const char *s, size_t n)
{
    int chars = 0;
    for (size_t i = 0; i < n; i++)
        chars += ((unsigned char)s[i] & 0xc0) != 0x80;
    return chars;
}

static void text_offset(struct json *w, const struct tokenizer *t, const struct event *e,
                        size_t echo_len, size_t text_len)
{
    size_t skip = prompt_excess(t, e, echo_len), at = 0;
    int chars = 0;
    json_open(w, "text_offset", '[');
    for (int i = 0; i < e->choice.n_tokens; i++) {
        size_t len, skipped;
        const char *piece = tokenizer_piece(t, e->choice.tokens[i], &len);
        json_int_member(w, NULL, chars);
        skipped = skip < len ? skip : len;
        skip -= skipped;
        len -= skipped;
        len = at + len < text_len ? len : text_len - at; /* a stop string is not in the text */
        chars += count_chars(piece + skipped, len);
        at += len;
    }
    json_close(w, ']');
}

void logprobs_json(struct buf *out, const struct tokenizer *t, const struct event *e,
                   size_t echo_len, size_t text_len)
{
    struct json w = {.out = out};
    struct buf text = {0};
    json_open(&w, NULL, '{');
    json_open(&w, "tokens", '[');
    for (int i = 0; i < e->choice.n_tokens; i++) {
        write_token(&text, t, e->choice.tokens[i]);
        json_text(&w, NULL, text.data, text.len);
    }
    json_close(&w, ']');
    json_reals_member(&w, "token_logprobs", e->choice.token_log_p, e->choice.n_tokens);
    top_logprobs(&w, t, e);
    text_offset(&w, t, e, echo_len, text_len);
    json_close(&w, '}');
    buf_free(&text);
}

/* ---- the shape of chats ---- */

static void token_members(struct json *w, const struct tokenizer *t, int32_t id, double log_p)
{
    struct buf text = {0};
    size_t len;
    const char *piece = tokenizer_piece(t, id, &len);
    write_token(&text, t, id);
    json_text(w, "token", text.data, text.len);
    json_real_member(w, "logprob", log_p);
    json_open(w, "bytes", '[');
    for (size_t i = 0; i < len; i++)
        json_int_member(w, NULL, (unsigned char)piece[i]);
    json_close(w, ']');
    buf_free(&text);
}

void logprobs_chat_json(struct buf *out, const struct tokenizer *t, const struct event *e)
{
    struct json w = {.out = out};
    json_open(&w, NULL, '{');
    json_open(&w, "content", '[');
    for (int i = 0; i < e->choice.n_tokens; i++) {
        const struct event_top *top = top_of(e, i);
        json_open(&w, NULL, '{');
        token_members(&w, t, e->choice.tokens[i], e->choice.token_log_p[i]);
        json_open(&w, "top_logprobs", '[');
        for (int k = 0; k < e->choice.n_top && top[k].id >= 0; k++) {
            json_open(&w, NULL, '{');
            token_members(&w, t, top[k].id, top[k].log_p);
            json_close(&w, '}');
        }
        json_close(&w, ']');
        json_close(&w, '}');
    }
    json_close(&w, ']');
    json_null_member(&w, "refusal");
    json_close(&w, '}');
}
