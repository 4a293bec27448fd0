/* A completion's answer from its tokens: whatever they are, the chunks of a stream together are the
 * text of the whole answer, and that is all before the first stop string. */
#include <jansson.h>
#include <stdlib.h>

#include "../../core/utf8.h"
#include "../../proto/completion.h"
#include "../check.h"
#include "../tiny_info.h"

enum { BYTES = 4, MAX_TOKENS = 24, CASES = 3000 };

static struct tiny_info tiny;
static uint32_t state = 1;

static uint32_t random_below(uint32_t n)
{
    state = state * 1664525u + 1013904223u;
    return (uint32_t)((uint64_t)state * n >> 32);
}

/* Of few kinds, so that stop strings and characters come together often: a, b, é, 漢 in parts. */
static int32_t random_token(void)
{
    static const unsigned char bytes[] = "aab\xc3\xa9\xe6\xbc\xa2";
    return BYTES + bytes[random_below(sizeof bytes - 1)];
}

static struct job *open_job(const char *body, struct request_opts *opts)
{
    struct job *j;
    struct err err;
    CHECK(request_completion(&j, opts, body, strlen(body), &tiny.info, &err) == 0);
    return j;
}

/* Tokens up to MAX_TOKENS, the end of a stop string or EOS, as the engine ends them. */
static int draw(const struct segment *hole, struct event_token *out, struct buf *bytes)
{
    for (int n = 0;; n++) {
        struct event_token *t = &out[n];
        *t = (struct event_token){.token = random_below(20) ? random_token() : 2 /* EOS */};
        size_t len;
        const char *piece = tokenizer_piece(tiny.tokenizer, t->token, &len);
        buf_add(bytes, piece, len);
        t->stopped = t->token == 2;
        for (int i = 0; i < hole->n_stop && bytes->len; i++)
            t->stopped |= memmem(bytes->data, bytes->len, hole->stop[i], hole->stop_len[i]) != NULL;
        t->ended = t->stopped || n + 1 == MAX_TOKENS;
        if (t->ended)
            return n + 1;
    }
}

/* Adds the text of the answer's, or a chunk's, first choice. Returns whether it has ended. */
static bool take_text(struct buf *out, const char *json, size_t len)
{
    json_t *answer = json_loadb(json, len, 0, NULL); /* refuses what is not UTF-8 */
    CHECK(answer);
    json_t *choice = json_array_get(json_object_get(answer, "choices"), 0);
    json_t *text = json_object_get(choice, "text");
    bool ended = json_is_string(json_object_get(choice, "finish_reason"));
    buf_add(out, json_string_value(text), json_string_length(text));
    json_decref(answer);
    return ended;
}

static bool is_character_start(const char *s, size_t n)
{
    return n == 0 || ((unsigned char)s[0] & 0xc0) != 0x80;
}

static void stream(const struct job *j, const struct request_opts *opts,
                   const struct event_token *tokens, int n, struct buf *text)
{
    struct completion *c = completion_open(j, opts, &tiny.info);
    struct buf out = {0};
    bool ended = false;
    for (int i = 0; i < n; i++) {
        buf_reset(&out);
        struct event e = {.type = EVENT_TOKENS, .tokens = {.token = &tokens[i], .n = 1}};
        completion_say(c, &out, &e);
        EXPECT(!ended);
        size_t before = text->len;
        if (out.len)
            ended = take_text(text, out.data + strlen("data: "), out.len - strlen("data: "));
        EXPECT(is_character_start(text->data + before, text->len - before));
    }
    EXPECT(ended);
    buf_free(&out);
    completion_close(c);
}

static void whole(const struct job *j, const struct request_opts *opts,
                  const struct event_token *tokens, int n, struct buf *text)
{
    int32_t id[MAX_TOKENS];
    struct completion *c = completion_open(j, opts, &tiny.info);
    struct buf out = {0};
    for (int i = 0; i < n; i++)
        id[i] = tokens[i].token;
    completion_add(c,
                   &(struct event){.type = EVENT_CHOICE, .choice = {.tokens = id, .n_tokens = n}});
    completion_json(c, &out);
    take_text(text, out.data, out.len);
    buf_free(&out);
    completion_close(c);
}

/* All before the first stop string. */
static void trimmed(const struct segment *hole, const struct buf *bytes, struct buf *text)
{
    size_t end = bytes->len;
    for (int i = 0; i < hole->n_stop; i++) {
        const char *at = memmem(bytes->data, bytes->len, hole->stop[i], hole->stop_len[i]);
        if (at && (size_t)(at - bytes->data) < end)
            end = (size_t)(at - bytes->data);
    }
    utf8_sanitize(text, bytes->data, end);
}

static void run_case(const struct job *j, const struct request_opts *opts)
{
    struct event_token tokens[MAX_TOKENS];
    struct buf bytes = {0}, want = {0}, parts = {0}, one = {0};
    buf_puts(&bytes, "");
    int n = draw(&j->segments[0], tokens, &bytes);
    trimmed(&j->segments[0], &bytes, &want);
    stream(j, opts, tokens, n, &parts);
    whole(j, opts, tokens, n, &one);
    EXPECT(parts.len == want.len && (!want.len || !memcmp(parts.data, want.data, want.len)));
    EXPECT(one.len == want.len && (!want.len || !memcmp(one.data, want.data, want.len)));
    buf_free(&bytes);
    buf_free(&want);
    buf_free(&parts);
    buf_free(&one);
}

int main(void)
{
    static const char *const bodies[] = {
        "{\"prompt\":\"the\",\"stream\":true}",
        "{\"prompt\":\"the\",\"stream\":true,\"stop\":[\"aba\",\"\xc3\xa9"
        "aa\"]}",
        "{\"prompt\":\"the\",\"stream\":true,\"stop\":[\"\xe6\xbc\xa2\",\"abb\",\"bab\xc3\xa9\"]}",
        "{\"prompt\":\"the\",\"stream\":true,\"stop\":[\"aaaa\",\"aab\",\"b\xc3\xa9\"]}",
    };
    tiny_open(&tiny, TINY_BOS);
    for (size_t b = 0; b < sizeof bodies / sizeof *bodies; b++) {
        struct request_opts opts;
        struct job *j = open_job(bodies[b], &opts);
        for (int i = 0; i < CASES && !check_failures; i++)
            run_case(j, &opts);
        job_free(j);
    }
    tiny_close(&tiny);
    return test_failures();
}
