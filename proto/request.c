#include "request.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "../core/tokenizer.h"
#include "../core/utf8.h"
#include "draft.h"

#define COUNT(table) ((int)(sizeof(table) / sizeof *(table)))

static const struct place body = {""};

struct place top(const char *field)
{
    return place_field(body, field);
}

static uint64_t random_bits(void)
{
    uint64_t bits;
    ssize_t n;
    do
        n = getrandom(&bits, sizeof bits, 0);
    while (n < 0 && errno == EINTR);
    CHECK(n == sizeof bits);
    return bits;
}

static int read_model(const struct reader *r, const json_t *value)
{
    if (!value)
        return 0;
    if (!json_is_string(value))
        return wrong_type(r, top("model"), "a string", value);
    if (!strcmp(json_string_value(value), r->info->model))
        return 0;
    err_field(r->err, "model", "\"%.80s\" is not loaded, \"%s\" is", json_string_value(value),
              r->info->model);
    r->err->code = ERR_NOT_FOUND;
    return -1;
}

void prompt_decode(const struct reader *r, struct prompt *out)
{
    struct buf bytes = {0}, text = {0};
    for (int i = 0; i < out->ids.n; i++) {
        size_t len;
        const char *piece = tokenizer_piece(r->info->tokenizer, out->ids.id[i], &len);
        buf_add(&bytes, piece, len);
    }
    utf8_sanitize(&text, bytes.data, bytes.len);
    out->len = text.len;
    out->text = text.len ? arena_strdup(r->arena, text.data, text.len) : "";
    buf_free(&bytes);
    buf_free(&text);
}

/* The prompt as text, for templates of judges: as it was written, or as its ids read. */
static void keep_text(const struct reader *r, const json_t *value, struct prompt *out)
{
    if (!json_is_string(value)) {
        prompt_decode(r, out);
        return;
    }
    out->len = json_string_length(value);
    out->text = arena_strdup(r->arena, json_string_value(value), out->len);
}

int prompt_read(const struct reader *r, struct place at, const json_t *value, struct prompt *out)
{
    json_t *empty = value ? NULL : json_string("");
    const json_t *prompt = value ? value : empty;
    int rc = model_text_read(r, at, prompt, TOKENIZE_START, &out->ids);
    if (!rc)
        keep_text(r, prompt, out);
    json_decref(empty);
    if (!rc && !out->ids.n)
        return err_field(r->err, at.s,
                         "is empty and gets no BOS; the first token needs one before it");
    return rc;
}

void prompt_set(struct job *j, const struct prompt *p)
{
    j->prompt_ids = p->ids;
    j->prompt = p->text;
    j->prompt_len = p->len;
}

static int read_prompt(const struct reader *r, const struct draft *d, struct job *j)
{
    struct prompt prompt;
    if (prompt_read(r, top("prompt"), d->prompt, &prompt))
        return -1;
    prompt_set(j, &prompt);
    return 0;
}

static int read_logit_bias(const struct reader *r, const json_t *value, struct job *j)
{
    struct biases list;
    if (!value)
        return 0;
    if (biases_read(r, top("logit_bias"), value, BIAS_BY_ID, &list))
        return -1;
    j->bias_id = list.id;
    j->bias = list.bias;
    j->n_bias = list.n;
    return 0;
}

static int set_prior(const struct reader *r, const struct draft *d, struct job *j)
{
    bool greedy = d->temperature == 0;
    int vocab = r->info->config.vocab;
    if (!greedy && d->temperature < TEMPERATURE_MIN)
        return err_field(r->err, "temperature", "%.15g is neither 0 nor in %g..%g", d->temperature,
                         TEMPERATURE_MIN, TEMPERATURE_MAX);
    j->temperature = greedy ? 1 : (float)d->temperature;
    j->top_k = greedy ? 1 : d->top_k < vocab ? d->top_k : 0;
    j->top_p = (float)d->top_p;
    j->min_tokens = d->min_tokens;
    j->ignore_eos = d->ignore_eos;
    return read_logit_bias(r, d->logit_bias, j);
}

static int read_seed(const struct reader *r, const json_t *value, uint64_t *out)
{
    static const char expected[] = "an integer of 64 bits, or one as a string";
    if (!value) {
        *out = random_bits() >> 11; /* below 2^53: every JSON reader takes it exactly */
        return 0;
    }
    if (json_is_string(value)) {
        const char *s = json_string_value(value);
        size_t digits = strspn(s + (*s == '-'), "0123456789");
        errno = 0;
        long long n = strtoll(s, NULL, 10);
        *out = (uint64_t)n;
        if (digits && digits + (*s == '-') == json_string_length(value) && !errno)
            return 0;
        return wrong_type(r, top("seed"), expected, value);
    }
    int64_t n;
    /* A real beyond 2^53 is what is left of an integer that had no exact form. */
    bool exact =
        json_is_integer(value) || (json_is_real(value) && json_real_value(value) < 0x1p53 &&
                                   json_real_value(value) > -0x1p53);
    if (!exact || !json_to_integer(value, &n))
        return wrong_type(r, top("seed"), expected, value);
    *out = (uint64_t)n;
    return 0;
}

