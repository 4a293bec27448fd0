/* POST /v1/chat/completions: a conversation, written as the model's template wants it, is a prompt.
 */
#include <stdlib.h>
#include <string.h>

#include "../core/chat.h"
#include "draft.h"

#define COUNT(table) ((int)(sizeof(table) / sizeof *(table)))

enum { MAX_MESSAGES = 1024, POTENTIAL_TOKENS_MAX = 64 };

struct message_draft {
    int role;
    const json_t *content, *name, *refused;
};
#define AT(member) .offset = offsetof(struct message_draft, member)

static const char *const roles[] = {"system", "user", "assistant", NULL};

static const struct field message_fields[] = {
    {"role", FIELD_CHOICE, AT(role), .choices = roles, .required = true},
    {"content", FIELD_ANY, AT(content), .required = true},
    {"name", FIELD_ANY, AT(name)}, /* no template here has a place for it */
    {"refusal", FIELD_ANY, AT(refused)},
    {"tool_calls", FIELD_ANY, AT(refused)},
    {"function_call", FIELD_ANY, AT(refused)},
    {"audio", FIELD_ANY, AT(refused)},
    {"annotations", FIELD_ANY, AT(name)},
};

struct part_draft {
    struct text text;
};

static int read_part(const struct reader *r, struct place at, const json_t *value, struct buf *out)
{
    static const char *const types[] = {"text", NULL};
    static const struct field fields[] = {
        FIELD_TYPE,
        {"text", FIELD_TEXT, .offset = offsetof(struct part_draft, text), .required = true},
    };
    struct part_draft d;
    int type;
    if (type_read(r, at, value, types, &type) || fields_read(r, at, value, fields, 2, &d))
        return -1;
    buf_add(out, d.text.s, d.text.len);
    return 0;
}

/* A string, or an array of parts that are put together. */
static int read_content(const struct reader *r, struct place at, const json_t *value,
                        struct buf *out)
{
    if (json_is_string(value)) {
        buf_add(out, json_string_value(value), json_string_length(value));
        return 0;
    }
    if (!json_is_array(value))
        return wrong_type(r, at, "a string or an array of text parts", value);
    for (size_t i = 0; i < json_array_size(value); i++)
        if (read_part(r, place_index(at, i), json_array_get(value, i), out))
            return -1;
    return 0;
}

static int read_message(const struct reader *r, struct place at, const json_t *value,
                        struct chat_message *out)
{
    struct message_draft d = {0};
    struct buf text = {0};
    if (fields_read(r, at, value, message_fields, COUNT(message_fields), &d))
        return -1;
    if (d.refused)
        return err_field(r->err, at.s, "only messages of text are supported");
    int rc = read_content(r, place_field(at, "content"), d.content, &text);
    out->role = roles[d.role];
    out->text = arena_strdup(r->arena, text.data ? text.data : "", text.len);
    out->len = text.len;
    buf_free(&text);
    return rc;
}

/* A conversation that cannot fit is refused unread: tokenizing megabytes would hold up others. */
static int check_length(const struct reader *r, const struct chat_message *m, int n)
{
    size_t len = 0, max = (size_t)model_text_limit(r->info) * longest_piece(r->info->tokenizer);
    for (int i = 0; i < n; i++)
        len += m[i].len;
    return len <= max ? 0 : err_field(r->err, "messages", "%zu bytes exceed the context", len);
}

static int encode(const struct reader *r, const struct chat_message *m, int n, struct prompt *out)
{
    struct tokens t = {0};
    struct err why;
    int max = model_text_limit(r->info);
    int rc = chat_encode(&r->info->chat, r->info->tokenizer, m, n, r->special, &t, &why);
    if (rc)
        err_field(r->err, "messages", "%s", why.msg);
    else if (t.n > max)
        rc = err_field(r->err, "messages", "%d tokens exceed the limit %d", t.n, max);
    if (!rc) {
        int32_t *id = ARENA_NEW(r->arena, int32_t, t.n);
        memcpy(id, t.ids, sizeof *id * (size_t)t.n);
        out->ids = (struct ids){id, t.n};
        prompt_decode(r, out);
    }
    free(t.ids);
    return rc;
}

