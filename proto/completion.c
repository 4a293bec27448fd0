#include "completion.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../core/tokenizer.h"
#include "../core/utf8.h"
#include "event_json.h"
#include "json_write.h"
#include "logprobs.h"

struct stop {
    const char *s;
    size_t len;
};

struct choice {
    struct buf bytes; /* of all its tokens */
    size_t told;      /* bytes that were put into a text */
    bool begun;       /* something of it was told */
    bool sent;        /* … and sent */
    bool ended, stopped;
    struct buf text;     /* told, and not yet sent */
    struct buf logprobs; /* JSON; empty: none */
};

struct completion {
    struct arena arena;
    const struct tokenizer *tokenizer;
    const char *id, *model, *fingerprint;
    int64_t created; /* seconds */
    bool chat;
    bool include_usage;
    const struct prompt *echo; /* (n_choices / n) texts only; NULL: no echo */
    struct stop *stop;
    int n_stops;
    size_t longest_stop;
    int n; /* choices of a prompt */
    int n_choices;
    struct choice *choice;
    int prompt_tokens;
    int64_t completion_tokens;
};

/* ---- open, close ---- */

static void keep_stops(struct completion *c, const struct segment *hole)
{
    c->n_stops = hole->n_stop;
    c->stop = ARENA_NEW(&c->arena, struct stop, hole->n_stop);
    for (int i = 0; i < hole->n_stop; i++) {
        size_t len = hole->stop_len[i];
        c->stop[i] = (struct stop){arena_strdup(&c->arena, hole->stop[i], len), len};
        c->longest_stop = len > c->longest_stop ? len : c->longest_stop;
    }
}

static void keep_prompts(struct completion *c, const struct complete *of)
{
    struct prompt *echo = ARENA_NEW(&c->arena, struct prompt, of->n_prompts);
    for (int i = 0; i < of->n_prompts; i++) {
        const struct prompt *p = &of->prompts[i];
        echo[i] = (struct prompt){.text = arena_strdup(&c->arena, p->text, p->len), .len = p->len};
    }
    c->echo = echo;
}

/* Build, backend and model: with the same seed and fingerprint, the same answer. */
static const char *fingerprint(struct arena *a, const struct engine_info *info)
{
    char text[256];
    int n = snprintf(text, sizeof text, "clotho " CLOTHO_VERSION "; %s; %s", info->device,
                     info->fingerprint);
    return arena_strdup(a, text, (size_t)n);
}

struct completion *completion_open(const struct job *j, const struct request_opts *opts,
                                   const struct engine_info *info)
{
    struct arena arena = {0};
    struct completion *c = ARENA_NEW(&arena, struct completion, 1);
    c->arena = arena;
    c->tokenizer = info->tokenizer;
    c->id = arena_strdup(&c->arena, j->id, strlen(j->id));
    c->model = arena_strdup(&c->arena, info->model, strlen(info->model));
    c->fingerprint = fingerprint(&c->arena, info);
    c->created = (int64_t)time(NULL);
    c->chat = opts->chat;
    c->include_usage = opts->include_usage;
    c->n = j->complete.n;
    c->n_choices = c->n * j->complete.n_prompts;
    c->choice = ARENA_NEW(&c->arena, struct choice, c->n_choices);
    keep_stops(c, &j->segments[0]);
    if (j->complete.echo)
        keep_prompts(c, &j->complete);
    return c;
}

static void forget(struct choice *ch)
{
    buf_free(&ch->bytes);
    buf_free(&ch->text);
    buf_free(&ch->logprobs);
}

void completion_close(struct completion *c)
{
    if (!c)
        return;
    for (int i = 0; i < c->n_choices; i++)
        forget(&c->choice[i]);
    struct arena arena = c->arena; /* it lies there itself */
    arena_free(&arena);
}

/* ---- tokens to text ---- */