static int read_resampling(const struct reader *r, const json_t *value, struct job *j)
{
    static const char *const schemes[] = {"systematic", "stratified", "multinomial", "residual",
                                          NULL}; /* as enum resample_scheme */
    struct resampling {
        int scheme;
        double ess_threshold;
    } out = {(int)j->scheme, j->ess_threshold};
    static const struct field fields[] = {
        {"scheme", FIELD_CHOICE, offsetof(struct resampling, scheme), .choices = schemes},
        {"ess_threshold", FIELD_NUMBER, offsetof(struct resampling, ess_threshold), .min = 0,
         .max = 1},
    };
    if (value && fields_read(r, top("resampling"), value, fields, COUNT(fields), &out))
        return -1;
    j->scheme = (enum resample_scheme)out.scheme;
    j->ess_threshold = out.ess_threshold;
    return 0;
}

static int read_events(const struct reader *r, const json_t *value, struct job *j)
{
    static const char *const names[] = {"step", "resample", "sample", "particles", NULL};
    bool *wanted[] = {&j->ev_step, &j->ev_resample, &j->ev_sample, &j->ev_particles};
    if (!value)
        return 0;
    if (!json_is_array(value))
        return wrong_type(r, top("events"), "an array", value);
    for (int i = 0; names[i]; i++)
        *wanted[i] = false;
    for (size_t i = 0; i < json_array_size(value); i++) {
        int which;
        if (choice_read(r, place_index(top("events"), i), json_array_get(value, i), names, &which))
            return -1;
        *wanted[which] = true;
    }
    j->ev_step |= j->ev_particles; /* its texts travel in step events */
    return 0;
}

static int read_completions(const struct reader *r, const json_t *value, struct job *j)
{
    if (!json_is_array(value))
        return wrong_type(r, top("completions"), "an array of strings or arrays of token ids",
                          value);
    size_t n = json_array_size(value), max = (size_t)r->info->limits.max_completions;
    if (!n)
        return err_field(r->err, "completions", "is empty");
    if (n > max)
        return err_field(r->err, "completions", "%zu texts exceed the limit %zu", n, max);
    j->completions = ARENA_NEW(r->arena, struct ids, n);
    for (size_t i = 0; i < n; i++)
        if (insert_read(r, place_index(top("completions"), i), json_array_get(value, i),
                        &j->completions[i]))
            return -1;
    j->n_completions = (int)n;
    return 0;
}

int target_read(const struct reader *r, const struct draft *d, struct job *j)
{
    if (read_model(r, d->model) || set_prior(r, d, j) || potentials_read(r, d->potential, j))
        return -1;
    return twist_read(r, d->twist, j);
}

int population_read(const struct reader *r, const struct draft *d, struct job *j)
{
    j->particles = d->particles;
    if (read_resampling(r, d->resampling, j) || read_seed(r, d->seed, &j->seed))
        return -1;
    return segments_read(r, d, j);
}

int fit_check(const struct reader *r, const struct draft *d, const struct job *j,
              struct place prompt, int64_t longest, struct place why)
{
    int context = r->info->context;
    if (j->prompt_ids.n >= context)
        return err_field(r->err, prompt.s, "%d tokens leave no room in the context of %d",
                         j->prompt_ids.n, context);
    if (longest > context - j->prompt_ids.n)
        return err_field(r->err, why.s, "%lld tokens after a prompt of %d exceed the context of %d",
                         (long long)longest, j->prompt_ids.n, context);
    return potentials_fit(r, d->potential, j, j->prompt_ids.n + longest);
}

static int check_completions_fit(const struct reader *r, const struct draft *d, const struct job *j)
{
    int longest = 0;
    for (int i = 1; i < j->n_completions; i++)
        if (j->completions[i].n > j->completions[longest].n)
            longest = i;
    return fit_check(r, d, j, top("prompt"), j->completions[longest].n,
                     place_index(top("completions"), (size_t)longest));
}

static void set_id(struct job *j, const char *prefix)
{
    snprintf(j->id, sizeof j->id, "%s-%016llx", prefix, (unsigned long long)random_bits());
}