static int read_messages(const struct reader *r, const json_t *value, struct complete *out)
{
    size_t n = json_array_size(value);
    if (!json_is_array(value))
        return wrong_type(r, top("messages"), "an array of messages", value);
    if (n == 0)
        return err_field(r->err, "messages", "is empty");
    if (n > MAX_MESSAGES)
        return err_field(r->err, "messages", "%zu exceed the limit %d", n, MAX_MESSAGES);
    struct chat_message *m = ARENA_NEW(r->arena, struct chat_message, n);
    for (size_t i = 0; i < n; i++)
        if (read_message(r, place_index(top("messages"), i), json_array_get(value, i), &m[i]))
            return -1;
    out->prompts = ARENA_NEW(r->arena, struct prompt, 1);
    out->n_prompts = 1;
    return check_length(r, m, (int)n) || encode(r, m, (int)n, out->prompts) ? -1 : 0;
}

/* Without max_tokens an answer may take what is left of the context; where a population is weighed,
 * as many tokens as /v1/sample's. */
static int longest_answer(const struct reader *r, const struct draft *d, const struct complete *c)
{
    if (d->max_completion_tokens >= 0)
        return d->max_completion_tokens;
    if (d->max_tokens >= 0)
        return d->max_tokens;
    int room = r->info->context - c->prompts->ids.n, most = r->info->limits.max_tokens;
    most = d->potential && most > POTENTIAL_TOKENS_MAX ? POTENTIAL_TOKENS_MAX : most;
    return room < 1 ? 1 : room < most ? room : most;
}

static int make_chat(const struct reader *r, const struct draft *d, struct job *j)
{
    struct draft of = *d;
    if (d->max_tokens >= 0 && d->max_completion_tokens >= 0 &&
        d->max_tokens != d->max_completion_tokens)
        return err_field(r->err, "max_completion_tokens",
                         "is another name for max_tokens, which is %d", d->max_tokens);
    if (d->top_logprobs >= 0 && !d->logprobs)
        return err_field(r->err, "top_logprobs", "needs logprobs: true");
    if (d->prompt)
        return err_field(r->err, "prompt", "belongs to /v1/completions; here there are messages");
    if (read_messages(r, d->messages, &j->complete))
        return -1;
    of.max_tokens = longest_answer(r, d, &j->complete);
    of.top_logprobs = d->logprobs && d->top_logprobs < 0 ? 0 : d->top_logprobs;
    return completion_make(r, &of, j);
}

static const struct field chat_fields[] = {
    {"messages", FIELD_ANY, DRAFT(messages), .required = true},
    TARGET_FIELDS,
    POPULATION_FIELDS(1, 0),
    {"max_completion_tokens", FIELD_INT, DRAFT(max_completion_tokens), .min = 0,
     FIELD_LIMIT(max_tokens)},
    {"twist", FIELD_ANY, DRAFT(twist)},
    {"proposal", FIELD_CHOICE, DRAFT(proposal), .choices = proposal_names},
    {"n", FIELD_INT, DRAFT(n), .min = 1, FIELD_LIMIT(max_particles)},
    {"logprobs", FIELD_BOOL, DRAFT(logprobs)},
    {"top_logprobs", FIELD_INT, DRAFT(top_logprobs), .min = 0, .max = TOP_MAX},
    {"stream_options", FIELD_ANY, DRAFT(stream_options)},
};

int request_chat(struct job **out, struct request_opts *opts, const char *text, size_t len,
                 const struct engine_info *info, struct err *err)
{
    static const struct request_form form = {chat_fields,
                                             COUNT(chat_fields),
                                             .defaults = {.temperature = 1,
                                                          .top_p = 1,
                                                          .n = 1,
                                                          .max_tokens = -1,
                                                          .max_completion_tokens = -1,
                                                          .top_logprobs = -1},
                                             .make = make_chat,
                                             .kind = JOB_COMPLETE,
                                             .prefix = "chatcmpl",
                                             .tolerant = true};
    return request_read(&form, out, opts, text, len, info, err);
}