/* Where the first stop string begins that ends behind `from`, or len. */
static size_t stop_begin(const struct completion *c, const struct buf *bytes, size_t from)
{
    size_t begin = bytes->len;
    for (int i = 0; i < c->n_stops; i++) {
        const struct stop *s = &c->stop[i];
        size_t first = from + 1 > s->len ? from + 1 - s->len : 0;
        const char *at = first < bytes->len
                             ? memmem(bytes->data + first, bytes->len - first, s->s, s->len)
                             : NULL;
        if (at && (size_t)(at - bytes->data) < begin)
            begin = (size_t)(at - bytes->data);
    }
    return begin;
}

/* Bytes at the end that may be the beginning of a stop string. */
static size_t held_back(const struct completion *c, const struct buf *bytes)
{
    size_t most = c->longest_stop < bytes->len ? c->longest_stop : bytes->len;
    for (size_t n = most; n > 0; n--)
        for (int i = 0; i < c->n_stops; i++)
            if (n < c->stop[i].len && !memcmp(bytes->data + bytes->len - n, c->stop[i].s, n))
                return n;
    return 0;
}

/* Tell what can be told of a choice that has `from` bytes more than when it was last looked at. */
static void tell(const struct completion *c, struct choice *ch, size_t from)
{
    const struct buf *bytes = &ch->bytes;
    size_t end = stop_begin(c, bytes, from);
    if (end == bytes->len && !ch->ended) {
        end -= held_back(c, bytes);
        end = ch->told < end ? ch->told + utf8_complete(bytes->data + ch->told, end - ch->told) : 0;
    }
    if (end <= ch->told)
        return;
    utf8_sanitize(&ch->text, bytes->data + ch->told, end - ch->told);
    ch->told = end;
}

static void begin(const struct completion *c, int index)
{
    struct choice *ch = &c->choice[index];
    if (ch->begun)
        return;
    ch->begun = true;
    if (c->echo)
        buf_add(&ch->text, c->echo[index / c->n].text, c->echo[index / c->n].len);
}

static void grow(const struct completion *c, int index, const int32_t *token, int n)
{
    struct choice *ch = &c->choice[index];
    size_t from = ch->bytes.len;
    begin(c, index);
    for (int i = 0; i < n; i++) {
        size_t len;
        const char *piece = tokenizer_piece(c->tokenizer, token[i], &len);
        buf_add(&ch->bytes, piece, len);
    }
    tell(c, ch, from);
}

static void take_token(const struct completion *c, int first, const struct event_token *t)
{
    struct choice *ch = &c->choice[first + t->index];
    ch->ended = t->ended;
    ch->stopped = t->stopped;
    grow(c, first + t->index, &t->token, 1);
}

static void take_choice(const struct completion *c, const struct event *e)
{
    struct choice *ch = &c->choice[e->choice.index];
    size_t echo_len = c->echo ? c->echo[e->choice.index / c->n].len : 0;
    int n_echo = e->choice.n_echo;
    ch->ended = true;
    ch->stopped = e->choice.stopped;
    grow(c, e->choice.index, e->choice.tokens + n_echo, e->choice.n_tokens - n_echo);
    if (e->choice.token_log_p && c->chat)
        logprobs_chat_json(&ch->logprobs, c->tokenizer, e);
    else if (e->choice.token_log_p)
        logprobs_json(&ch->logprobs, c->tokenizer, e, echo_len, echo_len + ch->told);
}

static void take_usage(struct completion *c, const struct event *e)
{
    c->prompt_tokens = e->done.prompt_tokens;
    c->completion_tokens = e->done.completion_tokens;
}

/* ---- objects ---- */

static void head_members(struct json *w, const struct completion *c, const char *object)
{
    json_string_member(w, "id", c->id);
    json_string_member(w, "object", object);
    json_int_member(w, "created", c->created);
    json_clean_member(w, "model", c->model);
    json_string_member(w, "system_fingerprint", c->fingerprint);
}

static void usage_member(struct json *w, const struct completion *c)
{
    json_open(w, "usage", '{');
    json_int_member(w, "prompt_tokens", c->prompt_tokens);
    json_int_member(w, "completion_tokens", c->completion_tokens);
    json_int_member(w, "total_tokens", c->prompt_tokens + c->completion_tokens);
    json_close(w, '}');
}

static void text_member(struct json *w, const char *name, const struct choice *ch)
{
    json_text(w, name, ch->text.data, ch->text.len);
}