int request_read(const struct request_form *form, struct job **out, struct request_opts *opts,
                 const char *text, size_t len, const struct engine_info *info, struct err *err)
{
    json_t *json = body_parse(text, len, err);
    if (!json)
        return -1;
    struct job *j = job_new();
    struct reader r = {.arena = &j->arena, .info = info, .err = err};
    struct draft d = form->defaults;
    d.body = json;
    j->kind = form->kind;
    int rc = form->tolerant ? fields_tolerate(&r, json) : 0;
    if (!rc)
        rc = fields_read(&r, body, json, form->fields, form->n_fields, &d);
    r.special = j->special = d.special;
    if (!rc)
        rc = form->make(&r, &d, j);
    if (!rc)
        rc = stream_options_read(&r, d.stream_options, &opts->include_usage);
    json_decref(json);
    if (rc) {
        job_free(j);
        return -1;
    }
    set_id(j, form->prefix);
    opts->stream = d.stream;
    opts->chat = d.messages != NULL;
    *out = j;
    return 0;
}

/* ---- /v1/sample ---- */

static const struct field sample_fields[] = {
    TARGET_FIELDS,
    POPULATION_FIELDS(1, 1),
    {"twist", FIELD_ANY, DRAFT(twist)},
    {"proposal", FIELD_CHOICE, DRAFT(proposal), .choices = proposal_names},
    {"segments", FIELD_ANY, DRAFT(segments)},
    {"logprobs", FIELD_BOOL, DRAFT(logprobs)},
    {"events", FIELD_ANY, DRAFT(events)},
};

static int make_sample(const struct reader *r, const struct draft *d, struct job *j)
{
    if (read_prompt(r, d, j) || target_read(r, d, j) || proposal_set(r, d->proposal, j) ||
        population_read(r, d, j) || read_events(r, d->events, j))
        return -1;
    j->logprobs = d->logprobs;
    return fit_check(r, d, j, top("prompt"), segments_length(j),
                     top(d->segments ? "segments" : "max_tokens"));
}

int request_sample(struct job **out, struct request_opts *opts, const char *text, size_t len,
                   const struct engine_info *info, struct err *err)
{
    static const struct request_form form = {
        sample_fields,
        COUNT(sample_fields),
        .defaults = {.temperature = 1, .top_p = 1, .particles = 16, .stream = true},
        .make = make_sample,
        .kind = JOB_SAMPLE,
        .prefix = "smp"};
    return request_read(&form, out, opts, text, len, info, err);
}

/* ---- /v1/score ---- */

static const struct field score_fields[] = {
    TARGET_FIELDS,
    {"twist", FIELD_ANY, DRAFT(twist)},
    {"completions", FIELD_ANY, DRAFT(completions), .required = true},
    {"per_token", FIELD_BOOL, DRAFT(per_token)},
};

static int make_score(const struct reader *r, const struct draft *d, struct job *j)
{
    if (read_prompt(r, d, j) || target_read(r, d, j) || proposal_set(r, d->proposal, j) ||
        read_completions(r, d->completions, j))
        return -1;
    j->per_token = d->per_token;
    return check_completions_fit(r, d, j);
}

int request_score(struct job **out, const char *text, size_t len, const struct engine_info *info,
                  struct err *err)
{
    static const struct request_form form = {
        score_fields,       COUNT(score_fields), .defaults = {.temperature = 1, .top_p = 1},
        .make = make_score, .kind = JOB_SCORE,   .prefix = "scr"};
    struct request_opts whole;
    return request_read(&form, out, &whole, text, len, info, err);
}

/* ---- /v1/bounds ---- */

static const struct field bounds_fields[] = {
    TARGET_FIELDS,
    POPULATION_FIELDS(1, 1),
    {"twist", FIELD_ANY, DRAFT(twist)},
    {"proposal", FIELD_CHOICE, DRAFT(proposal), .choices = proposal_names},
    {"segments", FIELD_ANY, DRAFT(segments)},
    {"targets", FIELD_ANY, DRAFT(targets)},
    {"repeats", FIELD_INT, DRAFT(repeats), .min = 1, .max = 1000},
};

static int make_bounds(const struct reader *r, const struct draft *d, struct job *j)
{
    if (read_prompt(r, d, j) || target_read(r, d, j) || proposal_set(r, d->proposal, j) ||
        population_read(r, d, j))
        return -1;
    if (j->n_segments > 1)
        return err_field(r->err, "segments", "bounds are of texts with one hole and nothing else");
    j->repeats = d->repeats;
    if (fit_check(r, d, j, top("prompt"), segments_length(j),
                  top(d->segments ? "segments" : "max_tokens")))
        return -1;
    return targets_read(r, d, j);
}

int request_bounds(struct job **out, struct request_opts *opts, const char *text, size_t len,
                   const struct engine_info *info, struct err *err)
{
    static const struct request_form form = {
        bounds_fields,
        COUNT(bounds_fields),
        .defaults = {.temperature = 1, .top_p = 1, .particles = 16, .repeats = 4, .stream = true},
        .make = make_bounds,
        .kind = JOB_BOUNDS,
        .prefix = "bnd"};
    return request_read(&form, out, opts, text, len, info, err);
}
