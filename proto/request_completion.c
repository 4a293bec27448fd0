/* POST /v1/completions: OpenAI's request to a job. */
#include <stdlib.h>
#include <string.h>

#include "draft.h"

#define COUNT(table) ((int)(sizeof(table) / sizeof *(table)))

enum {
    MAX_TOKENS = 16, /* OpenAI's default */
    PARTICLES = 16,  /* default with a potential, or n if that is more */
    MAX_CHOICES = 16384,
};

/* ---- fields that other servers know ---- */

/* Each with the value that changes nothing, as JSON, or NULL if none would. null never does. */
static const struct {
    const char *name, *idle;
} tolerated[] = {
    {"user", NULL},
    {"metadata", NULL},
    {"store", NULL},
    {"service_tier", NULL},
    {"safety_identifier", NULL},
    {"prompt_cache_key", NULL},
    {"prompt_cache_retention", NULL},
    {"request_id", NULL},
    {"priority", NULL},
    {"cache_salt", NULL},
    {"cache_prompt", NULL},
    {"stream_interval", NULL},
    {"suffix", "\"\""},
    {"presence_penalty", "0"},
    {"frequency_penalty", "0"},
    {"repetition_penalty", "1"},
    {"repeat_penalty", "1"},
    {"length_penalty", "1"},
    {"min_p", "0"},
    {"typical_p", "1"},
    {"mirostat", "0"},
    {"use_beam_search", "false"},
    {"stop_token_ids", "[]"},
    {"bad_words", "[]"},
    {"allowed_token_ids", "null"},
    {"logprob_token_ids", "null"},
    {"prompt_logprobs", "null"},
    {"truncate_prompt_tokens", "null"},
    {"include_stop_str_in_output", "false"},
    {"skip_special_tokens", "true"},
    {"spaces_between_special_tokens", "true"},
    {"add_special_tokens", "true"},
    {"response_format", "{\"type\":\"text\"}"},
    {"structured_outputs", "null"},
    {"guided_json", "null"},
    {"guided_regex", "null"},
    {"guided_choice", "null"},
    {"guided_grammar", "null"},
    {"grammar", "\"\""},
    {"json_schema", "null"},
    {"return_tokens_as_token_ids", "false"},
    {"return_token_ids", "false"},
    {"tools", "[]"},
    {"tool_choice", NULL},
    {"parallel_tool_calls", NULL},
    {"functions", "[]"},
    {"function_call", NULL},
    {"modalities", "[\"text\"]"},
    {"audio", "null"},
    {"prediction", "null"},
    {"reasoning_effort", "null"},
    {"verbosity", "null"},
    {"web_search_options", "null"},
    {"add_generation_prompt", "true"},
    {"continue_final_message", "false"},
    {"chat_template", "null"},
    {"chat_template_kwargs", "{}"},
    {"kv_transfer_params", "null"},
    {"vllm_xargs", "null"},
};

/* Equal as values: 0.0 is 0. */
static bool same_value(const json_t *value, const char *text)
{
    json_t *idle = json_loads(text, JSON_DECODE_ANY, NULL);
    CHECK(idle);
    bool same = json_is_number(idle)
                    ? json_is_number(value) && json_number_value(value) == json_number_value(idle)
                    : json_equal(value, idle);
    json_decref(idle);
    return same;
}

static int tolerate(const struct reader *r, const char *name, const char *idle, const json_t *value)
{
    if (!idle || json_is_null(value) || same_value(value, idle))
        return 0;
    if (!strcmp(idle, "null"))
        return err_field(r->err, name, "is not supported");
    return err_field(r->err, name, "is not supported: only %s, which changes nothing", idle);
}

/* vLLM says -1 for all tokens; OpenAI has 0 for the likeliest alone. */
static void tolerate_off(json_t *body)
{
    const json_t *top_k = json_object_get(body, "top_k"), *top_p = json_object_get(body, "top_p");
    if (json_is_integer(top_k) && json_integer_value(top_k) == -1)
        json_object_del(body, "top_k");
    if (json_is_number(top_p) && json_number_value(top_p) == 0)
        json_object_set_new(body, "top_p", json_real(1e-6));
}

int fields_tolerate(const struct reader *r, json_t *body)
{
    for (int i = 0; i < COUNT(tolerated); i++) {
        const char *name = tolerated[i].name;
        const json_t *value = json_object_get(body, name);
        if (value && tolerate(r, name, tolerated[i].idle, value))
            return -1;
        json_object_del(body, name);
    }
    tolerate_off(body);
    return 0;
}

/* ---- the request ---- */

int stream_options_read(const struct reader *r, const json_t *value, bool *include_usage)
{
    struct options {
        bool include_usage, continuous, obfuscation;
    } out = {0};
    static const struct field fields[] = {
        {"include_usage", FIELD_BOOL, .offset = offsetof(struct options, include_usage)},
        {"continuous_usage_stats", FIELD_BOOL, .offset = offsetof(struct options, continuous)},
        {"include_obfuscation", FIELD_BOOL, .offset = offsetof(struct options, obfuscation)},
    };
    if (value && fields_read(r, top("stream_options"), value, fields, COUNT(fields), &out))
        return -1;
    if (out.continuous || out.obfuscation)
        return err_field(r->err, "stream_options", "only include_usage is supported");
    *include_usage = out.include_usage;
    return 0;
}