static void message_member(struct json *w, const struct choice *ch)
{
    json_open(w, "message", '{');
    json_string_member(w, "role", "assistant");
    text_member(w, "content", ch);
    json_null_member(w, "refusal");
    json_close(w, '}');
}

/* The role comes with the first part of a message. */
static void delta_member(struct json *w, const struct choice *ch)
{
    json_open(w, "delta", '{');
    if (!ch->sent)
        json_string_member(w, "role", "assistant");
    if (!ch->sent || ch->text.len)
        text_member(w, "content", ch);
    json_close(w, '}');
}

static void choice_object(struct json *w, const struct completion *c, int index, bool chunk)
{
    const struct choice *ch = &c->choice[index];
    json_open(w, NULL, '{');
    json_int_member(w, "index", index);
    if (c->chat && chunk)
        delta_member(w, ch);
    else if (c->chat)
        message_member(w, ch);
    else
        text_member(w, "text", ch);
    if (ch->logprobs.len)
        json_raw_member(w, "logprobs", ch->logprobs.data);
    else
        json_null_member(w, "logprobs");
    if (ch->ended)
        json_string_member(w, "finish_reason", ch->stopped ? "stop" : "length");
    else
        json_null_member(w, "finish_reason");
    json_close(w, '}');
}

/* ---- the stream ---- */

static void chunk_open(struct json *w, const struct completion *c)
{
    buf_puts(w->out, "data: ");
    json_open(w, NULL, '{');
    head_members(w, c, c->chat ? "chat.completion.chunk" : "text_completion");
    json_open(w, "choices", '[');
}

static void chunk_close(struct json *w)
{
    json_close(w, '}');
    buf_puts(w->out, "\n\n");
}

/* What is new of a choice, if there is something. */
static void say_choice(const struct completion *c, struct buf *out, int index)
{
    struct choice *ch = &c->choice[index];
    struct json w = {.out = out};
    if (!ch->text.len && !ch->ended)
        return;
    chunk_open(&w, c);
    choice_object(&w, c, index, true);
    json_close(&w, ']');
    if (c->include_usage)
        json_null_member(&w, "usage");
    chunk_close(&w);
    buf_reset(&ch->text);
    ch->sent = true;
    if (ch->ended)
        forget(ch);
}

static void say_usage(const struct completion *c, struct buf *out)
{
    struct json w = {.out = out};
    chunk_open(&w, c);
    json_close(&w, ']');
    usage_member(&w, c);
    chunk_close(&w);
}

static void say_error(struct buf *out, const struct event *e)
{
    buf_puts(out, "data: ");
    error_json(out, &e->error);
    buf_puts(out, "\n\n");
}

void completion_say(struct completion *c, struct buf *out, const struct event *e)
{
    if (e->type == EVENT_TOKENS)
        for (int i = 0; i < e->tokens.n; i++) {
            take_token(c, e->tokens.first, &e->tokens.token[i]);
            say_choice(c, out, e->tokens.first + e->tokens.token[i].index);
        }
    if (e->type == EVENT_CHOICE) {
        take_choice(c, e);
        say_choice(c, out, e->choice.index);
    }
    if (e->type == EVENT_ERROR)
        say_error(out, e);
    if (e->type != EVENT_DONE)
        return;
    take_usage(c, e);
    if (c->include_usage)
        say_usage(c, out);
    buf_puts(out, "data: [DONE]\n\n");
}

/* ---- the whole answer ---- */

void completion_add(struct completion *c, const struct event *e)
{
    if (e->type == EVENT_CHOICE)
        take_choice(c, e);
    if (e->type == EVENT_DONE)
        take_usage(c, e);
}

void completion_json(struct completion *c, struct buf *out)
{
    struct json w = {.out = out};
    json_open(&w, NULL, '{');
    head_members(&w, c, c->chat ? "chat.completion" : "text_completion");
    json_open(&w, "choices", '[');
    for (int i = 0; i < c->n_choices; i++)
        choice_object(&w, c, i, false);
    json_close(&w, ']');
    usage_member(&w, c);
    json_close(&w, '}');
}