/* Several prompts are an array whose first element is one. */
static bool is_list(const json_t *value)
{
    const json_t *first = json_is_array(value) ? json_array_get(value, 0) : NULL;
    return first && !json_is_number(first);
}

static int read_prompts(const struct reader *r, const json_t *value, struct complete *out)
{
    bool list = is_list(value);
    size_t n = list ? json_array_size(value) : 1, max = (size_t)r->info->limits.max_completions;
    if (json_is_array(value) && json_array_size(value) == 0)
        return err_field(r->err, "prompt", "is empty");
    if (n > max)
        return err_field(r->err, "prompt", "%zu prompts exceed the limit %zu", n, max);
    out->prompts = ARENA_NEW(r->arena, struct prompt, n);
    out->n_prompts = (int)n;
    for (size_t i = 0; i < n; i++)
        if (prompt_read(r, list ? place_index(top("prompt"), i) : top("prompt"),
                        list ? json_array_get(value, i) : value, &out->prompts[i]))
            return -1;
    return 0;
}

static int check_choices(const struct reader *r, const struct draft *d, const struct job *j)
{
    if (d->best_of && d->best_of != d->n)
        return err_field(r->err, "best_of", "%d is not n = %d; particles do what best_of is for",
                         d->best_of, d->n);
    if (d->n > MAX_CHOICES / j->complete.n_prompts)
        return err_field(r->err, "n", "%d choices for each of %d prompts exceed the limit of %d",
                         d->n, j->complete.n_prompts, MAX_CHOICES);
    if (j->n_potentials && d->particles && d->particles < d->n)
        return err_field(r->err, "particles", "%d is less than n = %d", d->particles, d->n);
    if (j->n_potentials && !d->max_tokens)
        return err_field(r->err, "potential", "has no text to weigh with max_tokens 0");
    return 0;
}

/* Without potentials all weights are equal, whatever else the request says: n texts of the prior.
 */
static int read_population(const struct reader *r, const struct draft *d, struct job *j)
{
    struct draft of = *d;
    bool plain = !j->n_potentials;
    int particles = d->n > PARTICLES ? d->n : PARTICLES;
    of.particles = plain ? d->n : d->particles ? d->particles : particles;
    of.max_tokens = d->max_tokens ? d->max_tokens : 1;
    if (population_read(r, &of, j))
        return -1;
    if (plain) {
        j->twist = (struct twist_choice){0};
        j->ess_threshold = 0;
    }
    return proposal_set(r, d->proposal, j);
}

/* Each prompt with what it is to be continued by; the first one is left as the job's own. */
static int check_fit(const struct reader *r, const struct draft *d, struct job *j)
{
    bool list = is_list(d->prompt);
    for (int i = j->complete.n_prompts - 1; i >= 0; i--) {
        struct place at = d->messages ? top("messages") : top("prompt");
        at = list ? place_index(at, (size_t)i) : at;
        prompt_set(j, &j->complete.prompts[i]);
        if (fit_check(r, d, j, at, segments_length(j), top("max_tokens")))
            return -1;
    }
    return 0;
}

int completion_make(const struct reader *r, const struct draft *d, struct job *j)
{
    struct complete *c = &j->complete;
    c->n = d->n;
    c->draws = d->max_tokens > 0;
    c->echo = d->echo;
    c->logprobs = d->top_logprobs;
    if (target_read(r, d, j) || check_choices(r, d, j) || read_population(r, d, j))
        return -1;
    c->tokens = d->stream && c->draws && c->logprobs < 0 && !j->n_potentials;
    return check_fit(r, d, j);
}

static int make_completion(const struct reader *r, const struct draft *d, struct job *j)
{
    return read_prompts(r, d->prompt, &j->complete) ? -1 : completion_make(r, d, j);
}

static const struct field completion_fields[] = {
    TARGET_FIELDS,
    POPULATION_FIELDS(1, 0),
    {"twist", FIELD_ANY, DRAFT(twist)},
    {"proposal", FIELD_CHOICE, DRAFT(proposal), .choices = proposal_names},
    {"n", FIELD_INT, DRAFT(n), .min = 1, FIELD_LIMIT(max_particles)},
    {"best_of", FIELD_INT, DRAFT(best_of), .min = 1, FIELD_LIMIT(max_particles)},
    {"echo", FIELD_BOOL, DRAFT(echo)},
    {"logprobs", FIELD_INT, DRAFT(top_logprobs), .min = 0, .max = TOP_MAX},
    {"stream_options", FIELD_ANY, DRAFT(stream_options)},
};

int request_completion(struct job **out, struct request_opts *opts, const char *text, size_t len,
                       const struct engine_info *info, struct err *err)
{
    static const struct request_form form = {completion_fields,
                                             COUNT(completion_fields),
                                             .defaults = {.temperature = 1,
                                                          .top_p = 1,
                                                          .n = 1,
                                                          .max_tokens = MAX_TOKENS,
                                                          .top_logprobs = -1},
                                             .make = make_completion,
                                             .kind = JOB_COMPLETE,
                                             .prefix = "cmpl",
                                             .tolerant = true};
    return request_read(&form, out, opts, text, len, info, err);
}
